//! Packages from Debian's archive: where it is, what its signed indexes say, and a cache by checksum.

use std::cmp::Ordering;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use super::lock::{LATEST, Package};
use crate::project::{Project, sha256};
use crate::run;

/// Debian's own front, for machines whose apt knows no Debian archive.
const FALLBACK: &str = "http://deb.debian.org";
/// Debian's keys, from the package debian-archive-keyring.
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Debian's archive as this machine sees it.
pub(super) struct Archive {
    /// `(archive, URI without a slash at its end)`.
    mirrors: Vec<(String, String)>,
    cache: PathBuf,
    offline: bool,
}

impl Archive {
    /// Asks apt where Debian is. Nothing is fetched yet; with `offline` nothing ever is.
    pub(super) fn open(project: &Project, offline: bool) -> Result<Self> {
        let targets = Command::new("apt-get")
            .args([
                "indextargets",
                "--format",
                "$(LABEL) $(REPO_URI)",
                "CREATED-BY: Packages",
            ])
            .output()
            .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
            .unwrap_or_default();
        let cache = env::var_os("XDG_CACHE_HOME")
            .filter(|dir| !dir.is_empty())
            .map_or_else(
                || project.tools(),
                |dir| PathBuf::from(dir).join("cofferdam"),
            )
            .join("debs");
        fs::create_dir_all(&cache).with_context(|| format!("cannot create {}", cache.display()))?;
        Ok(Self {
            mirrors: mirrors(&targets),
            cache,
            offline,
        })
    }

    fn uri(&self, archive: &str, path: &str) -> String {
        let base = self
            .mirrors
            .iter()
            .find(|(name, _)| name == archive)
            .map_or_else(|| format!("{FALLBACK}/{archive}"), |(_, uri)| uri.clone());
        format!("{base}/{path}")
    }

    /// The file of a package, from the cache or the archive.
    pub(super) fn get(&self, package: &Package) -> Result<PathBuf> {
        let file = self.cache.join(format!("{}.deb", package.sha256));
        if file.is_file() && digest(&file)? == package.sha256 {
            return Ok(file);
        }
        let uri = self.uri(&package.archive, &package.path);
        if self.offline {
            bail!(
                "{} is not in {} and --offline forbids fetching {uri}",
                package.name,
                self.cache.display()
            );
        }
        println!("vm: fetching {uri}");
        let fetched = download(&uri, &self.cache)?;
        let found = digest(&fetched)?;
        if found != package.sha256 {
            bail!("{uri} has the checksum {found}, not {}", package.sha256);
        }
        fetched
            .persist(&file)
            .with_context(|| format!("cannot write {}", file.display()))?;
        Ok(file)
    }

    /// The packages of the newest kernel of the series that the locked packages are of.
    pub(super) fn newest(&self, locked: &[Package]) -> Result<Vec<Package>> {
        let first = locked.first().context("no package to go by")?;
        if self.offline {
            bail!("--offline forbids asking for a newer {}", first.series);
        }
        let dist = format!("dists/{}", first.suite);
        let release = download(
            &self.uri(&first.archive, &format!("{dist}/InRelease")),
            &self.cache,
        )?;
        // The signed text, and nothing around it.
        let signed = run::output(Command::new("gpgv").args(["--quiet", "--keyring", KEYRING, "--output", "-"]).arg(release.path()))
            .context("the archive's index is not signed by Debian, as far as gpgv and debian-archive-keyring can tell")?;
        let index = "main/binary-amd64/Packages.xz";
        let meant = checksum_in_release(&signed, index)
            .with_context(|| format!("{dist}/InRelease does not name {index}"))?;
        let packed = download(
            &self.uri(&first.archive, &format!("{dist}/{index}")),
            &self.cache,
        )?;
        if digest(&packed)? != meant {
            bail!(
                "{dist}/{index} is not what InRelease says; the archive may be changing right now"
            );
        }
        let text = run::output(
            Command::new("xz")
                .args(["--decompress", "--stdout"])
                .arg(packed.path()),
        )?;
        select(&text, first)
    }
}

