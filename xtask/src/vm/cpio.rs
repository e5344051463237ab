//! A root file system for the kernel to unpack: a cpio archive in the "newc" format
//! (Documentation/driver-api/early-userspace/buffer-format.rst), uncompressed.

use std::collections::BTreeSet;
use std::path::{Component, Path};

const DIRECTORY: u32 = 0o040_755;
const FILE: u32 = 0o100_755;
const LINK: u32 = 0o120_777;
const CONSOLE: u32 = 0o020_600;

/// An archive that grows.
#[derive(Default)]
pub(super) struct Cpio {
    bytes: Vec<u8>,
    entries: u32,
    directories: BTreeSet<String>,
}

impl Cpio {
    /// Adds an executable file, and the directories on its way.
    pub(super) fn file(&mut self, path: &Path, bytes: &[u8]) {
        let name = self.parents(path);
        self.entry(&name, FILE, (0, 0), bytes);
    }

    /// Adds a symbolic link.
    pub(super) fn link(&mut self, path: &Path, to: &str) {
        let name = self.parents(path);
        self.entry(&name, LINK, (0, 0), to.as_bytes());
    }

    /// Adds a directory.
    pub(super) fn directory(&mut self, path: &Path) {
        self.parents(&path.join("x"));
    }

    /// The archive. It has the console, which init's standard streams are opened on.
    pub(super) fn finish(mut self) -> Vec<u8> {
        self.directory(Path::new("/dev"));
        self.entry("dev/console", CONSOLE, (5, 1), &[]);
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        self.bytes
    }

    /// Adds missing directories above a path, and gives its name in the archive.
    fn parents(&mut self, path: &Path) -> String {
        let parts: Vec<&str> = path
            .components()
            .filter_map(|part| match part {
                Component::Normal(part) => part.to_str(),
                _ => None,
            })
            .collect();
        for depth in 1..parts.len() {
            let name = parts[..depth].join("/");
            if self.directories.insert(name.clone()) {
                self.entry(&name, DIRECTORY, (0, 0), &[]);
            }
        }
        parts.join("/")
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), bytes: &[u8]) {
        self.entries += 1;
        // ino, mode, uid, gid, nlink, mtime, filesize, devmajor, devminor, rdevmajor, rdevminor, namesize, check
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            bytes.len() as u32,
            0,
            0,
            device.0,
            device.1,
            name.len() as u32 + 1,
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes
                .extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads names, modes and contents back, by the format's description.
    fn read(bytes: &[u8]) -> Vec<(String, u32, Vec<u8>)> {
        let mut at = 0;
        let mut out = Vec::new();
        loop {
            assert_eq!(&bytes[at..at + 6], b"070701");
            let field = |index: usize| {
                let from = at + 6 + 8 * index;
                u32::from_str_radix(std::str::from_utf8(&bytes[from..from + 8]).unwrap(), 16)
                    .unwrap()
            };
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name =
                String::from_utf8(bytes[at + 110..at + 110 + name_size - 1].to_vec()).unwrap();
            let data = (at + 110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                return out;
            }
            out.push((name, mode, bytes[data..data + size].to_vec()));
            at = (data + size).next_multiple_of(4);
        }
    }

    #[test]
    fn what_goes_in_comes_out_with_its_directories_first() {
        let mut cpio = Cpio::default();
        cpio.file(Path::new("/a/b/c"), b"hello");
        cpio.file(Path::new("/a/b/d"), b"");
        cpio.link(Path::new("/l"), "a/b/c");
        let entries = read(&cpio.finish());
        let names: Vec<&str> = entries.iter().map(|(name, ..)| name.as_str()).collect();
        assert_eq!(
            names,
            ["a", "a/b", "a/b/c", "a/b/d", "l", "dev", "dev/console"]
        );
        assert_eq!(entries[2], ("a/b/c".into(), FILE, b"hello".to_vec()));
        assert_eq!(entries[4], ("l".into(), LINK, b"a/b/c".to_vec()));
    }
}
