//! The process behind a flow, as far as it is known. What is not known is absent; nothing is guessed.

use std::collections::HashMap;
use std::fs;
use std::time::{Duration, Instant};

use datapath::owner::{Owner, how};
use serde::Serialize;

use crate::kernel::cgroup::Paths;
use crate::kernel::clock;
use crate::kernel::sockowner::Listed;

/// Inode number of the initial pid namespace (`PROC_PID_INIT_INO`, include/linux/proc_ns.h).
const INITIAL_PID_NAMESPACE: &str = "pid:[4026531836]";
/// For so long what `/proc` said of a process is believed.
const FRESH: Duration = Duration::from_secs(1);
const REMEMBERED: usize = 4096;

/// A process as it is reported.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Process {
    /// Id in the initial pid namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Name of the thread that made, bound or connected the socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Path of its program, if the process still lived when it was looked up and the agent may look.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub executable: Option<String>,
    /// UTC nanoseconds of its start, to the tick; if it still lived when it was looked up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub start_ns: Option<i64>,
    /// Real user id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Path of its cgroup (v2).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup: Option<String>,
    /// systemd unit, by the cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unit: Option<String>,
    /// Container id, by the cgroup.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// How it was learnt: `create`, `connect`, `bind` (of the socket), or `listed` (by sock_diag, which knows user and
    /// cgroup alone).
    pub learnt: &'static str,
}

/// The systemd unit of a cgroup path: its innermost service or scope, or slice where it is in none (systemd.unit(5)).
#[must_use]
pub fn unit_of(path: &str) -> Option<&str> {
    let innermost = |suffixes: &[&str]| {
        path.rsplit('/').find(|part| {
            suffixes.iter().any(|suffix| {
                part.strip_suffix(suffix)
                    .is_some_and(|name| !name.is_empty())
            })
        })
    };
    innermost(&[".service", ".scope"]).or_else(|| innermost(&[".slice"]))
}

/// The container id in a cgroup path: 64 hexadecimal digits that are a directory (`/docker/<id>`,
/// `/kubepods/…/<id>`), or follow the runtime's name in one (`docker-<id>.scope`, `…:cri-containerd:<id>`).
#[must_use]
pub fn container_of(path: &str) -> Option<&str> {
    path.rsplit('/').find_map(|part| {
        let part = part.strip_suffix(".scope").unwrap_or(part);
        let id = part.rsplit(['-', ':']).next()?;
        (id.len() == 64 && id.bytes().all(|byte| byte.is_ascii_hexdigit())).then_some(id)
    })
}

