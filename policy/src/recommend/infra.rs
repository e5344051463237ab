//! Infrastructure services: many clients of few servers (DNS, time, directories, logs, backup), or few sources that visit
//! many (scrapers, configuration management).
//!
//! They are found by the share of workloads that take part, whatever their labels; a well-known port makes
//! less of it suffice. They get policies of their own, before those of the applications.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;

use super::observe::{Key, Recording};

/// Who is many.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Shape {
    /// Many clients, few servers.
    FanIn,
    /// Few sources, many destinations.
    FanOut,
}

/// One infrastructure service.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Infra {
    /// `dns`, `ntp`, …, or protocol and port.
    pub(crate) name: String,
    pub(crate) shape: Shape,
    pub(crate) protocol: u8,
    pub(crate) port: u16,
    /// The few: nodes.
    pub(crate) few: BTreeSet<u32>,
    /// How many workloads are on the other side.
    pub(crate) many: usize,
}

/// Ports that infrastructure is usually found on (IANA's registry, and the documented default ports of the
/// products), with the shape they have.
const KNOWN: &[(&str, Shape, u8, &[u16])] = &[
    ("dns", Shape::FanIn, 6, &[53, 853]),
    ("dns", Shape::FanIn, 17, &[53]),
    ("ntp", Shape::FanIn, 17, &[123]),
    ("dhcp", Shape::FanIn, 17, &[67, 547]),
    ("ldap", Shape::FanIn, 6, &[389, 636, 3268, 3269]),
    ("ldap", Shape::FanIn, 17, &[389]),
    ("kerberos", Shape::FanIn, 6, &[88, 464, 749]),
    ("kerberos", Shape::FanIn, 17, &[88, 464]),
    ("syslog", Shape::FanIn, 6, &[514, 601, 6514]),
    ("syslog", Shape::FanIn, 17, &[514]),
    ("radius", Shape::FanIn, 17, &[1812, 1813]),
    ("logs", Shape::FanIn, 6, &[5044, 24224, 3100, 1514, 1515]),
    ("telemetry", Shape::FanIn, 6, &[4317, 4318, 10051]),
    ("telemetry", Shape::FanIn, 17, &[8125, 25826, 162]),
    ("backup", Shape::FanIn, 6, &[9103, 13724, 1556]),
    ("backup", Shape::FanOut, 6, &[9102, 13782]),
    ("package-mirror", Shape::FanIn, 6, &[3142, 8081, 3128]),
    ("config-management", Shape::FanIn, 6, &[8140, 4505, 4506]),
    ("controller", Shape::FanIn, 6, &[7443]),
    (
        "monitoring",
        Shape::FanOut,
        6,
        &[9100, 9182, 9256, 10050, 5666, 6556],
    ),
    ("monitoring", Shape::FanOut, 17, &[161]),
    ("administration", Shape::FanOut, 6, &[22, 3389, 5985, 5986]),
];

/// Finds them among the edges that may become rules.
pub(crate) fn find<'a>(
    recording: &Recording,
    wanted: impl Iterator<Item = &'a Key> + Clone,
) -> Vec<Infra> {
    let mut found = Vec::new();
    for shape in [Shape::FanIn, Shape::FanOut] {
        let mut services: BTreeMap<(u8, u16), BTreeMap<u32, BTreeSet<u32>>> = BTreeMap::new();
        for key in wanted.clone() {
            let (few, many) = ends(shape, key);
            // Only workloads are counted as the many; strangers are nobody's share.
            if recording.is_workload(many) {
                let of_service = services.entry((key.protocol, key.port)).or_default();
                of_service.entry(few).or_default().insert(many);
            }
        }
        for ((protocol, port), sides) in services {
            found.extend(judge(recording, shape, protocol, port, &sides));
        }
    }
    found.sort();
    found
}

/// The end that is few and the end that is many.
pub(crate) fn ends(shape: Shape, key: &Key) -> (u32, u32) {
    match shape {
        Shape::FanIn => (key.destination, key.source),
        Shape::FanOut => (key.source, key.destination),
    }
}

fn judge(
    recording: &Recording,
    shape: Shape,
    protocol: u8,
    port: u16,
    sides: &BTreeMap<u32, BTreeSet<u32>>,
) -> Option<Infra> {
    let known = KNOWN.iter().find(|(_, known, number, ports)| {
        *known == shape && *number == protocol && ports.contains(&port)
    });
    let all = recording.workloads;
    // A server that hardly anybody uses is not what makes the service infrastructure.
    let least = (all / 10).max(2);
    let few: BTreeSet<u32> = sides
        .iter()
        .filter(|(_, many)| many.len() >= least)
        .map(|(few, _)| *few)
        .collect();
    let many: BTreeSet<u32> = few
        .iter()
        .filter_map(|few| sides.get(few))
        .flatten()
        .copied()
        .collect();
    let (share, least_many) = if known.is_some() { (4, 3) } else { (2, 10) };
    let enough = many.len() * share >= all && many.len() >= least_many;
    let is_few = few.len() <= (all / 10).max(3) && few.len() * 3 <= many.len();
    (enough && is_few).then(|| Infra {
        name: known.map_or_else(
            || format!("{}-{port}", crate::ports::protocol_name(protocol)),
            |(name, ..)| (*name).to_owned(),
        ),
        shape,
        protocol,
        port,
        few,
        many: many.len(),
    })
}
