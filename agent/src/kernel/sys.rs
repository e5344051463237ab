//! bpf(2) in the few forms that the agent needs and aya does not offer: maps by pin, batches, links, test runs.
//!
//! Every `unsafe` of the map layer is in this file. Sizes are checked against what the kernel says
//! of the map *before* a pointer is handed over, so that a wrong pin cannot become a wild write.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const MAP_CREATE: libc::c_long = 0;
const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const PROG_TEST_RUN: libc::c_long = 10;
const PROG_GET_NEXT_ID: libc::c_long = 11;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const MAP_GET_FD_BY_ID: libc::c_long = 14;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
const MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const MAP_UPDATE_BATCH: libc::c_long = 26;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;
const LINK_DETACH: libc::c_long = 34;

/// `BPF_ANY`.
pub(crate) const ANY: u64 = 0;
/// `BPF_NOEXIST`: insert only.
pub(crate) const NOEXIST: u64 = 1;
/// `BPF_F_NO_PREALLOC`.
pub(crate) const F_NO_PREALLOC: u32 = 1;
/// `BPF_F_MMAPABLE`.
pub(crate) const F_MMAPABLE: u32 = 1 << 10;

/// `BPF_MAP_TYPE_HASH`.
pub(crate) const TYPE_HASH: u32 = 1;
/// `BPF_MAP_TYPE_ARRAY`.
pub(crate) const TYPE_ARRAY: u32 = 2;
/// `BPF_MAP_TYPE_PERCPU_ARRAY`.
pub(crate) const TYPE_PERCPU_ARRAY: u32 = 6;
/// `BPF_MAP_TYPE_LPM_TRIE`.
pub(crate) const TYPE_LPM_TRIE: u32 = 11;
/// `BPF_MAP_TYPE_ARRAY_OF_MAPS`.
pub(crate) const TYPE_ARRAY_OF_MAPS: u32 = 12;
/// `BPF_MAP_TYPE_RINGBUF`.
pub(crate) const TYPE_RINGBUF: u32 = 27;

/// `BPF_TCX_INGRESS`.
pub(crate) const TCX_INGRESS: u32 = 46;
/// `BPF_TCX_EGRESS`.
pub(crate) const TCX_EGRESS: u32 = 47;
/// `BPF_LINK_TYPE_TCX`.
pub(crate) const LINK_TYPE_TCX: u32 = 11;
const F_BEFORE: u32 = 1 << 3;
const F_AFTER: u32 = 1 << 4;

const MAX_ELEMENT: usize = 4096;

fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: `attr` is a live, exclusively borrowed `repr(C)` value whose size is passed; the kernel
    // copies it and follows only the pointers that the callers in this file put there.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_mut(attr),
            size_of::<T>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}

fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(result).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel just returned this descriptor to us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn path_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

#[repr(C)]
#[derive(Default)]
struct ObjAttr {
    pathname: u64,
    fd: u32,
    file_flags: u32,
}

/// Opens what is pinned at a path (`BPF_OBJ_GET`).
pub(crate) fn obj_get(path: &Path) -> io::Result<OwnedFd> {
    let path = path_string(path)?;
    let mut attr = ObjAttr {
        pathname: path.as_ptr() as u64,
        ..ObjAttr::default()
    };
    owned(bpf(OBJ_GET, &mut attr)?)
}

/// Pins a map, program or link (`BPF_OBJ_PIN`).
pub(crate) fn obj_pin(fd: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = path_string(path)?;
    let mut attr = ObjAttr {
        pathname: path.as_ptr() as u64,
        fd: raw(fd),
        file_flags: 0,
    };
    bpf(OBJ_PIN, &mut attr).map(drop)
}

#[repr(C)]
struct InfoAttr {
    fd: u32,
    len: u32,
    info: u64,
}

fn info<T: Default>(fd: BorrowedFd<'_>) -> io::Result<T> {
    let mut value = T::default();
    let mut attr = InfoAttr {
        fd: raw(fd),
        len: u32::try_from(size_of::<T>()).unwrap_or(0),
        info: std::ptr::from_mut(&mut value) as u64,
    };
    bpf(OBJ_GET_INFO_BY_FD, &mut attr)?;
    Ok(value)
}

