//! The cluster's own policies: `AdminNetworkPolicy`, `BaselineAdminNetworkPolicy`,
//! `ClusterNetworkPolicy`. Ordered rules, of which the first that matches decides.
//!
//! Between policies of one tier with the same priority the API promises no order, nor between kinds
//! that share a tier; here it is by name (which begins with the kind). A `BaselineAdminNetworkPolicy`
//! says no priority and comes after every `ClusterNetworkPolicy`.

use super::network_policy::{network, selected};
use super::report::Report;
use super::selectors::{Scope, selector};
use super::{nodes, pods, policy, ports};
use crate::model::{Action, Peer, Policy, Rule, Tier};
use crate::parse::fields::{Fields, list, number, text, word};
use crate::parse::node::Node;
use crate::ports::{PortSpec, Ports};
use crate::problems::Problem;
use crate::selectors::Selector;

/// Largest priority that the API allows.
const MAX_PRIORITY: i128 = 1000;

/// After the largest priority.
const AFTER_ALL: u16 = 1001;

/// Longest name of a rule, in characters.
const MAX_RULE_NAME: usize = 100;

/// Most networks or domain names of one peer.
const MAX_NETWORKS: usize = 25;

const TIERS: &[(&str, Tier)] = &[("Admin", Tier::Guardrail), ("Baseline", Tier::Baseline)];

/// What differs between the versions.
struct Version {
    actions: &'static [(&'static str, Action)],
    /// Most rules of a direction, peers of a rule, and ports of a rule.
    limit: usize,
    /// Name of the field with ports.
    ports_key: &'static str,
    port: fn(&Node, &mut Report) -> Option<PortSpec>,
    /// A namespace selector that is left out means every namespace.
    namespace_optional: bool,
}

const ADMIN: Version = Version {
    actions: &[
        ("Allow", Action::Allow),
        ("Deny", Action::Deny),
        ("Pass", Action::Pass),
    ],
    limit: 100,
    ports_key: "ports",
    port: ports::v1alpha1,
    namespace_optional: false,
};

const BASELINE_ADMIN: Version = Version {
    actions: &[("Allow", Action::Allow), ("Deny", Action::Deny)],
    ..ADMIN
};

const CLUSTER: Version = Version {
    actions: &[
        ("Accept", Action::Allow),
        ("Deny", Action::Deny),
        ("Pass", Action::Pass),
    ],
    limit: 25,
    ports_key: "protocols",
    port: ports::v1alpha2,
    namespace_optional: true,
};

/// `spec` of an `AdminNetworkPolicy`.
pub(super) fn admin(spec: &Node, report: &mut Report) -> Option<Policy> {
    let mut fields = Fields::open(spec, "AdminNetworkPolicy", &mut report.problems)?;
    let priority = priority(&mut fields, report);
    rest(fields, &ADMIN, policy(Tier::Guardrail, priority), report)
}

/// `spec` of a `BaselineAdminNetworkPolicy`.
pub(super) fn baseline_admin(spec: &Node, report: &mut Report) -> Option<Policy> {
    let fields = Fields::open(spec, "BaselineAdminNetworkPolicy", &mut report.problems)?;
    rest(
        fields,
        &BASELINE_ADMIN,
        policy(Tier::Baseline, AFTER_ALL),
        report,
    )
}

/// `spec` of a `ClusterNetworkPolicy`.
pub(super) fn cluster(spec: &Node, report: &mut Report) -> Option<Policy> {
    let mut fields = Fields::open(spec, "ClusterNetworkPolicy", &mut report.problems)?;
    let tier = fields
        .require("tier", &mut report.problems)
        .and_then(|node| word(node, "tier", TIERS, &mut report.problems));
    let priority = priority(&mut fields, report);
    rest(
        fields,
        &CLUSTER,
        policy(tier.unwrap_or_default(), priority),
        report,
    )
}

fn priority(fields: &mut Fields<'_>, report: &mut Report) -> u16 {
    let Some(node) = fields.require("priority", &mut report.problems) else {
        return 0;
    };
    let given = number(node, "priority", 0, 65_535, &mut report.problems).unwrap_or_default();
    if given > MAX_PRIORITY {
        report.limit(Problem::at(
            &node.place,
            format!("\"priority\" is {given}, outside 0–{MAX_PRIORITY}"),
        ));
    }
    u16::try_from(given).unwrap_or_default()
}

