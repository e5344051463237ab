//! Maps with typed keys and values over [`super::sys`].

use std::io;
use std::marker::PhantomData;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use aya::Pod;
use datapath::abi::ActiveWord;

use super::map::RawMap;
use super::mapping::Mapping;
use super::sys;

/// The bytes of a value that crosses the kernel boundary.
pub(crate) fn bytes_of<T: Pod>(value: &T) -> &[u8] {
    // SAFETY: `Pod` promises that the type has no padding and that its bytes may be copied.
    unsafe { std::slice::from_raw_parts(std::ptr::from_ref(value).cast::<u8>(), size_of::<T>()) }
}

/// A value from its bytes; `None` when the length does not fit.
pub(crate) fn from_bytes<T: Pod>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: the length was checked, `Pod` types accept any bytes, and the read is unaligned.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// A map whose key and value sizes were compared with the types when it was opened.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    map: RawMap,
    types: PhantomData<fn(K) -> V>,
}

impl<K: Pod, V: Pod> Table<K, V> {
    /// Wraps a map of fitting sizes.
    pub(crate) fn new(map: RawMap) -> io::Result<Self> {
        let info = map.info();
        if info.key_size as usize != size_of::<K>() || info.value_size as usize != size_of::<V>() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!(
                    "map has keys of {} and values of {} bytes, not {} and {}",
                    info.key_size,
                    info.value_size,
                    size_of::<K>(),
                    size_of::<V>()
                ),
            ));
        }
        Ok(Self {
            map,
            types: PhantomData,
        })
    }

    /// Opens a pinned map.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::new(RawMap::open(path)?)
    }

    /// The value of a key.
    pub(crate) fn get(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = vec![0u8; size_of::<V>()];
        Ok(if self.map.lookup(bytes_of(key), &mut value)? {
            from_bytes(&value)
        } else {
            None
        })
    }

    /// Writes a key whatever is there.
    pub(crate) fn set(&self, key: &K, value: &V) -> io::Result<()> {
        self.map.update(bytes_of(key), bytes_of(value), sys::ANY)
    }

    /// Writes a key only if it is absent; `false` when it was there.
    pub(crate) fn insert(&self, key: &K, value: &V) -> io::Result<bool> {
        match self
            .map
            .update(bytes_of(key), bytes_of(value), sys::NOEXIST)
        {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::EEXIST) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Removes a key.
    pub(crate) fn remove(&self, key: &K) -> io::Result<bool> {
        self.map.delete(bytes_of(key))
    }

    /// Removes a key and gives the last value.
    fn take(&self, key: &K) -> io::Result<Option<V>> {
        let mut value = vec![0u8; size_of::<V>()];
        Ok(if self.map.lookup_and_delete(bytes_of(key), &mut value)? {
            from_bytes(&value)
        } else {
            None
        })
    }

    /// Takes an entry out if it is still what the caller recorded; otherwise it goes back, unless a newer one
    /// is there by then.
    pub(crate) fn take_if(&self, key: &K, unchanged: impl Fn(&V) -> bool) -> io::Result<bool> {
        // Looked at first, so that the common case of a flow that went on never leaves the table.
        match self.get(key)? {
            Some(value) if unchanged(&value) => {}
            _ => return Ok(false),
        }
        match self.take(key)? {
            Some(value) if !unchanged(&value) => {
                self.insert(key, &value)?;
                Ok(false)
            }
            Some(_) => Ok(true),
            None => Ok(false),
        }
    }

    /// Calls `each` with every entry.
    pub(crate) fn for_each(&self, mut each: impl FnMut(K, V)) -> io::Result<()> {
        self.map.for_each(&mut |key, value| {
            if let (Some(key), Some(value)) = (from_bytes(key), from_bytes(value)) {
                each(key, value);
            }
        })
    }

    /// Every entry.
    pub(crate) fn entries(&self) -> io::Result<Vec<(K, V)>> {
        let mut found = Vec::new();
        self.for_each(|key, value| found.push((key, value)))?;
        Ok(found)
    }
}

/// A per-CPU array.
#[derive(Debug)]
pub(crate) struct PerCpu<V> {
    map: RawMap,
    types: PhantomData<fn() -> V>,
}

impl<V: Pod> PerCpu<V> {
    /// Opens a pinned per-CPU array.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let map = RawMap::open(path)?;
        if map.info().kind != sys::TYPE_PERCPU_ARRAY
            || map.info().value_size as usize != size_of::<V>()
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                "not the expected per-CPU array",
            ));
        }
        Ok(Self {
            map,
            types: PhantomData,
        })
    }

    /// The values of all CPUs at an index.
    pub(crate) fn get(&self, index: u32) -> io::Result<Vec<V>> {
        let mut value = vec![0u8; self.map.stride()];
        if !self.map.lookup(&index.to_ne_bytes(), &mut value)? {
            return Ok(Vec::new());
        }
        Ok(value
            .chunks(size_of::<V>().next_multiple_of(8))
            .filter_map(from_bytes)
            .collect())
    }
}

/// The mmap'ed active word: read and written by single 64-bit accesses, as the kernel does.
#[derive(Debug)]
pub(crate) struct ActiveCell {
    mapping: Mapping,
}

impl ActiveCell {
    /// Maps the pinned word.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        let mapping = Mapping::open(path, 8)?;
        Ok(Self { mapping })
    }

    fn cell(&self) -> &AtomicU64 {
        // An array map has an element 0, so the mapping begins with a word.
        static NONE: AtomicU64 = AtomicU64::new(0);
        match self.mapping.word(0) {
            // SAFETY: the mapping lives as long as `self`, is aligned, and every access is atomic.
            Some(word) => unsafe { AtomicU64::from_ptr(word) },
            None => &NONE,
        }
    }

    /// What is active.
    pub(crate) fn load(&self) -> ActiveWord {
        ActiveWord(self.cell().load(Ordering::SeqCst))
    }

    /// Activates `new` if `old` is still what is active; otherwise gives what is.
    pub(crate) fn exchange(&self, old: ActiveWord, new: ActiveWord) -> Result<(), ActiveWord> {
        self.cell()
            .compare_exchange(old.0, new.0, Ordering::SeqCst, Ordering::SeqCst)
            .map(drop)
            .map_err(ActiveWord)
    }
}
