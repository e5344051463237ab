//! `xtask/vm/kernels.lock`: which kernels there are, by series, package and checksum.

use std::fmt;

use anyhow::{Result, bail};

/// The series that means: the newest kernel the archive has.
pub(super) const LATEST: &str = "latest";

/// One package of a kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Package {
    /// `6.1`, `6.12`, …, or [`LATEST`].
    pub(super) series: String,
    /// `debian` or `debian-security`.
    pub(super) archive: String,
    /// The suite whose index names it.
    pub(super) suite: String,
    pub(super) name: String,
    pub(super) version: String,
    /// SHA-256 of the file, hexadecimal.
    pub(super) sha256: String,
    /// Path of the file from the root of the archive.
    pub(super) path: String,
}

impl fmt::Display for Package {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            series,
            archive,
            suite,
            name,
            version,
            sha256,
            path,
        } = self;
        write!(
            out,
            "{series} {archive} {suite} {name} {version} {sha256} {path}"
        )
    }
}

/// Reads the file; comments and empty lines are left out.
pub(super) fn parse(text: &str) -> Result<Vec<Package>> {
    let mut packages = Vec::new();
    for line in text.lines().map(str::trim) {
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [series, archive, suite, name, version, sha256, path] = fields[..] else {
            bail!("not seven fields: {line:?}");
        };
        if sha256.len() != 64 || !sha256.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            bail!("not a SHA-256: {sha256:?}");
        }
        if path.starts_with('/') || path.split('/').any(|part| part == "..") {
            bail!("not a path below the archive: {path:?}");
        }
        packages.push(Package {
            series: series.into(),
            archive: archive.into(),
            suite: suite.into(),
            name: name.into(),
            version: version.into(),
            sha256: sha256.to_ascii_lowercase(),
            path: path.into(),
        });
    }
    if packages.is_empty() {
        bail!("no kernel is named");
    }
    Ok(packages)
}

/// The file with other packages: its comments stay.
pub(super) fn rewrite(text: &str, packages: &[Package]) -> String {
    let mut out: String = text
        .lines()
        .filter(|line| line.starts_with('#'))
        .map(|line| format!("{line}\n"))
        .collect();
    for package in packages {
        out.push_str(&format!("{package}\n"));
    }
    out
}

/// The series in the order of the file.
pub(super) fn series(packages: &[Package]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    for package in packages {
        if !names.contains(&package.series) {
            names.push(package.series.clone());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = "6.1 debian-security s linux-image-x 6.1.2-1 aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa pool/x.deb";

    #[test]
    fn lines_are_read_and_written_back() {
        let text = format!("# comment\n\n{LINE}\n");
        let packages = parse(&text).unwrap();
        assert_eq!(packages[0].name, "linux-image-x");
        assert_eq!(rewrite(&text, &packages), format!("# comment\n{LINE}\n"));
    }

    #[test]
    fn broken_lines_are_refused() {
        for broken in [
            String::new(),
            LINE.replace("pool/", "../pool/"),
            LINE.replace("pool/", "/pool/"),
            LINE.replace("aaaa", "aaag"),
            LINE.replace(" s ", " "),
        ] {
            assert!(parse(&broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn the_file_of_this_tree_names_an_old_and_the_newest_kernel() {
        let project = crate::project::Project::find().unwrap();
        let text = std::fs::read_to_string(project.path(super::super::LOCK)).unwrap();
        let names = series(&parse(&text).unwrap());
        for name in ["5.10", "6.1", "6.12", LATEST] {
            assert!(names.contains(&name.to_owned()), "{name}: {names:?}");
        }
    }
}
