//! bpf(2) and the scheduler, in the few forms that measuring needs. Every `unsafe` of this package is here.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::asm::Insn;

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const PROG_LOAD: libc::c_long = 5;
const OBJ_GET: libc::c_long = 7;
const PROG_TEST_RUN: libc::c_long = 10;
const LINK_CREATE: libc::c_long = 28;

/// `BPF_TCX_INGRESS`.
pub(crate) const TCX_INGRESS: u32 = 46;
/// `BPF_TCX_EGRESS`.
pub(crate) const TCX_EGRESS: u32 = 47;

/// `BPF_PROG_TYPE_SCHED_CLS`.
const SCHED_CLS: u32 = 3;
/// `BPF_PROG_TYPE_XDP`.
const XDP: u32 = 6;
/// `BPF_F_TEST_XDP_LIVE_FRAMES`.
const LIVE_FRAMES: u32 = 2;

/// `BPF_MAP_TYPE_HASH`.
pub(crate) const HASH: u32 = 1;
/// `BPF_MAP_TYPE_ARRAY`.
pub(crate) const ARRAY: u32 = 2;
/// `BPF_MAP_TYPE_PROG_ARRAY`.
pub(crate) const PROG_ARRAY: u32 = 3;

/// The system call. Pointers in `attr` are the caller's promise.
fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a live, exclusively borrowed `repr(C)` value whose size is passed; the kernel copies it and
    // follows only the pointers that the callers in this file put there.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(result).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel just returned this descriptor to us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn length(bytes: usize) -> io::Result<u32> {
    u32::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

#[repr(C)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
}

/// Makes a map.
pub(crate) fn map(kind: u32, key: u32, value: u32, entries: u32) -> io::Result<OwnedFd> {
    owned(bpf(
        MAP_CREATE,
        &mut MapCreate {
            kind,
            key_size: key,
            value_size: value,
            max_entries: entries,
            flags: 0,
        },
    )?)
}

#[repr(C)]
struct Element {
    map: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// Writes an entry. Key and value must have the sizes of the map: they are this package's own constants.
pub(crate) fn update(map: BorrowedFd<'_>, key: &[u8], value: &[u8]) -> io::Result<()> {
    bpf(
        MAP_UPDATE_ELEM,
        &mut Element {
            map: raw(map),
            pad: 0,
            key: key.as_ptr() as u64,
            value: value.as_ptr() as u64,
            flags: 0,
        },
    )
    .map(drop)
}

#[repr(C)]
struct ProgLoad {
    kind: u32,
    count: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kern_version: u32,
    flags: u32,
    name: [u8; 16],
}

/// Loads a classifier; an error carries the verifier's words.
pub(crate) fn load(name: &str, insns: &[Insn]) -> io::Result<OwnedFd> {
    load_kind(SCHED_CLS, name, insns)
}

/// Loads an XDP program; an error carries the verifier's words.
pub(crate) fn load_xdp(name: &str, insns: &[Insn]) -> io::Result<OwnedFd> {
    load_kind(XDP, name, insns)
}

fn load_kind(kind: u32, name: &str, insns: &[Insn]) -> io::Result<OwnedFd> {
    let mut log = vec![0u8; 1 << 16];
    let mut attr = ProgLoad {
        kind,
        count: length(insns.len())?,
        insns: insns.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
        log_level: 1,
        log_size: length(log.len())?,
        log: log.as_mut_ptr() as u64,
        kern_version: 0,
        flags: 0,
        name: [0; 16],
    };
    for (to, from) in attr.name.iter_mut().zip(name.bytes().take(15)) {
        *to = from;
    }
    match bpf(PROG_LOAD, &mut attr).and_then(owned) {
        Ok(fd) => Ok(fd),
        Err(error) => {
            let end = log.iter().position(|byte| *byte == 0).unwrap_or(0);
            let words = String::from_utf8_lossy(log.get(..end).unwrap_or_default());
            Err(io::Error::new(
                error.kind(),
                format!("program {name}: {error}\n{words}"),
            ))
        }
    }
}

#[repr(C)]
#[derive(Default)]
struct ObjGet {
    pathname: u64,
    fd: u32,
    file_flags: u32,
}

/// Bytes that the kernel says a pinned map occupies, and its capacity (`memlock` and `max_entries` of fdinfo).
pub(crate) fn map_memory(path: &Path) -> io::Result<(u64, u64)> {
    let text = CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut attr = ObjGet {
        pathname: text.as_ptr() as u64,
        ..ObjGet::default()
    };
    let fd = owned(bpf(OBJ_GET, &mut attr)?)?;
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{}", fd.as_raw_fd()))?;
    let field = |name: &str| {
        info.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            .unwrap_or(0)
    };
    Ok((field("memlock:"), field("max_entries:")))
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    prog: u32,
    retval: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    pad: u32,
}

/// One burst of runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Burst {
    /// What the last run returned.
    pub(crate) retval: u32,
    /// When it began.
    pub(crate) start: Instant,
    /// How long it took, the system call included.
    pub(crate) took: Duration,
    /// Runs.
    pub(crate) runs: u32,
}

