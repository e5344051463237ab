//! Ports and protocols, in the four forms that the APIs have for them.
//!
//! Limits: validation of `networking.k8s.io/v1` in the API server, and the schemas of the custom
//! resources of `policy.networking.k8s.io`.

use datapath::ids::protocol;

use super::report::Report;
use crate::parse::fields::{Fields, number, text, wrong_kind};
use crate::parse::node::{Node, Value};
use crate::ports::{PortSpec, Ports, Protocol};
use crate::problems::Problem;

/// The protocols that Kubernetes' policies know; their names are in capitals.
const PROTOCOLS: &[(&str, u8)] = &[
    ("TCP", protocol::TCP),
    ("UDP", protocol::UDP),
    ("SCTP", protocol::SCTP),
];

fn direct(protocol: u8, ports: Ports) -> PortSpec {
    PortSpec::Direct {
        protocol: Protocol::Number(protocol),
        ports,
    }
}

fn port_number(node: &Node, what: &str, report: &mut Report) -> Option<u16> {
    number(node, what, 1, 65_535, &mut report.problems).and_then(|port| u16::try_from(port).ok())
}

/// `endPort`: beyond the last port there is still an interval, which ends there.
fn end_port(node: &Node, report: &mut Report) -> Option<u16> {
    if let Value::Int(end) = node.value
        && (65_536..=i128::from(i32::MAX)).contains(&end)
    {
        report.limit(Problem::at(
            &node.place,
            format!("\"endPort\" is {end}, outside 1–65535"),
        ));
        return Some(u16::MAX);
    }
    port_number(node, "endPort", report)
}

/// A port's name: an IANA service name.
fn port_name(node: &Node, what: &str, report: &mut Report) -> Option<String> {
    let given = text(node, what, &mut report.problems)?;
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let fits = (1..=15).contains(&given.len())
        && given.chars().all(inner)
        && given.chars().any(|c| c.is_ascii_lowercase())
        && !given.starts_with('-')
        && !given.ends_with('-')
        && !given.contains("--");
    if !fits {
        let suggestion = if given.parse::<u16>().is_ok() {
            format!("for the port's number, write it without quotes: {what}: {given}")
        } else {
            "use 1–15 small letters, digits and -, at least one letter".to_owned()
        };
        report.limit(
            Problem::at(&node.place, format!("\"{given}\" is no port name")).suggest(suggestion),
        );
    }
    Some(given.to_owned())
}

/// `protocol`, `port`, `endPort` of a `NetworkPolicyPort`.
pub(super) fn network_policy(node: &Node, report: &mut Report) -> Option<PortSpec> {
    let mut fields = Fields::open(node, "port", &mut report.problems)?;
    let protocol = fields.word("protocol", PROTOCOLS, &mut report.problems);
    let port = fields.take("port");
    let end = fields.take("endPort");
    fields.finish(&mut report.problems);
    let ports = match (port, end) {
        (None, None) => Ports::All,
        (None, Some(end)) => {
            report.push(Problem::at(&end.place, "\"endPort\" needs a \"port\""));
            return None;
        }
        (Some(port), end) => match port.value {
            Value::Int(_) => {
                let low = port_number(port, "port", report)?;
                let high = match end {
                    Some(end) => end_port(end, report)?,
                    None => low,
                };
                range(low, high, end.unwrap_or(port), report)?
            }
            Value::Text(_) => {
                if let Some(end) = end {
                    report.push(Problem::at(&end.place, "a named port has no \"endPort\""));
                }
                Ports::Named(port_name(port, "port", report)?)
            }
            _ => {
                report.push(wrong_kind(port, "port", "a number or a port's name"));
                return None;
            }
        },
    };
    Some(direct(protocol.unwrap_or(protocol::TCP), ports))
}

fn range(low: u16, high: u16, end: &Node, report: &mut Report) -> Option<Ports> {
    if high < low {
        report.push(Problem::at(
            &end.place,
            format!("the port range {low}–{high} runs backwards"),
        ));
        return None;
    }
    Some(Ports::Range(low, high))
}

