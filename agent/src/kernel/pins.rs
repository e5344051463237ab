//! Where maps and links are pinned, and what a pin must be before it is used.
//!
//! aya opens whatever is at a pin path and believes it. A map of another layout there would be a
//! silent bypass or a bricked host, so every pin is compared with [`SPECS`] first, and with the ids
//! that the state file remembers.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use datapath::abi::{self, ABI_VERSION, maps};
use serde::{Deserialize, Serialize};

use super::map::RawMap;
use super::sys::{self, MapInfo};
use super::{KernelError, Result};

const BPF_FS_MAGIC: i64 = 0xcafe_4a11;
/// Begins the pins of arrays of programs that hooks of a load before may still go on through; the map's id follows.
const RETIRED: &str = "retired-tails-";

/// What a shared map must look like.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Spec {
    pub(crate) name: &'static str,
    pub(crate) kind: u32,
    pub(crate) key: usize,
    pub(crate) value: usize,
    /// Flags that must be set.
    pub(crate) flags: u32,
}

const fn spec(name: &'static str, kind: u32, key: usize, value: usize, flags: u32) -> Spec {
    Spec {
        name,
        kind,
        key,
        value,
        flags,
    }
}

/// Every map that user space and kernel share, or that one load takes over from another; all of them pinned. The array of
/// programs is pinned too, but each load has its own ([`PinDir::set_tails_aside`]).
pub(crate) const SPECS: [Spec; 28] = [
    spec(
        maps::CONFIG,
        sys::TYPE_ARRAY,
        4,
        size_of::<abi::Config>(),
        0,
    ),
    spec(maps::ACTIVE, sys::TYPE_ARRAY, 4, 8, sys::F_MMAPABLE),
    spec(maps::ADDR4, sys::TYPE_ARRAY_OF_MAPS, 4, 4, 0),
    spec(maps::ADDR6, sys::TYPE_ARRAY_OF_MAPS, 4, 4, 0),
    spec(maps::CIDR4, sys::TYPE_ARRAY_OF_MAPS, 4, 4, 0),
    spec(maps::CIDR6, sys::TYPE_ARRAY_OF_MAPS, 4, 4, 0),
    spec(maps::ENDPOINTS, sys::TYPE_ARRAY_OF_MAPS, 4, 4, 0),
    spec(maps::CLASSES, sys::TYPE_ARRAY_OF_MAPS, 4, 4, 0),
    spec(maps::CELLS, sys::TYPE_ARRAY_OF_MAPS, 4, 4, 0),
    spec(maps::GEOMETRY, sys::TYPE_ARRAY_OF_MAPS, 4, 4, 0),
    spec(maps::RULES, sys::TYPE_ARRAY_OF_MAPS, 4, 4, 0),
    spec(maps::FILTERS, sys::TYPE_ARRAY_OF_MAPS, 4, 4, 0),
    spec(
        maps::FAILSAFES,
        sys::TYPE_LPM_TRIE,
        size_of::<abi::FailsafeKey>(),
        size_of::<abi::FailsafeValue>(),
        sys::F_NO_PREALLOC,
    ),
    spec(
        maps::TABLES,
        sys::TYPE_ARRAY,
        4,
        size_of::<abi::Tables>(),
        0,
    ),
    spec(
        maps::FLOWS4,
        sys::TYPE_ARRAY,
        4,
        size_of::<abi::Set4>(),
        sys::F_MMAPABLE,
    ),
    spec(
        maps::FLOWS6,
        sys::TYPE_ARRAY,
        4,
        size_of::<abi::Set6>(),
        sys::F_MMAPABLE,
    ),
    spec(
        maps::NEGATIVES,
        sys::TYPE_ARRAY,
        4,
        size_of::<abi::Negative>(),
        sys::F_MMAPABLE,
    ),
    spec(maps::LOCKS4, sys::TYPE_ARRAY, 4, 8, sys::F_MMAPABLE),
    spec(maps::LOCKS6, sys::TYPE_ARRAY, 4, 8, sys::F_MMAPABLE),
    spec(
        maps::SPILL4,
        sys::TYPE_HASH,
        size_of::<abi::Key4>(),
        size_of::<abi::Flow4>(),
        0,
    ),
    spec(
        maps::SPILL6,
        sys::TYPE_HASH,
        size_of::<abi::Key6>(),
        size_of::<abi::Flow6>(),
        0,
    ),
    spec(maps::BUCKETS, sys::TYPE_ARRAY, 4, 8, sys::F_MMAPABLE),
    spec(
        maps::DENIES,
        sys::TYPE_HASH,
        size_of::<abi::DenyKey>(),
        size_of::<abi::DenyValue>(),
        0,
    ),
    spec(
        maps::FRAGMENTS,
        sys::TYPE_LRU_HASH,
        size_of::<abi::FragmentKey>(),
        size_of::<abi::FragmentValue>(),
        0,
    ),
    spec(maps::EVENTS, sys::TYPE_RINGBUF, 0, 0, 0),
    spec(
        maps::REASONS,
        sys::TYPE_PERCPU_ARRAY,
        4,
        size_of::<abi::Counter>(),
        0,
    ),
    spec(maps::LOSSES, sys::TYPE_PERCPU_ARRAY, 4, 8, 0),
    spec(maps::CLOCK, sys::TYPE_ARRAY, 4, size_of::<abi::Clock>(), 0),
];

