//! The objects of the policy language, `apiVersion: cofferdam.dev/v1`.
//!
//! They are plain data: [`crate::parse`] makes them from text, [`crate::set::PolicySet`] checks them
//! against each other. They serialise to the same form that is parsed.

use ipnet::IpNet;
use serde::{Serialize, Serializer};
use time::OffsetDateTime;

use crate::ports::PortSpec;
use crate::reach::Lens;
use crate::selectors::{Labels, Selector};
use crate::snapshot::{FlowDirection, Mode};
use crate::source::Place;

/// The only `apiVersion` there is.
pub const API_VERSION: &str = "cofferdam.dev/v1";

/// Any object.
#[derive(Clone, Debug, PartialEq)]
pub enum Object {
    /// `Policy` and `Guardrail`.
    Policy(Policy),
    /// `Filter`.
    Filter(Filter),
    /// `Mode`.
    Mode(ModeObject),
    /// `Grant`.
    Grant(Grant),
    /// `Workload`.
    Workload(WorkloadObject),
    /// `AddressGroup`.
    AddressGroup(AddressGroup),
    /// `Service`.
    Service(Service),
    /// `Invariant`.
    Invariant(Invariant),
}

/// Name, owner and free text of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Metadata {
    /// Unique within its kind (`Policy` and `Guardrail` share one).
    pub name: String,
    /// Who answers for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Namespace of a workload.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Labels of a workload; free on other objects.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub labels: Labels,
    /// Free pairs that mean nothing to policy.
    #[serde(skip_serializing_if = "Labels::is_empty")]
    pub annotations: Labels,
    /// Free text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
}

/// The tiers that policies live in, in the order of evaluation (grants stand after guardrails).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// What nobody may break.
    Guardrail,
    /// What the owners of workloads write; closes the directions it speaks for.
    #[default]
    Standard,
    /// What holds when nobody said anything.
    Baseline,
}

impl Tier {
    /// The words of the language.
    pub(crate) const WORDS: &'static [(&'static str, Self)] = &[
        ("guardrail", Self::Guardrail),
        ("standard", Self::Standard),
        ("baseline", Self::Baseline),
    ];

    /// The word in policies and rule names.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Guardrail => "guardrail",
            Self::Standard => "standard",
            Self::Baseline => "baseline",
        }
    }
}

/// Whether a policy counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Counts for the draft verdict only.
    #[default]
    Staged,
    /// Counts.
    Enforced,
}

/// Under which kind a policy was written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PolicyKind {
    /// `kind: Policy`.
    #[default]
    Policy,
    /// `kind: Guardrail`: tier guardrail, enforced unless it says otherwise.
    Guardrail,
}

/// Rules for the workloads of a subject.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Policy {
    /// Its name.
    pub metadata: Metadata,
    /// The kind it was written under.
    pub kind: PolicyKind,
    /// Its tier.
    pub tier: Tier,
    /// Lower first.
    pub priority: u16,
    /// Workloads that it protects.
    pub subject: Selector,
    /// Whether it counts.
    pub state: State,
    /// Policy that the draft omits while this one is staged.
    pub replaces: Option<String>,
    /// Rules towards the subject; `None` = does not speak for the direction.
    pub ingress: Option<Vec<Rule>>,
    /// Rules away from the subject.
    pub egress: Option<Vec<Rule>>,
    /// From this moment on it is evaluated as if absent.
    pub expires: Option<OffsetDateTime>,
    /// Expectations that `cofferdam policy test` checks.
    pub tests: Vec<PolicyTest>,
    /// Where it stands.
    pub place: Place,
}

impl Policy {
    /// The rules of a direction, if the policy speaks for it.
    #[must_use]
    pub fn rules(&self, direction: FlowDirection) -> Option<&[Rule]> {
        match direction {
            FlowDirection::Ingress => self.ingress.as_deref(),
            FlowDirection::Egress => self.egress.as_deref(),
        }
    }
}

/// What a rule does with what it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Ends the evaluation: the flow passes at this end.
    Allow,
    /// Ends the evaluation: the flow is dropped at this end.
    Deny,
    /// Goes on with the next tier.
    Pass,
}

impl Action {
    /// The words of the language.
    pub(crate) const WORDS: &'static [(&'static str, Self)] = &[
        ("allow", Self::Allow),
        ("deny", Self::Deny),
        ("pass", Self::Pass),
    ];
}

/// One rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Rule {
    /// What people call it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// What it does.
    pub action: Action,
    /// Who it matches; empty = anybody.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub peers: Vec<Peer>,
    /// What it matches; empty = any protocol and port.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<PortSpec>,
    /// Flows that it admitted survive a later deny.
    #[serde(
        rename = "existing",
        serialize_with = "existing",
        skip_serializing_if = "is_false"
    )]
    pub keep: bool,
    /// Every new flow is announced.
    #[serde(skip_serializing_if = "is_false")]
    pub audit: bool,
    /// Where it stands.
    #[serde(skip)]
    pub place: Place,
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde prescribes the signature"
)]
fn is_false(value: &bool) -> bool {
    !value
}

