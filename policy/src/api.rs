//! Evaluation without a server: texts in, lines out. This is all of `cofferdam policy eval`.

use std::fmt::Write as _;

use serde::Deserialize;
use time::OffsetDateTime;

use crate::evaluate::{ConnectionVerdict, EndVerdict, evaluate};
use crate::ports::{PORTED, PROTOCOL_NAMES, is_icmp, protocol_name};
use crate::probe::{Probe, ProbeEnd};
use crate::problems::{MAX_PROBLEMS, Problem, Problems};
use crate::set::PolicySet;
use crate::source::{Place, Source};
use crate::world::{Workload, World};

/// A world and the policies that hold in it.
#[derive(Clone, Debug, Default)]
pub struct Scenario {
    /// From the inventory and from `Workload` objects.
    pub world: World,
    /// Everything else.
    pub set: PolicySet,
}

impl Scenario {
    /// Reads an inventory (if there is one) and policy files, with all problems of all of them.
    pub fn parse(inventory: Option<&Source>, policies: &[Source]) -> Result<Self, Problems> {
        let world = inventory.map_or_else(|| Ok(World::default()), World::parse);
        let set = PolicySet::parse(policies);
        let (mut world, set) = match (world, set) {
            (Ok(world), Ok(set)) => (world, set),
            (world, set) => {
                let mut problems = world.err().unwrap_or_default();
                problems.0.extend(set.err().unwrap_or_default().0);
                return Err(problems);
            }
        };
        let mut problems = Problems::default();
        for object in set.workloads() {
            if let Err(error) = world.add(Workload::from(object)) {
                problems.push(Problem::at(&object.place, error.to_string()));
            }
        }
        problems.into_result(Self { world, set })
    }
}

/// Answers every probe, one line each, in order; or names every problem in any of the texts.
pub fn eval_probes(
    inventory: &Source,
    policies: &[Source],
    probes: &Source,
    at: OffsetDateTime,
) -> Result<Vec<String>, Problems> {
    let scenario = Scenario::parse(Some(inventory), policies);
    let probes = parse_probes(probes);
    let (scenario, probes) = match (scenario, probes) {
        (Ok(scenario), Ok(probes)) => (scenario, probes),
        (scenario, probes) => {
            let mut problems = scenario.err().unwrap_or_default();
            problems.0.extend(probes.err().unwrap_or_default().0);
            return Err(problems);
        }
    };
    let mut problems = Problems::default();
    let mut lines = Vec::with_capacity(probes.len());
    for (probe, place) in &probes {
        match evaluate(&scenario.world, &scenario.set, probe, at) {
            Ok(verdict) => lines.push(answer_line(&probe.id, &verdict)),
            Err(error) => problems.push(Problem::at(place, error.to_string())),
        }
    }
    problems.into_result(lines)
}

/// One line of `probes.jsonl`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ProbeLine {
    id: String,
    from: String,
    to: String,
    protocol: Option<ProtocolText>,
    port: Option<u16>,
    #[serde(rename = "type")]
    kind: Option<u8>,
    code: Option<u8>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ProtocolText {
    Number(u8),
    Name(String),
}

/// Reads probes, one JSON object a line; empty lines are skipped.
pub fn parse_probes(source: &Source) -> Result<Vec<(Probe, Place)>, Problems> {
    let mut problems = Problems::default();
    let mut probes = Vec::new();
    for (index, line) in source.text.lines().enumerate() {
        let line_number = index as u64 + 1;
        if line.trim().is_empty() {
            continue;
        }
        if problems.0.len() > MAX_PROBLEMS {
            break;
        }
        let place = Place::new(std::sync::Arc::clone(&source.name), line_number, 1);
        match serde_json::from_str::<ProbeLine>(line) {
            Ok(line) => match probe(line) {
                Ok(probe) => probes.push((probe, place)),
                Err(message) => problems.push(Problem::at(&place, message)),
            },
            Err(error) => {
                let place = Place {
                    column: error.column().max(1) as u64,
                    ..place
                };
                let text = error.to_string();
                let text = text.split(" at line ").next().unwrap_or_default();
                problems.push(Problem::at(&place, format!("not a probe: {text}")));
            }
        }
    }
    problems.into_result(probes)
}

fn probe(line: ProbeLine) -> Result<Probe, String> {
    let protocol = match line.protocol {
        None => datapath::ids::protocol::TCP,
        Some(ProtocolText::Number(number)) => number,
        Some(ProtocolText::Name(name)) => {
            protocol_number(&name).ok_or_else(|| format!("unknown protocol \"{name}\""))?
        }
    };
    let to = ProbeEnd::parse(&line.to);
    let port = if is_icmp(protocol) {
        if line.port.is_some() {
            return Err("ICMP has a type and a code, no port".to_owned());
        }
        // An ICMP probe that does not say more means a ping.
        let echo = if protocol == datapath::ids::protocol::ICMP {
            8
        } else {
            128
        };
        u16::from_be_bytes([line.kind.unwrap_or(echo), line.code.unwrap_or(0)])
    } else if line.kind.is_some() || line.code.is_some() {
        return Err(format!(
            "{} has no type and code; only ICMP has",
            protocol_name(protocol)
        ));
    } else if PORTED.contains(&protocol) {
        line.port
            .ok_or_else(|| format!("a {} probe needs a port", protocol_name(protocol)))?
    } else if line.port.is_some() {
        return Err(format!("protocol {protocol} has no ports"));
    } else {
        0
    };
    Ok(Probe {
        id: line.id,
        from: ProbeEnd::parse(&line.from),
        to,
        protocol,
        port,
    })
}

/// A protocol by name or decimal number.
#[must_use]
pub fn protocol_number(name: &str) -> Option<u8> {
    PROTOCOL_NAMES
        .iter()
        .find(|(known, _)| known.eq_ignore_ascii_case(name))
        .map(|(_, number)| *number)
        .or_else(|| name.parse().ok())
}

/// The answer to one probe, with the keys in their documented order.
#[must_use]
pub fn answer_line(id: &str, verdict: &ConnectionVerdict) -> String {
    let rule = verdict
        .rule
        .as_deref()
        .map_or_else(|| "null".to_owned(), quoted);
    format!(
        "{{\"id\": {}, \"enforced\": \"{}\", \"draft\": \"{}\", \"rule\": {rule}, \"egress\": {}, \"ingress\": {}}}",
        quoted(id),
        verdict.enforced.name(),
        verdict.draft.name(),
        end(verdict.egress.as_ref()),
        end(verdict.ingress.as_ref()),
    )
}

fn end(end: Option<&EndVerdict>) -> String {
    let Some(end) = end else {
        return "null".to_owned();
    };
    format!(
        "{{\"enforced\": \"{}\", \"draft\": \"{}\", \"rule\": {}, \"reason\": \"{}\"}}",
        end.enforced.name(),
        end.draft.name(),
        quoted(&end.rule),
        end.reason.name()
    )
}

/// A JSON string.
fn quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    // Writing to a string cannot fail.
    let _ok = write!(quoted, "{}", serde_json::Value::from(text));
    quoted
}
