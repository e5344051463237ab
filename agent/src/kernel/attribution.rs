//! Takes the socket hooks of the root cgroup and reads what they learnt: which process owns a socket.
//!
//! The links are pinned beside those of the devices, so that owners go on being learnt while no agent runs. Without
//! cgroup v2, or where the kernel refuses a hook, flows are recorded without what that hook would have told.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::EbpfLoader;
use datapath::owner::{ACCEPTED, AcceptKey, Accepted, Bound, Owner, SOCKETS, maps};
use serde::Serialize;
use tracing::{info, warn};

use super::cgroup;
use super::loader::Programs;
use super::map::RawMap;
use super::pins::PinDir;
use super::sys;
use super::table::Table;
use super::{KernelError, Result};

/// A socket hook.
struct Hook {
    /// Its name in the status and in its pin.
    name: &'static str,
    program: &'static str,
    /// `enum bpf_attach_type` (include/uapi/linux/bpf.h).
    attach_type: u32,
}

const fn hook(name: &'static str, program: &'static str, attach_type: u32) -> Hook {
    Hook {
        name,
        program,
        attach_type,
    }
}

const HOOKS: [Hook; 6] = [
    hook("create", "cofferdam_create", 2),
    hook("accept", "cofferdam_accept", 3),
    hook("connect4", "cofferdam_connect4", 10),
    hook("connect6", "cofferdam_connect6", 11),
    hook("bind4", "cofferdam_bind4", 12),
    hook("bind6", "cofferdam_bind6", 13),
];

/// Name, type, key size, value size, capacity.
const MAPS: [(&str, u32, usize, usize, usize); 3] = [
    (
        maps::SOCKETS,
        sys::TYPE_LRU_HASH,
        8,
        size_of::<Owner>(),
        SOCKETS,
    ),
    (
        maps::ACCEPTED,
        sys::TYPE_LRU_HASH,
        size_of::<AcceptKey>(),
        size_of::<Accepted>(),
        ACCEPTED,
    ),
    (maps::BOUND, sys::TYPE_SK_STORAGE, 4, size_of::<Bound>(), 0),
];

/// How much is learnt of who owns sockets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct State {
    /// `on`, `partial` or `off`.
    pub state: &'static str,
    /// Hooks that are held.
    pub hooks: Vec<&'static str>,
    /// Hooks that are not, and why; `all` when none could be tried.
    pub missing: BTreeMap<&'static str, String>,
    /// The cgroup whose sockets are seen.
    pub cgroup: Option<PathBuf>,
}

/// What the hooks learnt.
#[derive(Debug)]
pub struct Attribution {
    state: State,
    sockets: Table<u64, Owner>,
    accepted: Table<AcceptKey, Accepted>,
    netns: u64,
}

/// Tells the loader where the maps are pinned; a pin of another layout is removed.
pub(super) fn place_maps(dir: &PinDir, loader: &mut EbpfLoader<'_>) -> Result<()> {
    for (name, kind, key, value, capacity) in MAPS {
        let path = dir.map(name);
        match RawMap::open(&path) {
            Ok(map) => {
                let is = map.info();
                let fits = is.kind == kind
                    && is.key_size as usize == key
                    && is.value_size as usize == value
                    && is.max_entries as usize == capacity;
                if !fits {
                    warn!(map = name, "pinned map has another layout: rebuilding");
                    fs::remove_file(&path).map_err(|source| KernelError::pin(&path, source))?;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(source) => return Err(KernelError::pin(&path, source)),
        }
        loader.map_pin_path(name, path);
    }
    Ok(())
}

impl Attribution {
    /// Takes the hooks that can be had. What cannot be had is in [`Attribution::state`].
    ///
    /// # Errors
    /// When the maps that the object was loaded with cannot be opened.
    pub fn attach(dir: &PinDir, programs: &mut Programs, enabled: bool) -> Result<Self> {
        let table = |name| dir.map(name);
        let pin = |name| {
            let path = dir.map(name);
            move |source| KernelError::pin(&path, source)
        };
        let state = if enabled {
            take(dir, programs)
        } else {
            release(dir)?;
            State::off("switched off by `attribution: false`")
        };
        if state.state != "on" {
            warn!(state = state.state, missing = ?state.missing, "flows are recorded without some or all of who owns them");
        }
        Ok(Self {
            sockets: Table::open(&table(maps::SOCKETS)).map_err(pin(maps::SOCKETS))?,
            accepted: Table::open(&table(maps::ACCEPTED)).map_err(pin(maps::ACCEPTED))?,
            netns: own_netns_cookie().unwrap_or(0),
            state,
        })
    }

    /// How much is learnt.
    #[must_use]
    pub const fn state(&self) -> &State {
        &self.state
    }

    /// Cookie of the network namespace of this process; 0 when the kernel does not tell (before 5.14).
    #[must_use]
    pub const fn netns(&self) -> u64 {
        self.netns
    }

    /// Who made, bound or connected the socket with this cookie.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn socket(&self, cookie: u64) -> io::Result<Option<Owner>> {
        self.sockets.get(&cookie)
    }

    /// The socket of an accepted connection.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn accepted(&self, key: &AcceptKey) -> io::Result<Option<Accepted>> {
        self.accepted.get(key)
    }
}