/// What the kernel says of a map.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MapInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) key_size: u32,
    pub(crate) value_size: u32,
    pub(crate) max_entries: u32,
    pub(crate) flags: u32,
    pub(crate) name: [u8; 16],
    pub(crate) rest: [u32; 4],
}

/// Reads [`MapInfo`].
pub(crate) fn map_info(fd: BorrowedFd<'_>) -> io::Result<MapInfo> {
    info(fd)
}

/// What the kernel says of a program, up to its name.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ProgInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) tag: [u8; 8],
    jited_len: u32,
    xlated_len: u32,
    jited: u64,
    xlated: u64,
    pub(crate) load_time: u64,
    pub(crate) uid: u32,
    nr_map_ids: u32,
    map_ids: u64,
    pub(crate) name: [u8; 16],
}

impl ProgInfo {
    /// The name as text.
    pub(crate) fn name(&self) -> String {
        let end = self.name.iter().position(|byte| *byte == 0).unwrap_or(16);
        String::from_utf8_lossy(self.name.get(..end).unwrap_or_default()).into_owned()
    }
}

/// Reads [`ProgInfo`].
pub(crate) fn prog_info(fd: BorrowedFd<'_>) -> io::Result<ProgInfo> {
    info(fd)
}

/// What the kernel says of a TCX link.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct LinkInfo {
    pub(crate) kind: u32,
    pub(crate) id: u32,
    pub(crate) prog_id: u32,
    pad: u32,
    pub(crate) ifindex: u32,
    pub(crate) attach_type: u32,
    rest: [u64; 4],
}

/// Reads [`LinkInfo`].
pub(crate) fn link_info(fd: BorrowedFd<'_>) -> io::Result<LinkInfo> {
    info(fd)
}

#[repr(C)]
#[derive(Default)]
struct IdAttr {
    id: u32,
    next: u32,
    flags: u32,
}

/// Every loaded program, by walking the ids.
pub(crate) fn programs() -> io::Result<Vec<ProgInfo>> {
    let mut found = Vec::new();
    let mut id = 0;
    loop {
        let mut attr = IdAttr {
            id,
            ..IdAttr::default()
        };
        match bpf(PROG_GET_NEXT_ID, &mut attr) {
            Ok(_) => id = attr.next,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(found),
            Err(error) => return Err(error),
        }
        let mut attr = IdAttr {
            id,
            ..IdAttr::default()
        };
        // A program may be unloaded between the two calls; it is simply no longer there.
        if let Ok(fd) = bpf(PROG_GET_FD_BY_ID, &mut attr).and_then(owned) {
            found.push(prog_info(fd.as_fd())?);
        }
    }
}

/// Opens a map by its id; an inner map is found that way.
pub(crate) fn map_by_id(id: u32) -> io::Result<RawMap> {
    let mut attr = IdAttr {
        id,
        ..IdAttr::default()
    };
    RawMap::from_fd(owned(bpf(MAP_GET_FD_BY_ID, &mut attr)?)?)
}

#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    count: u32,
    pad: u32,
    prog_attach_flags: u64,
    link_ids: u64,
    link_attach_flags: u64,
    revision: u64,
}

/// Ids of the programs on a TCX hook, in the order in which they run.
pub(crate) fn query_tcx(ifindex: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut ids = [0u32; 64];
    let mut attr = QueryAttr {
        target: ifindex,
        attach_type,
        prog_ids: ids.as_mut_ptr() as u64,
        count: 64,
        ..QueryAttr::default()
    };
    match bpf(PROG_QUERY, &mut attr) {
        Ok(_) => Ok(ids.iter().take(attr.count as usize).copied().collect()),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    prog_fd: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    pad: u32,
    expected_revision: u64,
}

/// Attaches to a TCX hook: first on ingress (nobody sees a packet before it was judged), last on egress.
pub(crate) fn link_tcx(
    prog: BorrowedFd<'_>,
    ifindex: u32,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkAttr {
        prog_fd: raw(prog),
        ifindex,
        attach_type,
        flags: if attach_type == TCX_INGRESS {
            F_BEFORE
        } else {
            F_AFTER
        },
        ..LinkAttr::default()
    };
    owned(bpf(LINK_CREATE, &mut attr)?)
}

#[repr(C)]
struct LinkUpdateAttr {
    link: u32,
    prog: u32,
    flags: u32,
    old_prog: u32,
}

/// Replaces the program of a link in one step.
pub(crate) fn link_update(link: BorrowedFd<'_>, prog: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = LinkUpdateAttr {
        link: raw(link),
        prog: raw(prog),
        flags: 0,
        old_prog: 0,
    };
    bpf(LINK_UPDATE, &mut attr).map(drop)
}

