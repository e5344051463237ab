//! A private load of the object for a replayed capture: maps that nobody else sees, and a clock that is written.
//!
//! Maps are shared between the loader and the rest of this module by pins. These pins lie on a bpffs in a mount
//! namespace of this process alone: no agent on the host meets them, and the kernel forgets them with the
//! process, however it ends. Nothing is attached.

use std::io;
use std::path::Path;

use datapath::abi::{Clock, maps};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::loader::{self, TableSizes, TimeSource};
use super::{Kernel, KernelError, Result};

/// Where the kernel offers a directory for a bpffs.
const BPFFS: &str = "/sys/fs/bpf";

/// A mount namespace with a bpffs of its own, entered by the calling thread.
#[derive(Debug)]
pub struct PrivatePins(());

impl PrivatePins {
    /// Moves the calling thread into a new mount namespace. Threads that it starts afterwards are in it too.
    ///
    /// # Errors
    /// Without `CAP_SYS_ADMIN`, or where `/sys/fs/bpf` is missing.
    pub fn enter() -> Result<Self> {
        let failed = |source: nix::Error| {
            KernelError::system("a bpffs in a mount namespace of its own")(io::Error::from(source))
        };
        let none: Option<&Path> = None;
        unshare(CloneFlags::CLONE_NEWNS).map_err(failed)?;
        // Without this the new mount would be seen outside.
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).map_err(failed)?;
        mount(
            Some("bpf"),
            BPFFS,
            Some("bpf"),
            MsFlags::empty(),
            Some("mode=0700"),
        )
        .map_err(failed)?;
        Ok(Self(()))
    }

    /// Loads the object once more, under a name that is used once. Its clock stands at 0 until it is written.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn open(&self, name: &str, sizes: TableSizes) -> Result<Kernel> {
        Kernel::open_at(
            &Path::new(BPFFS).join(name),
            sizes,
            None,
            loader::embedded()?,
            TimeSource::Written,
        )
    }
}

impl Kernel {
    /// Tells a kernel of [`PrivatePins::open`] what time it is from the next frame on.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn set_clock(&self, clock: &Clock) -> Result<()> {
        self.clock
            .set(&0, clock)
            .map_err(KernelError::map(maps::CLOCK, "write"))
    }
}
