//! Where the collector finds the owners of sockets: the hooks' maps, and sock_diag for what is older than they are.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use datapath::owner::{AcceptKey, Accepted, Owner};
use tracing::warn;

use crate::flows::attribute::{Joiner, Owners};
use crate::flows::process::Describer;
use crate::kernel::attribution::Attribution;
use crate::kernel::sockowner::{Listed, SocketList};

/// Most questions to sock_diag in a [`WINDOW`]; flows beyond it are asked about when they are reported again.
const QUESTIONS: u32 = 100;
const WINDOW: Duration = Duration::from_millis(100);

/// The hooks' maps and sock_diag.
pub(super) struct Sockets {
    hooks: Arc<Attribution>,
    list: Option<SocketList>,
    window: Instant,
    asked: u32,
}

/// A joiner over this host's sockets. Where owners are not learnt, records stay without a process.
pub(super) fn joiner(hooks: &Arc<Attribution>) -> Joiner<Sockets> {
    let learns = hooks.state().state != "off";
    let list = learns.then(SocketList::open).and_then(|list| {
        list.inspect_err(|error| warn!(%error, "older sockets have no owner"))
            .ok()
    });
    let sockets = Sockets {
        hooks: Arc::clone(hooks),
        list,
        window: Instant::now(),
        asked: 0,
    };
    Joiner::new(sockets, Describer::new(hooks.state().cgroup.clone()))
}

impl Owners for Sockets {
    fn socket(&mut self, cookie: u64) -> Option<Owner> {
        self.hooks.socket(cookie).ok().flatten()
    }

    fn accepted(&mut self, key: &AcceptKey) -> Option<Accepted> {
        self.hooks.accepted(key).ok().flatten()
    }

    fn netns(&self) -> u64 {
        self.hooks.netns()
    }

    fn listed(&mut self, protocol: u8, local: SocketAddr, remote: SocketAddr) -> Option<Listed> {
        if self.window.elapsed() >= WINDOW {
            (self.window, self.asked) = (Instant::now(), 0);
        }
        if self.asked >= QUESTIONS {
            return None;
        }
        self.asked += 1;
        let list = self.list.as_mut()?;
        match list.find(protocol, local, remote) {
            Ok(found) => found,
            Err(error) => {
                tracing::debug!(%error, "asking sock_diag");
                None
            }
        }
    }
}