/// Takes a link off its hook, whoever else holds it.
pub(crate) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = raw(link);
    bpf(LINK_DETACH, &mut attr).map(drop)
}

#[repr(C)]
#[derive(Default)]
struct TestRunAttr {
    prog_fd: u32,
    retval: u32,
    size_in: u32,
    size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
    flags: u32,
    cpu: u32,
}

/// Result of [`test_run`].
#[derive(Clone, Copy, Debug)]
pub struct TestRun {
    /// What the program returned.
    pub retval: u32,
    /// Mean nanoseconds of one run.
    pub duration_ns: u32,
}

/// Runs a classifier over one frame `repeat` times (`BPF_PROG_TEST_RUN`); `context` is a `__sk_buff`.
pub(crate) fn test_run(
    prog: BorrowedFd<'_>,
    frame: &[u8],
    context: Option<&[u8]>,
    repeat: u32,
) -> io::Result<TestRun> {
    let too_long = |_| io::Error::from(io::ErrorKind::InvalidInput);
    let mut attr = TestRunAttr {
        prog_fd: raw(prog),
        size_in: u32::try_from(frame.len()).map_err(too_long)?,
        data_in: frame.as_ptr() as u64,
        repeat,
        ctx_size_in: u32::try_from(context.map_or(0, <[u8]>::len)).map_err(too_long)?,
        ctx_in: context.map_or(0, |context| context.as_ptr() as u64),
        ..TestRunAttr::default()
    };
    bpf(PROG_TEST_RUN, &mut attr)?;
    Ok(TestRun {
        retval: attr.retval,
        duration_ns: attr.duration,
    })
}

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

/// Whether an error says that this map type has no batches.
pub(crate) fn no_batches(error: &io::Error) -> bool {
    // ENOTSUPP (524) is the kernel's own number for "this map type has no such operation".
    matches!(
        error.raw_os_error(),
        Some(libc::EINVAL | libc::EOPNOTSUPP | 524)
    )
}

/// Waits until every packet that was being judged when this was called has been judged (RCU grace period).
pub(crate) fn grace_period() -> io::Result<()> {
    const MEMBARRIER_CMD_GLOBAL: libc::c_long = 1;
    // SAFETY: membarrier takes two integers and touches no memory of ours. GLOBAL is `synchronize_rcu()`
    // in the kernel, and classifiers run inside an RCU read section.
    let result = unsafe { libc::syscall(libc::SYS_membarrier, MEMBARRIER_CMD_GLOBAL, 0, 0) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// How many values a per-CPU map has.
pub(crate) fn possible_cpus() -> io::Result<usize> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/possible")?;
    parse_cpus(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, text))
}

fn parse_cpus(text: &str) -> Option<usize> {
    // "0-3" or "0,2-3": values are indexed up to the highest number.
    text.trim()
        .split(',')
        .filter_map(|range| range.rsplit('-').next()?.parse::<usize>().ok())
        .max()
        .map(|highest| highest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_ranges_count_up_to_the_highest() {
        assert_eq!(parse_cpus("0\n"), Some(1));
        assert_eq!(parse_cpus("0-3\n"), Some(4));
        assert_eq!(parse_cpus("0,2-5\n"), Some(6));
        assert_eq!(parse_cpus("x"), None);
    }

    #[test]
    fn map_attributes_have_the_kernels_layout() {
        assert_eq!(size_of::<ElemAttr>(), 32);
        assert_eq!(size_of::<BatchAttr>(), 56);
        assert_eq!(std::mem::offset_of!(CreateAttr, name), 28);
        assert_eq!(std::mem::offset_of!(QueryAttr, link_ids), 40);
        assert_eq!(std::mem::offset_of!(ProgInfo, name), 64);
        assert_eq!(std::mem::offset_of!(LinkInfo, ifindex), 16);
        assert_eq!(std::mem::offset_of!(TestRunAttr, ctx_in), 48);
    }
}
