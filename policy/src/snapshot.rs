//! The compiled policy of one host: what the controller sends, the agent stores and the kernel holds.
//!
//! A snapshot is immutable and complete; its digest covers every field that changes a verdict, so
//! that "applied" can be proved by reading back. Times are UTC here; the agent converts them to boot
//! time when it loads them.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;

use datapath::ids::{ClassId, Direction, EndpointId, Identity, RuleId};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// Everything one host needs to judge its packets.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The controller's revision (or, standalone, the local counter); only grows.
    pub revision: u64,
    /// Workloads that this host protects.
    pub endpoints: Vec<Endpoint>,
    /// Every identity that occurs below, with what a person calls it.
    pub identities: Vec<IdentityInfo>,
    /// Address → identity; host prefixes and policy CIDRs alike, longest prefix wins.
    pub addresses: Vec<AddressBinding>,
    /// Endpoint, direction and peer identity → class.
    pub classes: Vec<ClassBinding>,
    /// The cells of every class.
    pub rules: Vec<RuleCell>,
    /// The cells of every filter class.
    pub filters: Vec<FilterCell>,
    /// Names behind the rule numbers.
    pub rule_names: Vec<RuleName>,
}

/// A protected workload.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// Number on this host; a VM's own is [`EndpointId::HOST`].
    pub id: u32,
    /// Name of the workload, `namespace/name` where there is a namespace.
    pub name: String,
    /// Mode of the workload as a whole.
    pub mode: Mode,
    /// Its addresses.
    pub addresses: Vec<IpAddr>,
}

/// How far policy is enforced on a workload.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Nothing is dropped by policy.
    #[default]
    Observe,
    /// Listed ports are enforced.
    Selective,
    /// Policy is enforced.
    Enforce,
    /// Cut off, but for the controller and forensic exceptions.
    Isolate,
}

impl Mode {
    /// The number in the datapath's [`datapath::abi::mode`].
    #[must_use]
    pub const fn number(self) -> u32 {
        match self {
            Self::Observe => datapath::abi::mode::OBSERVE,
            Self::Selective => datapath::abi::mode::SELECTIVE,
            Self::Enforce => datapath::abi::mode::ENFORCE,
            Self::Isolate => datapath::abi::mode::ISOLATE,
        }
    }

    /// The word used in policies and output.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Observe => "observe",
            Self::Selective => "selective",
            Self::Enforce => "enforce",
            Self::Isolate => "isolate",
        }
    }
}

/// An identity and what a person calls it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityInfo {
    /// The number.
    pub id: u32,
    /// Policy-relevant labels (`namespace:` prefixed for namespace labels).
    pub labels: BTreeMap<String, String>,
    /// Policy CIDRs that contain its addresses.
    pub cidrs: Vec<IpNet>,
    /// Workloads that have it, sorted; possibly cut short.
    pub workloads: Vec<String>,
}

/// One address or prefix and its identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct AddressBinding {
    /// Host prefix for a workload's address.
    pub net: IpNet,
    /// [`Identity`] number.
    pub identity: u32,
    /// The owner is isolated.
    pub isolated: bool,
    /// The address belongs to a workload of this host.
    pub local: bool,
}

/// The class of a peer identity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ClassBinding {
    /// [`EndpointId`] number.
    pub endpoint: u32,
    /// Of the flow, seen from the endpoint.
    pub direction: FlowDirection,
    /// Peer's [`Identity`] number.
    pub identity: u32,
    /// [`ClassId`] number, from 1.
    pub class: u32,
    /// Filter class, 0 when no filter speaks.
    pub filter: u32,
}

/// [`Direction`] with a serialised form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FlowDirection {
    /// Towards the endpoint.
    Ingress,
    /// Away from it.
    Egress,
}

impl From<FlowDirection> for Direction {
    fn from(direction: FlowDirection) -> Self {
        match direction {
            FlowDirection::Ingress => Self::Ingress,
            FlowDirection::Egress => Self::Egress,
        }
    }
}

impl From<Direction> for FlowDirection {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Ingress => Self::Ingress,
            Direction::Egress => Self::Egress,
        }
    }
}

/// A verdict as compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CellVerdict {
    /// Whether the flow passes.
    pub allow: bool,
    /// Rule, or set of closing policies, that decided ([`RuleName::id`]).
    pub rule: u32,
    /// [`datapath::drop_reason::DropReason`] number; 0 when it allows.
    pub reason: u8,
}

