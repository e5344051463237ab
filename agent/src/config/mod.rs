//! The agent's configuration: file, then `COFFERDAM_AGENT_*`, then flags. Unknown keys are refused with their place.

mod source;

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use policy::snapshot::Mode;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::kernel::attach::Hooks;
use crate::reconcile::plan::Limits;

pub use source::{ConfigError, load, merge_env, parse};

/// Where the file is unless told otherwise.
pub const DEFAULT_PATH: &str = "/etc/cofferdam/agent.yaml";

/// Everything that can be configured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Last good snapshot, spool, identity.
    pub state_dir: PathBuf,
    /// Root of the pins, on bpffs.
    pub pin_dir: PathBuf,
    /// Local socket of the operator's commands.
    pub admin_socket: PathBuf,
    /// Network namespace to live in, as a path or a name below `/run/netns`.
    pub netns: Option<String>,
    /// Which devices are armed: `auto`, one pattern, or `{include: [...], exclude: [...]}`.
    #[serde(deserialize_with = "devices::deserialize")]
    pub devices: Devices,
    /// Which hooks are taken: `auto` (TCX, or clsact where the kernel has no TCX) or `clsact`.
    pub hooks: Hooks,
    /// What this host is.
    pub workload: Workload,
    /// Mode without a controller, unless a Mode object says otherwise.
    pub mode: Mode,
    /// Directory of policy files; makes the agent standalone.
    pub policy_dir: Option<PathBuf>,
    /// What is inside.
    pub managed_networks: Vec<IpNet>,
    /// What this host needs to live.
    pub failsafes: Failsafes,
    /// Who tells it what to enforce.
    pub controller: Controller,
    /// Sizes of the kernel's tables.
    pub tables: Tables,
    /// Largest policy that is accepted.
    pub limits: Limits,
    /// Idle timeouts by connection state name.
    #[serde(with = "duration_map")]
    pub timeouts: BTreeMap<String, Duration>,
    /// What happens to a new flow when the table is full.
    pub full_table: FullTable,
    /// What happens to frames that are neither IP nor ARP.
    pub l2: L2,
    /// Where metrics are served; nowhere unless set.
    pub metrics_listen: Option<SocketAddr>,
    /// How long `apply` waits for a confirmation unless told otherwise; zero = final at once.
    #[serde(with = "duration")]
    pub confirm_within: Duration,
    /// What a change may cut while it waits for its confirmation.
    pub breaker: Breaker,
    /// Flow records.
    pub flows: Flows,
    /// Learn which process owns a socket, by hooks of the root cgroup.
    pub attribution: bool,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            state_dir: "/var/lib/cofferdam".into(),
            pin_dir: "/sys/fs/bpf/cofferdam".into(),
            admin_socket: "/run/cofferdam/agent.sock".into(),
            netns: None,
            devices: Devices::default(),
            hooks: Hooks::default(),
            workload: Workload::default(),
            mode: Mode::Observe,
            policy_dir: None,
            managed_networks: Vec::new(),
            failsafes: Failsafes::default(),
            controller: Controller::default(),
            tables: Tables::default(),
            limits: Limits::default(),
            timeouts: BTreeMap::new(),
            full_table: FullTable::Deny,
            l2: L2::Pass,
            metrics_listen: None,
            confirm_within: Duration::from_secs(60),
            breaker: Breaker::default(),
            flows: Flows::default(),
            attribution: true,
        }
    }
}

/// Which devices are armed: `auto`, or patterns.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Devices {
    /// Names or patterns with `*` and `?`. `auto` stands for the lowest Ethernet devices, on which each packet of the host
    /// is seen once: no VLAN or macvlan on top of another device, no bridge or bond (their ports are), no pair of veths
    /// whose ends are both here.
    pub include: Vec<String>,
    /// Names or patterns that are left alone.
    pub exclude: Vec<String>,
}

impl Default for Devices {
    fn default() -> Self {
        Self {
            include: vec!["auto".into()],
            exclude: Vec::new(),
        }
    }
}

impl Devices {
    /// The devices of a list that are to be armed.
    #[must_use]
    pub fn chosen<'a>(
        &self,
        list: &'a [crate::kernel::devices::Device],
    ) -> Vec<&'a crate::kernel::devices::Device> {
        use crate::kernel::devices::{Device, lowest, matches};
        let excluded = |device: &Device| {
            self.exclude
                .iter()
                .any(|pattern| matches(pattern, &device.name))
        };
        // An Ethernet device is armed before it is up: then there is no packet that it could miss.
        let lowest: Vec<u32> = if self.include.iter().any(|pattern| pattern == "auto") {
            lowest(list, &excluded).map(|device| device.index).collect()
        } else {
            Vec::new()
        };
        list.iter()
            .filter(|device| {
                let named = || {
                    self.include
                        .iter()
                        .any(|pattern| pattern != "auto" && matches(pattern, &device.name))
                };
                !device.loopback && !excluded(device) && (lowest.contains(&device.index) || named())
            })
            .collect()
    }
}

