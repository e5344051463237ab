//! Takes and keeps the hooks of the chosen devices.
//!
//! TCX links are pinned: they go on without the agent, and the next agent finds them and replaces the
//! program in one step. Kernels before 6.6 get a clsact filter instead, which stays by itself (see `clsact`).
//! Whichever it is, the new hold is there before the old one goes, and the old one always goes.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};

use super::clsact;
use super::devices::Device;
use super::loader::{EGRESS, INGRESS, Programs};
use super::pins::PinDir;
use super::sys;
use super::{KernelError, Result};

/// Which hooks are taken.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Hooks {
    /// TCX, or clsact where the kernel has no TCX.
    #[default]
    Auto,
    /// clsact, whatever the kernel has.
    Clsact,
}

/// How a hook was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// A new TCX link.
    Linked,
    /// The pinned link of an agent before, its program replaced in one step.
    Adopted,
    /// A new clsact filter.
    Filter,
    /// The clsact filter of an agent before, its program replaced in one step.
    FilterAdopted,
}

/// One device that is armed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Attached {
    /// Device index.
    pub ifindex: u32,
    /// Device name.
    pub device: String,
    /// How its hooks were taken.
    pub how: How,
}

/// Takes both hooks of a device before policy is enforced. Safe to repeat.
///
/// # Errors
/// When the kernel refuses a hook; the other hook may have been taken.
pub fn attach(
    dir: &PinDir,
    programs: &Programs,
    device: &Device,
    hooks: Hooks,
) -> Result<Attached> {
    attach_both(dir, programs, device, hooks, false)
}

/// Takes both hooks of a device that appeared while policy is enforced. Safe to repeat.
///
/// # Errors
/// When the kernel refuses a hook; the other hook may have been taken.
pub fn attach_late(
    dir: &PinDir,
    programs: &Programs,
    device: &Device,
    hooks: Hooks,
) -> Result<Attached> {
    attach_both(dir, programs, device, hooks, true)
}

fn attach_both(
    dir: &PinDir,
    programs: &Programs,
    device: &Device,
    hooks: Hooks,
    live: bool,
) -> Result<Attached> {
    // The kernel answers only after a grace period, for the whole of which the other hook is free.
    let (out, into) = if live {
        // What comes in is stopped first; an answer that is dropped meanwhile is sent again.
        let into = attach_hook(dir, programs, device, hooks, true)?;
        (attach_hook(dir, programs, device, hooks, false)?, into)
    } else {
        // Nothing is dropped yet, and what goes out is to be known before its answer comes.
        let out = attach_hook(dir, programs, device, hooks, false)?;
        (out, attach_hook(dir, programs, device, hooks, true)?)
    };
    let new = matches!(out, How::Linked | How::Filter);
    let how = if new { out } else { into };
    info!(device = %device.name, ifindex = device.index, how = ?how, "device armed");
    Ok(Attached {
        ifindex: device.index,
        device: device.name.clone(),
        how,
    })
}

fn attach_hook(
    dir: &PinDir,
    programs: &Programs,
    device: &Device,
    hooks: Hooks,
    ingress: bool,
) -> Result<How> {
    let (name, hook, attach_type) = if ingress {
        (INGRESS, "ingress", sys::TCX_INGRESS)
    } else {
        (EGRESS, "egress", sys::TCX_EGRESS)
    };
    let failed = |source| KernelError::Attach {
        device: device.name.clone(),
        hook,
        source,
    };
    let path = dir.link(device.index, ingress);
    let pinned = pinned_link(&path, device.index, attach_type)?;
    let linked = match (hooks, &pinned) {
        (Hooks::Clsact, _) => None,
        (Hooks::Auto, Some(link)) => {
            programs
                .with(name, |prog| sys::link_update(link.as_fd(), prog))?
                .map_err(failed)?;
            Some(How::Adopted)
        }
        (Hooks::Auto, None) => {
            match programs.with(name, |prog| sys::link_tcx(prog, device.index, attach_type))? {
                Ok(link) => {
                    sys::obj_pin(link.as_fd(), &path)
                        .map_err(|source| KernelError::pin(&path, source))?;
                    Some(How::Linked)
                }
                // No TCX before Linux 6.6.
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => None,
                Err(error) => return Err(failed(error)),
            }
        }
    };
    // Until the old hold goes, a packet is judged twice, which is harmless; never is it not judged.
    if let Some(how) = linked {
        if clsact::remove(device.index, ingress).map_err(failed)? {
            info!(device = %device.name, hook, "clsact filter gave way to a TCX link");
        }
        return Ok(how);
    }
    let replaced = programs
        .with(name, |prog| {
            let id = sys::prog_info(prog)?.id;
            clsact::set(prog, id, name, device.index, ingress)
        })?
        .map_err(failed)?;
    if pinned.is_some() {
        release(&path)?;
        info!(device = %device.name, hook, "TCX link gave way to a clsact filter");
    }
    Ok(if replaced {
        How::FilterAdopted
    } else {
        How::Filter
    })
}

