//! The cgroup v2 hierarchy: where it is mounted, and which directory a cgroup id is.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Most ids that are remembered; beyond it the memory begins anew.
const REMEMBERED: usize = 8192;
/// Shortest time between two walks over the whole hierarchy.
const WALK_INTERVAL: Duration = Duration::from_millis(100);
/// Deepest directory that a walk looks at.
const DEPTH: usize = 32;

/// Where cgroup2 is mounted, if it is.
///
/// # Errors
/// When the mount table cannot be read.
pub fn mount() -> io::Result<Option<PathBuf>> {
    fs::read_to_string("/proc/self/mountinfo").map(|text| mount_in(&text))
}

/// The mount point of cgroup2 in a mount table (proc_pid_mountinfo(5)): one that shows the whole hierarchy, if there is.
fn mount_in(table: &str) -> Option<PathBuf> {
    let mut partial = None;
    for line in table.lines() {
        let Some((fields, kind)) = line.split_once(" - ") else {
            continue;
        };
        if kind.split(' ').next() != Some("cgroup2") {
            continue;
        }
        let mut fields = fields.split(' ').skip(3);
        let (Some(root), Some(point)) = (fields.next(), fields.next()) else {
            continue;
        };
        let point = PathBuf::from(unescape(point));
        if root == "/" {
            return Some(point);
        }
        partial.get_or_insert(point);
    }
    partial
}

/// Blanks and backslashes are written as three octal digits there.
fn unescape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        out.push_str(before);
        match after
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok())
        {
            Some(byte) => {
                out.push(char::from(byte));
                rest = after.get(3..).unwrap_or_default();
            }
            None => {
                out.push('\\');
                rest = after;
            }
        }
    }
    out.push_str(rest);
    out
}

/// Cgroup ids to paths below the mount point. An id is the inode number of its directory and is not used again
/// before the next boot, so what was once found stays true.
#[derive(Debug)]
pub struct Paths {
    mount: PathBuf,
    known: HashMap<u64, Option<String>>,
    walked: Option<Instant>,
}

impl Paths {
    /// Of the hierarchy that is mounted there.
    #[must_use]
    pub fn new(mount: PathBuf) -> Self {
        Self {
            mount,
            known: HashMap::new(),
            walked: None,
        }
    }

    /// The path of an id, beginning with `/`. `pid` is a process that was in it: asked first, and believed only if the
    /// directory that it names has this id.
    pub fn path(&mut self, id: u64, pid: Option<u32>) -> Option<String> {
        if let Some(known) = self.known.get(&id) {
            return known.clone();
        }
        if self.known.len() >= REMEMBERED {
            self.known.clear();
        }
        let named = pid
            .and_then(|pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).ok())
            .and_then(|text| unified(&text).map(str::to_owned))
            .filter(|path| self.id_of(path) == Some(id));
        if named.is_some() {
            self.known.insert(id, named.clone());
            return named;
        }
        if self
            .walked
            .is_some_and(|walked| walked.elapsed() < WALK_INTERVAL)
        {
            return None;
        }
        self.walked = Some(Instant::now());
        self.walk(&self.mount.clone(), DEPTH);
        // Gone already: not looked for again.
        self.known.entry(id).or_insert(None).clone()
    }

    fn id_of(&self, path: &str) -> Option<u64> {
        let below = self.mount.join(path.trim_start_matches('/'));
        fs::metadata(below).ok().map(|meta| meta.ino())
    }

    fn walk(&mut self, dir: &Path, depth: usize) {
        let Ok(meta) = fs::metadata(dir) else {
            return; // gone meanwhile
        };
        if let Ok(path) = dir.strip_prefix(&self.mount) {
            let path = format!("/{}", path.display());
            self.known.insert(meta.ino(), Some(path));
        }
        let (Some(deeper), Ok(entries)) = (depth.checked_sub(1), fs::read_dir(dir)) else {
            return;
        };
        for entry in entries.flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                self.walk(&entry.path(), deeper);
            }
        }
    }
}

/// The v2 line of `/proc/<pid>/cgroup` (cgroups(7)).
fn unified(text: &str) -> Option<&str> {
    text.lines().find_map(|line| line.strip_prefix("0::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mount_point_that_shows_the_whole_hierarchy() {
        let whole = "30 23 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_in(whole), Some("/sys/fs/cgroup".into()));
        let hybrid = "31 30 0:27 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids\n\
                      32 30 0:28 / /sys/fs/cgroup/unified rw shared:4 - cgroup2 none rw\n";
        assert_eq!(mount_in(hybrid), Some("/sys/fs/cgroup/unified".into()));
        let both = "40 1 0:26 /docker/x /in/side rw - cgroup2 cgroup2 rw\n\
                    41 1 0:26 / /with\\040blank rw - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_in(both), Some("/with blank".into()));
        let inside = "40 1 0:26 /docker/x /in/side rw - cgroup2 cgroup2 rw\n";
        assert_eq!(mount_in(inside), Some("/in/side".into()));
        assert_eq!(mount_in("31 30 0:27 / /x rw - cgroup cgroup rw\n"), None);
        assert_eq!(mount_in("short - cgroup2\n\n- "), None);
        assert_eq!(unescape("a\\134b\\9"), "a\\b\\9");
    }

    #[test]
    fn the_unified_line() {
        assert_eq!(
            unified("9:name=systemd:/x\n0::/system.slice/ssh.service\n"),
            Some("/system.slice/ssh.service")
        );
        assert_eq!(unified("9:name=systemd:/x\n"), None);
    }

    #[test]
    fn ids_are_found_by_walking() {
        // Any directory tree will do: an id is an inode number.
        let dir = tempfile::tempdir().expect("dir");
        let deep = dir.path().join("a.slice/b.service");
        fs::create_dir_all(&deep).expect("dirs");
        let id = fs::metadata(&deep).expect("meta").ino();
        let mut paths = Paths::new(dir.path().to_owned());
        assert_eq!(paths.path(id, None).as_deref(), Some("/a.slice/b.service"));
        assert_eq!(
            paths.path(id, None).as_deref(),
            Some("/a.slice/b.service"),
            "remembered"
        );
        assert_eq!(paths.path(1, None), None);
    }
}