/// What this host is.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Workload {
    /// Name; the host name unless set.
    pub name: Option<String>,
    /// Namespace.
    pub namespace: Option<String>,
    /// Labels (standalone; with a controller they come with the join token).
    pub labels: BTreeMap<String, String>,
}

impl Workload {
    /// The name, or the host's.
    #[must_use]
    pub fn name(&self) -> String {
        self.name.clone().unwrap_or_else(host_name)
    }

    /// What the controller calls it: `namespace/name` where there is a namespace.
    #[must_use]
    pub fn full_name(&self) -> String {
        match &self.namespace {
            Some(namespace) => format!("{namespace}/{}", self.name()),
            None => self.name(),
        }
    }
}

/// The kernel's name for this host.
#[must_use]
pub fn host_name() -> String {
    nix::sys::utsname::uname()
        .map(|name| name.nodename().to_string_lossy().into_owned())
        .ok()
        .filter(|name| !name.is_empty())
        .unwrap_or_else(|| "localhost".to_owned())
}

/// What this host needs to live. DHCP, neighbour discovery and ARP are compiled in.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Failsafes {
    /// Who may manage the host, on which TCP ports.
    pub management: Vec<Management>,
    /// Name servers; those of `/etc/resolv.conf` unless set.
    pub resolvers: Option<Vec<IpAddr>>,
    /// Who may look at it in isolation, on which TCP port.
    pub forensic: Vec<Forensic>,
}

/// Who may manage the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Management {
    /// From where.
    pub cidr: IpNet,
    /// On which TCP ports.
    pub ports: Vec<u16>,
}

/// Who may look at an isolated host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Forensic {
    /// From where.
    pub cidr: IpNet,
    /// On which TCP port.
    pub port: u16,
}

/// Who tells this host what to enforce.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Controller {
    /// `host:port`, tried in random order.
    pub endpoints: Vec<String>,
    /// SHA-256 of the CA certificate, hex: what the agent believes before it has an identity.
    pub ca_sha256: Option<String>,
    /// CA certificate (PEM) to believe instead, where it was brought here by other means.
    pub ca_file: Option<PathBuf>,
    /// Join token.
    pub token: Option<String>,
    /// File with the join token.
    pub token_file: Option<PathBuf>,
    /// Name that the controller's certificate must carry; `cofferdam-controller` unless set.
    pub server_name: Option<String>,
}

impl Controller {
    /// The join token, from wherever it is.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn token(&self) -> std::io::Result<Option<String>> {
        match (&self.token, &self.token_file) {
            (Some(token), _) => Ok(Some(token.trim().to_owned())),
            (None, Some(path)) => Ok(Some(std::fs::read_to_string(path)?.trim().to_owned())),
            (None, None) => Ok(None),
        }
    }
}

/// Sizes of the kernel's tables. A change makes new tables at the next start.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Tables {
    /// IPv4 flows.
    pub flows4: u32,
    /// IPv6 flows.
    pub flows6: u32,
    /// Aggregated denials.
    pub denies: u32,
    /// Bytes of the event ring, a power of two.
    pub ring_bytes: u32,
    /// How much of the flow table the connections of one peer address may fill, percent; 0 = all of it.
    pub peer_share: u32,
}

impl Tables {
    /// The share in entries; 0 = no limit.
    #[must_use]
    pub fn share(&self) -> u32 {
        let flows = u64::from(self.flows4.max(self.flows6));
        u32::try_from(flows * u64::from(self.peer_share) / 100).unwrap_or(u32::MAX)
    }
}

impl Default for Tables {
    fn default() -> Self {
        Self {
            flows4: 262_144,
            flows6: 65_536,
            denies: 65_536,
            ring_bytes: 4 << 20,
            // One peer may well be the only one: a proxy in front of everything. It must not be able to fill the last
            // way for everybody else.
            peer_share: 80,
        }
    }
}

/// What happens to a new flow when the table is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FullTable {
    /// It is denied.
    Deny,
    /// It passes untracked.
    Allow,
}

/// What happens to frames that are neither IP nor ARP.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum L2 {
    /// They pass, counted.
    Pass,
    /// They are dropped.
    Drop,
}

/// The deny-rate breaker: looks at a change while it waits for its confirmation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Breaker {
    /// It trips when more distinct edges than this were in use and are denied now; 0 = never.
    pub edges: u32,
    /// For how long an edge counts as in use after it was seen.
    #[serde(with = "duration")]
    pub memory: Duration,
    /// What follows.
    pub action: OnTrip,
}

