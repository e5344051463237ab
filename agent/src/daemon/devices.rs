//! Arms the chosen devices, now and when they come or go.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use tracing::{info, warn};

use super::{Host, HostError, lock, system};
use crate::kernel::{attach, devices};

impl Host {
    /// Addresses of this host.
    ///
    /// # Errors
    /// When the kernel does not list them.
    pub fn own_addresses(&self) -> Result<BTreeSet<IpAddr>, HostError> {
        let list = devices::list().map_err(system("listing devices"))?;
        Ok(devices::own_addresses(&list))
    }

    /// Takes the hooks of every chosen device, lets go of those of devices that are gone or left out.
    ///
    /// # Errors
    /// When a hook is refused.
    pub fn attach_devices(&self) -> Result<(), HostError> {
        let list = devices::list().map_err(system("listing devices"))?;
        let wanted: Vec<_> = list
            .iter()
            .filter(|device| self.config.devices.wants(device))
            .collect();
        if wanted.is_empty() {
            warn!("no device is chosen: nothing is enforced until one appears");
        }
        let held: BTreeSet<u32> = lock(&self.attached)
            .iter()
            .map(|attached| attached.ifindex)
            .collect();
        let armed = attach::armed_devices(self.kernel.dir())?;
        let mut attached = Vec::new();
        for device in &wanted {
            // Ours already, and still there: nothing to do.
            if held.contains(&device.index) && armed.contains_key(&device.index) {
                attached.extend(
                    lock(&self.attached)
                        .iter()
                        .filter(|known| known.ifindex == device.index)
                        .cloned(),
                );
                continue;
            }
            let now = self.kernel.with_programs(|programs| {
                attach::attach(self.kernel.dir(), programs, device, self.config.hooks)
            })?;
            attached.push(now);
        }
        // A device that is only down keeps its hooks.
        let keep = list
            .iter()
            .filter(|device| {
                wanted.iter().any(|other| other.index == device.index)
                    || (!device.up && armed.contains_key(&device.index))
            })
            .map(|device| device.index)
            .collect();
        let released = attach::release_others(self.kernel.dir(), &keep)?;
        if released > 0 {
            info!(
                released,
                "let go of hooks of devices that are gone or left out"
            );
        }
        *lock(&self.attached) = attached;
        Ok(())
    }
}

/// Follows the kernel's announcements for as long as the daemon lives.
pub(super) async fn follow(host: Arc<Host>) {
    let mut changes = match devices::Changes::subscribe() {
        Ok(changes) => changes,
        Err(error) => {
            host.report_error(&format!("following device changes: {error}"));
            return;
        }
    };
    let mut known = host.own_addresses().unwrap_or_default();
    loop {
        if let Err(error) = changes.next().await {
            host.report_error(&format!("following device changes: {error}"));
            return;
        }
        let (host, before) = (Arc::clone(&host), known.clone());
        let done = tokio::task::spawn_blocking(move || look_again(&host, before)).await;
        known = done.unwrap_or_default();
    }
}

/// Arms what is to be armed; gives the addresses as they are now.
fn look_again(host: &Host, before: BTreeSet<IpAddr>) -> BTreeSet<IpAddr> {
    let attempt = || {
        host.attach_devices()?;
        let now = host.own_addresses()?;
        if now != before {
            info!(addresses = now.len(), "own addresses changed");
            host.readdress()?;
        }
        Ok::<_, HostError>(now)
    };
    attempt().unwrap_or_else(|error| {
        host.report_error(&error);
        before.clone()
    })
}
