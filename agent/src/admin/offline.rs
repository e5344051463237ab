//! What an operator can do when no daemon answers: the pinned maps hold everything that matters.

use std::path::Path;

use datapath::abi::ActiveWord;

use crate::kernel::pins::PinDir;
use crate::kernel::{KernelError, OfflineKernel, PanicMode, attach, clock};
use crate::reconcile::store::{Store, StoreError};

/// Why it could not be done.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The pins.
    #[error("no daemon answers, and the pins cannot be used: {0}")]
    Kernel(#[from] KernelError),
    /// The state directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nothing waits.
    #[error("nothing waits for a confirmation{}", if *.fell_back { ": the kernel has fallen back already" } else { "" })]
    NothingPending {
        /// It was too late.
        fell_back: bool,
    },
}

/// Throws the panic switch in the pinned settings.
///
/// # Errors
/// When nothing is pinned.
pub fn panic(pin_dir: &Path, mode: PanicMode) -> Result<(), OfflineError> {
    Ok(OfflineKernel::open(pin_dir)?.set_panic(mode)?)
}

/// Makes the waiting change final, in the kernel and on disk.
///
/// # Errors
/// When nothing waits, or it was too late.
pub fn confirm(pin_dir: &Path, state_dir: &Path) -> Result<u64, OfflineError> {
    let kernel = OfflineKernel::open(pin_dir)?;
    let word = kernel.word();
    let (_, _, fell_back) = word.effective(clock::boot_ns() / 1_000_000_000);
    if !word.is_pending() || fell_back {
        return Err(OfflineError::NothingPending { fell_back });
    }
    kernel.exchange(word, ActiveWord::committed(word.generation(), word.slot()))?;
    let store = Store::open(state_dir)?;
    match store.intent() {
        Some(intent) if intent.is_in(word) => {
            store.set_good(&intent.stored)?;
            store.clear_intent()?;
            Ok(intent.stored.snapshot.revision)
        }
        // The next daemon finds the content in the kernel, under a name that it does not know.
        _ => Ok(0),
    }
}

/// Takes the hooks off every device and removes the pins: everything passes.
///
/// # Errors
/// When a pin cannot be removed.
pub fn release(dir: &PinDir) -> Result<usize, KernelError> {
    let released = attach::release_all(dir)?;
    dir.remove()?;
    Ok(released)
}
