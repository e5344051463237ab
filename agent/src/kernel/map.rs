//! Maps by their raw bytes, with the sizes that the kernel gave for them.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use super::sys::{
    ANY, MAP_CREATE, MAP_DELETE_ELEM, MAP_GET_NEXT_KEY, MAP_LOOKUP_AND_DELETE_ELEM,
    MAP_LOOKUP_BATCH, MAP_LOOKUP_ELEM, MAP_UPDATE_BATCH, MAP_UPDATE_ELEM, MapInfo,
    TYPE_ARRAY_OF_MAPS, TYPE_PERCPU_ARRAY, bpf, map_info, no_batches, obj_get, owned,
    possible_cpus, raw,
};

const MAX_ELEMENT: usize = 4096;

#[repr(C)]
#[derive(Default)]
struct CreateAttr {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner_fd: u32,
    numa_node: u32,
    name: [u8; 16],
    ifindex: u32,
    btf_fd: u32,
    btf_key: u32,
    btf_value: u32,
}

#[repr(C)]
#[derive(Default)]
struct ElemAttr {
    fd: u32,
    pad: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct BatchAttr {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    fd: u32,
    elem_flags: u64,
    flags: u64,
}

/// A map with the sizes that the kernel gave for it; every access is checked against them.
#[derive(Debug)]
pub(crate) struct RawMap {
    fd: OwnedFd,
    info: MapInfo,
    /// Bytes that one value takes in user space (per-CPU maps give one value a CPU).
    stride: usize,
}

impl RawMap {
    /// Takes a descriptor and asks the kernel what it is.
    pub(crate) fn from_fd(fd: OwnedFd) -> io::Result<Self> {
        let info = map_info(fd.as_fd())?;
        let value = info.value_size as usize;
        let stride = if info.kind == TYPE_PERCPU_ARRAY {
            value.next_multiple_of(8) * possible_cpus()?
        } else {
            value
        };
        Ok(Self { fd, info, stride })
    }

    /// Opens a pinned map.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        Self::from_fd(obj_get(path)?)
    }

    /// Creates an unpinned map.
    pub(crate) fn create(
        kind: u32,
        name: &str,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
        flags: u32,
    ) -> io::Result<Self> {
        let mut attr = CreateAttr {
            kind,
            key_size,
            value_size,
            max_entries,
            flags,
            ..CreateAttr::default()
        };
        for (slot, byte) in attr.name.iter_mut().take(15).zip(name.bytes()) {
            *slot = byte;
        }
        Self::from_fd(owned(bpf(MAP_CREATE, &mut attr)?)?)
    }

    /// Creates an array of maps whose inner maps are like `inner`, their size apart.
    pub(crate) fn create_array_of(inner: &Self, name: &str, max_entries: u32) -> io::Result<Self> {
        let mut attr = CreateAttr {
            kind: TYPE_ARRAY_OF_MAPS,
            key_size: 4,
            value_size: 4,
            max_entries,
            inner_fd: raw(inner.fd()),
            ..CreateAttr::default()
        };
        for (slot, byte) in attr.name.iter_mut().take(15).zip(name.bytes()) {
            *slot = byte;
        }
        Self::from_fd(owned(bpf(MAP_CREATE, &mut attr)?)?)
    }

    /// What the kernel says of it.
    pub(crate) const fn info(&self) -> &MapInfo {
        &self.info
    }

    /// The descriptor.
    pub(crate) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    /// Bytes that a value takes in user space.
    pub(crate) const fn stride(&self) -> usize {
        self.stride
    }