/// The archives that apt is configured with, from `apt-get indextargets`.
fn mirrors(targets: &str) -> Vec<(String, String)> {
    let known = [("Debian", "debian"), ("Debian-Security", "debian-security")];
    targets
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(label, uri)| {
            let (_, archive) = known.iter().find(|(name, _)| *name == label)?;
            Some(((*archive).to_owned(), uri.trim_end_matches('/').to_owned()))
        })
        .collect()
}

/// Fetches a file into a temporary one in `dir`. apt's own helper knows apt's proxies; curl is for machines without.
fn download(uri: &str, dir: &Path) -> Result<tempfile::NamedTempFile> {
    let file = tempfile::NamedTempFile::new_in(dir)
        .with_context(|| format!("cannot write into {}", dir.display()))?;
    let helper = Path::new("/usr/lib/apt/apt-helper");
    let mut command = if helper.is_file() {
        let mut command = Command::new(helper);
        // Its sandbox's user may not write where we cache; what it fetches is checked by checksum anyway.
        command
            .args(["-o", "APT::Sandbox::User=root", "download-file", uri])
            .arg(file.path());
        command
    } else {
        let mut command = Command::new("curl");
        command
            .args([
                "--fail",
                "--silent",
                "--show-error",
                "--location",
                "--output",
            ])
            .arg(file.path())
            .arg(uri);
        command
    };
    run::output(&mut command).with_context(|| format!("cannot fetch {uri}"))?;
    Ok(file)
}

fn digest(file: impl AsRef<Path>) -> Result<String> {
    let file = file.as_ref();
    Ok(sha256(&fs::read(file).with_context(|| {
        format!("cannot read {}", file.display())
    })?))
}

/// The SHA-256 of a file in the text of a Release file.
fn checksum_in_release<'a>(release: &'a str, file: &str) -> Option<&'a str> {
    release
        .lines()
        .skip_while(|line| *line != "SHA256:")
        .skip(1)
        .take_while(|line| line.starts_with(' '))
        .find_map(|line| {
            let mut fields = line.split_whitespace();
            let sum = fields.next()?;
            (fields.nth(1)? == file).then_some(sum)
        })
}

/// Picks the newest kernel of a series from a `Packages` file. Newer kernels are split into binary and modules.
fn select(index: &str, like: &Package) -> Result<Vec<Package>> {
    let mut best: Option<(&str, Vec<Package>)> = None;
    let all: Vec<Stanza<'_>> = index.split("\n\n").filter_map(Stanza::parse).collect();
    for stanza in &all {
        let Some(release) = stanza
            .name
            .strip_prefix("linux-image-")
            .or_else(|| stanza.name.strip_prefix("linux-binary-"))
        else {
            continue;
        };
        let fits = release.ends_with("-cloud-amd64")
            && release.starts_with(|c: char| c.is_ascii_digit())
            && !release.contains("deb11")
            && stanza.path.contains("linux-signed")
            && (like.series == LATEST || stanza.version.starts_with(&format!("{}.", like.series)));
        if !fits
            || best
                .as_ref()
                .is_some_and(|(version, _)| order(version, stanza.version) != Ordering::Less)
        {
            continue;
        }
        let find = |kind: &str| {
            all.iter()
                .find(|other| other.name == format!("linux-{kind}-{release}"))
        };
        let parts = match (find("binary"), find("modules"), find("image")) {
            (Some(binary), Some(modules), _) => vec![binary, modules],
            // A meta-package is small and has no kernel.
            (None, _, Some(image)) if image.size > 1_000_000 => vec![image],
            _ => continue,
        };
        best = Some((
            stanza.version,
            parts.into_iter().map(|part| part.package(like)).collect(),
        ));
    }
    best.map(|(_, packages)| packages).with_context(|| {
        format!(
            "{} of {} has no cloud kernel of series {}",
            like.suite, like.archive, like.series
        )
    })
}