#[allow(
    clippy::trivially_copy_pass_by_ref,
    reason = "serde prescribes the signature"
)]
fn existing<S: Serializer>(keep: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(if *keep { "keep" } else { "reevaluate" })
}

/// Somebody a rule speaks about.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(untagged)]
pub enum Peer {
    /// Workloads by labels; never matches an address without a workload.
    Selector {
        /// Empty = every workload.
        selector: Selector,
    },
    /// Addresses, also those of workloads.
    Cidr {
        /// The network.
        cidr: IpNet,
        /// Parts of it that are not meant.
        #[serde(skip_serializing_if = "Vec::is_empty")]
        except: Vec<IpNet>,
    },
    /// An [`AddressGroup`] by name.
    Group {
        /// Its name.
        #[serde(rename = "addressGroup")]
        group: String,
    },
    /// A class of peers.
    Entity {
        /// Which one.
        entity: Entity,
    },
}

/// Classes of peers that need no list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Entity {
    /// Outside every managed network.
    World,
    /// A workload.
    Managed,
    /// Inside a managed network, without a workload.
    Unmanaged,
    /// Anybody.
    Any,
}

impl Entity {
    /// The words of the language.
    pub(crate) const WORDS: &'static [(&'static str, Self)] = &[
        ("world", Self::World),
        ("managed", Self::Managed),
        ("unmanaged", Self::Unmanaged),
        ("any", Self::Any),
    ];

    /// The word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::World => "world",
            Self::Managed => "managed",
            Self::Unmanaged => "unmanaged",
            Self::Any => "any",
        }
    }
}

/// The coarse, stateless tier.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Filter {
    /// Its name.
    pub metadata: Metadata,
    /// Workloads that it protects.
    pub subject: Selector,
    /// Lower first, then by name.
    pub priority: u16,
    /// In order; the first that matches decides.
    pub entries: Vec<FilterEntry>,
    /// Where it stands.
    pub place: Place,
}

/// One entry of a filter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FilterEntry {
    /// Direction of the packet seen from the subject.
    pub direction: FlowDirection,
    /// The other end's address; `None` = any.
    pub cidr: Option<IpNet>,
    /// Protocol and ports; `None` = any.
    pub ports: Option<PortSpec>,
    /// Lets through to the next tier, or drops.
    pub allow: bool,
    /// Where it stands.
    pub place: Place,
}

/// How far policy is enforced on some workloads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ModeObject {
    /// Its name.
    pub metadata: Metadata,
    /// Workloads that it speaks about.
    pub subject: Selector,
    /// Their mode; `None` when the object sets the default action only.
    pub mode: Option<Mode>,
    /// What `selective` enforces.
    pub enforce: Vec<SelectiveEntry>,
    /// What happens to a flow that nothing decided.
    pub default_action: Option<DefaultAction>,
    /// Where it stands.
    pub place: Place,
}

/// What happens to a flow that nothing decided.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultAction {
    /// It passes.
    Allow,
    /// It is dropped.
    #[default]
    Deny,
}

/// One protocol and port range that a selective workload enforces.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SelectiveEntry {
    /// Which flows.
    pub direction: FlowDirection,
    /// Protocol and ports.
    pub ports: PortSpec,
}

/// Just-in-time access: an allow rule that ends by itself.
#[derive(Clone, Debug, PartialEq)]
pub struct Grant {
    /// Its name.
    pub metadata: Metadata,
    /// Workloads at which access is granted.
    pub subject: Selector,
    /// Who gets access.
    pub peers: Vec<Peer>,
    /// To what; empty = any protocol and port.
    pub ports: Vec<PortSpec>,
    /// Grants access towards the subject.
    pub ingress: bool,
    /// Grants access from the subject.
    pub egress: bool,
    /// From this moment on it is evaluated as if absent.
    pub expires: OffsetDateTime,
    /// Why it was given.
    pub reason: Option<String>,
    /// Where it stands.
    pub place: Place,
}

impl Grant {
    /// Whether it speaks for a direction.
    #[must_use]
    pub const fn speaks(&self, direction: FlowDirection) -> bool {
        match direction {
            FlowDirection::Ingress => self.ingress,
            FlowDirection::Egress => self.egress,
        }
    }
}

/// A workload written down by hand.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkloadObject {
    /// Name, namespace and labels.
    pub metadata: Metadata,
    /// Its addresses.
    pub addresses: Vec<std::net::IpAddr>,
    /// Names for its ports.
    pub named_ports: Vec<NamedPort>,
    /// Labels of its namespace.
    pub namespace_labels: Labels,
    /// Where it stands.
    pub place: Place,
}

/// A name for a port of a workload.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct NamedPort {
    /// The name that rules use.
    pub name: String,
    /// IANA protocol number.
    #[serde(serialize_with = "crate::ports::serialize_protocol")]
    pub protocol: u8,
    /// The port.
    pub port: u16,
}

