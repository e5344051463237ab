//! Contents that differ in every table, and packets that tell them apart.
//!
//! For each table and each content there is a packet that only this content lets in, by this table. And there are
//! packets that no content lets in, but that any two of them together would: the address from one, the rule from
//! another.

use agent::kernel::content::{Content, Part};
use agent::reconcile::plan::{self, Timebase};
use datapath::packet::tcp::SYN;
use datapath::sim::packets::{end, tcp};
use policy::snapshot::{
    AddressBinding, CellVerdict, ClassBinding, Endpoint, FilterCell, FlowDirection, Mode,
    PortPrefix, RuleCell, Snapshot,
};

use crate::support::scene::{LOCAL, LOCAL6};

/// How many contents there are.
pub(crate) const CONTENTS: u8 = 4;
/// Tables that decide: addresses and prefixes of both families, classes, rules, filters.
const TABLES: usize = 7;

const CLIENT: u32 = 300;
const STRANGER: u32 = 301;
const HOST: u32 = 302;
const FIRST_CLASSED: u32 = 400;
const FIRST_CROSSED: u32 = 500;
const OPEN: u32 = 10;
const SHUT: u32 = 1;
const FIRST_CROSSED_CLASS: u32 = 20;

fn binding(net: String, identity: u32) -> AddressBinding {
    AddressBinding {
        net: net.parse().expect("a prefix"),
        identity,
        isolated: false,
        local: identity == HOST,
    }
}

fn tcp_port(port: u16) -> PortPrefix {
    PortPrefix {
        protocol: Some(6),
        port,
        port_bits: 16,
    }
}

fn cell(class: u32, ports: PortPrefix, allow: bool) -> RuleCell {
    let verdict = CellVerdict {
        allow,
        rule: class,
        reason: if allow {
            0
        } else {
            datapath::drop_reason::DropReason::DefaultDeny as u8
        },
    };
    RuleCell {
        class,
        ports,
        enforced: verdict,
        draft: verdict,
        expires: None,
        after: None,
        mode_enforced: true,
        keep: false,
        audit: false,
        hard: false,
    }
}

/// One of the contents.
pub(crate) fn snapshot(which: u8, revision: u64) -> Snapshot {
    let mut addresses = vec![
        binding(format!("{LOCAL}/32"), HOST),
        binding(format!("{LOCAL6}/128"), HOST),
    ];
    let mut classes = Vec::new();
    let mut rules = vec![
        cell(SHUT, PortPrefix::ANY, false),
        cell(OPEN, PortPrefix::ANY, false),
        cell(OPEN, tcp_port(443), true),
    ];
    let filter = |ports, allow| FilterCell {
        class: 1,
        ports,
        allow,
        rule: 77,
        mode_enforced: true,
    };
    let mut filters = vec![filter(PortPrefix::ANY, None)];
    let mut class = |identity, class| {
        for direction in [FlowDirection::Ingress, FlowDirection::Egress] {
            classes.push(ClassBinding {
                endpoint: 1,
                direction,
                identity,
                class,
                filter: u32::from(class == OPEN),
            });
        }
    };
    for identity in [0, 2, STRANGER, HOST] {
        class(identity, SHUT);
    }
    class(CLIENT, OPEN);
    for other in 0..CONTENTS {
        let (number, mine) = (u32::from(other), other == which);
        let identity = if mine { CLIENT } else { STRANGER };
        addresses.push(binding(format!("10.1.0.{other}/32"), identity));
        addresses.push(binding(format!("fd01::{other}/128"), identity));
        if mine {
            addresses.push(binding(format!("10.2.{other}.0/24"), CLIENT));
            addresses.push(binding(format!("fd02:0:0:{other}::/64"), CLIENT));
        }
        addresses.push(binding(
            format!("10.3.0.{other}/32"),
            FIRST_CLASSED + number,
        ));
        class(FIRST_CLASSED + number, if mine { OPEN } else { SHUT });
        rules.push(cell(OPEN, tcp_port(1000 + u16::from(other)), mine));
        rules.push(cell(OPEN, tcp_port(2000 + u16::from(other)), true));
        let through = (!mine).then_some(false);
        filters.push(filter(tcp_port(2000 + u16::from(other)), through));
        class(FIRST_CROSSED + number, FIRST_CROSSED_CLASS + number);
        let crossed = FIRST_CROSSED_CLASS + number;
        rules.push(cell(crossed, PortPrefix::ANY, false));
        rules.push(cell(crossed, tcp_port(3000), !mine));
    }
    let crossed = FIRST_CROSSED + u32::from(which);
    addresses.push(binding("10.4.0.1/32".into(), crossed));
    addresses.push(binding("fd04::1/128".into(), crossed));
    // A packet that the filter looks at always has the same client.
    addresses.push(binding("10.5.0.1/32".into(), CLIENT));
    let mode = [Mode::Enforce, Mode::Selective][usize::from(which % 2)];
    let mut snapshot = Snapshot {
        revision,
        endpoints: vec![Endpoint {
            id: 1,
            name: "host".into(),
            mode,
            addresses: Vec::new(),
        }],
        addresses,
        classes,
        rules,
        filters,
        ..Snapshot::default()
    };
    snapshot.sort();
    snapshot
}

/// The tables of one of the contents.
pub(crate) fn tables(which: u8) -> Content {
    let time = Timebase {
        boot_ns: 0,
        utc_ns: 0,
        lead_ns: 0,
        behind: false,
    };
    plan::content(&snapshot(which, 0), &time)
}

/// One of the contents with one table of another.
pub(crate) fn mixture(which: u8, other: u8, part: Part) -> Content {
    let mut content = tables(which);
    *content.part_mut(part) = tables(other).part(part).clone();
    content
}

/// The packets that tell: those of one content are next to each other.
pub(crate) fn telling() -> Vec<Vec<u8>> {
    let mut frames = Vec::new();
    for n in 0..CONTENTS {
        let sources: [(String, u16); TABLES] = [
            (format!("10.1.0.{n}"), 443),
            (format!("fd01::{n}"), 443),
            (format!("10.2.{n}.9"), 443),
            (format!("fd02:0:0:{n}::9"), 443),
            (format!("10.3.0.{n}"), 443),
            ("10.5.0.1".into(), 1000 + u16::from(n)),
            ("10.5.0.1".into(), 2000 + u16::from(n)),
        ];
        for (source, port) in sources {
            let local = if source.contains(':') { LOCAL6 } else { LOCAL };
            frames.push(tcp(end(&source, 40_000), end(local, port), SYN, 0));
        }
    }
    frames
}

/// The packets that no content lets in.
pub(crate) fn crossed() -> [Vec<u8>; 2] {
    [("10.4.0.1", LOCAL), ("fd04::1", LOCAL6)]
        .map(|(from, to)| tcp(end(from, 40_000), end(to, 3000), SYN, 0))
}

/// The content that lets in exactly these of the [`telling`] packets.
pub(crate) fn told(passed: &[bool]) -> Option<u8> {
    (0..CONTENTS).find(|which| {
        passed
            .chunks(TABLES)
            .zip(0..)
            .all(|(chunk, n)| chunk.iter().all(|passed| *passed == (n == *which)))
    })
}