impl Default for Breaker {
    fn default() -> Self {
        Self {
            edges: 10,
            memory: Duration::from_secs(600),
            action: OnTrip::Report,
        }
    }
}

/// What follows when the breaker trips.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnTrip {
    /// It is reported; the change goes on until its deadline.
    Report,
    /// It is reported, and what went before is enforced again at once.
    FallBack,
}

/// Flow records.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Flows {
    /// How often a live flow is reported.
    #[serde(with = "duration")]
    pub interval: Duration,
    /// Bytes that the spool may take; the oldest batches go first, counted.
    pub spool_bytes: u64,
    /// Every how many packets of a denied key a notice is sent; 0 = only the first.
    pub deny_every: u32,
    /// After how long a denied key is announced again.
    #[serde(with = "duration")]
    pub deny_interval: Duration,
}

impl Default for Flows {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(10),
            spool_bytes: 256 << 20,
            deny_every: 0,
            deny_interval: Duration::from_secs(10),
        }
    }
}

impl Config {
    /// Checks what types cannot.
    ///
    /// # Errors
    /// With the first value that cannot work.
    pub fn check(&self) -> Result<(), ConfigError> {
        let invalid = |key: &str, why: String| ConfigError::Invalid {
            key: key.to_owned(),
            why,
        };
        let Tables {
            flows4,
            flows6,
            denies,
            ring_bytes,
            peer_share,
        } = self.tables;
        if peer_share > 100 {
            return Err(invalid(
                "tables.peer_share",
                format!("{peer_share} is more than 100 percent"),
            ));
        }
        for (key, size) in [
            ("tables.flows4", flows4),
            ("tables.flows6", flows6),
            ("tables.denies", denies),
        ] {
            if size == 0 {
                return Err(invalid(key, "must be at least 1".into()));
            }
        }
        if !ring_bytes.is_power_of_two() || ring_bytes < 4096 {
            return Err(invalid(
                "tables.ring_bytes",
                format!("{ring_bytes} is not a power of two of at least 4096"),
            ));
        }
        for name in self.timeouts.keys() {
            if state_number(name).is_none() {
                return Err(invalid(
                    "timeouts",
                    format!("unknown connection state \"{name}\""),
                ));
            }
        }
        if let Some(pin) = &self.controller.ca_sha256
            && hex::decode(pin).map(|bytes| bytes.len()) != Ok(32)
        {
            return Err(invalid(
                "controller.ca_sha256",
                "must be 64 hexadecimal digits".into(),
            ));
        }
        if self.policy_dir.is_some() && !self.controller.endpoints.is_empty() {
            return Err(invalid(
                "policy_dir",
                "a standalone agent has no controller: remove one of policy_dir and controller.endpoints".into(),
            ));
        }
        for endpoint in &self.controller.endpoints {
            let port = endpoint
                .rsplit_once(':')
                .map(|(_, port)| port.parse::<u16>());
            if !matches!(port, Some(Ok(_))) {
                return Err(invalid(
                    "controller.endpoints",
                    format!("\"{endpoint}\" is not host:port"),
                ));
            }
        }
        Ok(())
    }

    /// The configured name servers, or those of `/etc/resolv.conf`.
    #[must_use]
    pub fn resolvers(&self) -> Vec<IpAddr> {
        self.failsafes.resolvers.clone().unwrap_or_else(|| {
            std::fs::read_to_string("/etc/resolv.conf")
                .map(|text| name_servers(&text))
                .unwrap_or_default()
        })
    }

    /// Idle timeouts in ticks by state number.
    #[must_use]
    pub fn timeouts(&self, hz: u32) -> [u32; 16] {
        let mut ticks = [0; 16];
        for (number, slot) in (0u8..).zip(ticks.iter_mut()) {
            let state = datapath::conntrack::State(number);
            let seconds = self
                .timeouts
                .get(state.name())
                .map_or(u64::from(state.default_timeout()), Duration::as_secs);
            *slot = u32::try_from(seconds.saturating_mul(u64::from(hz)))
                .unwrap_or(u32::MAX)
                // Stamps are compared as signed 32-bit differences.
                .min(u32::MAX / 4);
        }
        ticks
    }
}

fn state_number(name: &str) -> Option<u8> {
    (1..u8::try_from(datapath::conntrack::State::COUNT).unwrap_or(0))
        .find(|number| datapath::conntrack::State(*number).name() == name)
}

