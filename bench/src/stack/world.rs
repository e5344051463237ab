//! A host and its peer: two namespaces, a veth pair, and one firewall or none in front of the host.

use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use agent::config::Config;
use agent::daemon::datapath_config;
use agent::kernel::attach::{self, Hooks};
use agent::kernel::{Kernel, clock, devices};
use anyhow::{Context, Result, bail};
use datapath::abi::ActiveWord;
use nix::net::if_::if_nametoindex;
use serde::Serialize;

use super::netns::Netns;
use super::policy;
use super::wire::{HOST_MAC, PEER_MAC};
use crate::frames::{LOCAL4, PEERS, peer4};
use crate::host::{BPFFS, default_sizes};
use crate::{programs, sys};

/// What stands in front of a host.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Firewall {
    None,
    /// An empty program on both TCX hooks: what of the cost is the hook's.
    Empty,
    /// A program on the ingress hook that drops everything: the least that a drop there can cost.
    Wall,
    Nftables,
    Cofferdam,
}

impl Firewall {
    pub(crate) const ALL: [Self; 5] = [
        Self::None,
        Self::Empty,
        Self::Wall,
        Self::Nftables,
        Self::Cofferdam,
    ];

    /// As tables show it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::None => "no firewall",
            Self::Empty => "empty TCX programs",
            Self::Wall => "TCX program that drops all",
            Self::Nftables => "nftables",
            Self::Cofferdam => "Cofferdam",
        }
    }

    /// Whether anything can come through it.
    pub(crate) const fn is_open(self) -> bool {
        !matches!(self, Self::Wall)
    }

    /// Whether it looks at packets.
    pub(crate) const fn judges(self) -> bool {
        matches!(self, Self::Nftables | Self::Cofferdam)
    }
}

/// The host's device.
pub(crate) const HOST_DEVICE: &str = "h0";
/// The peer's device.
pub(crate) const PEER_DEVICE: &str = "p0";
/// The peer that has sockets; frames of all others are made.
pub(crate) const REAL_PEER: u32 = PEERS + 9;
/// The peer's end of the wire, for routes.
const PEER_ROUTER: &str = "10.0.0.2";
/// Idle times that no run reaches: every flow stays what it is.
const FOREVER: u64 = 3_600;

/// See the module.
pub(crate) struct World {
    pub(crate) firewall: Firewall,
    pub(crate) host: Netns,
    pub(crate) peer: Netns,
    /// Index of the peer's device.
    pub(crate) peer_device: u32,
    /// The agent's kernel side, where it is the firewall.
    pub(crate) kernel: Option<Kernel>,
    /// Links of the empty programs.
    links: Vec<OwnedFd>,
}

fn mac(bytes: [u8; 6]) -> String {
    bytes.map(|byte| format!("{byte:02x}")).join(":")
}

/// Two namespaces with a veth pair, addresses, routes and neighbours that never change.
pub(crate) fn wire_up() -> Result<(Netns, Netns)> {
    let (host, peer) = (Netns::new()?, Netns::new()?);
    for namespace in [&host, &peer] {
        // Senders that there is no route to are part of what is measured.
        namespace.sysctl("net/ipv4/conf/all/rp_filter", "0")?;
        namespace.sysctl("net/ipv4/conf/default/rp_filter", "0")?;
    }
    let (local, real) = (LOCAL4.to_string(), peer4(REAL_PEER).to_string());
    // One queue: what is sent arrives in its order.
    let queues = ["numtxqueues", "1", "numrxqueues", "1"];
    let path = peer.path();
    let mut add = vec!["link", "add", HOST_DEVICE];
    add.extend(queues);
    let (ours, theirs) = (mac(HOST_MAC), mac(PEER_MAC));
    add.extend([
        "address",
        &ours,
        "type",
        "veth",
        "peer",
        "name",
        PEER_DEVICE,
    ]);
    add.extend(queues);
    add.extend(["address", &theirs, "netns", &path]);
    host.ip(&add)?;
    for (namespace, device, own, other, other_mac) in [
        (&host, HOST_DEVICE, local.as_str(), PEER_ROUTER, PEER_MAC),
        (&peer, PEER_DEVICE, real.as_str(), local.as_str(), HOST_MAC),
    ] {
        let other_mac = mac(other_mac);
        namespace.ip(&["addr", "add", own, "dev", device])?;
        namespace.ip(&["link", "set", device, "up"])?;
        namespace.ip(&["route", "add", other, "dev", device, "src", own])?;
        namespace.ip(&[
            "route", "add", "default", "via", other, "dev", device, "src", own,
        ])?;
        namespace.ip(&[
            "neigh",
            "replace",
            other,
            "lladdr",
            &other_mac,
            "dev",
            device,
            "nud",
            "permanent",
        ])?;
    }
    offloads(&host, HOST_DEVICE, true)?;
    offloads(&peer, PEER_DEVICE, false)?;
    Ok((host, peer))
}