    fn check(&self, key: usize, value: Option<usize>) -> io::Result<()> {
        if key == self.info.key_size as usize && value.is_none_or(|value| value == self.stride) {
            Ok(())
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "key or value size does not fit the map",
            ))
        }
    }

    /// The value of a key, into `value`; `false` when the key is absent.
    pub(crate) fn lookup(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        self.take_or_look(MAP_LOOKUP_ELEM, key, value)
    }

    /// Removes a key and gives its last value, in one step.
    pub(crate) fn lookup_and_delete(&self, key: &[u8], value: &mut [u8]) -> io::Result<bool> {
        self.take_or_look(MAP_LOOKUP_AND_DELETE_ELEM, key, value)
    }

    fn take_or_look(
        &self,
        command: libc::c_long,
        key: &[u8],
        value: &mut [u8],
    ) -> io::Result<bool> {
        self.check(key.len(), Some(value.len()))?;
        let mut attr = ElemAttr {
            fd: raw(self.fd()),
            key: key.as_ptr() as u64,
            value: value.as_mut_ptr() as u64,
            ..ElemAttr::default()
        };
        match bpf(command, &mut attr) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes a key.
    pub(crate) fn update(&self, key: &[u8], value: &[u8], flags: u64) -> io::Result<()> {
        self.check(key.len(), Some(value.len()))?;
        let mut attr = ElemAttr {
            fd: raw(self.fd()),
            key: key.as_ptr() as u64,
            value: value.as_ptr() as u64,
            flags,
            ..ElemAttr::default()
        };
        bpf(MAP_UPDATE_ELEM, &mut attr).map(drop)
    }

    /// Removes a key; `false` when it was not there.
    pub(crate) fn delete(&self, key: &[u8]) -> io::Result<bool> {
        self.check(key.len(), None)?;
        let mut attr = ElemAttr {
            fd: raw(self.fd()),
            key: key.as_ptr() as u64,
            ..ElemAttr::default()
        };
        match bpf(MAP_DELETE_ELEM, &mut attr) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn next_key(&self, key: Option<&[u8]>, next: &mut [u8]) -> io::Result<bool> {
        self.check(next.len(), None)?;
        let mut attr = ElemAttr {
            fd: raw(self.fd()),
            key: key.map_or(0, |key| key.as_ptr() as u64),
            value: next.as_mut_ptr() as u64,
            ..ElemAttr::default()
        };
        match bpf(MAP_GET_NEXT_KEY, &mut attr) {
            Ok(_) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Writes many keys. Falls back to one call a key where the kernel has no batches.
    pub(crate) fn update_many(&self, keys: &[u8], values: &[u8]) -> io::Result<()> {
        let (key_size, value_size) = (self.info.key_size as usize, self.stride);
        let count = keys.len() / key_size;
        if keys.len() != count * key_size || values.len() != count * value_size {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let mut done = 0;
        while done < count {
            let mut attr = BatchAttr {
                keys: keys.as_ptr() as u64 + (done * key_size) as u64,
                values: values.as_ptr() as u64 + (done * value_size) as u64,
                count: u32::try_from((count - done).min(1 << 16)).unwrap_or(1 << 16),
                fd: raw(self.fd()),
                ..BatchAttr::default()
            };
            match bpf(MAP_UPDATE_BATCH, &mut attr) {
                Ok(_) if attr.count > 0 => done += attr.count as usize,
                Ok(_) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
                Err(error) if done == 0 && no_batches(&error) => {
                    for (key, value) in keys.chunks(key_size).zip(values.chunks(value_size)) {
                        self.update(key, value, ANY)?;
                    }
                    return Ok(());
                }
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// One batch of one entry, without any fallback: a probe.
    pub(crate) fn update_batch_once(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.check(key.len(), Some(value.len()))?;
        let mut attr = BatchAttr {
            keys: key.as_ptr() as u64,
            values: value.as_ptr() as u64,
            count: 1,
            fd: raw(self.fd()),
            ..BatchAttr::default()
        };
        bpf(MAP_UPDATE_BATCH, &mut attr).map(drop)
    }

    /// Calls `each` with every key and value. Entries that come or go meanwhile may be missed or seen twice.
    pub(crate) fn for_each(&self, each: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<()> {
        let (key_size, value_size) = (self.info.key_size as usize, self.stride);
        if key_size == 0 || key_size > MAX_ELEMENT {
            return Err(io::Error::from(io::ErrorKind::InvalidInput));
        }
        let mut room = 4096usize.min(self.info.max_entries.max(1) as usize);
        let mut keys = vec![0u8; room * key_size];
        let mut values = vec![0u8; room * value_size];
        // Hash maps put a u32 bucket number there, the others a key.
        let mut cursor = vec![0u8; key_size.max(8)];
        let mut first = true;
        loop {
            let mut next = vec![0u8; key_size.max(8)];
            let mut attr = BatchAttr {
                in_batch: if first { 0 } else { cursor.as_ptr() as u64 },
                out_batch: next.as_mut_ptr() as u64,
                keys: keys.as_mut_ptr() as u64,
                values: values.as_mut_ptr() as u64,
                count: u32::try_from(room).unwrap_or(u32::MAX),
                fd: raw(self.fd()),
                ..BatchAttr::default()
            };
            let result = bpf(MAP_LOOKUP_BATCH, &mut attr);
            let ended = match &result {
                Ok(_) => false,
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
                // One bucket holds more than the buffer does.
                Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < 1 << 22 => {
                    room *= 2;
                    keys.resize(room * key_size, 0);
                    values.resize(room * value_size, 0);
                    continue;
                }
                Err(error) if first && no_batches(error) => return self.walk(each),
                Err(_) => return result.map(drop),
            };
            for (key, value) in keys
                .chunks(key_size)
                .zip(values.chunks(value_size))
                .take(attr.count as usize)
            {
                each(key, value);
            }
            if ended {
                return Ok(());
            }
            first = false;
            cursor = next;
        }
    }

    fn walk(&self, each: &mut dyn FnMut(&[u8], &[u8])) -> io::Result<()> {
        let key_size = self.info.key_size as usize;
        let mut keys = Vec::new();
        let mut key: Option<Vec<u8>> = None;
        loop {
            let mut next = vec![0u8; key_size];
            if !self.next_key(key.as_deref(), &mut next)?
                || keys.len() > self.info.max_entries as usize
            {
                break;
            }
            keys.push(next.clone());
            key = Some(next);
        }
        let mut value = vec![0u8; self.stride];
        for key in keys {
            if self.lookup(&key, &mut value)? {
                each(&key, &value);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_have_the_kernels_layout() {
        assert_eq!(size_of::<ElemAttr>(), 32);
        assert_eq!(size_of::<BatchAttr>(), 56);
        assert_eq!(std::mem::offset_of!(CreateAttr, name), 28);
    }
}
