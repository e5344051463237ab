//! Protocols, ports and services of a rule.

use super::document::name;
use super::fields::{Fields, list, number, text, wrong_kind};
use super::node::{Node, Value};
use crate::model::NamedPort;
use crate::ports::{PORTED, PROTOCOL_NAMES, PortSpec, Ports, Protocol, is_icmp, protocol_name};
use crate::problems::{Problem, Problems, did_you_mean};

/// What may stand in a place that takes ports.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Allow {
    service: bool,
    named: bool,
}

impl Allow {
    /// Everything: rules and grants.
    pub(crate) const ALL: Self = Self {
        service: true,
        named: true,
    };
    /// No services: inside a service.
    pub(crate) const NO_SERVICE: Self = Self {
        service: false,
        named: true,
    };
    /// No names: nobody's port is meant.
    pub(crate) const NO_NAMES: Self = Self {
        service: true,
        named: false,
    };
    /// Numbers only: filters, modes.
    pub(crate) const NUMBERS: Self = Self {
        service: false,
        named: false,
    };
}

/// A list of items.
pub(crate) fn ports(node: &Node, allow: Allow, problems: &mut Problems) -> Vec<PortSpec> {
    list(node, "ports", problems)
        .unwrap_or_default()
        .iter()
        .filter_map(|item| {
            let mut fields = Fields::open(item, "port", problems)?;
            let before = problems.0.len();
            let spec = spec(&mut fields, allow, problems);
            if spec.is_none() && problems.0.len() == before {
                problems.push(
                    Problem::at(fields.place(), "this port item says nothing")
                        .suggest("name a protocol or a port, or leave \"ports\" out for any"),
                );
            }
            fields.finish(problems);
            spec
        })
        .collect()
}

/// The port fields of a mapping, which may hold other fields too; `None` when it has none of them
/// (or when they are wrong, which is reported).
pub(crate) fn spec(
    fields: &mut Fields<'_>,
    allow: Allow,
    problems: &mut Problems,
) -> Option<PortSpec> {
    let service = if allow.service {
        fields.take("service")
    } else {
        None
    };
    let protocol_node = fields.take("protocol");
    let port_node = fields.take("port");
    let end_node = fields.take("endPort");
    let kind_node = fields.take("type");
    let code_node = fields.take("code");
    let direct = [protocol_node, port_node, end_node, kind_node, code_node];
    if let Some(service) = service {
        if let Some(other) = direct.iter().flatten().next() {
            problems.push(
                Problem::at(&other.place, "a service brings its own protocol and port")
                    .suggest("write two items"),
            );
        }
        return name(service, "service", problems).map(PortSpec::Service);
    }
    if direct.iter().all(Option::is_none) {
        return None;
    }
    let protocol = match protocol_node {
        Some(node) => protocol(node, problems)?,
        None => Protocol::Number(datapath::ids::protocol::TCP),
    };
    let ports = match (kind_node, code_node) {
        (Some(kind), code) => icmp(protocol, kind, code, port_node.or(end_node), problems)?,
        (None, Some(code)) => {
            problems.push(Problem::at(&code.place, "\"code\" needs a \"type\""));
            return None;
        }
        (None, None) => port_range(protocol, port_node, end_node, allow, problems)?,
    };
    Some(PortSpec::Direct { protocol, ports })
}

/// A protocol by name or number.
pub(crate) fn protocol(node: &Node, problems: &mut Problems) -> Option<Protocol> {
    if matches!(node.value, Value::Int(_)) {
        let number = number(node, "protocol", 0, 255, problems)?;
        return u8::try_from(number).ok().map(Protocol::Number);
    }
    let given = text(node, "protocol", problems)?;
    let lower = given.to_ascii_lowercase();
    if lower == "any" {
        return Some(Protocol::Any);
    }
    if let Some((_, number)) = PROTOCOL_NAMES.iter().find(|(name, _)| *name == lower) {
        return Some(Protocol::Number(*number));
    }
    let names = PROTOCOL_NAMES.iter().map(|(name, _)| *name).chain(["any"]);
    let suggestion = did_you_mean(&lower, names).unwrap_or_else(|| {
        "use tcp, udp, sctp, icmp, icmpv6, any or a number from 0 to 255".into()
    });
    problems.push(
        Problem::at(&node.place, format!("unknown protocol \"{given}\"")).suggest(suggestion),
    );
    None
}

