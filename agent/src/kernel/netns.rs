//! Enters a network namespace, so that several agents can run on one machine (tests, demonstrations).

use std::fs::File;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

use super::{KernelError, Result};

/// The file of a namespace given as a path or as a name below `/run/netns`.
#[must_use]
pub fn path_of(name: &str) -> PathBuf {
    if name.contains('/') {
        PathBuf::from(name)
    } else {
        Path::new("/run/netns").join(name)
    }
}

/// Moves the calling thread into a network namespace. Call it before any thread is started: threads
/// inherit the namespace of the one that starts them.
///
/// # Errors
/// When the namespace does not exist or may not be entered.
pub fn enter(name: &str) -> Result<()> {
    let path = path_of(name);
    let file = File::open(&path).map_err(|source| KernelError::pin(&path, source))?;
    setns(file, CloneFlags::CLONE_NEWNET)
        .map_err(|errno| KernelError::system("entering the network namespace")(errno.into()))
}