/// An `AdminNetworkPolicyPort` of v1alpha1: exactly one of `portNumber`, `namedPort`, `portRange`.
pub(super) fn v1alpha1(node: &Node, report: &mut Report) -> Option<PortSpec> {
    let mut fields = Fields::open(node, "port", &mut report.problems)?;
    let number = fields.take("portNumber");
    let named = fields.take("namedPort");
    let range_node = fields.take("portRange");
    fields.finish(&mut report.problems);
    super::cluster_rules::one_of(
        node,
        &[
            ("portNumber", number),
            ("namedPort", named),
            ("portRange", range_node),
        ],
        report,
    )?;
    if let Some(node) = named {
        return any_protocol(port_name(node, "namedPort", report)?);
    }
    if let Some(node) = number {
        let mut fields = Fields::open(node, "portNumber", &mut report.problems)?;
        let protocol = fields.word("protocol", PROTOCOLS, &mut report.problems);
        let port = fields
            .require("port", &mut report.problems)
            .and_then(|node| port_number(node, "port", report));
        fields.finish(&mut report.problems);
        let port = port?;
        return Some(direct(
            protocol.unwrap_or(protocol::TCP),
            Ports::Range(port, port),
        ));
    }
    let node = range_node?;
    let mut fields = Fields::open(node, "portRange", &mut report.problems)?;
    let protocol = fields.word("protocol", PROTOCOLS, &mut report.problems);
    let (low, high) = start_end(&mut fields, report);
    fields.finish(&mut report.problems);
    let ports = range(low?, high?, node, report)?;
    Some(direct(protocol.unwrap_or(protocol::TCP), ports))
}

fn start_end(fields: &mut Fields<'_>, report: &mut Report) -> (Option<u16>, Option<u16>) {
    let start = fields
        .require("start", &mut report.problems)
        .and_then(|node| port_number(node, "start", report));
    let end = fields
        .require("end", &mut report.problems)
        .and_then(|node| port_number(node, "end", report));
    (start, end)
}

/// A name belongs to one port of a pod, whatever the protocol.
fn any_protocol(name: String) -> Option<PortSpec> {
    Some(PortSpec::Direct {
        protocol: Protocol::Any,
        ports: Ports::Named(name),
    })
}

/// A `ClusterNetworkPolicyProtocol` of v1alpha2: exactly one of `tcp`, `udp`, `sctp`,
/// `destinationNamedPort`.
pub(super) fn v1alpha2(node: &Node, report: &mut Report) -> Option<PortSpec> {
    let mut fields = Fields::open(node, "protocol", &mut report.problems)?;
    let tcp = fields.take("tcp");
    let udp = fields.take("udp");
    let sctp = fields.take("sctp");
    let named = fields.take("destinationNamedPort");
    fields.finish(&mut report.problems);
    super::cluster_rules::one_of(
        node,
        &[
            ("tcp", tcp),
            ("udp", udp),
            ("sctp", sctp),
            ("destinationNamedPort", named),
        ],
        report,
    )?;
    if let Some(node) = named {
        return any_protocol(port_name(node, "destinationNamedPort", report)?);
    }
    let (number, node) = [
        (protocol::TCP, tcp),
        (protocol::UDP, udp),
        (protocol::SCTP, sctp),
    ]
    .into_iter()
    .find_map(|(number, node)| Some((number, node?)))?;
    let mut fields = Fields::open(node, "protocol", &mut report.problems)?;
    let port = fields.take("destinationPort");
    fields.finish(&mut report.problems);
    let Some(port) = port else {
        report.limit(
            Problem::at(&node.place, "this protocol has no \"destinationPort\"")
                .suggest("for every port, write range: {start: 1, end: 65535}"),
        );
        return Some(direct(number, Ports::All));
    };
    Some(direct(number, destination(port, report)?))
}

/// `destinationPort`: exactly one of `number` and `range`.
fn destination(node: &Node, report: &mut Report) -> Option<Ports> {
    let mut fields = Fields::open(node, "destinationPort", &mut report.problems)?;
    let number = fields.take("number");
    let range_node = fields.take("range");
    fields.finish(&mut report.problems);
    super::cluster_rules::one_of(node, &[("number", number), ("range", range_node)], report)?;
    if let Some(node) = number {
        let port = port_number(node, "number", report)?;
        return Some(Ports::Range(port, port));
    }
    let node = range_node?;
    let mut fields = Fields::open(node, "range", &mut report.problems)?;
    let (low, high) = start_end(&mut fields, report);
    fields.finish(&mut report.problems);
    let (low, high) = (low?, high?);
    if low == high {
        report.limit(
            Problem::at(
                &node.place,
                format!("\"start\" ({low}) must be less than \"end\" ({high})"),
            )
            .suggest("for one port, write \"number\""),
        );
    }
    range(low, high, node, report)
}