fn icmp(
    protocol: Protocol,
    kind: &Node,
    code: Option<&Node>,
    port: Option<&Node>,
    problems: &mut Problems,
) -> Option<Ports> {
    if let Some(port) = port {
        problems.push(Problem::at(
            &port.place,
            "an item has either ports or an ICMP type, not both",
        ));
    }
    if !matches!(protocol, Protocol::Number(number) if is_icmp(number)) {
        problems.push(
            Problem::at(&kind.place, "only ICMP has types")
                .suggest("add protocol: icmp or protocol: icmpv6"),
        );
        return None;
    }
    let kind = number(kind, "type", 0, 255, problems)?;
    let code = match code {
        Some(node) => Some(number(node, "code", 0, 255, problems)?),
        None => None,
    };
    Some(Ports::Icmp {
        kind: u8::try_from(kind).ok()?,
        code: code.and_then(|code| u8::try_from(code).ok()),
    })
}

fn port_range(
    protocol: Protocol,
    port: Option<&Node>,
    end: Option<&Node>,
    allow: Allow,
    problems: &mut Problems,
) -> Option<Ports> {
    let Some(port) = port else {
        let Some(end) = end else {
            return Some(Ports::All);
        };
        problems.push(Problem::at(&end.place, "\"endPort\" needs a \"port\""));
        return None;
    };
    if let Protocol::Number(number) = protocol
        && !PORTED.contains(&number)
    {
        problems.push(
            Problem::at(
                &port.place,
                format!("protocol {} has no ports", protocol_name(number)),
            )
            .maybe_suggest(is_icmp(number).then(|| "use \"type\" and \"code\"".to_owned())),
        );
        return None;
    }
    let Value::Int(_) = port.value else {
        return named(port, end, allow, problems);
    };
    let low = u16::try_from(number(port, "port", 0, 65_535, problems)?).ok()?;
    let high = match end {
        Some(end) => u16::try_from(number(end, "endPort", 0, 65_535, problems)?).ok()?,
        None => low,
    };
    if let Some(end) = end
        && high < low
    {
        problems.push(
            Problem::at(
                &end.place,
                format!("the port range {low}–{high} runs backwards"),
            )
            .suggest(format!("write port: {high}, endPort: {low}")),
        );
        return None;
    }
    Some(Ports::Range(low, high))
}

fn named(port: &Node, end: Option<&Node>, allow: Allow, problems: &mut Problems) -> Option<Ports> {
    let Value::Text(given) = &port.value else {
        problems.push(wrong_kind(port, "port", "a number or a port's name"));
        return None;
    };
    if given.chars().all(|c| c.is_ascii_digit()) {
        problems.push(
            Problem::at(&port.place, format!("the port \"{given}\" is a text"))
                .suggest(format!("write it without quotes: port: {given}")),
        );
        return None;
    }
    if let Some((low, high)) = given.split_once('-')
        && low.parse::<u16>().is_ok()
        && high.parse::<u16>().is_ok()
    {
        problems.push(
            Problem::at(&port.place, format!("the port range \"{given}\" is a text"))
                .suggest(format!("write port: {low}, endPort: {high}")),
        );
        return None;
    }
    // A number that YAML does not read as one: too large, or written in another way.
    let prefixed = ["0x", "0o", "0b"]
        .iter()
        .any(|prefix| given.starts_with(prefix));
    if prefixed || !given.chars().any(|c| c.is_ascii_alphabetic()) {
        problems.push(
            Problem::at(&port.place, format!("the port \"{given}\" is a text"))
                .suggest("write a decimal number from 0 to 65535, or a name with a letter in it"),
        );
        return None;
    }
    if !allow.named {
        problems.push(
            Problem::at(
                &port.place,
                format!("a named port (\"{given}\") has no meaning here"),
            )
            .suggest("write its number"),
        );
        return None;
    }
    if let Some(end) = end {
        problems.push(Problem::at(&end.place, "a named port has no \"endPort\""));
        return None;
    }
    name(port, "port name", problems).map(Ports::Named)
}

/// `{name, protocol, port}` of a workload.
pub(crate) fn named_port(node: &Node, problems: &mut Problems) -> Option<NamedPort> {
    let mut fields = Fields::open(node, "named port", problems)?;
    let given = fields
        .require("name", problems)
        .and_then(|node| name(node, "port name", problems));
    let number_node = fields.take("protocol");
    let protocol = match number_node {
        Some(node) => match protocol(node, problems) {
            Some(Protocol::Number(number)) if PORTED.contains(&number) => Some(number),
            Some(_) => {
                problems.push(
                    Problem::at(&node.place, "only tcp, udp and sctp have named ports")
                        .suggest("write one entry a protocol"),
                );
                None
            }
            None => None,
        },
        None => Some(datapath::ids::protocol::TCP),
    };
    let port = fields
        .require("port", problems)
        .and_then(|node| number(node, "port", 1, 65_535, problems));
    fields.finish(problems);
    Some(NamedPort {
        name: given?,
        protocol: protocol?,
        port: u16::try_from(port?).ok()?,
    })
}
