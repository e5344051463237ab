//! The only place that talks to the kernel's BPF side: object, maps, links, rings, clock.
//!
//! Start at [`Kernel::open`]. What the rest of the agent decides is in `reconcile`; this module only does.
//! It must not know of policy, revisions or the controller.

pub mod attach;
pub mod attribution;
pub mod cgroup;
pub mod clock;
mod clsact;
pub mod content;
pub mod devices;
pub mod features;
pub(crate) mod flowtable;
mod host;
mod inspect;
mod layout;
pub mod loader;
mod map;
mod mapping;
pub mod netns;
pub mod pins;
pub mod replay;
pub mod ring;
mod rtnetlink;
mod shape;
mod slots;
pub mod sockdiag;
pub mod sockowner;
mod sys;
mod table;
mod verified;

use std::io;
use std::path::{Path, PathBuf};

pub(crate) use host::content_key;
pub use host::{Kernel, OfflineKernel, PanicMode, Totals};
pub use sys::TestRun;

/// Result of this module.
pub type Result<T, E = KernelError> = std::result::Result<T, E>;

/// Why the kernel side failed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// A pin could not be opened, made or removed.
    #[error("pin {}: {source}", path.display())]
    Pin {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The pin directory belongs to somebody else.
    #[error("pin directory {} belongs to uid {uid}: refusing to trust what is in it", path.display())]
    ForeignPinDir {
        /// Which.
        path: PathBuf,
        /// The owner.
        uid: u32,
    },
    /// A map operation failed.
    #[error("map {map}: {what}: {source}")]
    Map {
        /// Which.
        map: String,
        /// What was tried.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// What was read back differs from what was written.
    #[error(
        "slot {slot}, map {map}: what was read back differs from what was written ({read} entries, {written} meant)"
    )]
    ReadBack {
        /// Content slot.
        slot: u32,
        /// Which map.
        map: &'static str,
        /// Entries read.
        read: usize,
        /// Entries meant.
        written: usize,
    },
    /// The keys of a content collide whatever the length of their array.
    #[error("map {map}: the content cannot be laid out: too many of its keys have the same hash")]
    Layout {
        /// Which map.
        map: &'static str,
    },
    /// The object could not be loaded.
    #[error("loading the kernel object: {0}")]
    Load(#[from] Box<aya::EbpfError>),
    /// A program could not be loaded; carries the verifier's words.
    #[error("loading program {name}: {source}")]
    Program {
        /// Which.
        name: &'static str,
        /// Why.
        source: Box<aya::programs::ProgramError>,
    },
    /// The running kernel lacks what the agent cannot do without.
    #[error("this kernel ({kernel}) lacks what the agent needs: {missing}; nothing was loaded")]
    Unsupported {
        /// `uname -r`.
        kernel: String,
        /// Names of features, as `preflight` has them.
        missing: String,
    },
    /// This build carries no kernel object.
    #[error(
        "this build carries no kernel object (agent-ebpf/prebuilt/cofferdam.bpf.o was missing); run `cargo xtask build-ebpf` and build again"
    )]
    NoObject,
    /// The object has no such program.
    #[error("the kernel object has no program {0}")]
    NoProgram(&'static str),
    /// A hook could not be taken.
    #[error("attaching to {device} ({hook}): {source}")]
    Attach {
        /// Device name.
        device: String,
        /// ingress or egress.
        hook: &'static str,
        /// Why.
        source: io::Error,
    },
    /// Somebody else changed the active word at the same moment.
    #[error(
        "the active word changed from generation {expected} to {found} while it was being replaced"
    )]
    Raced {
        /// What was expected.
        expected: u32,
        /// What was there.
        found: u32,
    },
    /// Something of the operating system.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
}

impl KernelError {
    /// Whether the kernel said `EINVAL` to a call that no map was part of.
    pub(crate) fn is_invalid_argument(&self) -> bool {
        matches!(self, Self::System { source, .. } if source.raw_os_error() == Some(libc::EINVAL))
    }

    fn pin(path: &Path, source: io::Error) -> Self {
        Self::Pin {
            path: path.to_owned(),
            source,
        }
    }

    fn map(map: &str, what: &'static str) -> impl FnOnce(io::Error) -> Self {
        let map = map.to_owned();
        move |source| Self::Map { map, what, source }
    }

    fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }
}