/// What the state file remembers of the pins, so that a foreign map at a pin path is found out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PinState {
    /// Ids are only comparable within one boot.
    pub boot_id: String,
    /// Map name → kernel id.
    pub maps: BTreeMap<String, u32>,
}

/// The agent's directory on bpffs.
#[derive(Clone, Debug)]
pub struct PinDir {
    path: PathBuf,
}

impl PinDir {
    /// `<root>/v<ABI_VERSION>`, without looking at it.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self {
            path: root.join(format!("v{ABI_VERSION}")),
        }
    }

    /// Makes the directory, 0700 and root's own, mounting bpffs where there is none.
    ///
    /// # Errors
    /// When it cannot be made, is not on bpffs, or belongs to somebody else.
    pub fn prepare(root: &Path) -> Result<Self> {
        let parent = root.parent().unwrap_or(Path::new("/"));
        if !on_bpffs(root)? && !on_bpffs(parent)? {
            // Not below a bpffs: the conventional place gets one, any other root becomes one itself.
            let target = if parent == Path::new("/sys/fs/bpf") {
                parent
            } else {
                root
            };
            fs::create_dir_all(target).map_err(|source| KernelError::pin(target, source))?;
            mount_bpffs(target)?;
        }
        let dir = Self::at(root);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir.path)
            .map_err(|source| KernelError::pin(&dir.path, source))?;
        for path in [root, &dir.path] {
            let meta = fs::metadata(path).map_err(|source| KernelError::pin(path, source))?;
            if meta.uid() != nix::unistd::geteuid().as_raw() {
                return Err(KernelError::ForeignPinDir {
                    path: path.to_owned(),
                    uid: meta.uid(),
                });
            }
        }
        fs::set_permissions(&dir.path, fs::Permissions::from_mode(0o700))
            .map_err(|source| KernelError::pin(&dir.path, source))?;
        Ok(dir)
    }

    /// The path of a map's pin.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    /// The path of the pin of a slot's own map.
    #[must_use]
    pub fn inner(&self, name: &str, slot: u32) -> PathBuf {
        self.path.join(format!("{name}_{}", slot % abi::SLOTS))
    }

    /// The path of a link's pin: device index and hook.
    #[must_use]
    pub fn link(&self, ifindex: u32, ingress: bool) -> PathBuf {
        self.path.join(format!(
            "link-{ifindex}-{}",
            if ingress { "in" } else { "out" }
        ))
    }

    /// The directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether maps are pinned there.
    #[must_use]
    pub fn exists(&self) -> bool {
        self.map(maps::ACTIVE).exists()
    }

    /// Pins of links: (device index, ingress, path).
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn links(&self) -> io::Result<Vec<(u32, bool, PathBuf)>> {
        let mut found = Vec::new();
        let entries = match fs::read_dir(&self.path) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            let name = name.to_string_lossy();
            if let Some((index, hook)) = name
                .strip_prefix("link-")
                .and_then(|rest| rest.split_once('-'))
                && let Ok(index) = index.parse()
            {
                found.push((index, hook == "in", entry.path()));
            }
        }
        found.sort();
        Ok(found)
    }

    /// Gives the pinned array of programs another name, so that the next load makes one of its own: the programs of one
    /// load hand packets over in memory of their own, and never to those of another. Hooks that are not replaced yet go on
    /// through theirs, which the kernel would empty if nobody held it any more (kernel/bpf/arraymap.c,
    /// `prog_array_map_clear`).
    pub(crate) fn set_tails_aside(&self) -> Result<()> {
        let path = self.map(maps::TAILS);
        let id = match RawMap::open(&path) {
            Ok(map) => map.info().id,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(source) => return Err(KernelError::pin(&path, source)),
        };
        fs::rename(&path, self.path.join(format!("{RETIRED}{id}")))
            .map_err(|source| KernelError::pin(&path, source))
    }

    /// Lets go of the arrays of programs of loads before: once every hook runs programs of the last load.
    pub(crate) fn forget_retired_tails(&self) -> Result<usize> {
        let failed = |source| KernelError::pin(&self.path, source);
        let mut forgotten = 0;
        for entry in fs::read_dir(&self.path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            if entry.file_name().to_string_lossy().starts_with(RETIRED) {
                fs::remove_file(entry.path()).map_err(failed)?;
                forgotten += 1;
            }
        }
        Ok(forgotten)
    }

    /// Compares what is pinned with what must be there. `Ok(None)`: nothing is pinned;
    /// `Ok(Some(problems))`: empty when every pin may be used.
    ///
    /// # Errors
    /// When a pin cannot be opened at all.
    pub(crate) fn check(
        &self,
        sizes: &BTreeMap<&'static str, u32>,
        remembered: Option<&PinState>,
    ) -> Result<Option<Vec<PinProblem>>> {
        let mut problems = Vec::new();
        let mut present = 0;
        for spec in &SPECS {
            let path = self.map(spec.name);
            let info = match RawMap::open(&path) {
                Ok(map) => *map.info(),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    problems.push(PinProblem {
                        map: spec.name,
                        what: "is missing".into(),
                    });
                    continue;
                }
                Err(source) => return Err(KernelError::pin(&path, source)),
            };
            present += 1;
            let size = sizes.get(spec.name).copied();
            problems.extend(compare(spec, &info, size));
            if let Some(expected) = remembered.and_then(|state| state.maps.get(spec.name))
                && *expected != info.id
            {
                problems.push(PinProblem {
                    map: spec.name,
                    what: format!("has id {}, but this agent pinned id {expected}", info.id),
                });
            }
        }
        Ok((present > 0).then_some(problems))
    }

    /// The ids of what is pinned now.
    pub(crate) fn state(&self, boot_id: &str) -> Result<PinState> {
        let mut state = PinState {
            boot_id: boot_id.to_owned(),
            ..PinState::default()
        };
        for spec in &SPECS {
            let path = self.map(spec.name);
            let map = RawMap::open(&path).map_err(|source| KernelError::pin(&path, source))?;
            state.maps.insert(spec.name.to_owned(), map.info().id);
        }
        Ok(state)
    }

    /// Removes the directory with every pin in it.
    pub(crate) fn remove(&self) -> Result<()> {
        match fs::remove_dir_all(&self.path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                Err(KernelError::pin(&self.path, source))
            }
            _ => Ok(()),
        }
    }

    /// Removes the pins of all maps, so that the loader makes new ones. Links stay: they hold the
    /// old program with the old maps until its successor takes their place.
    pub(crate) fn forget_maps(&self) -> Result<()> {
        let inner = SPECS
            .iter()
            .filter(|spec| spec.kind == sys::TYPE_ARRAY_OF_MAPS)
            .flat_map(|spec| (0..abi::SLOTS).map(|slot| self.inner(spec.name, slot)));
        for path in SPECS.iter().map(|spec| self.map(spec.name)).chain(inner) {
            match fs::remove_file(&path) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(source) => return Err(KernelError::pin(&path, source)),
            }
        }
        Ok(())
    }
}

