//! `NetworkPolicy` of `networking.k8s.io/v1`: a union of allows that closes the directions it speaks for.

use ipnet::{IpNet, Ipv6Net};

use super::report::Report;
use super::selectors::{Scope, selector};
use super::{both, namespace, pods, policy, ports};
use crate::model::{Action, Peer, Policy, Rule, Tier};
use crate::parse::fields::{Fields, list, text};
use crate::parse::node::Node;
use crate::parse::peers::covers;
use crate::problems::Problem;
use crate::selectors::Selector;
use crate::snapshot::FlowDirection;

/// What policies that say no priority have: all rules allow, so the order inside the tier is of no
/// consequence among them.
const PRIORITY: u16 = 1000;

const POLICY_TYPES: &[(&str, FlowDirection)] = &[
    ("Ingress", FlowDirection::Ingress),
    ("Egress", FlowDirection::Egress),
];

/// Reads `spec`.
pub(super) fn read(spec: &Node, own: &str, report: &mut Report) -> Option<Policy> {
    let mut fields = Fields::open(spec, "NetworkPolicy", &mut report.problems)?;
    let subject = fields
        .take("podSelector")
        .map(|node| selector(node, "podSelector", Scope::Own, report))
        .unwrap_or_default();
    let types = fields
        .list("policyTypes", &mut report.problems)
        .unwrap_or_default();
    let ingress = fields
        .list("ingress", &mut report.problems)
        .unwrap_or_default();
    let egress = fields
        .list("egress", &mut report.problems)
        .unwrap_or_default();
    fields.finish(&mut report.problems);
    if types.len() > POLICY_TYPES.len() {
        report.limit(Problem::at(
            &spec.place,
            "\"policyTypes\" holds at most Ingress and Egress",
        ));
    }
    let types: Vec<FlowDirection> = types
        .iter()
        .filter_map(|node| {
            crate::parse::fields::word(node, "policyTypes", POLICY_TYPES, &mut report.problems)
        })
        .collect();
    let rules = |nodes: &[Node], key, report: &mut Report| -> Vec<Rule> {
        nodes
            .iter()
            .filter_map(|node| rule(node, key, own, report))
            .collect()
    };
    // Rules of a direction that policyTypes leave out are checked, and mean nothing.
    let ingress_rules = rules(ingress, "from", report);
    let egress_rules = rules(egress, "to", report);
    let (closes_ingress, closes_egress) = if types.is_empty() {
        (true, !egress.is_empty())
    } else {
        (
            types.contains(&FlowDirection::Ingress),
            types.contains(&FlowDirection::Egress),
        )
    };
    Some(Policy {
        subject: both(subject, namespace(own)),
        ingress: closes_ingress.then_some(ingress_rules),
        egress: closes_egress.then_some(egress_rules),
        ..policy(Tier::Standard, PRIORITY)
    })
}

/// One rule; `None` when it matches nobody.
fn rule(node: &Node, key: &'static str, own: &str, report: &mut Report) -> Option<Rule> {
    let mut fields = Fields::open(node, "rule", &mut report.problems)?;
    let given = fields.list(key, &mut report.problems).unwrap_or_default();
    let ports = fields
        .list("ports", &mut report.problems)
        .unwrap_or_default()
        .iter()
        .filter_map(|node| ports::network_policy(node, report))
        .collect();
    fields.finish(&mut report.problems);
    let peers: Vec<Peer> = given
        .iter()
        .filter_map(|node| peer(node, own, report))
        .collect();
    // A rule whose peers were all emptied would otherwise mean everybody.
    if peers.is_empty() && !given.is_empty() {
        return None;
    }
    Some(Rule {
        name: None,
        action: Action::Allow,
        peers,
        ports,
        keep: false,
        audit: false,
        place: node.place.clone(),
    })
}

/// One peer; `None` when it is wrong, which is reported, or when it matches nobody.
fn peer(node: &Node, own: &str, report: &mut Report) -> Option<Peer> {
    let mut fields = Fields::open(node, "peer", &mut report.problems)?;
    let pod = fields.take("podSelector");
    let namespaces = fields.take("namespaceSelector");
    let block = fields.take("ipBlock");
    fields.finish(&mut report.problems);
    if let Some(block) = block {
        if pod.is_some() || namespaces.is_some() {
            report.push(
                Problem::at(&node.place, "a peer has either an ipBlock or selectors")
                    .suggest("write two peers: a rule matches any of them"),
            );
        }
        return ip_block(block, report);
    }
    if pod.is_none() && namespaces.is_none() {
        report.push(
            Problem::at(&node.place, "this peer says nothing")
                .suggest("write podSelector, namespaceSelector or ipBlock"),
        );
        return None;
    }
    let pod = pod
        .map(|node| selector(node, "podSelector", Scope::Own, report))
        .unwrap_or_default();
    let namespaces = match namespaces {
        Some(node) => selector(node, "namespaceSelector", Scope::Namespace, report),
        None => namespace(own),
    };
    Some(selected(pod, namespaces))
}

/// Pods by both scopes.
pub(super) fn selected(pod: Selector, namespaces: Selector) -> Peer {
    Peer::Selector {
        selector: pods(both(pod, namespaces)),
    }
}

fn ip_block(node: &Node, report: &mut Report) -> Option<Peer> {
    let mut fields = Fields::open(node, "ipBlock", &mut report.problems)?;
    let net = fields
        .require("cidr", &mut report.problems)
        .and_then(|node| network(node, "cidr", report));
    let holes = fields.take("except");
    fields.finish(&mut report.problems);
    let mut except = Vec::new();
    for node in holes
        .and_then(|node| list(node, "except", &mut report.problems))
        .unwrap_or_default()
    {
        let Some(hole) = network(node, "except", report) else {
            continue;
        };
        if let Some(net) = net
            && (!net.contains(&hole) || hole.prefix_len() <= net.prefix_len())
        {
            report.limit(Problem::at(
                &node.place,
                format!("{hole} is not a strict part of {net}"),
            ));
        }
        except.push(hole);
    }
    let cidr = net?;
    (!covers(&except, &cidr)).then_some(Peer::Cidr { cidr, except })
}

/// A network. Host bits are masked away, as Kubernetes does.
pub(super) fn network(node: &Node, what: &str, report: &mut Report) -> Option<IpNet> {
    let given = text(node, what, &mut report.problems)?;
    match given.parse::<IpNet>() {
        Ok(IpNet::V6(net)) if is_mapped(&net) => {
            report.push(
                Problem::at(
                    &node.place,
                    format!("\"{given}\" is an IPv4 network written as IPv6"),
                )
                .suggest("write it as IPv4"),
            );
            None
        }
        Ok(net) => Some(net.trunc()),
        Err(_) => {
            report.push(
                Problem::at(&node.place, format!("\"{given}\" is no CIDR in \"{what}\""))
                    .suggest("write for example 10.0.0.0/8 or fd00::/8"),
            );
            None
        }
    }
}

/// Inside ::ffff:0:0/96, RFC 4291 section 2.5.5.2.
fn is_mapped(net: &Ipv6Net) -> bool {
    net.prefix_len() >= 96 && net.addr().to_ipv4_mapped().is_some()
}