fn name_servers(text: &str) -> Vec<IpAddr> {
    text.lines()
        .filter_map(|line| {
            line.strip_prefix("nameserver")?
                .trim()
                .split('%')
                .next()?
                .parse()
                .ok()
        })
        .filter(|address: &IpAddr| !address.is_loopback())
        .collect()
}

/// Makes a path absolute for messages.
#[must_use]
pub fn shown(path: &Path) -> String {
    path.display().to_string()
}

mod devices {
    use super::Devices;
    use serde::de::value::MapAccessDeserializer;
    use serde::de::{Deserialize, Deserializer, Error, MapAccess, Visitor};

    /// A word, or the whole form; not `untagged`, so that an error keeps its place.
    pub(super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Devices, D::Error> {
        struct Form;
        impl<'de> Visitor<'de> for Form {
            type Value = Devices;

            fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                out.write_str("\"auto\", a pattern, or include and exclude")
            }

            fn visit_str<E: Error>(self, word: &str) -> Result<Devices, E> {
                Ok(Devices {
                    include: vec![word.to_owned()],
                    exclude: Vec::new(),
                })
            }

            fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Devices, A::Error> {
                Devices::deserialize(MapAccessDeserializer::new(map))
            }
        }
        input.deserialize_any(Form)
    }
}

mod duration {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    pub(super) fn serialize<S: Serializer>(value: &Duration, out: S) -> Result<S::Ok, S::Error> {
        out.serialize_str(&humantime::format_duration(*value).to_string())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(input: D) -> Result<Duration, D::Error> {
        let text = String::deserialize(input)?;
        humantime::parse_duration(&text).map_err(serde::de::Error::custom)
    }
}

mod duration_map {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::collections::BTreeMap;
    use std::time::Duration;

    pub(super) fn serialize<S: Serializer>(
        value: &BTreeMap<String, Duration>,
        out: S,
    ) -> Result<S::Ok, S::Error> {
        value
            .iter()
            .map(|(name, time)| (name.clone(), humantime::format_duration(*time).to_string()))
            .collect::<BTreeMap<_, _>>()
            .serialize(out)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        input: D,
    ) -> Result<BTreeMap<String, Duration>, D::Error> {
        BTreeMap::<String, String>::deserialize(input)?
            .into_iter()
            .map(|(name, text)| {
                humantime::parse_duration(&text)
                    .map(|time| (name, time))
                    .map_err(serde::de::Error::custom)
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn name_servers_of_resolv_conf() {
        let text =
            "# x\nnameserver 10.0.0.53\nnameserver fe80::1%eth0\nnameserver 127.0.0.53\nsearch a\n";
        assert_eq!(
            name_servers(text),
            vec![
                "10.0.0.53".parse::<IpAddr>().expect("ip"),
                "fe80::1".parse().expect("ip")
            ]
        );
    }

    #[test]
    fn devices_in_both_forms() {
        let of = |text: &str| {
            parse("a", text)
                .map(|config| config.devices)
                .map_err(|error| error.to_string())
        };
        assert_eq!(of("devices: auto"), Ok(Devices::default()));
        let both = of("devices: {include: [eth*], exclude: [eth9]}").expect("devices");
        let list: Vec<_> = ["eth0", "eth9", "ens3", "lo", "tun0"]
            .into_iter()
            .map(|name| crate::kernel::devices::Device {
                name: name.into(),
                loopback: name == "lo",
                ethernet: !matches!(name, "lo" | "tun0"),
                ..Default::default()
            })
            .zip(2..)
            .map(|(device, index)| crate::kernel::devices::Device { index, ..device })
            .collect();
        let chosen = |devices: &Devices| -> Vec<String> {
            let chosen = devices.chosen(&list);
            chosen.iter().map(|device| device.name.clone()).collect()
        };
        assert_eq!(chosen(&both), ["eth0"]);
        assert_eq!(chosen(&Devices::default()), ["eth0", "eth9", "ens3"]);
        assert!(
            of("devices: {inclde: []}")
                .expect_err("unknown")
                .contains("inclde")
        );
    }

    #[test]
    fn what_types_cannot_check() {
        let check = |text: &str| {
            parse("agent.yaml", text)
                .and_then(|config| config.check())
                .map_err(|error| error.to_string())
        };
        assert_eq!(check("{}"), Ok(()));
        for (text, part) in [
            ("tables: {ring_bytes: 5000}", "power of two"),
            (
                "timeouts: {established: 1h, nonsense: 1s}",
                "unknown connection state",
            ),
            ("controller: {ca_sha256: abc}", "64 hexadecimal"),
            ("controller: {endpoints: [here]}", "not host:port"),
            (
                "{policy_dir: /p, controller: {endpoints: ['a:1']}}",
                "standalone",
            ),
        ] {
            let error = check(text).expect_err(text);
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
