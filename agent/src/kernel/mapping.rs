//! Array maps in this process's memory: read and written by single words, as the kernel does.

use std::io;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::ptr::NonNull;

use super::map::RawMap;
use super::sys;

/// A whole mmap-able array map.
#[derive(Debug)]
pub(crate) struct Mapping {
    start: NonNull<u8>,
    length: usize,
    // Keeps the descriptor for as long as the mapping.
    map: RawMap,
}

// SAFETY: the mapping is shared memory; whoever reads or writes it does so by volatile or atomic single words.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps a pinned array whose values have `value` bytes, a multiple of 8.
    pub(crate) fn open(path: &Path, value: usize) -> io::Result<Self> {
        let map = RawMap::open(path)?;
        let info = map.info();
        if info.kind != sys::TYPE_ARRAY
            || info.value_size as usize != value
            || !value.is_multiple_of(8)
            || info.flags & sys::F_MMAPABLE == 0
        {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("not an mmap-able array of {value} bytes a value"),
            ));
        }
        let length = (info.max_entries as usize)
            .saturating_mul(value)
            .next_multiple_of(page_size());
        // SAFETY: a new shared mapping of the whole array (kernel/bpf/arraymap.c: its values lie page-aligned, one behind
        // the other, and the kernel refuses a longer mapping); unmapped in `drop`.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                length,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_raw_fd(),
                0,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let start = NonNull::new(address.cast::<u8>())
            .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))?;
        Ok(Self { start, length, map })
    }

    /// How many values there are.
    pub(crate) const fn len(&self) -> u32 {
        self.map.info().max_entries
    }

    /// The first byte of a value; `None` beyond the last.
    pub(crate) fn at(&self, index: u32) -> Option<*mut u8> {
        let info = self.map.info();
        if index >= info.max_entries {
            return None;
        }
        let offset = index as usize * info.value_size as usize;
        // SAFETY: the value lies inside the mapping.
        Some(unsafe { self.start.as_ptr().add(offset) })
    }

    /// A value that is one word; `None` beyond the last, or when values are longer.
    pub(crate) fn word(&self, index: u32) -> Option<*mut u64> {
        if self.map.info().value_size != 8 {
            return None;
        }
        self.at(index).map(<*mut u8>::cast)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: address and length of the mapping made in `open`; no reference outlives `self`.
        unsafe { libc::munmap(self.start.as_ptr().cast(), self.length) };
    }
}

fn page_size() -> usize {
    // SAFETY: sysconf has no preconditions.
    usize::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).unwrap_or(4096)
}
