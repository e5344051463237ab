//! The policy that is measured: as many peers as rules, each with an identity and a class of its own, so that nothing
//! is shared that a real policy might not share either.

use std::net::IpAddr;

use agent::kernel::content::Content;
use agent::reconcile::plan::{self, Timebase};
use datapath::drop_reason::DropReason;
use datapath::ids::{EndpointId, Identity, protocol};
use ipnet::IpNet;
use policy::snapshot::{
    AddressBinding, CellVerdict, ClassBinding, Endpoint, FilterCell, FlowDirection, Mode,
    PortPrefix, RuleCell, Snapshot,
};

use crate::frames::FILTERED_PORT;
use crate::frames::{FILTERED, FILTERED_COUNT, LOCAL4, LOCAL6, PEERS, SERVICE, peer4, peer6};

/// Class of everybody who is allowed nothing.
const CLOSED_CLASS: u32 = 1;
/// Filter class of the filtered peers.
const FILTER_CLASS: u32 = 1;

/// A content of `rules` rules, each of which allows one peer to one TCP port of this host.
pub(crate) fn content(rules: u32) -> Content {
    let time = Timebase {
        boot_ns: 1,
        utc_ns: 1,
        lead_ns: 0,
        behind: false,
    };
    plan::content(&snapshot(rules), &time)
}

fn snapshot(rules: u32) -> Snapshot {
    let mut snapshot = Snapshot {
        revision: 1,
        endpoints: vec![Endpoint {
            id: EndpointId::HOST.0,
            name: "bench".into(),
            mode: Mode::Enforce,
            addresses: vec![LOCAL4.into(), LOCAL6.into()],
        }],
        ..Snapshot::default()
    };
    let first = Identity::FIRST_DYNAMIC.0;
    bind(&mut snapshot, LOCAL4.into(), first, true);
    bind(&mut snapshot, LOCAL6.into(), first, true);
    snapshot.rules.push(closed(CLOSED_CLASS));
    classes(&mut snapshot, first, CLOSED_CLASS, 0);
    for all in ["0.0.0.0/0", "::/0"] {
        if let Ok(net) = all.parse() {
            snapshot.addresses.push(AddressBinding {
                net,
                identity: Identity::WORLD.0,
                isolated: false,
                local: false,
            });
        }
    }
    classes(&mut snapshot, Identity::WORLD.0, CLOSED_CLASS, 0);
    let groups = [(PEERS, rules, 0), (FILTERED, FILTERED_COUNT, FILTER_CLASS)];
    let mut number = 0;
    for (base, count, filter) in groups {
        for peer in base..base + count {
            number += 1;
            let (identity, class) = (first + number, CLOSED_CLASS + number);
            bind(&mut snapshot, peer4(peer).into(), identity, false);
            bind(&mut snapshot, peer6(peer).into(), identity, false);
            classes(&mut snapshot, identity, class, filter);
            snapshot.rules.push(closed(class));
            snapshot.rules.push(open(class, number));
        }
    }
    snapshot.filters.push(FilterCell {
        class: FILTER_CLASS,
        ports: port(FILTERED_PORT),
        allow: Some(false),
        rule: 1,
        mode_enforced: true,
    });
    snapshot
}

pub(crate) fn bind(snapshot: &mut Snapshot, addr: IpAddr, identity: u32, local: bool) {
    snapshot.addresses.push(AddressBinding {
        net: IpNet::from(addr),
        identity,
        isolated: false,
        local,
    });
}

pub(crate) fn classes(snapshot: &mut Snapshot, identity: u32, class: u32, filter: u32) {
    for (direction, class) in [
        (FlowDirection::Ingress, class),
        (FlowDirection::Egress, CLOSED_CLASS),
    ] {
        snapshot.classes.push(ClassBinding {
            endpoint: EndpointId::HOST.0,
            direction,
            identity,
            class,
            filter,
        });
    }
}

const fn port(port: u16) -> PortPrefix {
    PortPrefix {
        protocol: Some(protocol::TCP),
        port,
        port_bits: 16,
    }
}

pub(crate) const fn cell(class: u32, ports: PortPrefix, verdict: CellVerdict) -> RuleCell {
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

pub(crate) const fn closed(class: u32) -> RuleCell {
    let verdict = CellVerdict {
        allow: false,
        rule: 1,
        reason: DropReason::DefaultDeny as u8,
    };
    cell(class, PortPrefix::ANY, verdict)
}

const fn open(class: u32, number: u32) -> RuleCell {
    let verdict = CellVerdict {
        allow: true,
        rule: 1 + number,
        reason: DropReason::None as u8,
    };
    cell(class, port(SERVICE), verdict)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_rule_has_a_peer_an_identity_and_a_class() {
        let size = snapshot(1000).size();
        assert_eq!(size.addresses, 2 * (1 + 1000 + 16));
        assert_eq!(size.cidrs, 2);
        assert_eq!(size.rules, 1 + 2 * 1016);
    }
}