impl State {
    fn off(why: impl Into<String>) -> Self {
        Self {
            state: "off",
            missing: BTreeMap::from([("all", why.into())]),
            ..Self::default()
        }
    }
}

fn take(dir: &PinDir, programs: &mut Programs) -> State {
    let root = match cgroup::mount() {
        Ok(Some(root)) => root,
        Ok(None) => return State::off("cgroup2 is not mounted"),
        Err(error) => return State::off(format!("reading the mount table: {error}")),
    };
    let opened = fs::File::open(&root).and_then(|file| Ok((file.metadata()?.ino(), file)));
    let (id, file) = match opened {
        Ok(opened) => opened,
        Err(error) => return State::off(format!("opening {}: {error}", root.display())),
    };
    let mut state = State {
        state: "on",
        cgroup: Some(root),
        ..State::default()
    };
    for hook in &HOOKS {
        match take_one(dir, programs, hook, file.as_fd(), id) {
            Ok(()) => state.hooks.push(hook.name),
            Err(error) => {
                state.missing.insert(hook.name, error.to_string());
            }
        }
    }
    if !state.missing.is_empty() {
        state.state = if state.hooks.is_empty() {
            "off"
        } else {
            "partial"
        };
    }
    info!(state = state.state, hooks = ?state.hooks, "socket hooks");
    state
}

fn link_path(dir: &PinDir, hook: &Hook) -> PathBuf {
    dir.map(&format!("cgroup-{}", hook.name))
}

fn take_one(
    dir: &PinDir,
    programs: &mut Programs,
    hook: &Hook,
    cgroup: BorrowedFd<'_>,
    id: u64,
) -> Result<()> {
    let failed = |source| KernelError::Attach {
        device: "the root cgroup".into(),
        hook: hook.name,
        source,
    };
    let program = programs.load_socket_hook(hook.program)?;
    let path = link_path(dir, hook);
    if let Some(link) = pinned(&path, hook, id)? {
        return sys::link_update(link.as_fd(), program.as_fd()).map_err(failed);
    }
    let link = sys::link_cgroup(program.as_fd(), cgroup, hook.attach_type).map_err(failed)?;
    sys::obj_pin(link.as_fd(), &path).map_err(|source| KernelError::pin(&path, source))
}

/// The link of an agent before, if it is on this cgroup and hook; a pin of anything else is removed.
fn pinned(path: &Path, hook: &Hook, cgroup: u64) -> Result<Option<std::os::fd::OwnedFd>> {
    let link = match sys::obj_get(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(KernelError::pin(path, source)),
    };
    let fits = sys::link_info(link.as_fd())
        .is_ok_and(|info| info.cgroup() == Some((cgroup, hook.attach_type)));
    if fits {
        return Ok(Some(link));
    }
    warn!(pin = %path.display(), "pinned link is not on this cgroup and hook: rebuilding");
    fs::remove_file(path).map_err(|source| KernelError::pin(path, source))?;
    Ok(None)
}

/// Lets go of every socket hook.
fn release(dir: &PinDir) -> Result<()> {
    for hook in &HOOKS {
        let path = link_path(dir, hook);
        match fs::remove_file(&path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(KernelError::pin(&path, source));
            }
            _ => {}
        }
    }
    Ok(())
}

fn own_netns_cookie() -> io::Result<u64> {
    /// include/uapi/asm-generic/socket.h, Linux 5.14.
    const SO_NETNS_COOKIE: libc::c_int = 71;
    let socket = std::net::UdpSocket::bind("0.0.0.0:0")?;
    let mut cookie = 0u64;
    let mut length = 8;
    // SAFETY: a live socket, and a buffer of the length that is passed.
    let result = unsafe {
        libc::getsockopt(
            std::os::fd::AsRawFd::as_raw_fd(&socket),
            libc::SOL_SOCKET,
            SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 {
        Ok(cookie)
    } else {
        Err(io::Error::last_os_error())
    }
}
