//! Loads the embedded object over pinned maps.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};

use aya::maps::ProgramArray;
use aya::programs::{Program, SchedClassifier};
use aya::{Ebpf, EbpfLoader};
use datapath::abi::{SLOTS, maps, tails};
use datapath::table;
use tracing::{info, warn};

use super::attribution;
use super::content::Part;
use super::map::RawMap;
use super::pins::{PinDir, PinProblem, PinState, SPECS};
use super::sys;
use super::{KernelError, Result};

#[repr(C, align(32))]
struct Aligned<T: ?Sized>(T);

/// The kernel object. ELF parsing wants alignment that `include_bytes!` alone does not give.
static OBJECT: &Aligned<[u8]> = &Aligned(*include_bytes!(env!("COFFERDAM_BPF_OBJECT")));

/// Program on ingress hooks.
pub const INGRESS: &str = "cofferdam_ingress";
/// Program on egress hooks.
pub const EGRESS: &str = "cofferdam_egress";
/// Program that is only ever test-run: it writes the clock.
pub const CLOCK: &str = "cofferdam_clock";

/// Programs that the hooks go on in: slot of TAILS, name.
const TAILS: [(u32, &str); 4] = [
    (tails::READ4, "cofferdam_read4"),
    (tails::READ6, "cofferdam_read6"),
    (tails::JUDGE4, "cofferdam_judge4"),
    (tails::JUDGE6, "cofferdam_judge6"),
];
/// Program that is only ever test-run: it moves what a negative entry has counted to its aggregate.
pub(crate) const FOLD: &str = "cofferdam_fold";
/// Programs that are only ever test-run: they put an entry into a flow table.
pub(crate) const SEED: [&str; 2] = ["cofferdam_seed4", "cofferdam_seed6"];
/// Programs that are only ever test-run: they take a spilled entry out.
pub(crate) const REAP: [&str; 2] = ["cofferdam_reap4", "cofferdam_reap6"];

/// Sizes of the tables whose capacity is configured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSizes {
    /// IPv4 flows.
    pub flows4: u32,
    /// IPv6 flows.
    pub flows6: u32,
    /// Aggregated denials.
    pub denies: u32,
    /// Bytes of the event ring, a power of two.
    pub ring: u32,
    /// Entries that the peers of one bucket may hold; 0 = as many as fit.
    pub share: u32,
}

impl TableSizes {
    fn by_name(self) -> BTreeMap<&'static str, u32> {
        BTreeMap::from([
            (maps::FLOWS4, table::sets(self.flows4)),
            (maps::LOCKS4, table::sets(self.flows4)),
            (maps::SPILL4, table::spill_room(self.flows4)),
            (maps::FLOWS6, table::sets(self.flows6)),
            (maps::LOCKS6, table::sets(self.flows6)),
            (maps::SPILL6, table::spill_room(self.flows6)),
            (maps::DENIES, self.denies),
            (maps::EVENTS, self.ring),
        ])
    }
}

/// What the loaded programs take for the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TimeSource {
    /// The kernel's clocks.
    Kernel,
    /// What user space writes before each frame: a capture is judged at its own time.
    Written,
}

/// Read-only data of the object: not 0 makes the time [`TimeSource::Written`].
const REPLAY: &str = "REPLAY";

/// The loaded programs.
pub struct Programs {
    bpf: Ebpf,
}

/// What was found at the pins.
#[derive(Clone, Debug)]
pub enum Pins {
    /// Nothing: the maps are new.
    Fresh,
    /// Everything as it must be: the maps of the agent before were reused.
    Reused,
    /// Something did not fit: the maps are new, and this is why.
    Rebuilt(Vec<PinProblem>),
}

/// SHA-256 of the embedded object, hex; empty when there is none.
#[must_use]
pub fn object_digest() -> String {
    use sha2::Digest;
    if OBJECT.0.is_empty() {
        String::new()
    } else {
        hex::encode(sha2::Sha256::digest(&OBJECT.0))
    }
}

/// The embedded object.
///
/// # Errors
/// When this build has none.
pub(super) fn embedded() -> Result<&'static [u8]> {
    if OBJECT.0.is_empty() {
        return Err(KernelError::NoObject);
    }
    Ok(&OBJECT.0)
}

