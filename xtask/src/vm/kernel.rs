//! A kernel out of its packages: the image, and the modules that the guest loads, in the order in which they load.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection};

use crate::project::{Project, sha256};
use crate::run;

/// What the tests use: devices, hooks and filters, and the listing of sockets.
const MODULES: [&str; 17] = [
    "veth",
    "dummy",
    "sch_ingress",
    "cls_bpf",
    "act_bpf",
    "inet_diag",
    "tcp_diag",
    "udp_diag",
    "nf_conntrack",
    "nf_tables",
    "ip_tables",
    "tun",
    "8021q",
    "bridge",
    "bonding",
    "macvlan",
    "sctp",
];

/// Without these the tests run as well; a kernel may not have them.
const OPTIONAL: [&str; 5] = ["ip_tables", "sctp", "bridge", "bonding", "macvlan"];

/// A kernel ready to boot.
pub(super) struct Kernel {
    /// The image.
    pub(super) image: PathBuf,
    /// Names and contents of modules, dependencies first.
    pub(super) modules: Vec<(String, Vec<u8>)>,
}

/// Unpacks packages once, and picks what is needed.
pub(super) fn open(project: &Project, debs: &[PathBuf]) -> Result<Kernel> {
    let names: Vec<String> = debs.iter().map(|deb| deb.display().to_string()).collect();
    let home = project.scratch().join("vm");
    fs::create_dir_all(&home).with_context(|| format!("cannot create {}", home.display()))?;
    let tree = home.join(format!(
        "kernel-{}",
        &sha256(names.join(" ").as_bytes())[..16]
    ));
    if !tree.is_dir() {
        let unpacked = tempfile::tempdir_in(&home).context("no place to unpack a kernel")?;
        for deb in debs {
            run::check(
                Command::new("dpkg-deb")
                    .arg("--extract")
                    .arg(deb)
                    .arg(unpacked.path()),
            )?;
        }
        fs::rename(unpacked.keep(), &tree).context("cannot put the kernel in its place")?;
    }
    let files = files(&tree)?;
    let image = files
        .iter()
        .find(|file| {
            file.file_name()
                .is_some_and(|name| name.to_string_lossy().starts_with("vmlinuz"))
        })
        .with_context(|| format!("no kernel image in {}", tree.display()))?
        .clone();
    Ok(Kernel {
        image,
        modules: modules(&files)?,
    })
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut todo = vec![dir.to_path_buf()];
    while let Some(dir) = todo.pop() {
        for entry in fs::read_dir(&dir).with_context(|| format!("cannot read {}", dir.display()))? {
            let entry = entry?;
            // Of links only the targets count; those into a build tree lead nowhere.
            if entry.file_type()?.is_dir() {
                todo.push(entry.path());
            } else {
                found.push(entry.path());
            }
        }
    }
    Ok(found)
}

/// Name of a module as the kernel writes it, from its file.
fn module_name(file: &Path) -> Option<String> {
    let name = file.file_name()?.to_str()?;
    let name = name
        .strip_suffix(".xz")
        .unwrap_or(name)
        .strip_suffix(".ko")?;
    Some(name.replace('-', "_"))
}

fn modules(files: &[PathBuf]) -> Result<Vec<(String, Vec<u8>)>> {
    let by_name: BTreeMap<String, &PathBuf> = files
        .iter()
        .filter_map(|file| Some((module_name(file)?, file)))
        .collect();
    let built_in: Vec<String> = files
        .iter()
        .filter(|file| file.ends_with("modules.builtin"))
        .filter_map(|file| fs::read_to_string(file).ok())
        .flat_map(|text| {
            text.lines()
                .filter_map(|line| module_name(Path::new(line)))
                .collect::<Vec<_>>()
        })
        .collect();
    let mut loaded: Vec<(String, Vec<u8>)> = Vec::new();
    for name in MODULES {
        if by_name.contains_key(name) {
            add(name, &by_name, &mut loaded)?;
        } else if !built_in.iter().any(|other| other == name) && !OPTIONAL.contains(&name) {
            bail!("this kernel has no module {name}, nor is it built in");
        }
    }
    Ok(loaded)
}

/// Adds a module after those it depends on.
fn add(
    name: &str,
    by_name: &BTreeMap<String, &PathBuf>,
    loaded: &mut Vec<(String, Vec<u8>)>,
) -> Result<()> {
    if loaded.iter().any(|(other, _)| other == name) {
        return Ok(());
    }
    let file = by_name
        .get(name)
        .with_context(|| format!("no module {name}, which another depends on"))?;
    let bytes = read(file)?;
    for other in depends(&bytes).with_context(|| format!("in {}", file.display()))? {
        add(&other, by_name, loaded)?;
    }
    loaded.push((name.to_owned(), bytes));
    Ok(())
}

fn read(file: &Path) -> Result<Vec<u8>> {
    if file.extension().is_none_or(|extension| extension != "xz") {
        return fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    }
    let output = Command::new("xz")
        .args(["--decompress", "--stdout"])
        .arg(file)
        .output()
        .context("cannot run xz")?;
    if !output.status.success() {
        bail!("cannot decompress {}", file.display());
    }
    Ok(output.stdout)
}

/// The modules that a module's own `.modinfo` says must be loaded before it.
fn depends(module: &[u8]) -> Result<Vec<String>> {
    let file = object::File::parse(module).context("not a module")?;
    let section = file.section_by_name(".modinfo").context("no .modinfo")?;
    Ok(depends_in(section.data().context("cannot read .modinfo")?))
}

fn depends_in(modinfo: &[u8]) -> Vec<String> {
    modinfo
        .split(|byte| *byte == 0)
        .filter_map(|entry| std::str::from_utf8(entry).ok()?.strip_prefix("depends="))
        .flat_map(|names| names.split(','))
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_are_read_from_modinfo() {
        let info = b"license=GPL\0depends=nf-conntrack,nfnetlink\0name=x\0";
        assert_eq!(depends_in(info), ["nf_conntrack", "nfnetlink"]);
        assert!(depends_in(b"license=GPL\0depends=\0").is_empty());
    }

    #[test]
    fn modules_are_named_as_the_kernel_names_them() {
        let name = |file: &str| module_name(Path::new(file));
        assert_eq!(name("k/sch-ingress.ko.xz").as_deref(), Some("sch_ingress"));
        assert_eq!(name("k/veth.ko").as_deref(), Some("veth"));
        assert_eq!(name("k/modules.order"), None);
    }
}
