//! One armed host, and the policy that most tests use.

use datapath::abi::{
    ActiveWord, AddrValue, ClassValue, EndpointValue, FailsafeKey, FailsafeValue, RuleKey,
    RuleValue, addr_flags, mode, rule_flags,
};
use datapath::drop_reason::DropReason;
use datapath::ids::Direction::{self, Egress, Ingress};
use datapath::packet::tcp::{ACK, SYN};
use datapath::pipeline::Action::Pass;
use datapath::record::FlowView;
use datapath::sim::packets::{End, tcp};
use datapath::sim::{Content, Sim};

pub(crate) const LOCAL: &str = "10.0.0.1";
pub(crate) const PEER: &str = "10.0.0.2";
pub(crate) const OTHER: &str = "10.0.0.3";
pub(crate) const PEER_ID: u32 = 300;
pub(crate) const OTHER_ID: u32 = 301;
pub(crate) const LOCAL_ID: u32 = 302;

pub(crate) fn mapped(addr: &str) -> ([u8; 16], u32) {
    match addr.parse::<std::net::IpAddr>().unwrap() {
        std::net::IpAddr::V4(addr) => (addr.to_ipv6_mapped().octets(), 128),
        std::net::IpAddr::V6(addr) => (addr.octets(), 128),
    }
}

pub(crate) fn bind(content: &mut Content, addr: &str, identity: u32, flags: u32) {
    let (net, bits) = mapped(addr);
    content
        .addresses
        .push((net, bits, AddrValue { identity, flags }));
}

pub(crate) fn cell(allow: bool, rule: u32) -> RuleValue {
    RuleValue {
        enforced: u8::from(allow),
        draft: u8::from(allow),
        rule,
        draft_rule: rule,
        reason: if allow {
            0
        } else {
            DropReason::DefaultDeny as u8
        },
        draft_reason: if allow {
            0
        } else {
            DropReason::DefaultDeny as u8
        },
        flags: rule_flags::ENFORCED,
        ..RuleValue::default()
    }
}

pub(crate) fn any(class: u32) -> RuleKey {
    RuleKey {
        prefix_len: RuleKey::ANY_PROTOCOL,
        class,
        ..RuleKey::default()
    }
}

pub(crate) fn port(class: u32, protocol: u8, port: u16) -> RuleKey {
    RuleKey {
        prefix_len: RuleKey::FULL,
        class,
        protocol,
        port: port.to_be_bytes(),
        pad: 0,
    }
}

/// PEER may reach tcp/443 and be reached on tcp/5432; everything else is denied.
pub(crate) fn content() -> Content {
    let mut content = Content::default();
    bind(&mut content, LOCAL, LOCAL_ID, addr_flags::LOCAL);
    bind(&mut content, PEER, PEER_ID, 0);
    bind(&mut content, OTHER, OTHER_ID, 0);
    bind(&mut content, "fd00::1", LOCAL_ID, addr_flags::LOCAL);
    bind(&mut content, "fd00::2", PEER_ID, 0);
    content.endpoints.insert(
        1,
        EndpointValue {
            mode: mode::ENFORCE,
            reserved: 0,
        },
    );
    for identity in [0, 2, PEER_ID, OTHER_ID, LOCAL_ID] {
        for direction in [0, 1] {
            let class = if identity == PEER_ID {
                10 + direction
            } else {
                1
            };
            content
                .classes
                .insert((1, identity, direction), ClassValue { class, filter: 0 });
        }
    }
    content.rules.push((any(1), cell(false, 90)));
    content.rules.push((any(10), cell(false, 91)));
    content.rules.push((port(10, 6, 443), cell(true, 11)));
    content.rules.push((port(10, 17, 53), cell(true, 12)));
    content.rules.push((port(10, 132, 99), cell(true, 13)));
    content.rules.push((port(10, 1, 8 << 8), cell(true, 14)));
    content.rules.push((port(10, 58, 128 << 8), cell(true, 15)));
    content.rules.push((any(11), cell(false, 92)));
    content.rules.push((port(11, 6, 5432), cell(true, 21)));
    content
}

pub(crate) fn armed() -> Sim {
    let mut sim = Sim::new();
    sim.slots = [content(), Content::default()];
    sim.word.set(ActiveWord::committed(1, 0));
    sim
}

pub(crate) fn view4(sim: &Sim) -> FlowView {
    let flows = views4(sim);
    assert_eq!(flows.len(), 1, "exactly one flow");
    flows[0]
}

/// Every IPv4 flow.
pub(crate) fn views4(sim: &Sim) -> Vec<FlowView> {
    let flows = sim.flows4();
    flows.iter().map(|(_, flow)| FlowView::of4(flow)).collect()
}

pub(crate) fn open(sim: &Sim, client: End, server: End, inbound: bool) {
    let (there, back) = if inbound {
        (Ingress, Egress)
    } else {
        (Egress, Ingress)
    };
    assert_eq!(sim.send(&tcp(client, server, SYN, 0), there), Pass);
    assert_eq!(sim.send(&tcp(server, client, SYN | ACK, 0), back), Pass);
    assert_eq!(sim.send(&tcp(client, server, ACK, 0), there), Pass);
}

pub(crate) fn failsafe(
    direction: Direction,
    protocol: u8,
    port: u16,
    addr: &str,
    flags: u32,
) -> (FailsafeKey, FailsafeValue) {
    let key = FailsafeKey {
        prefix_len: 160,
        direction: direction as u8,
        protocol,
        port: port.to_be_bytes(),
        addr: mapped(addr).0,
    };
    (key, FailsafeValue { flags, rule: 7 })
}