/// The link pinned at a path, if it is on this device and hook; a pin of anything else is removed.
fn pinned_link(path: &Path, ifindex: u32, attach_type: u32) -> Result<Option<OwnedFd>> {
    let link = match sys::obj_get(path) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(source) => return Err(KernelError::pin(path, source)),
    };
    let fits = sys::link_info(link.as_fd()).is_ok_and(|info| {
        info.kind == sys::LINK_TYPE_TCX
            && info.ifindex == ifindex
            && info.attach_type == attach_type
    });
    if fits {
        return Ok(Some(link));
    }
    warn!(pin = %path.display(), "pinned link is not on this device and hook: rebuilding");
    fs::remove_file(path).map_err(|source| KernelError::pin(path, source))?;
    Ok(None)
}

fn filters() -> Result<Vec<clsact::Filter>> {
    clsact::ours().map_err(KernelError::system("listing clsact filters"))
}

/// Lets go of the hooks of devices that are gone or no longer chosen; gives how many.
///
/// # Errors
/// When the pin directory or the filters cannot be read, or a hook cannot be let go.
pub fn release_others(dir: &PinDir, keep: &BTreeSet<u32>) -> Result<usize> {
    let mut released = 0;
    for (index, _, path) in dir
        .links()
        .map_err(|source| KernelError::pin(dir.path(), source))?
    {
        if keep.contains(&index) {
            continue;
        }
        release(&path)?;
        released += 1;
    }
    for filter in filters()? {
        if keep.contains(&filter.ifindex) {
            continue;
        }
        clsact::remove(filter.ifindex, filter.ingress)
            .map_err(KernelError::system("removing a clsact filter"))?;
        released += 1;
    }
    Ok(released)
}

/// Lets go of every hook, in this network namespace.
///
/// # Errors
/// When the pin directory or the filters cannot be read, or a hook cannot be let go.
pub fn release_all(dir: &PinDir) -> Result<usize> {
    release_others(dir, &BTreeSet::new())
}

fn release(path: &Path) -> Result<()> {
    if let Ok(link) = sys::obj_get(path)
        && let Err(error) = sys::link_detach(link.as_fd())
        // The device is gone and took its hook along.
        && error.raw_os_error() != Some(libc::ENOLINK)
    {
        warn!(pin = %path.display(), %error, "detaching a link");
    }
    fs::remove_file(path).map_err(|source| KernelError::pin(path, source))
}

/// Devices of this network namespace on which both hooks are held, by live pinned links or by filters.
///
/// # Errors
/// When the pin directory or the filters cannot be read.
pub fn armed_devices(dir: &PinDir) -> Result<BTreeMap<u32, How>> {
    let mut hooks: BTreeMap<(u32, bool), How> = BTreeMap::new();
    for (index, ingress, path) in dir
        .links()
        .map_err(|source| KernelError::pin(dir.path(), source))?
    {
        let live = sys::obj_get(&path)
            .and_then(|link| sys::link_info(link.as_fd()))
            .is_ok_and(|info| info.ifindex == index);
        if live {
            hooks.insert((index, ingress), How::Linked);
        }
    }
    for filter in filters()? {
        hooks.insert((filter.ifindex, filter.ingress), How::Filter);
    }
    Ok(hooks
        .iter()
        .filter(|((_, ingress), _)| *ingress)
        .filter_map(|((index, _), how)| {
            let out = hooks.get(&(*index, false))?;
            Some((*index, if *out == How::Filter { *out } else { *how }))
        })
        .collect())
}

/// A program or filter on a hook of a device, as the kernel tells, in the order in which they run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// On the way in.
    pub ingress: bool,
    /// Which kind of hook.
    pub hooks: Hooks,
    /// Id of the program; 0 when a filter is none.
    pub program: u32,
    /// An agent's.
    pub ours: bool,
    /// For people.
    pub text: String,
}

/// What is on both hooks of a device, ours or not. What cannot be listed is not there.
#[must_use]
pub fn holders(ifindex: u32) -> Vec<Holder> {
    let known: BTreeMap<u32, String> = sys::programs()
        .unwrap_or_default()
        .into_iter()
        .map(|info| (info.id, info.name()))
        .collect();
    let mut found = Vec::new();
    for (hook, attach_type) in [("ingress", sys::TCX_INGRESS), ("egress", sys::TCX_EGRESS)] {
        let ingress = attach_type == sys::TCX_INGRESS;
        for id in sys::query_tcx(ifindex, attach_type).unwrap_or_default() {
            let name = known.get(&id).cloned().unwrap_or_default();
            found.push(Holder {
                ingress,
                hooks: Hooks::Auto,
                program: id,
                // The kernel cuts names at 15 characters.
                ours: name.starts_with(clsact::PREFIX),
                text: format!("{hook} program {id} {name}"),
            });
        }
        for filter in clsact::on_hook(ifindex, ingress).unwrap_or_default() {
            found.push(Holder {
                ingress,
                hooks: Hooks::Clsact,
                program: filter.program,
                ours: filter.is_ours(),
                text: format!(
                    "{hook} clsact filter {} {} {}",
                    filter.priority, filter.kind, filter.name
                ),
            });
        }
    }
    found
}

/// Programs and filters of others on a device's hooks: for `preflight`.
#[must_use]
pub fn others_on(device: &Device) -> Vec<String> {
    holders(device.index)
        .into_iter()
        .filter(|holder| !holder.ours)
        .map(|holder| holder.text)
        .collect()
}
