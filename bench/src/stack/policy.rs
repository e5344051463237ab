//! One policy in two languages: the agent's content and an nftables rule set of the same meaning. Ten thousand rules:
//! each peer may send to one TCP and one UDP port of this host; everything else is denied, both ways; what belongs to a
//! connection passes.

use std::fmt::Write;

use agent::kernel::content::Content;
use agent::reconcile::plan::{self, Timebase};
use datapath::drop_reason::DropReason;
use datapath::ids::{EndpointId, Identity, protocol};
use policy::snapshot::{AddressBinding, CellVerdict, Endpoint, Mode, PortPrefix, Snapshot};

use crate::content::{bind, cell, classes, closed};
use crate::frames::{LOCAL4, PEERS, SERVICE, peer4};

/// Peers, with two rules each.
pub(crate) const PEER_COUNT: u32 = 5_000;
/// What each may use.
pub(crate) const ALLOWED: [u8; 2] = [protocol::TCP, protocol::UDP];
/// Class of everybody who is allowed nothing.
const CLOSED_CLASS: u32 = 1;

/// The agent's content.
pub(crate) fn content() -> Content {
    let time = Timebase {
        boot_ns: 1,
        utc_ns: 1,
        lead_ns: 0,
        behind: false,
    };
    plan::content(&snapshot(), &time)
}

fn snapshot() -> Snapshot {
    let mut snapshot = Snapshot {
        revision: 1,
        endpoints: vec![Endpoint {
            id: EndpointId::HOST.0,
            name: "bench".into(),
            mode: Mode::Enforce,
            addresses: vec![LOCAL4.into()],
        }],
        ..Snapshot::default()
    };
    let first = Identity::FIRST_DYNAMIC.0;
    bind(&mut snapshot, LOCAL4.into(), first, true);
    snapshot.rules.push(closed(CLOSED_CLASS));
    classes(&mut snapshot, first, CLOSED_CLASS, 0);
    if let Ok(net) = "0.0.0.0/0".parse() {
        snapshot.addresses.push(AddressBinding {
            net,
            identity: Identity::WORLD.0,
            isolated: false,
            local: false,
        });
    }
    classes(&mut snapshot, Identity::WORLD.0, CLOSED_CLASS, 0);
    for number in 0..PEER_COUNT {
        let (identity, class) = (first + 1 + number, CLOSED_CLASS + 1 + number);
        bind(&mut snapshot, peer4(PEERS + number).into(), identity, false);
        classes(&mut snapshot, identity, class, 0);
        snapshot.rules.push(closed(class));
        for (which, protocol) in (0u32..).zip(ALLOWED) {
            let ports = PortPrefix {
                protocol: Some(protocol),
                port: SERVICE,
                port_bits: 16,
            };
            let verdict = CellVerdict {
                allow: true,
                rule: 2 + 2 * number + which,
                reason: DropReason::None as u8,
            };
            snapshot.rules.push(cell(class, ports, verdict));
        }
    }
    snapshot
}

/// The rule set. No counters and no log: what it is compared with has both.
pub(crate) fn nftables() -> String {
    let mut elements = String::new();
    for number in 0..PEER_COUNT {
        let peer = peer4(PEERS + number);
        for protocol in ["tcp", "udp"] {
            let comma = if elements.is_empty() { "" } else { ", " };
            // Writing into a string cannot fail.
            let _ = write!(elements, "{comma}{peer} . {protocol} . {SERVICE}");
        }
    }
    format!(
        "table ip bench {{
    set allowed {{
        type ipv4_addr . inet_proto . inet_service
        elements = {{ {elements} }}
    }}
    chain input {{
        type filter hook input priority filter; policy drop;
        ct state established,related accept
        ct state new ip saddr . ip protocol . th dport @allowed accept
    }}
    chain output {{
        type filter hook output priority filter; policy drop;
        ct state established,related accept
    }}
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_have_ten_thousand_rules() {
        let allowed = snapshot()
            .rules
            .iter()
            .filter(|rule| rule.enforced.allow)
            .count();
        assert_eq!(allowed, 10_000);
        assert_eq!(nftables().matches(" . 443").count(), 10_000);
    }
}
