//! What survives the process and the boot: the last good snapshot, the one that waits, the clocks, the pin ids.
//!
//! Every file is replaced whole (write, fsync, rename, fsync of the directory) and a snapshot is believed
//! only if its digest is right.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use datapath::abi::ActiveWord;
use nix::fcntl::{Flock, FlockArg};
use policy::snapshot::{RuleName, Snapshot};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::kernel::pins::PinState;

/// Why a file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The file system refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what this agent wrote.
    #[error("{}: {source}", path.display())]
    Malformed {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: serde_json::Error,
    },
    /// Another agent uses the directory.
    #[error("{}: another agent runs with this state directory", path.display())]
    Locked {
        /// The lock file.
        path: PathBuf,
    },
    /// The content does not have the digest that was stored with it.
    #[error("{}: the digest does not fit the content", path.display())]
    Digest {
        /// Which file.
        path: PathBuf,
    },
}

/// A snapshot with its digest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stored {
    /// SHA-256 of the snapshot, hex.
    pub digest: String,
    /// The snapshot.
    pub snapshot: Snapshot,
}

impl Stored {
    /// With its digest.
    #[must_use]
    pub fn new(snapshot: Snapshot) -> Self {
        Self {
            digest: hex::encode(snapshot.digest()),
            snapshot,
        }
    }
}

/// A content that was about to be activated, or that waits for a confirmation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Intent {
    /// What.
    pub stored: Stored,
    /// Under which generation.
    pub generation: u32,
    /// In which slot.
    pub slot: u32,
    /// Seconds since boot at which it falls back; `None` = final.
    pub deadline: Option<u64>,
    /// Generations and deadlines are of this boot.
    pub boot_id: String,
    /// The word says "final" only because the fall-back slot is being refilled: a crash in between must
    /// not make the change final.
    pub held: bool,
    /// The waiting content in whose place it is about to come, until the word selects it: a crash in between must
    /// not forget that nobody confirmed that one.
    #[serde(default)]
    pub replaces: Option<Box<Intent>>,
}

impl Intent {
    /// This content, or the one it was to replace: whichever the word selects.
    #[must_use]
    pub fn selected_by(self, word: ActiveWord) -> Option<Self> {
        if self.is_in(word) {
            Some(Self {
                replaces: None,
                ..self
            })
        } else {
            (*self.replaces?).selected_by(word)
        }
    }

    fn is_whole(&self) -> bool {
        hex::encode(self.stored.snapshot.digest()) == self.stored.digest
            && self
                .replaces
                .as_ref()
                .is_none_or(|waiting| waiting.is_whole())
    }

    /// Whether the word selects this content. The panic switch moves the generation on, by two and in place.
    #[must_use]
    pub const fn is_in(&self, word: ActiveWord) -> bool {
        let generation = word.generation();
        word.slot() == self.slot
            && generation >= self.generation
            && (generation - self.generation).is_multiple_of(2)
    }
}

/// What is remembered of the clocks.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clocks {
    /// The lead is of this boot.
    pub boot_id: String,
    /// Greatest lead of UTC over boot time.
    pub lead_ns: i64,
    /// Greatest UTC ever seen.
    pub highest_utc_ns: i64,
}

/// Names of the rules of the last few generations: a flow outlives the process that knew who admitted it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct KnownNames {
    /// Generations are of this boot.
    boot_id: String,
    /// Generation → revision and names.
    generations: BTreeMap<u32, (u64, Vec<RuleName>)>,
}

/// The agent's state directory.
#[derive(Clone, Debug)]
pub struct Store {
    dir: PathBuf,
}