/// Field 22 of `/proc/<pid>/stat` (proc_pid_stat(5)): start in clock ticks after boot. The name before it may hold
/// blanks and parentheses.
fn start_ticks(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[derive(Clone, Debug, Default)]
struct Seen {
    start_boot_ns: Option<u64>,
    start_ns: Option<i64>,
    executable: Option<String>,
}

/// Looks up in `/proc` and in the cgroup hierarchy what the hooks could not know.
#[derive(Debug)]
pub struct Describer {
    paths: Option<Paths>,
    /// Whether pids of the initial namespace mean anything in this `/proc`.
    procfs: bool,
    ticks: u64,
    seen: HashMap<u32, (Instant, Seen)>,
}

impl Describer {
    /// `cgroups` is where cgroup2 is mounted.
    #[must_use]
    pub fn new(cgroups: Option<std::path::PathBuf>) -> Self {
        Self {
            paths: cgroups.map(Paths::new),
            procfs: fs::read_link("/proc/self/ns/pid")
                .is_ok_and(|link| link.as_os_str() == INITIAL_PID_NAMESPACE),
            ticks: user_ticks(),
            seen: HashMap::new(),
        }
    }

    /// Of what a hook learnt.
    pub fn owner(&mut self, owner: &Owner) -> Process {
        let mut process = Process {
            pid: Some(owner.pid),
            name: name_of(&owner.comm),
            uid: Some(owner.uid),
            learnt: match owner.how {
                how::CREATE => "create",
                how::CONNECT => "connect",
                _ => "bind",
            },
            ..Process::default()
        };
        self.place(&mut process, owner.cgroup);
        if self.procfs {
            let seen = self.look(owner.pid);
            // A process that began later only has the same number.
            if seen
                .start_boot_ns
                .is_some_and(|start| start <= owner.learnt_ns)
            {
                process.start_ns = seen.start_ns;
                process.executable = seen.executable;
            }
        }
        process
    }

    /// Of what sock_diag lists.
    pub fn listed(&mut self, listed: &Listed) -> Process {
        let mut process = Process {
            uid: Some(listed.uid),
            learnt: "listed",
            ..Process::default()
        };
        if let Some(id) = listed.cgroup {
            self.place(&mut process, id);
        }
        process
    }

    fn place(&mut self, process: &mut Process, cgroup: u64) {
        let path = self
            .paths
            .as_mut()
            .and_then(|paths| paths.path(cgroup, process.pid));
        if let Some(path) = path {
            process.unit = unit_of(&path).map(str::to_owned);
            process.container = container_of(&path).map(str::to_owned);
            process.cgroup = Some(path);
        }
    }

    fn look(&mut self, pid: u32) -> Seen {
        if let Some((at, seen)) = self.seen.get(&pid)
            && at.elapsed() < FRESH
        {
            return seen.clone();
        }
        if self.seen.len() >= REMEMBERED {
            self.seen.clear();
        }
        let start_boot_ns = fs::read_to_string(format!("/proc/{pid}/stat"))
            .ok()
            .and_then(|stat| start_ticks(&stat))
            .map(|ticks| ticks.saturating_mul(1_000_000_000 / self.ticks));
        let executable = fs::read_link(format!("/proc/{pid}/exe"))
            .ok()
            .map(|path| path.to_string_lossy().into_owned());
        let seen = Seen {
            start_boot_ns,
            start_ns: start_boot_ns.map(|start| self.utc_of(start)),
            executable,
        };
        self.seen.insert(pid, (Instant::now(), seen.clone()));
        seen
    }

    /// To the tick: finer than that it is not known, and would differ from one reading to the next.
    fn utc_of(&self, boot_ns: u64) -> i64 {
        let tick = i64::try_from(1_000_000_000 / self.ticks).unwrap_or(1);
        let lead =
            clock::utc_ns().saturating_sub(i64::try_from(clock::boot_ns()).unwrap_or(i64::MAX));
        let at = lead.saturating_add(i64::try_from(boot_ns).unwrap_or(i64::MAX));
        at.saturating_add(tick / 2).div_euclid(tick) * tick
    }
}

fn name_of(comm: &[u8; 16]) -> Option<String> {
    let end = comm.iter().position(|byte| *byte == 0).unwrap_or(16);
    comm.get(..end)
        .filter(|name| !name.is_empty())
        .map(|name| String::from_utf8_lossy(name).into_owned())
}

/// Ticks per second in `/proc` (`USER_HZ`), which is not the kernel's own.
fn user_ticks() -> u64 {
    // SAFETY: sysconf has no preconditions.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) })
        .unwrap_or(100)
        .clamp(1, 1_000_000_000)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "4c2f8a3e9b7d6f1052c8e4a9b3d7f60182e5c9a4b8d3f7e1629504c8a7b6d3e9";

    #[test]
    fn units_of_cgroup_paths() {
        for (path, unit) in [
            ("/system.slice/nginx.service", Some("nginx.service")),
            (
                "/system.slice/system-postgresql.slice/postgresql@15-main.service",
                Some("postgresql@15-main.service"),
            ),
            (
                "/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.scope",
                Some("app-x.scope"),
            ),
            ("/system.slice/foo.service/worker", Some("foo.service")),
            ("/user.slice/user-0.slice", Some("user-0.slice")),
            ("/init.scope", Some("init.scope")),
            ("/", None),
            ("/kubepods/burstable/podabc", None),
            ("/.service", None),
            ("", None),
        ] {
            assert_eq!(unit_of(path), unit, "{path}");
        }
    }

    #[test]
    fn containers_of_cgroup_paths() {
        for path in [
            format!("/docker/{ID}"),
            format!("/system.slice/docker-{ID}.scope"),
            format!("/system.slice/docker-{ID}.scope/init.scope"),
            format!("/machine.slice/libpod-{ID}.scope/container"),
            format!("/kubepods/besteffort/pod1f2e/{ID}"),
            format!(
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1f2e.slice/cri-containerd-{ID}.scope"
            ),
            format!("/kubepods.slice/kubepods-pod1.slice/crio-{ID}.scope"),
            format!("/system.slice/containerd.service/kubepods-pod1.slice:cri-containerd:{ID}"),
        ] {
            assert_eq!(container_of(&path), Some(ID), "{path}");
        }
        for path in [
            "/",
            "/system.slice/nginx.service",
            "/docker/4c2f8a3e9b7d",
            &format!("/docker/{ID}0"),
            &format!("/docker/g{}", &ID[1..]),
        ] {
            assert_eq!(container_of(path), None, "{path}");
        }
    }

    #[test]
    fn the_start_in_a_stat_line_whatever_the_name_is() {
        let line = |name: &str| {
            format!("77 ({name}) S 1 77 77 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 123456 9 10 11")
        };
        assert_eq!(start_ticks(&line("nginx")), Some(123_456));
        assert_eq!(start_ticks(&line("a) S 1 (b")), Some(123_456));
        assert_eq!(start_ticks("77 (x) S 1"), None);
        assert_eq!(start_ticks(""), None);
    }

    #[test]
    fn a_number_that_another_process_has_by_now_is_not_believed() {
        let mut describer = Describer::new(None);
        let mut owner = Owner {
            pid: std::process::id(),
            uid: 5,
            learnt_ns: clock::boot_ns(),
            how: how::CONNECT,
            ..Owner::default()
        };
        owner.comm[..4].copy_from_slice(b"curl");
        let process = describer.owner(&owner);
        assert_eq!(
            (
                process.pid,
                process.uid,
                process.name.as_deref(),
                process.learnt
            ),
            (Some(owner.pid), Some(5), Some("curl"), "connect")
        );
        if describer.procfs {
            assert_eq!(
                process.executable,
                Some(
                    std::env::current_exe()
                        .expect("exe")
                        .to_string_lossy()
                        .into_owned()
                )
            );
            assert!(
                process
                    .start_ns
                    .is_some_and(|start| start <= clock::utc_ns())
            );
        }
        // Learnt before this process began.
        owner.learnt_ns = 1;
        let process = describer.owner(&owner);
        assert_eq!((process.executable, process.start_ns), (None, None));
    }
}