/// What we want of a stanza.
struct Stanza<'a> {
    name: &'a str,
    version: &'a str,
    sha256: &'a str,
    path: &'a str,
    size: u64,
}

impl<'a> Stanza<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
        };
        Some(Self {
            name: field("Package")?,
            version: field("Version")?,
            sha256: field("SHA256")?,
            path: field("Filename")?,
            size: field("Size")?.parse().ok()?,
        })
    }

    fn package(&self, like: &Package) -> Package {
        Package {
            name: self.name.into(),
            version: self.version.into(),
            sha256: self.sha256.into(),
            path: self.path.into(),
            ..like.clone()
        }
    }
}

/// Compares versions of one source package by their numbers, which is enough for kernels.
fn order(left: &str, right: &str) -> Ordering {
    let numbers = |text: &str| -> Vec<u64> {
        text.split(|c: char| !c.is_ascii_digit())
            .filter_map(|part| part.parse().ok())
            .collect()
    };
    numbers(left).cmp(&numbers(right))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn like(series: &str) -> Package {
        Package {
            series: series.into(),
            archive: "debian".into(),
            suite: "s".into(),
            name: "old".into(),
            version: "1".into(),
            sha256: "0".repeat(64),
            path: "old.deb".into(),
        }
    }

    fn stanza(name: &str, version: &str, size: u32) -> String {
        format!(
            "Package: {name}\nVersion: {version}\nFilename: pool/linux-signed-amd64/{name}.deb\nSize: {size}\nSHA256: {version}\n\n"
        )
    }

    #[test]
    fn mirrors_are_those_of_apt() {
        let text = "Debian http://mirror.example/debian/\nDebian-Security http://mirror.example/sec/\nOther http://x/\n";
        assert_eq!(
            mirrors(text),
            [
                (
                    "debian".to_owned(),
                    "http://mirror.example/debian".to_owned()
                ),
                (
                    "debian-security".to_owned(),
                    "http://mirror.example/sec".to_owned()
                )
            ]
        );
    }

    #[test]
    fn the_newest_of_a_series_is_picked_by_number() {
        let index = stanza("linux-image-6.1.0-9-cloud-amd64", "6.1.99-1", 9_000_000)
            + &stanza("linux-image-6.1.0-56-cloud-amd64", "6.1.192-2", 9_000_000)
            + &stanza("linux-image-6.1.0-55-cloud-amd64", "6.1.192-1", 9_000_000)
            + &stanza("linux-image-6.12.9-cloud-amd64", "6.12.9-1", 9_000_000)
            + &stanza("linux-image-cloud-amd64", "6.13.9-1", 1_000);
        let found = select(&index, &like("6.1")).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].version, "6.1.192-2");
        assert!(select(&index, &like("5.10")).is_err());
    }

    #[test]
    fn split_kernels_are_taken_in_two_parts() {
        let index = stanza("linux-image-6.18.9+x-cloud-amd64", "6.18.9-1", 9_000_000)
            + &stanza("linux-image-7.3.4+x-cloud-amd64", "7.3.4-1", 2_000)
            + &stanza("linux-binary-7.3.4+x-cloud-amd64", "7.3.4-1", 9_000_000)
            + &stanza("linux-modules-7.3.4+x-cloud-amd64", "7.3.4-1", 9_000_000);
        let names: Vec<String> = select(&index, &like(LATEST))
            .unwrap()
            .into_iter()
            .map(|package| package.name)
            .collect();
        assert_eq!(
            names,
            [
                "linux-binary-7.3.4+x-cloud-amd64",
                "linux-modules-7.3.4+x-cloud-amd64"
            ]
        );
    }

    #[test]
    fn release_files_name_checksums() {
        let release =
            "Suite: s\nMD5Sum:\n 11 5 main/P\nSHA256:\n 22 5 main/P\n 33 5 main/Q\nEnd: x\n";
        assert_eq!(checksum_in_release(release, "main/P"), Some("22"));
        assert_eq!(checksum_in_release(release, "main/R"), None);
    }
}