impl Burst {
    /// Nanoseconds of one run.
    pub(crate) fn ns(&self) -> f64 {
        self.took.as_secs_f64() * 1e9 / f64::from(self.runs.max(1))
    }
}

/// Runs a classifier over a frame again and again (`BPF_PROG_TEST_RUN`). The kernel keeps one packet for the whole
/// burst, so that what a program writes into it is there at the next run.
pub(crate) fn test_run(prog: BorrowedFd<'_>, frame: &[u8], runs: u32) -> io::Result<Burst> {
    let mut attr = TestRun {
        prog: raw(prog),
        size_in: length(frame.len())?,
        data_in: frame.as_ptr() as u64,
        repeat: runs,
        ..TestRun::default()
    };
    // The kernel's own figure is rounded to whole nanoseconds: the clock around the call is finer.
    let start = Instant::now();
    bpf(PROG_TEST_RUN, &mut attr)?;
    Ok(Burst {
        retval: attr.retval,
        start,
        took: start.elapsed(),
        runs,
    })
}

/// The fields of `BPF_LINK_CREATE` that TCX looks at (include/uapi/linux/bpf.h).
#[repr(C)]
struct LinkCreate {
    prog: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    pad: u32,
    revision: u64,
}

/// Puts a program on a TCX hook of a device in the caller's network namespace (Linux 6.6 and later); it stays while the
/// link is open.
pub(crate) fn link_tcx(prog: BorrowedFd<'_>, ifindex: u32, hook: u32) -> io::Result<OwnedFd> {
    owned(bpf(
        LINK_CREATE,
        &mut LinkCreate {
            prog: raw(prog),
            ifindex,
            attach_type: hook,
            flags: 0,
            relative: 0,
            pad: 0,
            revision: 0,
        },
    )?)
}

/// Makes frames with an XDP program and lets them go where it says, in the caller's network namespace
/// (`BPF_F_TEST_XDP_LIVE_FRAMES`, Linux 5.18 and later). Gives the nanoseconds of one frame by the kernel's clock, in whole
/// ones: around the system call the set-up would count as well, which takes grace periods.
pub(crate) fn live_frames(prog: BorrowedFd<'_>, frame: &[u8], count: u32) -> io::Result<u32> {
    let mut attr = TestRun {
        prog: raw(prog),
        size_in: length(frame.len())?,
        data_in: frame.as_ptr() as u64,
        repeat: count,
        flags: LIVE_FRAMES,
        batch_size: 64.min(count),
        ..TestRun::default()
    };
    bpf(PROG_TEST_RUN, &mut attr)?;
    Ok(attr.duration)
}

/// Pins this thread to a CPU and gives it real-time priority, so that a burst is interrupted by nothing but the kernel.
/// False when the priority was refused.
pub(crate) fn run_alone(cpu: usize, priority: i32) -> io::Result<bool> {
    let mut set = nix::sched::CpuSet::new();
    set.set(cpu)?;
    nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &set)?;
    let param = libc::sched_param {
        sched_priority: priority,
    };
    // SAFETY: a live parameter structure; 0 is the calling thread.
    Ok(unsafe { libc::sched_setscheduler(0, libc::SCHED_FIFO, &raw const param) } == 0)
}

/// CPUs that this process may use.
pub(crate) fn cpus() -> io::Result<Vec<usize>> {
    let set = nix::sched::sched_getaffinity(nix::unistd::Pid::from_raw(0))?;
    Ok((0..nix::sched::CpuSet::count())
        .filter(|cpu| set.is_set(*cpu).unwrap_or(false))
        .collect())
}

/// A program array with one program in slot 0.
pub(crate) fn tail(target: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let array = map(PROG_ARRAY, 4, 4, 1)?;
    update(array.as_fd(), &[0; 4], &raw(target).to_ne_bytes())?;
    Ok(array)
}
