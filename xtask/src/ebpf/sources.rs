//! One digest over everything the kernel object is made from, to see cheaply that the recorded
//! object is stale.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

/// Files and directories that the object is made from.
const SOURCES: [&str; 4] = [
    "agent-ebpf/Cargo.toml",
    "agent-ebpf/src",
    "datapath/Cargo.toml",
    "datapath/src",
];

/// The contents of `SOURCES.sha256`.
pub(super) fn record(root: &Path, rustc_commit: &str) -> Result<String> {
    let mut files = Vec::new();
    for source in SOURCES {
        collect(&root.join(source), &mut files)?;
    }
    files.sort();
    let mut digest = Sha256::new();
    digest.update(rustc_commit);
    for file in &files {
        let contents = fs::read(file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(file).to_string_lossy();
        // Lengths, so that no other split of the same bytes has the same digest.
        for part in [name.as_bytes(), &contents] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
    }
    let sum = hex::encode(digest.finalize());
    Ok(format!(
        "{sum}  {} with rustc {rustc_commit}\n",
        SOURCES.join(" ")
    ))
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if !path.is_dir() {
        files.push(path.to_path_buf());
        return Ok(());
    }
    for entry in fs::read_dir(path).with_context(|| format!("cannot list {}", path.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", path.display()))?;
        // Editors leave hidden files beside the one they edit.
        if !entry.file_name().to_string_lossy().starts_with('.') {
            collect(&entry.path(), files)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for (file, text) in [
            ("agent-ebpf/Cargo.toml", "a"),
            ("agent-ebpf/src/main.rs", "b"),
            ("datapath/Cargo.toml", "c"),
            ("datapath/src/lib.rs", "d"),
        ] {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        }
        dir
    }

    #[test]
    fn the_place_of_the_tree_does_not_matter() {
        assert_eq!(
            record(tree().path(), "x").unwrap(),
            record(tree().path(), "x").unwrap()
        );
    }

    #[test]
    fn contents_names_and_compiler_matter() {
        let dir = tree();
        let first = record(dir.path(), "x").unwrap();
        assert_ne!(first, record(dir.path(), "y").unwrap());
        fs::write(dir.path().join("datapath/src/lib.rs"), "e").unwrap();
        let second = record(dir.path(), "x").unwrap();
        assert_ne!(first, second);
        fs::rename(
            dir.path().join("datapath/src/lib.rs"),
            dir.path().join("datapath/src/mod.rs"),
        )
        .unwrap();
        assert_ne!(second, record(dir.path(), "x").unwrap());
    }

    #[test]
    fn a_missing_source_is_an_error() {
        let dir = tree();
        fs::remove_file(dir.path().join("datapath/Cargo.toml")).unwrap();
        assert!(record(dir.path(), "x").is_err());
    }
}
