//! bpf(2) in the few forms that the agent needs and aya does not offer: maps by pin, batches, links, test runs.
//!
//! Every `unsafe` of the map layer is in this file. Sizes are checked against what the kernel says
//! of the map *before* a pointer is handed over, so that a wrong pin cannot become a wild write.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

pub(super) const MAP_CREATE: libc::c_long = 0;
pub(super) const MAP_LOOKUP_ELEM: libc::c_long = 1;
pub(super) const MAP_UPDATE_ELEM: libc::c_long = 2;
pub(super) const MAP_DELETE_ELEM: libc::c_long = 3;
pub(super) const MAP_GET_NEXT_KEY: libc::c_long = 4;
const PROG_LOAD: libc::c_long = 5;
const OBJ_PIN: libc::c_long = 6;
const OBJ_GET: libc::c_long = 7;
const PROG_TEST_RUN: libc::c_long = 10;
const PROG_GET_NEXT_ID: libc::c_long = 11;
const PROG_GET_FD_BY_ID: libc::c_long = 13;
const OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const PROG_QUERY: libc::c_long = 16;
pub(super) const MAP_LOOKUP_AND_DELETE_ELEM: libc::c_long = 21;
pub(super) const MAP_LOOKUP_BATCH: libc::c_long = 24;
pub(super) const MAP_UPDATE_BATCH: libc::c_long = 26;
const LINK_CREATE: libc::c_long = 28;
const LINK_UPDATE: libc::c_long = 29;
const LINK_DETACH: libc::c_long = 34;

/// `BPF_ANY`.
pub(crate) const ANY: u64 = 0;
/// `BPF_NOEXIST`: insert only.
pub(crate) const NOEXIST: u64 = 1;
/// `BPF_F_NO_PREALLOC`.
pub(crate) const F_NO_PREALLOC: u32 = 1;
/// `BPF_F_INNER_MAP`: arrays of other lengths may take its place in an array of maps.
pub(crate) const F_INNER_MAP: u32 = 1 << 12;
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
/// `BPF_MAP_TYPE_LRU_HASH`.
pub(crate) const TYPE_LRU_HASH: u32 = 9;
/// `BPF_MAP_TYPE_SK_STORAGE`.
pub(crate) const TYPE_SK_STORAGE: u32 = 24;
/// `BPF_LINK_TYPE_CGROUP`.
const LINK_TYPE_CGROUP: u32 = 3;

/// `BPF_TCX_INGRESS`.
pub(crate) const TCX_INGRESS: u32 = 46;
/// `BPF_TCX_EGRESS`.
pub(crate) const TCX_EGRESS: u32 = 47;
/// `BPF_LINK_TYPE_TCX`.
pub(crate) const LINK_TYPE_TCX: u32 = 11;
const F_BEFORE: u32 = 1 << 3;
const F_AFTER: u32 = 1 << 4;

/// The system call. Pointers in `attr` are the caller's promise.
pub(super) fn bpf<T>(command: libc::c_long, attr: &mut T) -> io::Result<libc::c_long> {
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

/// Owns a descriptor that the kernel just returned.
pub(super) fn owned(result: libc::c_long) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(result).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    // SAFETY: the kernel just returned this descriptor to us and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// A descriptor as the kernel wants it.
pub(super) fn raw(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

fn path_string(path: &Path) -> io::Result<CString> {
    CString::new(path.as_os_str().as_bytes())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
}

#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// Loads a socket filter, which is of no use but to learn whether the verifier takes its instructions.
pub(crate) fn prog_load_filter(code: &[[u8; 8]]) -> io::Result<OwnedFd> {
    const SOCKET_FILTER: u32 = 1;
    let license = c"GPL";
    let mut attr = LoadAttr {
        prog_type: SOCKET_FILTER,
        insn_cnt: u32::try_from(code.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        insns: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
    };
    bpf(PROG_LOAD, &mut attr).and_then(owned)
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

impl LinkInfo {
    /// Id of the cgroup and attach type, of a link to a cgroup: there the id is where a device's index and attach type
    /// would be, and the attach type follows.
    pub(crate) fn cgroup(&self) -> Option<(u64, u32)> {
        let [attach_type, ..] = self.rest;
        #[cfg(target_endian = "little")]
        let id = u64::from(self.ifindex) | (u64::from(self.attach_type) << 32);
        #[cfg(target_endian = "big")]
        let id = u64::from(self.attach_type) | (u64::from(self.ifindex) << 32);
        #[cfg(target_endian = "big")]
        let attach_type = attach_type >> 32;
        (self.kind == LINK_TYPE_CGROUP).then_some((id, attach_type as u32))
    }
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

/// Attaches to a hook of a cgroup, beside whoever else is there.
pub(crate) fn link_cgroup(
    prog: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attr = LinkAttr {
        prog_fd: raw(prog),
        // `target_fd`: one union with the device's index.
        ifindex: raw(cgroup),
        attach_type,
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

/// Fills a buffer of at most 256 bytes with random bytes of the kernel.
pub(crate) fn random(bytes: &mut [u8]) -> io::Result<()> {
    // SAFETY: a live buffer and its length; up to 256 bytes come whole (getrandom(2)).
    let result = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    if usize::try_from(result) == Ok(bytes.len()) {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
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
    fn attributes_have_the_kernels_layout() {
        assert_eq!(std::mem::offset_of!(QueryAttr, link_ids), 40);
        assert_eq!(std::mem::offset_of!(ProgInfo, name), 64);
        assert_eq!(std::mem::offset_of!(LinkInfo, ifindex), 16);
        assert_eq!(std::mem::offset_of!(TestRunAttr, ctx_in), 48);
    }
}