/// Protocols and ports that a cell covers: a prefix in (protocol, port) space.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PortPrefix {
    /// IANA number; `None` = every protocol (then `port_bits` is 0).
    pub protocol: Option<u8>,
    /// First port of the block; ICMP: type × 256 + code.
    pub port: u16,
    /// How many leading bits of `port` count, 0–16.
    pub port_bits: u8,
}

impl PortPrefix {
    /// Every protocol and port.
    pub const ANY: Self = Self {
        protocol: None,
        port: 0,
        port_bits: 0,
    };

    /// Length of the corresponding [`datapath::abi::RuleKey`] prefix.
    #[must_use]
    pub const fn key_bits(&self) -> u32 {
        match self.protocol {
            None => 32,
            Some(_) => 40 + self.port_bits as u32,
        }
    }

    /// The map key in `class`.
    #[must_use]
    pub const fn key(&self, class: u32) -> datapath::abi::RuleKey {
        let protocol = match self.protocol {
            None => 0,
            Some(protocol) => protocol,
        };
        datapath::abi::RuleKey {
            prefix_len: self.key_bits(),
            class,
            protocol,
            port: self.port.to_be_bytes(),
            pad: 0,
        }
    }
}

/// One cell of a class: both verdicts for a block of protocols and ports. The longest prefix wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RuleCell {
    /// [`ClassId`] number.
    pub class: u32,
    /// What it covers.
    pub ports: PortPrefix,
    /// Verdict of the enforced policies (mode left out).
    pub enforced: CellVerdict,
    /// Verdict if every staged policy and mode were enforced.
    pub draft: CellVerdict,
    /// UTC nanoseconds since the epoch at which `after` replaces `enforced`.
    pub expires: Option<i64>,
    /// Verdict after `expires`.
    pub after: Option<CellVerdict>,
    /// The endpoint's mode enforces this block; otherwise the verdict is only recorded.
    pub mode_enforced: bool,
    /// The rule said `existing: keep`.
    pub keep: bool,
    /// The rule said `audit: true`.
    pub audit: bool,
    /// The denial comes from a guardrail.
    pub hard: bool,
}

/// One cell of a filter class.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct FilterCell {
    /// Filter class number, from 1.
    pub class: u32,
    /// What it covers.
    pub ports: PortPrefix,
    /// `Some(true)` lets through to the next tier, `Some(false)` drops, `None` no entry matches.
    pub allow: Option<bool>,
    /// The entry.
    pub rule: u32,
    /// The endpoint's mode enforces it.
    pub mode_enforced: bool,
}

/// What a rule number stands for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RuleName {
    /// From 1 up; stable only within a snapshot.
    pub id: u32,
    /// `tier/policy/direction[index]`, or the list of policies that closed a direction.
    pub name: String,
}

/// How many entries each kernel map needs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SnapshotSize {
    /// Host addresses.
    pub addresses: usize,
    /// Prefixes that are no host addresses.
    pub cidrs: usize,
    /// Class bindings.
    pub classes: usize,
    /// Rule cells.
    pub rules: usize,
    /// Filter cells.
    pub filters: usize,
}

impl Snapshot {
    /// Expanded size, known before anything is sent or written.
    #[must_use]
    pub fn size(&self) -> SnapshotSize {
        let hosts = self
            .addresses
            .iter()
            .filter(|binding| is_host(&binding.net))
            .count();
        SnapshotSize {
            addresses: hosts,
            cidrs: self.addresses.len() - hosts,
            classes: self.classes.len(),
            rules: self.rules.len(),
            filters: self.filters.len(),
        }
    }

    /// Puts every list into its canonical order, on which the digest depends.
    pub fn sort(&mut self) {
        self.endpoints.sort_by_key(|endpoint| endpoint.id);
        self.identities.sort_by_key(|identity| identity.id);
        self.addresses.sort();
        self.classes.sort();
        self.rules.sort();
        self.filters.sort();
        self.rule_names.sort();
    }

