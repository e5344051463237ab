//! Takes and keeps the hooks of the chosen devices.
//!
//! TCX links are pinned: they go on without the agent, and the next agent finds them and replaces the
//! program in one step. Kernels before 6.6 get a clsact filter of fixed priority and handle, which has no
//! link and stays by itself.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::AsFd;

use aya::programs::TcAttachType;
use aya::programs::tc::{self, NlOptions, SchedClassifierLink, TcAttachOptions, TcHandle};
use serde::Serialize;
use tracing::{info, warn};

use super::devices::Device;
use super::loader::{EGRESS, INGRESS, Programs};
use super::pins::PinDir;
use super::sys;
use super::{KernelError, Result};

/// Priority of the clsact filter: fixed, so that the next agent finds it.
const PRIORITY: u16 = 7;
const HANDLE: u32 = 0xcf01;

/// How a hook was taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum How {
    /// A new TCX link.
    Linked,
    /// The pinned link of an agent before, its program replaced in one step.
    Adopted,
    /// A clsact filter.
    Filter,
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

/// Takes both hooks of a device. Safe to repeat.
///
/// # Errors
/// When the kernel refuses a hook; the other hook may have been taken.
pub fn attach(dir: &PinDir, programs: &mut Programs, device: &Device) -> Result<Attached> {
    // Egress first: between the two, replies are tracked rather than dropped for want of a flow.
    let out = attach_hook(dir, programs, device, false)?;
    let into = attach_hook(dir, programs, device, true)?;
    let how = if out == How::Linked { out } else { into };
    info!(device = %device.name, ifindex = device.index, how = ?how, "device armed");
    Ok(Attached {
        ifindex: device.index,
        device: device.name.clone(),
        how,
    })
}

fn attach_hook(
    dir: &PinDir,
    programs: &mut Programs,
    device: &Device,
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
    match sys::obj_get(&path) {
        Ok(link) => {
            let fits = sys::link_info(link.as_fd()).is_ok_and(|info| {
                info.kind == sys::LINK_TYPE_TCX
                    && info.ifindex == device.index
                    && info.attach_type == attach_type
            });
            if fits {
                programs
                    .with(name, |prog| sys::link_update(link.as_fd(), prog))?
                    .map_err(failed)?;
                return Ok(How::Adopted);
            }
            warn!(pin = %path.display(), "pinned link is not on this device and hook: rebuilding");
            fs::remove_file(&path).map_err(|source| KernelError::pin(&path, source))?;
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(source) => return Err(KernelError::pin(&path, source)),
    }
    match programs.with(name, |prog| sys::link_tcx(prog, device.index, attach_type))? {
        Ok(link) => {
            sys::obj_pin(link.as_fd(), &path).map_err(|source| KernelError::pin(&path, source))?;
            Ok(How::Linked)
        }
        // No TCX before Linux 6.6.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
            attach_filter(programs, device, name, ingress).map_err(failed)?;
            Ok(How::Filter)
        }
        Err(error) => Err(failed(error)),
    }
}

fn attach_filter(
    programs: &mut Programs,
    device: &Device,
    name: &'static str,
    ingress: bool,
) -> io::Result<()> {
    let attach_type = if ingress {
        TcAttachType::Ingress
    } else {
        TcAttachType::Egress
    };
    // Already there when another tool or the agent before made it.
    if let Err(error) = tc::qdisc_add_clsact(&device.name) {
        tracing::debug!(device = %device.name, %error, "clsact qdisc");
    }
    let handle = TcHandle::new(0, u16::try_from(HANDLE).unwrap_or(1));
    let program = programs.classifier(name).map_err(io::Error::other)?;
    let replaced = SchedClassifierLink::attached(&device.name, attach_type, PRIORITY, handle, None)
        .map_err(io::Error::other)
        .and_then(|link| program.attach_to_link(link).map_err(io::Error::other));
    let id = match replaced {
        Ok(id) => id,
        Err(_) => program
            .attach_with_options(
                &device.name,
                attach_type,
                TcAttachOptions::Netlink(NlOptions {
                    priority: PRIORITY,
                    handle,
                    classid: None,
                }),
            )
            .map_err(io::Error::other)?,
    };
    // A dropped link takes the filter away; enforcement must outlive this process.
    let link = program.take_link(id).map_err(io::Error::other)?;
    let _kept = ManuallyDrop::new(link);
    Ok(())
}

/// Lets go of pinned links whose device is gone or no longer chosen; gives how many.
///
/// # Errors
/// When the pin directory cannot be read.
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
    Ok(released)
}

/// Lets go of every pinned link.
///
/// # Errors
/// When the pin directory cannot be read.
pub fn release_all(dir: &PinDir) -> Result<usize> {
    release_others(dir, &BTreeSet::new())
}

fn release(path: &std::path::Path) -> Result<()> {
    if let Ok(link) = sys::obj_get(path)
        && let Err(error) = sys::link_detach(link.as_fd())
        // The device is gone and took its hook along.
        && error.raw_os_error() != Some(libc::ENOLINK)
    {
        warn!(pin = %path.display(), %error, "detaching a link");
    }
    fs::remove_file(path).map_err(|source| KernelError::pin(path, source))
}

/// Indexes of devices on which both hooks are held by live pinned links.
///
/// # Errors
/// When the pin directory cannot be read.
pub fn armed_devices(dir: &PinDir) -> Result<BTreeSet<u32>> {
    let mut hooks: std::collections::BTreeMap<u32, u32> = std::collections::BTreeMap::new();
    for (index, _, path) in dir
        .links()
        .map_err(|source| KernelError::pin(dir.path(), source))?
    {
        let live = sys::obj_get(&path)
            .and_then(|link| sys::link_info(link.as_fd()))
            .is_ok_and(|info| info.ifindex == index);
        if live {
            *hooks.entry(index).or_default() += 1;
        }
    }
    Ok(hooks
        .into_iter()
        .filter_map(|(index, count)| (count == 2).then_some(index))
        .collect())
}

/// Programs of others on a device's TCX hooks: for `preflight`.
#[must_use]
pub fn others_on(device: &Device) -> Vec<String> {
    let known: std::collections::BTreeMap<u32, String> = sys::programs()
        .unwrap_or_default()
        .into_iter()
        .map(|info| (info.id, info.name()))
        .collect();
    let mut found = Vec::new();
    for (hook, attach_type) in [("ingress", sys::TCX_INGRESS), ("egress", sys::TCX_EGRESS)] {
        for id in sys::query_tcx(device.index, attach_type).unwrap_or_default() {
            let name = known.get(&id).cloned().unwrap_or_default();
            // The kernel cuts names at 15 characters.
            if !name.starts_with("cofferdam_") {
                found.push(format!("{hook} program {id} {name}"));
            }
        }
    }
    found
}
