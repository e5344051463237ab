//! What the engine is asked, what it answers, and what it needs: of the kernel, and of the clocks.

use std::sync::Arc;
use std::time::Duration;

use datapath::abi::ActiveWord;
use policy::snapshot::Snapshot;

use super::failsafes::{self, Failsafe};
use super::plan::Oversize;
use super::store::StoreError;
use crate::kernel::content::Content;
use crate::kernel::{Kernel, KernelError, clock};

/// What the engine needs of the kernel: two slots and a word.
pub trait Slots {
    /// The active word.
    fn word(&self) -> ActiveWord;
    /// Replaces the word that was looked at.
    ///
    /// # Errors
    /// When it is no longer that word.
    fn exchange(&self, old: ActiveWord, new: ActiveWord) -> Result<(), KernelError>;
    /// Fills a slot that no packet looks at; gives the digest of what was read back.
    ///
    /// # Errors
    /// When the slot could not be filled exactly.
    fn fill(&self, slot: u32, content: &Content) -> Result<[u8; 32], KernelError>;
    /// What a slot holds.
    ///
    /// # Errors
    /// When it cannot be read.
    fn read(&self, slot: u32) -> Result<Option<Content>, KernelError>;
    /// Makes the failsafe map hold exactly these.
    ///
    /// # Errors
    /// When it could not be written exactly.
    fn set_failsafes(&self, failsafes: &[Failsafe]) -> Result<(), KernelError>;
}

impl Slots for Kernel {
    fn word(&self) -> ActiveWord {
        (**self).word()
    }

    fn exchange(&self, old: ActiveWord, new: ActiveWord) -> Result<(), KernelError> {
        (**self).exchange(old, new)
    }

    fn fill(&self, slot: u32, content: &Content) -> Result<[u8; 32], KernelError> {
        (**self).fill(slot, content)
    }

    fn read(&self, slot: u32) -> Result<Option<Content>, KernelError> {
        (**self).read(slot)
    }

    fn set_failsafes(&self, list: &[Failsafe]) -> Result<(), KernelError> {
        (**self).set_failsafes(&failsafes::entries(list))
    }
}

impl<T: Slots> Slots for Arc<T> {
    fn word(&self) -> ActiveWord {
        (**self).word()
    }

    fn exchange(&self, old: ActiveWord, new: ActiveWord) -> Result<(), KernelError> {
        (**self).exchange(old, new)
    }

    fn fill(&self, slot: u32, content: &Content) -> Result<[u8; 32], KernelError> {
        (**self).fill(slot, content)
    }

    fn read(&self, slot: u32) -> Result<Option<Content>, KernelError> {
        (**self).read(slot)
    }

    fn set_failsafes(&self, list: &[Failsafe]) -> Result<(), KernelError> {
        (**self).set_failsafes(list)
    }
}

/// Reads the clocks; replaced in tests.
pub trait Clock {
    /// Nanoseconds since boot.
    fn boot_ns(&self) -> u64;
    /// Nanoseconds since the epoch.
    fn utc_ns(&self) -> i64;
}

/// The clocks of this host.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn boot_ns(&self) -> u64 {
        clock::boot_ns()
    }

    fn utc_ns(&self) -> i64 {
        clock::utc_ns()
    }
}

/// A change to be made.
#[derive(Clone, Debug)]
pub struct Push {
    /// The new content.
    pub snapshot: Snapshot,
    /// Falls back unless confirmed within this time.
    pub confirm_within: Option<Duration>,
    /// No fall-back may undo it.
    pub urgent: bool,
    /// What the fall-back slot must hold from now on.
    pub fallback: Option<Snapshot>,
}

impl Push {
    /// A change that is final at once.
    #[must_use]
    pub const fn now(snapshot: Snapshot) -> Self {
        Self {
            snapshot,
            confirm_within: None,
            urgent: false,
            fallback: None,
        }
    }
}

/// A change that was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Applied {
    /// Revision of the snapshot.
    pub revision: u64,
    /// Digest of the snapshot whose tables were read back from the kernel.
    pub digest: [u8; 32],
    /// Generation of its activation.
    pub generation: u32,
    /// Seconds since boot at which it falls back.
    pub deadline: Option<u64>,
}

/// Why a change was not made. The old content stays.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// A newer revision is applied.
    #[error("revision {offered} is older than {applied}, which is applied")]
    Stale {
        /// What was offered.
        offered: u64,
        /// What is applied.
        applied: u64,
    },
    /// Too large.
    #[error(transparent)]
    Oversize(#[from] Oversize),
    /// The kernel refused, or what was read back differs.
    #[error(transparent)]
    Kernel(#[from] KernelError),
    /// The state directory refused.
    #[error("keeping the change on disk: {0}")]
    Store(#[from] StoreError),
    /// Nothing waits for a confirmation.
    #[error("nothing waits for a confirmation (applied: revision {applied})")]
    NothingPending {
        /// What is applied.
        applied: u64,
    },
    /// Another revision waits.
    #[error("revision {pending} waits for a confirmation, not {asked}")]
    OtherPending {
        /// What waits.
        pending: u64,
        /// What was confirmed.
        asked: u64,
    },
    /// Nothing was ever activated.
    #[error("no content is active")]
    NotArmed,
}

/// What is active, for records and status.
#[derive(Clone, Debug)]
pub struct Active {
    /// The snapshot; `None` when the kernel holds a content that no file describes.
    pub snapshot: Option<Arc<Snapshot>>,
    /// Its digest, hex.
    pub digest: String,
    /// Generation.
    pub generation: u32,
    /// Slot.
    pub slot: u32,
    /// Seconds since boot at which it falls back.
    pub deadline: Option<u64>,
}

impl Active {
    /// Revision; 0 when unknown or none.
    #[must_use]
    pub fn revision(&self) -> u64 {
        self.snapshot
            .as_ref()
            .map_or(0, |snapshot| snapshot.revision)
    }
}

/// Something that happened without being asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    /// The kernel fell back because nobody confirmed.
    FellBack {
        /// The revision that was given up.
        from: u64,
        /// What counts now.
        to: u64,
    },
    /// The content was loaded again because the clocks moved.
    ClockMoved,
}

/// What the engine found when it took over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing was active; the last good snapshot (or none yet) is loaded, learning.
    Fresh,
    /// A content was active and goes on.
    Adopted,
    /// The last good snapshot was there and could not be believed: everything but failsafes is closed.
    Closed,
}
