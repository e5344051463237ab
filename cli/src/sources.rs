//! Reading policy files: files, directories (recursively) and stdin.

use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::error::Failure;

/// More than this is a mistake, not a policy.
const MAX_TOTAL: u64 = 32 << 20;

/// A file's name as the user wrote it, and its text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Source {
    /// Appears in every message about the file.
    pub(crate) name: String,
    /// UTF-8.
    pub(crate) text: String,
}

/// Reads everything below `paths` in a stable order; `-` is stdin.
pub(crate) fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Source>> {
    let mut files = Vec::new();
    for path in paths {
        if path.as_os_str() == "-" {
            files.push(path.clone());
        } else if path.is_dir() {
            let before = files.len();
            walk(path, &mut files)?;
            if files.len() == before {
                return Err(Failure::new(
                    format!("no .yaml, .yml or .json file in {}", path.display()),
                    "name the directory that holds the policy files",
                )
                .into());
            }
        } else {
            files.push(path.clone());
        }
    }
    let mut left = MAX_TOTAL;
    files.iter().map(|path| read_one(path, &mut left)).collect()
}

/// Reads one file.
pub(crate) fn read_file(path: &Path) -> anyhow::Result<Source> {
    read_one(path, &mut MAX_TOTAL.clone())
}

fn read_one(path: &Path, left: &mut u64) -> anyhow::Result<Source> {
    let (name, reader): (String, Box<dyn std::io::Read>) = if path.as_os_str() == "-" {
        ("<stdin>".into(), Box::new(std::io::stdin()))
    } else {
        let name = path.display().to_string();
        let file = fs::File::open(path).with_context(|| format!("cannot read {name}"))?;
        (name, Box::new(file))
    };
    let mut text = String::new();
    // One byte more than allowed tells "too big" from "just fits".
    let read = reader
        .take(*left + 1)
        .read_to_string(&mut text)
        .with_context(|| format!("cannot read {name}"))?;
    *left = (*left).checked_sub(read as u64).ok_or_else(|| {
        Failure::new(
            format!("{name}: more than {} MiB of policy", MAX_TOTAL >> 20),
            "name the policy files only",
        )
    })?;
    Ok(Source { name, text })
}

fn walk(directory: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let mut entries = fs::read_dir(directory)
        .and_then(Iterator::collect::<Result<Vec<_>, _>>)
        .with_context(|| format!("cannot read {}", directory.display()))?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        let hidden = entry.file_name().as_encoded_bytes().first() == Some(&b'.');
        let kind = entry
            .file_type()
            .with_context(|| format!("cannot read {}", path.display()))?;
        if hidden {
            continue;
        }
        // Links to directories are not followed: they can run in circles.
        if kind.is_dir() {
            walk(&path, files)?;
        } else if is_policy_file(&path) {
            files.push(path);
        }
    }
    Ok(())
}

fn is_policy_file(path: &Path) -> bool {
    path.extension()
        .and_then(|extension| extension.to_str())
        .is_some_and(|extension| matches!(extension, "yaml" | "yml" | "json"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_read_recursively_in_order() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        fs::create_dir(root.join("b")).unwrap();
        for name in ["z.yaml", "b/a.yml", "b/.hidden.yaml", "a.json", "notes.txt"] {
            fs::write(root.join(name), name).unwrap();
        }
        let read: Vec<_> = read(&[root.to_owned()])
            .unwrap()
            .into_iter()
            .map(|source| source.text)
            .collect();
        assert_eq!(read, ["a.json", "b/a.yml", "z.yaml"]);
    }

    #[test]
    fn an_empty_directory_and_a_missing_file_say_so() {
        let directory = tempfile::tempdir().unwrap();
        let error = read(&[directory.path().to_owned()]).unwrap_err();
        assert!(error.to_string().starts_with("no .yaml"), "{error}");
        let error = read(&[directory.path().join("none.yaml")]).unwrap_err();
        assert!(error.to_string().starts_with("cannot read"), "{error}");
    }
}
