//! Reading policy files: files, directories (recursively) and stdin.

use std::collections::HashSet;
use std::fs;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use policy::source::Source;

use crate::error::Failure;

/// More than this is a mistake, not a policy.
const MAX_TOTAL: u64 = 32 << 20;

/// Name of what comes from stdin.
pub(crate) const STDIN: &str = "<stdin>";

/// Probes are many short lines.
const MAX_PROBES: u64 = 1 << 30;

/// How a gzip file begins, RFC 1952 section 2.3.1.
const GZIP_MAGIC: [u8; 2] = [0x1f, 0x8b];

/// Reads every policy file below `paths` in a stable order; `-` is stdin.
pub(crate) fn read(paths: &[PathBuf]) -> anyhow::Result<Vec<Source>> {
    let mut files = Vec::new();
    for path in paths {
        if path.as_os_str() != "-" && path.is_dir() {
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
    // A file that is named twice is still one file.
    let mut seen = HashSet::new();
    files.retain(|path| seen.insert(path.clone()));
    let mut left = MAX_TOTAL;
    files
        .iter()
        .map(|path| {
            let (name, bytes) = bytes(path, left)?;
            left = left.saturating_sub(bytes.len() as u64);
            Ok(Source::from_bytes(name, &bytes)?)
        })
        .collect()
}

/// Reads one policy or inventory file.
pub(crate) fn read_file(path: &Path) -> anyhow::Result<Source> {
    let (name, bytes) = bytes(path, MAX_TOTAL)?;
    Ok(Source::from_bytes(name, &bytes)?)
}

/// Reads files of other systems, which may be longer than policy files; together they are bounded too.
pub(crate) fn read_foreign(paths: &[PathBuf]) -> anyhow::Result<Vec<Source>> {
    let mut left = MAX_TOTAL;
    paths
        .iter()
        .map(|path| {
            let (name, bytes) = bytes(path, left)?;
            left = left.saturating_sub(bytes.len() as u64);
            Ok(Source::utf8(name, &bytes)?)
        })
        .collect()
}

/// Reads probes, which may be longer than any policy.
pub(crate) fn read_probes(path: &Path) -> anyhow::Result<Source> {
    let (name, bytes) = bytes(path, MAX_PROBES)?;
    let text = String::from_utf8(bytes)
        .map_err(|_| Failure::new(format!("{name} is not UTF-8"), "save the file as UTF-8"))?;
    Ok(Source::new(name, text))
}

/// Reads conformance cases, which may be compressed.
pub(crate) fn read_cases(path: &Path) -> anyhow::Result<Source> {
    let (name, mut bytes) = bytes(path, MAX_PROBES)?;
    if bytes.starts_with(&GZIP_MAGIC) {
        let mut unpacked = Vec::new();
        // One byte more than allowed tells "too long" from "just fits".
        flate2::read::MultiGzDecoder::new(bytes.as_slice())
            .take(MAX_PROBES + 1)
            .read_to_end(&mut unpacked)
            .with_context(|| format!("cannot unpack {name}"))?;
        if unpacked.len() as u64 > MAX_PROBES {
            return Err(Failure::new(
                format!("{name}: unpacked it is longer than 1 GiB"),
                "split it into several files",
            )
            .into());
        }
        bytes = unpacked;
    }
    let text = String::from_utf8(bytes)
        .map_err(|_| Failure::new(format!("{name} is not UTF-8"), "save the file as UTF-8"))?;
    Ok(Source::new(name, text))
}

/// Name and content of a file or stdin, if it is not longer than allowed.
fn bytes(path: &Path, limit: u64) -> anyhow::Result<(String, Vec<u8>)> {
    let (name, reader): (String, Box<dyn std::io::Read>) = if path.as_os_str() == "-" {
        (STDIN.into(), Box::new(std::io::stdin()))
    } else {
        let name = path.display().to_string();
        let file = fs::File::open(path).with_context(|| format!("cannot read {name}"))?;
        (name, Box::new(file))
    };
    let mut bytes = Vec::new();
    // One byte more than allowed tells "too long" from "just fits".
    reader
        .take(limit.saturating_add(1))
        .read_to_end(&mut bytes)
        .with_context(|| format!("cannot read {name}"))?;
    if bytes.len() as u64 > limit {
        return Err(Failure::new(
            format!("{name}: together the files are too long"),
            "name the files that are needed only",
        )
        .into());
    }
    Ok((name, bytes))
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
        let twice = [root.join("a.json"), root.join("a.json")];
        assert_eq!(super::read(&twice).unwrap().len(), 1);
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
