//! Arms the chosen devices, now and when they come or go.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tracing::{debug, info, warn};

use super::{Host, HostError, lock, system};
use crate::kernel::{KernelError, attach, devices};

/// Before announcements that failed are subscribed to again.
const RESUBSCRIBE: Duration = Duration::from_secs(1);

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
        let wanted = self.config.devices.chosen(&list);
        if wanted.is_empty() {
            warn!("no device is chosen: nothing is enforced until one appears");
        }
        let held: BTreeSet<u32> = lock(&self.attached)
            .iter()
            .map(|attached| attached.ifindex)
            .collect();
        let armed = attach::armed_devices(self.kernel.dir())?;
        let mut attached = Vec::new();
        let mut failed = None;
        let live = !self.kernel.word().is_learning();
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
            let take = if live {
                attach::attach_late
            } else {
                attach::attach
            };
            let now = self.kernel.with_programs(|programs| {
                take(self.kernel.dir(), programs, device, self.config.hooks)
            });
            match now {
                Ok(now) => attached.push(now),
                Err(error) if is_gone(&error) => {
                    debug!(device = %device.name, "gone before it was armed");
                }
                // One that cannot be armed keeps no other from it.
                Err(error) => {
                    warn!(device = %device.name, %error, "NOT armed");
                    failed.get_or_insert(error);
                }
            }
        }
        // A device that is only down keeps its hooks.
        let keep: BTreeSet<u32> = list
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
        // Hooks that still run programs of an agent before go on through its array of programs.
        if failed.is_none()
            && keep
                .iter()
                .all(|index| attached.iter().any(|now| now.ifindex == *index))
        {
            self.kernel.dir().forget_retired_tails()?;
        }
        *lock(&self.attached) = attached;
        failed.map_or(Ok(()), |error| Err(error.into()))
    }
}

/// The device vanished between being listed and being hooked.
fn is_gone(error: &KernelError) -> bool {
    matches!(error, KernelError::Attach { source, .. }
        if source.raw_os_error() == Some(libc::ENODEV))
}

/// Follows the kernel's announcements for as long as the daemon lives.
pub(super) async fn follow(host: Arc<Host>) {
    // A change of policy takes its time, and no device waits for it to be armed.
    let moved = Arc::new(Notify::new());
    let mut readdressing = tokio::task::JoinSet::new();
    readdressing.spawn(readdress(Arc::clone(&host), Arc::clone(&moved)));
    let mut known = host.own_addresses().unwrap_or_default();
    loop {
        let error = match devices::Changes::subscribe() {
            Ok(changes) => look_again(&host, changes, &mut known, &moved).await,
            Err(error) => error,
        };
        host.report_error(&format!("following device changes: {error}"));
        tokio::time::sleep(RESUBSCRIBE).await;
    }
}

/// Arms what is to be armed at every announcement, until announcements fail.
async fn look_again(
    host: &Arc<Host>,
    mut changes: devices::Changes,
    known: &mut BTreeSet<IpAddr>,
    moved: &Notify,
) -> io::Error {
    loop {
        // At once as well: something may have changed while nobody listened.
        let looking = Arc::clone(host);
        let done = tokio::task::spawn_blocking(move || {
            if let Err(error) = looking.attach_devices() {
                looking.report_error(&error);
            }
            looking.own_addresses()
        })
        .await;
        match done {
            Ok(Ok(now)) if now != *known => {
                info!(addresses = now.len(), "own addresses changed");
                *known = now;
                moved.notify_one();
            }
            Ok(Ok(_)) => {}
            Ok(Err(error)) => host.report_error(&error),
            Err(error) => host.report_error(&error),
        }
        if let Err(error) = changes.next().await {
            return error;
        }
    }
}

/// Makes what is applied follow the host's addresses.
async fn readdress(host: Arc<Host>, moved: Arc<Notify>) {
    loop {
        moved.notified().await;
        let host = Arc::clone(&host);
        let done = tokio::task::spawn_blocking(move || {
            if let Err(error) = host.readdress() {
                host.report_error(&error);
            }
        })
        .await;
        if let Err(error) = done {
            warn!(%error, "following new addresses was not finished");
        }
    }
}