/// Checks the pins, loads an object over them and the programs into the kernel. Nothing is attached.
///
/// # Errors
/// When a pin cannot be read, or the kernel refuses a map or program.
pub fn load(
    dir: &PinDir,
    sizes: TableSizes,
    remembered: Option<&PinState>,
    object: &[u8],
    time: TimeSource,
) -> Result<(Programs, Pins)> {
    let sizes = sizes.by_name();
    let pins = match dir.check(&sizes, remembered)? {
        None => Pins::Fresh,
        Some(problems) if problems.is_empty() => Pins::Reused,
        Some(problems) => {
            for problem in &problems {
                warn!(map = problem.map, what = %problem.what, "pinned map is not what this agent pinned: rebuilding");
            }
            dir.forget_maps()?;
            Pins::Rebuilt(problems)
        }
    };
    dir.set_tails_aside()?;
    raise_memlock();
    pin_outer_maps(dir)?;
    let mut loader = EbpfLoader::new();
    for spec in &SPECS {
        loader.map_pin_path(spec.name, dir.map(spec.name));
        if let Some(size) = sizes.get(spec.name) {
            loader.map_max_entries(spec.name, *size);
        }
    }
    loader.map_pin_path(maps::TAILS, dir.map(maps::TAILS));
    attribution::place_maps(dir, &mut loader)?;
    if time == TimeSource::Written {
        loader.override_global(REPLAY, &1u32, true);
    }
    let mut bpf = loader
        .load(object)
        .map_err(|error| KernelError::Load(Box::new(error)))?;
    let [seed4, seed6] = SEED;
    let [reap4, reap6] = REAP;
    let parts = TAILS.map(|(_, name)| name);
    let all = parts
        .into_iter()
        .chain([INGRESS, EGRESS, CLOCK, FOLD, seed4, seed6, reap4, reap6]);
    for name in all {
        let program = classifier(&mut bpf, name)?;
        program.load().map_err(|source| KernelError::Program {
            name,
            source: Box::new(source),
        })?;
    }
    connect(&mut bpf)?;
    info!(pins = ?pins, path = %dir.path().display(), "kernel object loaded");
    Ok((Programs { bpf }, pins))
}

/// Puts the programs into the array that their hooks go on through.
fn connect(bpf: &mut Ebpf) -> Result<()> {
    let mut fds = Vec::new();
    for (slot, name) in TAILS {
        let program = classifier(bpf, name)?;
        let fd = program
            .fd()
            .and_then(|fd| fd.try_clone().map_err(Into::into))
            .map_err(|source| KernelError::Program {
                name,
                source: Box::new(source),
            })?;
        fds.push((slot, fd));
    }
    let failed = |source: aya::maps::MapError| KernelError::Load(Box::new(source.into()));
    let map = bpf
        .map_mut(maps::TAILS)
        .ok_or(KernelError::NoProgram(maps::TAILS))?;
    let mut array = ProgramArray::try_from(map).map_err(failed)?;
    for (slot, fd) in &fds {
        array.set(*slot, fd, 0).map_err(failed)?;
    }
    Ok(())
}

/// Makes the arrays of maps that are not pinned yet, with templates like the maps that will go into them.
///
/// Those of the object have templates with type information. Kernels before 6.2 take no map without it in place
/// of one with it (`bpf_map_meta_equal` in kernel/bpf/map_in_map.c compares where a timer would be).
fn pin_outer_maps(dir: &PinDir) -> Result<()> {
    for part in Part::ALL {
        let path = dir.map(part.map());
        if path.exists() {
            continue;
        }
        let (key, value) = part.kernel_sizes();
        let (kind, flags) = part.kind();
        let size = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
        let outer = RawMap::create(kind, part.map(), size(key), size(value), 1, flags)
            .and_then(|inner| RawMap::create_array_of(&inner, part.map(), SLOTS))
            .map_err(KernelError::map(part.map(), "create"))?;
        sys::obj_pin(outer.fd(), &path).map_err(|source| KernelError::pin(&path, source))?;
    }
    Ok(())
}

fn classifier<'a>(bpf: &'a mut Ebpf, name: &'static str) -> Result<&'a mut SchedClassifier> {
    bpf.program_mut(name)
        .and_then(|program| program.try_into().ok())
        .ok_or(KernelError::NoProgram(name))
}

impl Programs {
    /// Loads a hook of sockets, which unlike a device's may be missing, and gives its descriptor.
    pub(crate) fn load_socket_hook(&mut self, name: &'static str) -> Result<BorrowedFd<'_>> {
        let program = self
            .bpf
            .program_mut(name)
            .ok_or(KernelError::NoProgram(name))?;
        let (loaded, fd) = match program {
            Program::CgroupSock(program) => (program.load(), program.fd()),
            Program::CgroupSockAddr(program) => (program.load(), program.fd()),
            Program::SockOps(program) => (program.load(), program.fd()),
            _ => return Err(KernelError::NoProgram(name)),
        };
        loaded
            .and(fd)
            .map(|fd| fd.as_fd())
            .map_err(|source| KernelError::Program {
                name,
                source: Box::new(source),
            })
    }

    /// The loaded object.
    pub(super) const fn object(&self) -> &Ebpf {
        &self.bpf
    }

    /// Calls `use_it` with a program's descriptor.
    pub(crate) fn with<T>(
        &self,
        name: &'static str,
        use_it: impl FnOnce(BorrowedFd<'_>) -> T,
    ) -> Result<T> {
        let program: &SchedClassifier = self
            .bpf
            .program(name)
            .and_then(|program| program.try_into().ok())
            .ok_or(KernelError::NoProgram(name))?;
        let fd = program.fd().map_err(|source| KernelError::Program {
            name,
            source: Box::new(source),
        })?;
        Ok(use_it(fd.as_fd()))
    }
}

/// Kernels before 5.11 charge BPF memory to this limit.
fn raise_memlock() {
    let limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: a live, initialised limit structure. Failure is harmless on every supported kernel.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &raw const limit) };
}

/// Whether a path exists that this build took its object from; for `preflight`.
#[must_use]
pub fn has_object() -> bool {
    !OBJECT.0.is_empty()
}