/// Why a pin may not be used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct PinProblem {
    /// Name of the map.
    pub map: &'static str,
    /// What is wrong.
    pub what: String,
}

impl std::fmt::Display for PinProblem {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{} {}", self.map, self.what)
    }
}

fn compare(spec: &Spec, info: &MapInfo, size: Option<u32>) -> Vec<PinProblem> {
    let mut problems = Vec::new();
    let mut differs = |what: &str, is: u64, must: u64| {
        if is != must {
            problems.push(PinProblem {
                map: spec.name,
                what: format!("has {what} {is}, not {must}"),
            });
        }
    };
    differs("type", info.kind.into(), spec.kind.into());
    differs("key size", info.key_size.into(), spec.key as u64);
    differs("value size", info.value_size.into(), spec.value as u64);
    differs("flags", (info.flags & spec.flags).into(), spec.flags.into());
    if let Some(size) = size {
        differs("max_entries", info.max_entries.into(), size.into());
    }
    if spec.kind == sys::TYPE_ARRAY_OF_MAPS {
        differs("slots", info.max_entries.into(), abi::SLOTS.into());
    }
    problems
}

fn on_bpffs(path: &Path) -> Result<bool> {
    let c_path = std::ffi::CString::new(path.as_os_str().as_bytes())
        .map_err(|_| KernelError::pin(path, io::ErrorKind::InvalidInput.into()))?;
    // SAFETY: an all-zero statfs is a valid value for the kernel to overwrite.
    let mut stat: libc::statfs = unsafe { std::mem::zeroed() };
    // SAFETY: a NUL-terminated path and a live buffer of the right type.
    if unsafe { libc::statfs(c_path.as_ptr(), &raw mut stat) } != 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::NotFound {
            Ok(false)
        } else {
            Err(KernelError::pin(path, error))
        };
    }
    Ok(stat.f_type == BPF_FS_MAGIC)
}

fn mount_bpffs(target: &Path) -> Result<()> {
    nix::mount::mount(
        Some("bpf"),
        target,
        Some("bpf"),
        nix::mount::MsFlags::MS_NOSUID
            | nix::mount::MsFlags::MS_NODEV
            | nix::mount::MsFlags::MS_NOEXEC,
        Some("mode=0700"),
    )
    .map_err(|errno| KernelError::pin(target, errno.into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_of_another_layout_is_named_with_both_sizes() {
        let spec = SPECS
            .iter()
            .find(|spec| spec.name == maps::SPILL4)
            .expect("spec");
        let good = MapInfo {
            kind: sys::TYPE_HASH,
            key_size: 16,
            value_size: 128,
            max_entries: 1000,
            ..MapInfo::default()
        };
        assert_eq!(compare(spec, &good, Some(1000)), vec![]);
        let problems = compare(
            spec,
            &MapInfo {
                value_size: 64,
                ..good
            },
            Some(2000),
        );
        assert_eq!(problems.len(), 2, "{problems:?}");
        assert_eq!(problems[0].to_string(), "SPILL4 has value size 64, not 128");
    }
}