fn rest(
    mut fields: Fields<'_>,
    version: &Version,
    policy: Policy,
    report: &mut Report,
) -> Option<Policy> {
    let subject = fields
        .require("subject", &mut report.problems)
        .map(|node| subject(node, version, report))
        .unwrap_or_default();
    let ingress = rules(&mut fields, "ingress", version, report);
    let egress = rules(&mut fields, "egress", version, report);
    fields.finish(&mut report.problems);
    Some(Policy {
        subject,
        ingress,
        egress,
        ..policy
    })
}

/// Exactly one of some fields must be set; reports it when it is not so.
pub(super) fn one_of(
    node: &Node,
    fields: &[(&str, Option<&Node>)],
    report: &mut Report,
) -> Option<()> {
    let set = fields.iter().filter(|(_, node)| node.is_some()).count();
    if set == 1 {
        return Some(());
    }
    let names: Vec<&str> = fields.iter().map(|(name, _)| *name).collect();
    report.push(Problem::at(
        &node.place,
        format!(
            "exactly one of {} must be set, but {} are",
            names.join(", "),
            if set == 0 {
                "none".to_owned()
            } else {
                set.to_string()
            }
        ),
    ));
    None
}

fn subject(node: &Node, version: &Version, report: &mut Report) -> Selector {
    let Some(mut fields) = Fields::open(node, "subject", &mut report.problems) else {
        return Selector::default();
    };
    let namespaces = fields.take("namespaces");
    let pods = fields.take("pods");
    fields.finish(&mut report.problems);
    let _told = one_of(node, &[("namespaces", namespaces), ("pods", pods)], report);
    match workloads(namespaces, pods, version, report) {
        Some(Peer::Selector { selector }) => selector,
        _ => Selector::default(),
    }
}

/// `namespaces` or `pods`.
fn workloads(
    namespaces: Option<&Node>,
    pod: Option<&Node>,
    version: &Version,
    report: &mut Report,
) -> Option<Peer> {
    if let Some(node) = namespaces {
        let namespaces = selector(node, "namespaces", Scope::Namespace, report);
        return Some(Peer::Selector {
            selector: pods(namespaces),
        });
    }
    let mut fields = Fields::open(pod?, "pods", &mut report.problems)?;
    let namespaces = if version.namespace_optional {
        fields.take("namespaceSelector")
    } else {
        fields.require("namespaceSelector", &mut report.problems)
    };
    let namespaces = namespaces
        .map(|node| selector(node, "namespaceSelector", Scope::Namespace, report))
        .unwrap_or_default();
    let pod = fields
        .require("podSelector", &mut report.problems)
        .map(|node| selector(node, "podSelector", Scope::Own, report))
        .unwrap_or_default();
    fields.finish(&mut report.problems);
    Some(selected(pod, namespaces))
}

/// The rules of a direction; a policy without any does not speak for it.
fn rules(
    fields: &mut Fields<'_>,
    key: &'static str,
    version: &Version,
    report: &mut Report,
) -> Option<Vec<Rule>> {
    let node = fields.take(key)?;
    let items = list(node, key, &mut report.problems)?;
    at_most(node, items.len(), version.limit, key, report);
    let rules: Vec<Rule> = items
        .iter()
        .filter_map(|node| rule(node, key == "egress", version, report))
        .collect();
    (!rules.is_empty()).then_some(rules)
}

fn at_most(node: &Node, count: usize, limit: usize, what: &str, report: &mut Report) {
    if count > limit {
        report.limit(Problem::at(
            &node.place,
            format!("\"{what}\" has {count} items, more than the API's limit of {limit}"),
        ));
    }
}