impl Store {
    /// Opens the directory, making it (0700) where it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(dir: &Path) -> Result<Self, StoreError> {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(|source| StoreError::Io {
                path: dir.to_owned(),
                source,
            })?;
        Ok(Self {
            dir: dir.to_owned(),
        })
    }

    /// A file in it.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The last good snapshot; `None` when there never was one.
    ///
    /// # Errors
    /// When there is one that cannot be believed: the caller closes the host.
    pub fn good(&self) -> Result<Option<Stored>, StoreError> {
        let path = self.path("good.json");
        match self.read::<Stored>("good.json")? {
            Some(stored) if hex::encode(stored.snapshot.digest()) == stored.digest => {
                Ok(Some(stored))
            }
            Some(_) => Err(StoreError::Digest { path }),
            // The marker outlives the file: a policy was there, so its absence is not "never".
            None if self.path("had-policy").exists() => Err(StoreError::Io {
                path,
                source: io::ErrorKind::NotFound.into(),
            }),
            None => Ok(None),
        }
    }

    /// Keeps a snapshot as the last good one.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_good(&self, stored: &Stored) -> Result<(), StoreError> {
        self.write("good.json", stored)?;
        if !self.path("had-policy").exists() {
            self.write("had-policy", &true)?;
        }
        Ok(())
    }

    /// The content that was about to be activated or waits. An unreadable one is none: the last good counts.
    #[must_use]
    pub fn intent(&self) -> Option<Intent> {
        match self.read::<Intent>("intent.json") {
            Ok(intent) => intent.filter(Intent::is_whole),
            Err(error) => {
                tracing::warn!(%error, "the unconfirmed content on disk cannot be read");
                None
            }
        }
    }

    /// Remembers what is about to be activated, or waits.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn set_intent(&self, intent: &Intent) -> Result<(), StoreError> {
        self.write("intent.json", intent)
    }

    /// Forgets it.
    ///
    /// # Errors
    /// When the file is there and cannot be removed.
    pub fn clear_intent(&self) -> Result<(), StoreError> {
        self.remove("intent.json")
    }

    /// Digest of the change that nobody confirmed; a restart must not make it again by itself.
    #[must_use]
    pub fn rejected(&self) -> Option<String> {
        self.read("rejected.json").ok().flatten()
    }

    /// Remembers, or forgets, the change that nobody confirmed.
    ///
    /// # Errors
    /// When the file cannot be written or removed.
    pub fn set_rejected(&self, digest: Option<&str>) -> Result<(), StoreError> {
        match digest {
            Some(digest) => self.write("rejected.json", &digest),
            None => self.remove("rejected.json"),
        }
    }

    /// The change that waited last for a confirmation: digests of its content, and of what it was compiled from
    /// (the content alone changes with the host's own addresses).
    #[must_use]
    pub fn tried(&self) -> Option<(String, String)> {
        self.read("tried.json").ok().flatten()
    }

    /// Remembers it.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_tried(&self, content: &str, sources: &str) -> Result<(), StoreError> {
        self.write("tried.json", &(content, sources))
    }

    /// Makes this process the only agent of the directory, for as long as the answer lives.
    ///
    /// # Errors
    /// When another process holds it.
    pub fn lock(&self) -> Result<Flock<File>, StoreError> {
        let path = self.path("lock");
        let failed = |source| StoreError::Io {
            path: path.clone(),
            source,
        };
        let file = fs::OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&path)
            .map_err(failed)?;
        Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
            nix::errno::Errno::EWOULDBLOCK => StoreError::Locked { path: path.clone() },
            errno => failed(errno.into()),
        })
    }

    /// What is remembered of the clocks.
    #[must_use]
    pub fn clocks(&self) -> Clocks {
        self.read("clocks.json").ok().flatten().unwrap_or_default()
    }

    /// Remembers the clocks.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_clocks(&self, clocks: &Clocks) -> Result<(), StoreError> {
        self.write("clocks.json", clocks)
    }

    /// Names of the rules of the last few generations of this boot; snapshots of names only.
    #[must_use]
    pub fn recall_names(&self, boot_id: &str) -> BTreeMap<u32, Arc<Snapshot>> {
        let known: KnownNames = self.read("names.json").ok().flatten().unwrap_or_default();
        if known.boot_id != boot_id {
            return BTreeMap::new();
        }
        known
            .generations
            .into_iter()
            .map(|(generation, (revision, rule_names))| {
                let snapshot = Snapshot {
                    revision,
                    rule_names,
                    ..Snapshot::default()
                };
                (generation, Arc::new(snapshot))
            })
            .collect()
    }

    /// Remembers them, newest contents first, as far as they are not too many.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn remember_names(
        &self,
        boot_id: &str,
        names: &BTreeMap<u32, Arc<Snapshot>>,
    ) -> Result<(), StoreError> {
        const MOST: usize = 20_000;
        let mut known = KnownNames {
            boot_id: boot_id.to_owned(),
            ..KnownNames::default()
        };
        let mut left = MOST;
        for (generation, snapshot) in names.iter().rev() {
            let Some(rest) = left.checked_sub(snapshot.rule_names.len()) else {
                break;
            };
            left = rest;
            known.generations.insert(
                *generation,
                (snapshot.revision, snapshot.rule_names.clone()),
            );
        }
        self.write("names.json", &known)
    }

    /// The ids of the pinned maps.
    #[must_use]
    pub fn pins(&self) -> Option<PinState> {
        self.read("pins.json").ok().flatten()
    }

    /// Remembers the ids of the pinned maps.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn set_pins(&self, pins: &PinState) -> Result<(), StoreError> {
        self.write("pins.json", pins)
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, StoreError> {
        let path = self.path(name);
        let bytes = match fs::read(&path) {
            Ok(bytes) => bytes,
            Err(source) if source.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(source) => return Err(StoreError::Io { path, source }),
        };
        serde_json::from_slice(&bytes)
            .map(Some)
            .map_err(|source| StoreError::Malformed { path, source })
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path(name);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(StoreError::Io { path, source })
            }
            _ => Ok(()),
        }
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), StoreError> {
        let path = self.path(name);
        let bytes = serde_json::to_vec(value).map_err(|source| StoreError::Malformed {
            path: path.clone(),
            source,
        })?;
        write_atomically(&path, &bytes, 0o600).map_err(|source| StoreError::Io { path, source })
    }
}

/// Replaces a file whole: after a crash it has the old content or the new one.
///
/// # Errors
/// When the file system refuses.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".tmp");
    let temporary = dir.join(name);
    let mut file = fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    File::open(dir)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshot_comes_back_or_is_refused() {
        let dir = tempfile::tempdir().expect("dir");
        let store = Store::open(&dir.path().join("state")).expect("open");
        assert_eq!(store.good().expect("none"), None);
        let stored = Stored::new(Snapshot {
            revision: 7,
            ..Snapshot::default()
        });
        store.set_good(&stored).expect("write");
        assert_eq!(store.good().expect("read"), Some(stored.clone()));

        let text = fs::read_to_string(store.path("good.json")).expect("text");
        fs::write(
            store.path("good.json"),
            text.replace("\"rules\":[]", "\"rules\":[],\"endpoints\":[]"),
        )
        .expect("write");
        assert!(matches!(store.good(), Err(StoreError::Malformed { .. })));
        let wrong = Stored {
            digest: "00".into(),
            ..stored
        };
        store.set_good(&wrong).expect("write");
        assert!(matches!(store.good(), Err(StoreError::Digest { .. })));
        fs::remove_file(store.path("good.json")).expect("remove");
        assert!(
            store.good().is_err(),
            "a policy that was there and is gone is not \"never\""
        );
    }
}