/// A named list of networks.
#[derive(Clone, Debug, PartialEq)]
pub struct AddressGroup {
    /// Its name.
    pub metadata: Metadata,
    /// The networks.
    pub cidrs: Vec<IpNet>,
    /// Where it stands.
    pub place: Place,
}

/// A named list of ports.
#[derive(Clone, Debug, PartialEq)]
pub struct Service {
    /// Its name.
    pub metadata: Metadata,
    /// The ports; never a service again.
    pub ports: Vec<PortSpec>,
    /// Where it stands.
    pub place: Place,
}

/// What must, or must never, be reachable; checked on every apply. See [`crate::invariants`].
#[derive(Clone, Debug, PartialEq)]
pub struct Invariant {
    /// Its name.
    pub metadata: Metadata,
    /// Who opens the flow; never empty.
    pub from: Vec<Peer>,
    /// Who answers; never empty.
    pub to: Vec<Peer>,
    /// On what, without named ports; empty = any protocol and port.
    pub ports: Vec<PortSpec>,
    /// What must hold.
    pub expect: Expectation,
    /// Under which circumstances.
    pub lens: Lens,
    /// Over any number of workloads, not only directly.
    pub transitive: bool,
    /// Why it must hold, for whoever breaks it.
    pub reason: Option<String>,
    /// Where it stands.
    pub place: Place,
}

/// What an [`Invariant`] says of all its pairs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Expectation {
    /// No flow of any pair on any of the ports passes.
    #[default]
    Unreachable,
    /// Every flow of every pair on every one of the ports passes.
    Reachable,
}

impl Expectation {
    /// The words of the language.
    pub(crate) const WORDS: &'static [(&'static str, Self)] = &[
        ("unreachable", Self::Unreachable),
        ("reachable", Self::Reachable),
    ];
}

/// One expectation of a policy file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyTest {
    /// What people call it.
    pub name: Option<String>,
    /// Where the connection comes from.
    pub from: TestEnd,
    /// Where it goes.
    pub to: TestEnd,
    /// Protocol and ports: every one of them must come out as expected. A named port is looked up at the
    /// workload that receives.
    pub ports: PortSpec,
    /// The verdict.
    pub expect_allow: bool,
    /// Which of the two verdicts.
    pub verdict: TestVerdict,
    /// Name of the reason.
    pub reason: Option<String>,
    /// Rule that must decide.
    pub rule: Option<String>,
    /// Where it stands.
    pub place: Place,
}

/// Which verdict a test asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum TestVerdict {
    /// As if everything were enforced.
    #[default]
    Draft,
    /// What happens now: enforced policies and the workloads' modes.
    Enforced,
}

impl TestVerdict {
    /// The words of the language.
    pub(crate) const WORDS: &'static [(&'static str, Self)] =
        &[("draft", Self::Draft), ("enforced", Self::Enforced)];
}

/// One end of a test.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum TestEnd {
    /// A workload by name, or an address.
    Named(String),
    /// Every workload that the selector matches.
    Selected(Selector),
}

impl Object {
    /// The kind as written.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Policy(policy) => match policy.kind {
                PolicyKind::Policy => "Policy",
                PolicyKind::Guardrail => "Guardrail",
            },
            Self::Filter(_) => "Filter",
            Self::Mode(_) => "Mode",
            Self::Grant(_) => "Grant",
            Self::Workload(_) => "Workload",
            Self::AddressGroup(_) => "AddressGroup",
            Self::Service(_) => "Service",
            Self::Invariant(_) => "Invariant",
        }
    }

    /// Name and labels.
    #[must_use]
    pub const fn metadata(&self) -> &Metadata {
        match self {
            Self::Policy(object) => &object.metadata,
            Self::Filter(object) => &object.metadata,
            Self::Mode(object) => &object.metadata,
            Self::Grant(object) => &object.metadata,
            Self::Workload(object) => &object.metadata,
            Self::AddressGroup(object) => &object.metadata,
            Self::Service(object) => &object.metadata,
            Self::Invariant(object) => &object.metadata,
        }
    }

    /// Where it stands.
    #[must_use]
    pub const fn place(&self) -> &Place {
        match self {
            Self::Policy(object) => &object.place,
            Self::Filter(object) => &object.place,
            Self::Mode(object) => &object.place,
            Self::Grant(object) => &object.place,
            Self::Workload(object) => &object.place,
            Self::AddressGroup(object) => &object.place,
            Self::Service(object) => &object.place,
            Self::Invariant(object) => &object.place,
        }
    }

    /// `kind/name`, with the namespace of a workload; what `apply` and `diff` list.
    #[must_use]
    pub fn id(&self) -> String {
        let metadata = self.metadata();
        match &metadata.namespace {
            Some(namespace) => format!("{}/{namespace}/{}", self.kind(), metadata.name),
            None => format!("{}/{}", self.kind(), metadata.name),
        }
    }
}