/// Segmentation and receive offloads of a device. GRO gives a veth device its NAPI, without which it takes no live frames
/// (drivers/net/veth.c, `veth_xdp_xmit`).
pub(crate) fn offloads(namespace: &Netns, device: &str, gro: bool) -> Result<()> {
    let gro = if gro { "on" } else { "off" };
    let wanted = ["gro", gro, "gso", "off", "tso", "off"];
    let mut arguments = vec!["-K", device];
    arguments.extend(wanted);
    namespace.tool("ethtool", &arguments, "").map(drop)
}

/// Index of a device of a namespace.
pub(crate) fn index(namespace: &Netns, device: &str) -> Result<u32> {
    namespace.run(|| if_nametoindex(device).with_context(|| format!("no device {device}")))
}

impl World {
    /// Makes both namespaces and raises the firewall.
    pub(crate) fn new(firewall: Firewall) -> Result<Self> {
        let rules = policy::nftables();
        Self::with_rules(firewall, &rules)
    }

    /// As [`Self::new`], with other rules for nftables.
    pub(crate) fn with_rules(firewall: Firewall, rules: &str) -> Result<Self> {
        let (host, peer) = wire_up()?;
        let mut world = Self {
            firewall,
            peer_device: index(&peer, PEER_DEVICE)?,
            host,
            peer,
            kernel: None,
            links: Vec::new(),
        };
        match firewall {
            Firewall::None => {}
            Firewall::Empty => {
                let hooks = [sys::TCX_INGRESS, sys::TCX_EGRESS];
                world.links = world.raise_constant(programs::PASSED, &hooks)?;
            }
            Firewall::Wall => {
                let hooks = [sys::TCX_INGRESS];
                world.links = world.raise_constant(programs::DROPPED, &hooks)?;
            }
            Firewall::Nftables => world.raise_nftables(rules)?,
            Firewall::Cofferdam => world.kernel = Some(world.raise_cofferdam()?),
        }
        Ok(world)
    }

    /// Puts a program that always says the same on hooks of the host's device.
    fn raise_constant(&self, result: u32, hooks: &[u32]) -> Result<Vec<OwnedFd>> {
        let program = programs::constant("constant", result)?;
        self.host.run(|| {
            let index = if_nametoindex(HOST_DEVICE)?;
            hooks
                .iter()
                .map(|hook| sys::link_tcx(program.as_fd(), index, *hook).context("taking a hook"))
                .collect()
        })
    }

    fn raise_nftables(&self, rules: &str) -> Result<()> {
        self.host
            .tool("nft", &["-f", "-"], rules)
            .context("loading the nftables rules")?;
        // A connection is known from its beginning or not at all, as with us.
        self.host
            .sysctl("net/netfilter/nf_conntrack_tcp_loose", "0")?;
        for timeout in ["udp_timeout", "udp_timeout_stream"] {
            let name = format!("net/netfilter/nf_conntrack_{timeout}");
            self.host.sysctl(&name, &FOREVER.to_string())?;
        }
        Ok(())
    }

    /// Loads the agent's object over fresh maps, fills and activates the policy, and takes the hooks as the daemon does.
    fn raise_cofferdam(&self) -> Result<Kernel> {
        let root = Path::new(BPFFS).join("cofferdam-bench-stack");
        let kernel = Kernel::open(&root, default_sizes(), None)?;
        let mut config = Config::default();
        for state in ["new", "replied"] {
            let forever = Duration::from_secs(FOREVER);
            config.timeouts.insert(state.into(), forever);
        }
        kernel.set_config(datapath_config(&config, clock::ticks_per_second()))?;
        let meant = policy::content();
        if kernel.fill(0, &meant)? != meant.digest() {
            bail!("the policy was not read back as it was written");
        }
        kernel.exchange(kernel.word(), ActiveWord::committed(1, 0))?;
        self.host.run(|| {
            let list = devices::list().context("listing devices")?;
            let device = list
                .iter()
                .find(|device| device.name == HOST_DEVICE)
                .context("the host has no device")?;
            kernel.with_programs(|programs| {
                attach::attach(kernel.dir(), programs, device, Hooks::Auto)
            })?;
            Ok(())
        })?;
        Ok(kernel)
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // The pins of a second world would meet these.
        if let Some(kernel) = &self.kernel {
            let _ = self.host.run(|| Ok(attach::release_all(kernel.dir())?));
            let _ = std::fs::remove_dir_all(kernel.dir().path());
        }
    }
}
