//! Rules that are wider than what was recorded.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use serde::Deserialize;

use super::Settings;
use super::finding::Finding;
use super::order::{Entry, Order, Stage};
use super::spans::Spans;
use crate::model::{Action, Peer};
use crate::ports::{PORTED, protocol_name};
use crate::probe::Flow;
use crate::problems::{Problem, Problems};
use crate::set::PolicySet;
use crate::snapshot::FlowDirection;
use crate::source::{Place, Source};
use crate::walk::{End, Lens, NoTrace, decide};
use crate::world::World;

/// Somebody talked to somebody.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Talk {
    /// Who opened the flow.
    pub source: IpAddr,
    /// Who answered.
    pub destination: IpAddr,
    /// IANA protocol number.
    pub protocol: u8,
    /// Destination port; ICMP: type × 256 + code.
    pub port: u16,
}

#[derive(Deserialize)]
struct Record {
    protocol: ProtocolText,
    #[serde(default)]
    icmp_type: Option<u8>,
    #[serde(default)]
    icmp_code: Option<u8>,
    initiator: RecordEnd,
    responder: RecordEnd,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ProtocolText {
    Number(u8),
    Name(String),
}

#[derive(Deserialize)]
struct RecordEnd {
    address: String,
    #[serde(default)]
    port: Option<u16>,
}

#[derive(Deserialize)]
struct Document {
    flows: Vec<Record>,
}

/// Reads what `cofferdam flows -o json` prints: one document, or one record a line.
///
/// # Errors
/// Names every line that is neither.
pub fn parse_flows(source: &Source) -> Result<Vec<Talk>, Problems> {
    let mut talks = BTreeSet::new();
    let mut problems = Problems::default();
    if let Ok(document) = serde_json::from_str::<Document>(&source.text) {
        talks.extend(document.flows.iter().filter_map(talk));
        return Ok(talks.into_iter().collect());
    }
    for (index, line) in source.text.lines().enumerate() {
        // A follower that was too slow is told so between the records.
        if line.trim().is_empty() || line.starts_with("{\"missed\"") {
            continue;
        }
        let known = serde_json::from_str::<Record>(line)
            .map_err(|error| error.to_string())
            .and_then(|record| {
                talk(&record).ok_or_else(|| "an address or protocol is not known".to_owned())
            });
        match known {
            Ok(talk) => {
                talks.insert(talk);
            }
            Err(error) => {
                let place = Place::new(std::sync::Arc::clone(&source.name), index as u64 + 1, 1);
                let text = error
                    .split(" at line ")
                    .next()
                    .unwrap_or_default()
                    .to_owned();
                problems.push(
                    Problem::at(&place, format!("not a flow record: {text}"))
                        .suggest("give what `cofferdam flows -o json` prints"),
                );
                if problems.0.len() >= 20 {
                    break;
                }
            }
        }
    }
    problems.into_result(talks.into_iter().collect())
}

fn talk(record: &Record) -> Option<Talk> {
    let protocol = match &record.protocol {
        ProtocolText::Number(number) => *number,
        ProtocolText::Name(name) => crate::api::protocol_number(name)?,
    };
    let icmp = record
        .icmp_type
        .map(|kind| u16::from_be_bytes([kind, record.icmp_code.unwrap_or(0)]));
    Some(Talk {
        source: record
            .initiator
            .address
            .parse::<IpAddr>()
            .ok()?
            .to_canonical(),
        destination: record
            .responder
            .address
            .parse::<IpAddr>()
            .ok()?
            .to_canonical(),
        protocol,
        port: icmp.or(record.responder.port).unwrap_or(0),
    })
}

/// What came to one rule.
#[derive(Debug, Default)]
struct Use {
    ports: BTreeSet<(u8, u16)>,
    peers: BTreeSet<IpAddr>,
    peer_names: BTreeSet<String>,
}

pub(super) fn check(
    set: &PolicySet,
    world: &World,
    orders: &[Order<'_>; 2],
    talks: &[Talk],
    settings: &Settings,
    findings: &mut Vec<Finding>,
) {
    if talks.is_empty() {
        return;
    }
    let uses = uses(set, world, talks, settings);
    for order in orders {
        for entry in &order.entries {
            // The draft is what is asked about.
            if entry.action != Action::Allow || entry.stage == Stage::Filter || !entry.counts.draft
            {
                continue;
            }
            match uses.get(&entry.name) {
                None => findings.push(
                    Finding::new(
                        "unused-rule",
                        &entry.object,
                        entry.object_place,
                        format!(
                            "none of {} recorded connections needed this rule",
                            talks.len()
                        ),
                        "remove it if the records are long enough to tell",
                    )
                    .rule(&entry.name, entry.place),
                ),
                Some(seen) => wider(set, world, entry, seen, findings),
            }
        }
    }
}

/// Which rule decides what, as if everything were enforced.
fn uses(
    set: &PolicySet,
    world: &World,
    talks: &[Talk],
    settings: &Settings,
) -> BTreeMap<String, Use> {
    let mut uses: BTreeMap<String, Use> = BTreeMap::new();
    let mut sets: HashMap<String, PolicySet> = HashMap::new();
    for talk in talks {
        let flow = Flow::between(
            world,
            talk.source,
            talk.destination,
            talk.protocol,
            talk.port,
        );
        for direction in [FlowDirection::Egress, FlowDirection::Ingress] {
            let (own, peer, who) = match direction {
                FlowDirection::Egress => (flow.from, talk.destination, flow.to),
                FlowDirection::Ingress => (flow.to, talk.source, flow.from),
            };
            let Some(own) = own else { continue };
            let small = sets.entry(own.full_name()).or_insert_with(|| set.at(own));
            let Some(end) = End::of(world, small, &flow, direction, settings.at) else {
                continue;
            };
            let seen = uses
                .entry(decide(&end, Lens::Draft, &mut NoTrace).rule)
                .or_default();
            seen.ports.insert((talk.protocol, talk.port));
            seen.peers.insert(peer);
            seen.peer_names
                .extend(who.map(crate::world::Workload::full_name));
        }
    }
    uses
}

fn wider(
    set: &PolicySet,
    world: &World,
    entry: &Entry<'_>,
    seen: &Use,
    findings: &mut Vec<Finding>,
) {
    let finding = |what: &str, message: String, fix: String| {
        Finding::new(
            "rule-wider-than-traffic",
            &entry.object,
            entry.object_place,
            message,
            fix,
        )
        .rule(&entry.name, entry.place)
        .detail(what)
    };
    // Numbers of protocols that have ports; a named port is one already.
    let ported = PORTED.iter().fold(Spans::default(), |all, number| {
        all.or(&Spans::ports(*number, 0, u16::MAX))
    });
    let means = (entry.regions.iter())
        .filter(|region| region.named.is_none())
        .fold(Spans::default(), |all, region| all.or(&region.ports))
        .and(&ported);
    let used: Vec<String> = (seen.ports.iter())
        .filter(|(protocol, _)| PORTED.contains(protocol))
        .map(|(protocol, port)| format!("{}/{port}", protocol_name(*protocol)))
        .collect();
    let allowed = means.count();
    if !used.is_empty() && used.len() <= 8 && allowed >= 16 + 4 * used.len() as u128 {
        findings.push(finding(
            "ports",
            format!(
                "it allows {allowed} ports, and {} were used: {}",
                used.len(),
                used.join(", ")
            ),
            "allow only the ports that are used".to_owned(),
        ));
    }
    let (what, meant) = match peers_meant(set, world, entry) {
        Some(meant) => meant,
        None => return,
    };
    if meant >= 16 && (seen.peers.len() as u128).saturating_mul(4) <= meant && seen.peers.len() <= 8
    {
        let listed: Vec<String> = seen.peers.iter().map(ToString::to_string).collect();
        let named: Vec<String> = seen.peer_names.iter().cloned().collect();
        let all_known = named.len() == listed.len() && !named.is_empty();
        findings.push(finding(
            "peers",
            format!(
                "its peers are {what}, and {} were seen: {}",
                listed.len(),
                if all_known {
                    named.join(", ")
                } else {
                    listed.join(", ")
                }
            ),
            if all_known {
                "select these workloads by their labels".to_owned()
            } else {
                "name the networks that are needed".to_owned()
            },
        ));
    }
}

/// How many peers a rule means, in words and as a number; `None` where that says nothing.
fn peers_meant(set: &PolicySet, world: &World, entry: &Entry<'_>) -> Option<(String, u128)> {
    let policy = entry.policy?;
    let direction = if entry.name.contains("/ingress[") {
        FlowDirection::Ingress
    } else {
        FlowDirection::Egress
    };
    let rule = policy.rules(direction)?.get(entry.index)?;
    let boxes = super::region::peer_boxes(set, &rule.peers, false);
    let beyond = super::region::class::WORLD | super::region::class::UNMANAGED;
    let addresses = (boxes.iter())
        .filter(|(classes, _, _)| classes & beyond != 0)
        .fold(Spans::default(), |all, (_, _, addresses)| all.or(addresses));
    if !addresses.is_empty() {
        let count = addresses.count();
        let what = if count > u128::from(u64::MAX) {
            "very many addresses".to_owned()
        } else {
            format!("{count} addresses")
        };
        return Some((what, count));
    }
    let members = (world.workloads().iter())
        .filter(|workload| {
            rule.peers.iter().any(|peer| match peer {
                Peer::Selector { selector } => selector.matches(*workload),
                // Only entity: managed is left.
                _ => true,
            })
        })
        .count();
    Some((format!("{members} workloads"), members as u128))
}
