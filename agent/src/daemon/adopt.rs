//! Takes over the connections that live while the host is being armed, so that arming cuts none.

use std::net::{IpAddr, SocketAddr};

use datapath::abi::{Flow4, Flow6};
use datapath::conntrack::State;
use datapath::flow::{Flags, Meta, bits, slot};
use datapath::ids::{Direction, EndpointId, protocol};
use datapath::packet::{Family, V4, V6, canonical};
use datapath::verdict::Query;
use serde::Serialize;

use crate::kernel::sockdiag::Connection;
use crate::kernel::{Kernel, KernelError};
use crate::reconcile::lookup::Lookup;

/// An adopted connection that the policy would deny: kept once, and said.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Tolerated {
    /// This end.
    pub local: SocketAddr,
    /// The other end.
    pub remote: SocketAddr,
    /// Who began: the other end (`ingress`) or this one.
    pub direction: &'static str,
    /// Why it would be denied.
    pub reason: &'static str,
}

/// What seeding did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Seeded {
    /// Entries made.
    pub adopted: usize,
    /// Connections that had an entry already.
    pub known: usize,
    /// Connections that the policy would deny.
    pub tolerated: Vec<Tolerated>,
}

impl Seeded {
    /// With a second look, after the hooks were in place: what the first one made is known to it.
    #[must_use]
    pub fn then(self, second: Self) -> Self {
        Self {
            adopted: self.adopted + second.adopted,
            known: second.known.saturating_sub(self.adopted),
            tolerated: second.tolerated,
        }
    }
}

enum Entry {
    V4(Box<Flow4>),
    V6(Box<Flow6>),
}

/// Makes an entry for each connection that has none; never touches one that is there.
///
/// # Errors
/// When a table refuses; what was made stays.
pub fn seed(
    kernel: &Kernel,
    connections: &[Connection],
    jiffies: u32,
    lookup: &Lookup,
) -> Result<Seeded, KernelError> {
    let generation = kernel.word().generation();
    let mut seeded = Seeded::default();
    for connection in connections {
        let made = match entry(connection, generation, jiffies) {
            Entry::V4(flow) => kernel.insert_flow4(&flow)?,
            Entry::V6(flow) => kernel.insert_flow6(&flow)?,
        };
        if made {
            seeded.adopted += 1;
        } else {
            seeded.known += 1;
        }
        if let Some(tolerated) = judge(connection, lookup) {
            seeded.tolerated.push(tolerated);
        }
    }
    Ok(seeded)
}

fn ends(connection: &Connection) -> (SocketAddr, SocketAddr, Direction) {
    if connection.accepted {
        (connection.remote, connection.local, Direction::Ingress)
    } else {
        (connection.local, connection.remote, Direction::Egress)
    }
}

fn entry(connection: &Connection, generation: u32, jiffies: u32) -> Entry {
    let (initiator, responder, direction) = ends(connection);
    let meta = Meta::new(generation, jiffies.wrapping_shl(4), slot::LIVE).0;
    let scope = u16::try_from(EndpointId::HOST.0).unwrap_or(1);
    let flags = |from_lo: bool| {
        let mut verdict = bits::ALLOW | bits::ADOPTED;
        if !from_lo {
            verdict |= bits::INITIATOR_HI;
        }
        if direction == Direction::Egress {
            verdict |= bits::EGRESS;
        }
        // Both ends have proved it to this host's own TCP.
        Flags::new(0, State::ESTABLISHED, verdict, 0)
            .with_proven()
            .0
    };
    let low = connection.cookie as u32;
    let high = (connection.cookie >> 32) as u32;
    match (initiator.ip(), responder.ip()) {
        (IpAddr::V4(from), IpAddr::V4(to)) => {
            let (order, from_lo) = canonical::<V4>(
                &from.octets(),
                &to.octets(),
                initiator.port(),
                responder.port(),
            );
            let key = V4::key(order, protocol::TCP, scope);
            let mut flow = Flow4::default();
            V4::stamp(&mut flow, &key, meta);
            for line in &mut flow.lines {
                line.body.flags = flags(from_lo);
                line.body.last = jiffies;
            }
            let [_, back] = &mut flow.lines;
            (back.body.a, back.body.b, back.body.c) = (jiffies, low, high);
            Entry::V4(Box::new(flow))
        }
        (from, to) => {
            let octets = |ip: IpAddr| match ip {
                IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
                IpAddr::V6(ip) => ip.octets(),
            };
            let (order, from_lo) = canonical::<V6>(
                &octets(from),
                &octets(to),
                initiator.port(),
                responder.port(),
            );
            let key = V6::key(order, protocol::TCP, scope);
            let mut flow = Flow6::default();
            V6::stamp(&mut flow, &key, meta);
            for line in &mut flow.lines {
                line.body.flags = flags(from_lo);
                line.body.last = jiffies;
            }
            let [_, back] = &mut flow.lines;
            (back.body.a, back.body.b, back.body.c) = (jiffies, low, high);
            Entry::V6(Box::new(flow))
        }
    }
}

fn judge(connection: &Connection, lookup: &Lookup) -> Option<Tolerated> {
    let (initiator, responder, direction) = ends(connection);
    let peer_addr = match connection.remote.ip() {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    };
    let decision = lookup.decide(&Query {
        endpoint: EndpointId::HOST.0,
        direction,
        peer: lookup.binding(connection.remote.ip()),
        peer_addr,
        protocol: protocol::TCP,
        src_port: initiator.port(),
        port: responder.port(),
    });
    (!decision.allow).then(|| Tolerated {
        local: connection.local,
        remote: connection.remote,
        direction: direction.name(),
        reason: decision.evaluated_reason.name(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use datapath::record::FlowView;

    #[test]
    fn an_entry_reads_back_as_the_connection_that_it_was_made_from() {
        let check = |local: &str, remote: &str, accepted: bool| {
            let connection = Connection {
                local: local.parse().expect("local"),
                remote: remote.parse().expect("remote"),
                accepted,
                cookie: 0x1_0000_0002,
            };
            let view = match entry(&connection, 8, 1000) {
                Entry::V4(flow) => FlowView::of4(&flow),
                Entry::V6(flow) => FlowView::of6(&flow),
            };
            let (initiator, responder, direction) = ends(&connection);
            let at = |bytes, port| SocketAddr::new(crate::flows::record::address(bytes), port);
            assert_eq!(at(view.initiator, view.initiator_port), initiator);
            assert_eq!(at(view.responder, view.responder_port), responder);
            assert_eq!(
                (view.direction, view.adopted, view.allowed),
                (direction, true, true)
            );
            assert_eq!(
                (view.state, view.generation, view.cookie),
                (State::ESTABLISHED, 8, 0x1_0000_0002)
            );
        };
        check("10.0.0.1:22", "10.0.0.9:50000", true);
        check("10.0.0.9:50000", "10.0.0.1:22", false);
        check("10.0.0.1:50000", "10.0.0.9:443", false);
        check("[fd00::1]:22", "[fd00::2]:50000", true);
    }
}