    /// SHA-256 over everything but the revision, of the canonical order: equal digests mean equal content.
    #[must_use]
    pub fn digest(&self) -> [u8; 32] {
        let mut canonical = self.clone();
        canonical.revision = 0;
        canonical.sort();
        let mut hasher = Sha256::new();
        // The serialisation of this type cannot fail: string keys and integers only.
        hasher.update(serde_json::to_vec(&canonical).unwrap_or_default());
        hasher.finalize().into()
    }

    /// Name of a rule number; `None` for 0 and for numbers of another snapshot.
    #[must_use]
    pub fn rule_name(&self, id: RuleId) -> Option<&str> {
        self.rule_names
            .iter()
            .find(|rule| rule.id == id.0)
            .map(|rule| rule.name.as_str())
    }

    /// The identity number of an address by longest prefix, with the binding that gave it.
    #[must_use]
    pub fn binding(&self, address: IpAddr) -> Option<&AddressBinding> {
        self.addresses
            .iter()
            .filter(|binding| binding.net.contains(&address))
            .max_by_key(|binding| binding.net.prefix_len())
    }

    /// Index for many look-ups.
    #[must_use]
    pub fn index(&self) -> SnapshotIndex<'_> {
        SnapshotIndex::new(self)
    }
}

/// Hash indexes over a snapshot, with the kernel's look-up rules.
pub struct SnapshotIndex<'a> {
    snapshot: &'a Snapshot,
    classes: HashMap<(u32, FlowDirection, u32), (u32, u32)>,
    rules: HashMap<(u32, PortPrefix), &'a RuleCell>,
    filters: HashMap<(u32, PortPrefix), &'a FilterCell>,
}

impl<'a> SnapshotIndex<'a> {
    fn new(snapshot: &'a Snapshot) -> Self {
        Self {
            snapshot,
            classes: snapshot
                .classes
                .iter()
                .map(|binding| {
                    (
                        (binding.endpoint, binding.direction, binding.identity),
                        (binding.class, binding.filter),
                    )
                })
                .collect(),
            rules: snapshot
                .rules
                .iter()
                .map(|cell| ((cell.class, cell.ports), cell))
                .collect(),
            filters: snapshot
                .filters
                .iter()
                .map(|cell| ((cell.class, cell.ports), cell))
                .collect(),
        }
    }

    /// The snapshot that is indexed.
    #[must_use]
    pub const fn snapshot(&self) -> &'a Snapshot {
        self.snapshot
    }

    /// Identity of an address; unknown when nothing covers it.
    #[must_use]
    pub fn identity(&self, address: IpAddr) -> Identity {
        self.snapshot
            .binding(address)
            .map_or(Identity::UNKNOWN, |binding| Identity(binding.identity))
    }

    /// Class and filter class (0 = none) of a peer.
    #[must_use]
    pub fn class(
        &self,
        endpoint: EndpointId,
        direction: Direction,
        peer: Identity,
    ) -> Option<(ClassId, u32)> {
        self.classes
            .get(&(endpoint.0, direction.into(), peer.0))
            .map(|(class, filter)| (ClassId(*class), *filter))
    }

    /// The cell that decides, by longest prefix.
    #[must_use]
    pub fn rule(&self, class: ClassId, protocol: u8, port: u16) -> Option<&'a RuleCell> {
        prefixes(protocol, port).find_map(|prefix| self.rules.get(&(class.0, prefix)).copied())
    }

    /// The filter cell that decides, by longest prefix.
    #[must_use]
    pub fn filter(&self, class: u32, protocol: u8, port: u16) -> Option<&'a FilterCell> {
        prefixes(protocol, port).find_map(|prefix| self.filters.get(&(class, prefix)).copied())
    }
}

/// Every prefix that covers a protocol and port, longest first.
fn prefixes(protocol: u8, port: u16) -> impl Iterator<Item = PortPrefix> {
    (0..=16u8)
        .rev()
        .map(move |bits| PortPrefix {
            protocol: Some(protocol),
            port: mask(port, bits),
            port_bits: bits,
        })
        .chain(core::iter::once(PortPrefix::ANY))
}

/// The leading `bits` of a port.
#[must_use]
pub const fn mask(port: u16, bits: u8) -> u16 {
    match bits {
        0 => 0,
        1..=15 => port & !(u16::MAX >> bits),
        _ => port,
    }
}

fn is_host(net: &IpNet) -> bool {
    net.prefix_len() == net.max_prefix_len()
}