fn rule(node: &Node, egress: bool, version: &Version, report: &mut Report) -> Option<Rule> {
    let mut fields = Fields::open(node, "rule", &mut report.problems)?;
    let name = rule_name(&mut fields, report);
    let action = fields
        .require("action", &mut report.problems)
        .and_then(|node| word(node, "action", version.actions, &mut report.problems));
    let peers_key = if egress { "to" } else { "from" };
    let mut named_port_forbidden = false;
    let mut peers = Vec::new();
    if let Some(node) = fields.require(peers_key, &mut report.problems) {
        let items = filled_list(node, peers_key, version.limit, report);
        for item in items {
            named_port_forbidden |= peer(item, egress, version, &mut peers, report);
        }
    }
    let ports_node = fields.take(version.ports_key);
    let ports: Vec<PortSpec> = ports_node
        .map(|node| filled_list(node, version.ports_key, version.limit, report))
        .unwrap_or_default()
        .iter()
        .filter_map(|node| (version.port)(node, report))
        .collect();
    if named_port_forbidden && ports.iter().any(is_named) {
        report.limit(
            Problem::at(
                ports_node.map_or(fields.place(), |node| &node.place),
                "nodes, networks and domain names have no named ports",
            )
            .suggest("write the port's number"),
        );
    }
    fields.finish(&mut report.problems);
    Some(Rule {
        name,
        // Without an action there was a problem, and the rule is never used.
        action: action.unwrap_or(Action::Deny),
        peers,
        ports,
        keep: false,
        audit: false,
        place: node.place.clone(),
    })
}

fn rule_name(fields: &mut Fields<'_>, report: &mut Report) -> Option<String> {
    let node = fields.take("name")?;
    let given = text(node, "name", &mut report.problems)?;
    let length = given.chars().count();
    if length > MAX_RULE_NAME {
        report.limit(Problem::at(
            &node.place,
            format!("the rule's name has {length} characters, more than {MAX_RULE_NAME}"),
        ));
    }
    (!given.is_empty()).then(|| given.to_owned())
}

/// A list that must hold something: an empty one would mean everything here, and nothing there.
fn filled_list<'a>(node: &'a Node, what: &str, limit: usize, report: &mut Report) -> &'a [Node] {
    let items = list(node, what, &mut report.problems).unwrap_or_default();
    if items.is_empty() {
        report.push(
            Problem::at(
                &node.place,
                format!("\"{what}\" must hold at least one item"),
            )
            .suggest("to match every pod, write - namespaces: {}"),
        );
    }
    at_most(node, items.len(), limit, what, report);
    items
}

const fn is_named(spec: &PortSpec) -> bool {
    matches!(
        spec,
        PortSpec::Direct {
            ports: Ports::Named(_),
            ..
        }
    )
}

/// One peer of a rule; `networks` are several of ours. Says whether it has no named ports.
fn peer(
    node: &Node,
    egress: bool,
    version: &Version,
    peers: &mut Vec<Peer>,
    report: &mut Report,
) -> bool {
    let Some(mut fields) = Fields::open(node, "peer", &mut report.problems) else {
        return false;
    };
    let namespaces = fields.take("namespaces");
    let pod = fields.take("pods");
    let (node_selector, networks, domains) = if egress {
        (
            fields.take("nodes"),
            fields.take("networks"),
            fields.take("domainNames"),
        )
    } else {
        (None, None, None)
    };
    fields.finish(&mut report.problems);
    if let Some(node) = domains {
        report.push(
            Problem::at(
                &node.place,
                "\"domainNames\" cannot be carried over: rules here match addresses and labels, never names",
            )
            .suggest("write the addresses under \"networks\", or leave the rule out"),
        );
    }
    let mut choices = vec![("namespaces", namespaces), ("pods", pod)];
    if egress {
        choices.extend([
            ("nodes", node_selector),
            ("networks", networks),
            ("domainNames", domains),
        ]);
    }
    let _told = one_of(node, &choices, report);
    peers.extend(workloads(namespaces, pod, version, report));
    if let Some(node) = node_selector {
        peers.push(Peer::Selector {
            selector: nodes(selector(node, "nodes", Scope::Own, report)),
        });
    }
    if let Some(node) = networks {
        let items = filled_list(node, "networks", MAX_NETWORKS, report);
        peers.extend(items.iter().filter_map(|node| {
            let cidr = network(node, "networks", report)?;
            Some(Peer::Cidr {
                cidr,
                except: Vec::new(),
            })
        }));
    }
    node_selector.or(networks).or(domains).is_some()
}
