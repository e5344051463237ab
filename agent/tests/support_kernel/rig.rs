//! The loaded object on maps of its own.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;

use agent::kernel::content::Content;
use agent::kernel::loader::{EGRESS, INGRESS, TableSizes};
use agent::kernel::ring::Events;
use agent::kernel::{Kernel, PanicMode};
use datapath::abi::{ActiveWord, Config, Event, maps, panic};
use datapath::ids::Direction;
use datapath::pipeline::Action;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};

use super::skip;

/// Where the kernel offers a directory for it.
const BPFFS: &str = "/sys/fs/bpf";

/// Where rigs pin.
pub const ROOT: &str = "/sys/fs/bpf/cofferdam-test";

/// Segments that a merged packet stands for, as a driver would say it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Merged {
    /// `gso_segs`.
    pub segments: u32,
    /// `gso_size`.
    pub size: u32,
}

/// Kernel, event ring and the mount namespace that holds the pins: they go when it goes.
pub struct Rig {
    /// The maps and programs.
    pub kernel: Arc<Kernel>,
    events: Events,
    namespace: File,
}

impl Rig {
    /// Loads the object; `None`, loudly, where that cannot be done at all.
    pub fn open(sizes: TableSizes) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip("loading programs into the kernel needs root");
            return None;
        }
        if !agent::kernel::loader::has_object() {
            skip("this build carries no kernel object");
            return None;
        }
        let namespace = match private_bpffs() {
            Ok(namespace) => namespace,
            Err(error) => {
                skip(&format!(
                    "no bpffs in a mount namespace of its own: {error}"
                ));
                return None;
            }
        };
        let kernel = match open(Path::new(ROOT), sizes) {
            Ok(kernel) => kernel,
            // The verifier's refusal comes as EACCES too, and is no reason to skip anything.
            Err(error)
                if !error.to_string().contains("processed ")
                    && has_errno(&error, &[libc::EPERM, libc::EACCES, libc::ENOSYS]) =>
            {
                skip(&format!(
                    "the kernel lets nobody load programs here: {error}"
                ));
                return None;
            }
            Err(error) => panic!("the object does not load: {error}"),
        };
        let events = Events::open(&kernel.dir().map(maps::EVENTS)).expect("the ring opens");
        Some(Self {
            kernel: Arc::new(kernel),
            events,
            namespace,
        })
    }

    /// Lets this thread see the pins of a rig that another thread opened.
    pub fn enter(&self) {
        unshare(CloneFlags::CLONE_FS).expect("a root directory of its own");
        setns(&self.namespace, CloneFlags::CLONE_NEWNS).expect("the namespace is open");
    }

    /// Makes a word the active one, whatever was.
    pub fn set_word(&self, word: ActiveWord) {
        self.kernel
            .exchange(self.kernel.word(), word)
            .expect("nobody else writes the word");
    }

    /// Writes settings and the panic switch; the active word stays.
    pub fn set_config(&self, config: &Config) {
        let word = self.kernel.word();
        self.kernel.set_config(*config).expect("settings");
        let mode = match config.panic {
            panic::OPEN => PanicMode::Open,
            panic::CLOSE => PanicMode::Close,
            _ => PanicMode::Off,
        };
        if self.kernel.panic().expect("settings") != mode {
            self.kernel.set_panic(mode).expect("panic switch");
            self.set_word(word);
        }
    }

    /// Fills a slot.
    pub fn fill(&self, slot: u32, content: &Content) {
        let digest = self.kernel.fill(slot, content).expect("the slot fills");
        assert_eq!(digest, content.digest(), "read back as written");
    }

    /// Sends a frame through a hook. `None`: newer kernels run no program over a frame that ends inside its IP
    /// header (net/bpf/test_run.c), although a hook may well see one.
    pub fn send(
        &self,
        frame: &[u8],
        direction: Direction,
        merged: Option<Merged>,
    ) -> Option<Action> {
        let program = match direction {
            Direction::Ingress => INGRESS,
            Direction::Egress => EGRESS,
        };
        let run = match merged {
            None => self.kernel.test_run(program, frame, 1),
            Some(merged) => self.kernel.test_run_with(program, frame, &context(merged)),
        };
        let run = match run {
            Err(error) if has_errno(&error, &[libc::EINVAL]) && ends_in_ip_header(frame) => {
                return None;
            }
            run => run.unwrap_or_else(|error| panic!("{} bytes: {error}", frame.len())),
        };
        match run.retval {
            u32::MAX => Some(Action::Pass),
            2 => Some(Action::Drop),
            other => panic!("the program returned {other}"),
        }
    }

    /// Takes every notice out of the ring.
    pub fn drain(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        self.events.drain(usize::MAX, &mut events);
        assert_eq!(self.events.malformed(), 0);
        events
    }

    /// Empties flows, denials, fragments and the ring; counters go on.
    pub fn clear(&mut self) {
        self.kernel.clear_flows().expect("flows");
        self.kernel.clear_negatives();
        for (key, _) in self.kernel.denial_entries().expect("denials") {
            self.kernel.put_denial(&key, None).expect("denials");
        }
        for (key, _) in self.kernel.fragment_entries().expect("fragments") {
            self.kernel.put_fragment(&key, None).expect("fragments");
        }
        self.drain();
    }
}

/// Opens with the object that this build carries, or with the one that `COFFERDAM_TEST_OBJECT` names: a mutant, of
/// which the tests must find what is wrong.
pub fn open(root: &Path, sizes: TableSizes) -> agent::kernel::Result<Kernel> {
    match std::env::var_os("COFFERDAM_TEST_OBJECT") {
        None => Kernel::open(root, sizes, None),
        Some(path) => {
            let object = std::fs::read(path).expect("the object is readable");
            Kernel::open_object(root, sizes, None, &object)
        }
    }
}

/// A bpffs that only this thread sees: whatever happens to the process, the kernel forgets the pins with it,
/// and processes side by side do not meet.
fn private_bpffs() -> std::io::Result<File> {
    let none: Option<&Path> = None;
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    mount(Some("bpf"), BPFFS, Some("bpf"), MsFlags::empty(), none)?;
    File::open("/proc/thread-self/ns/mnt")
}

/// Whether the operating system gave one of these numbers as the cause.
fn has_errno(error: &agent::kernel::KernelError, numbers: &[i32]) -> bool {
    let mut cause: Option<&dyn std::error::Error> = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>()
            && let Some(number) = io.raw_os_error()
            && numbers.contains(&number)
        {
            return true;
        }
        cause = error.source();
    }
    false
}

fn ends_in_ip_header(frame: &[u8]) -> bool {
    match frame.get(12..14) {
        Some(&[0x08, 0x00]) => frame.len() < 14 + 20,
        Some(&[0x86, 0xdd]) => frame.len() < 14 + 40,
        _ => frame.len() < 15,
    }
}

/// A `struct __sk_buff` (include/uapi/linux/bpf.h) with the fields of a merged packet set.
fn context(merged: Merged) -> [u8; 192] {
    let mut bytes = [0; 192];
    bytes[164..168].copy_from_slice(&merged.segments.to_ne_bytes());
    bytes[176..180].copy_from_slice(&merged.size.to_ne_bytes());
    bytes
}
