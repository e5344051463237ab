//! The frames: TCP over IPv4 and IPv6 between a peer and this host, with the sequence numbers of a real handshake.

use std::net::{Ipv4Addr, Ipv6Addr};

use serde::Serialize;

use crate::programs::End;

/// Address family.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    pub(crate) const BOTH: [Self; 2] = [Self::V4, Self::V6];

    /// As tables show it.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    /// Where the rewriter writes.
    pub(crate) const fn offsets(self, end: End) -> Offsets {
        let (source, destination, l4) = match self {
            Self::V4 => (26, 30, 34),
            // The last four bytes of 16-byte addresses.
            Self::V6 => (34, 50, 54),
        };
        match end {
            End::Source => Offsets {
                address: source,
                port: l4,
                other_port: l4 + 2,
                end: l4 + 20,
            },
            End::Destination => Offsets {
                address: destination,
                port: l4 + 2,
                other_port: l4,
                end: l4 + 20,
            },
        }
    }
}

/// Places in a frame.
#[derive(Clone, Copy)]
pub(crate) struct Offsets {
    pub(crate) address: i16,
    pub(crate) port: i16,
    pub(crate) other_port: i16,
    /// Behind the TCP header.
    pub(crate) end: i16,
}

/// This host.
pub(crate) const LOCAL4: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub(crate) const LOCAL6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);

/// Number 0 of the peers that a rule allows; the last 32 bits are the same in both families.
pub(crate) const PEERS: u32 = u32::from_be_bytes([10, 64, 0, 0]);
/// Number 0 of the peers for which a filter speaks.
pub(crate) const FILTERED: u32 = u32::from_be_bytes([10, 32, 0, 0]);
/// How many there are.
pub(crate) const FILTERED_COUNT: u32 = 16;
/// Number 0 of the addresses that nobody knows.
pub(crate) const UNKNOWN: u32 = u32::from_be_bytes([172, 16, 0, 0]);
/// How many of them a flood uses.
pub(crate) const UNKNOWN_COUNT: u32 = 1 << 20;

/// The port that every rule allows.
pub(crate) const SERVICE: u16 = 443;
/// A port that no rule allows.
pub(crate) const CLOSED: u16 = 8443;
/// The port that the filter drops.
pub(crate) const FILTERED_PORT: u16 = 23;

/// A peer's address.
pub(crate) fn peer4(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(number)
}

/// A peer's address: the same last 32 bits.
pub(crate) fn peer6(number: u32) -> Ipv6Addr {
    let [a, b, c, d] = number.to_be_bytes();
    let (hi, lo) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    Ipv6Addr::new(0xfd00, 0x64, 0, 0, 0, 0, hi, lo)
}

/// One segment of a handshake and of what follows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Segment {
    /// The initiator's first.
    Syn,
    /// The responder's answer.
    SynAck,
    /// The initiator acknowledges, with data or without.
    Ack,
    /// The responder goes on.
    Answer,
}

impl Segment {
    /// Flags, sequence and acknowledgment number (RFC 9293 §3.5): the initiator's initial number is 1000, the
    /// responder's 5000.
    const fn numbers(self) -> (u8, u32, u32) {
        match self {
            Self::Syn => (0x02, 1000, 0),
            Self::SynAck => (0x12, 5000, 1001),
            Self::Ack => (0x10, 1001, 5001),
            Self::Answer => (0x10, 5001, 1001),
        }
    }

    const fn is_peers(self) -> bool {
        matches!(self, Self::Syn | Self::Ack)
    }
}

/// A frame between a peer (last 32 bits, port) and a port of this host; 90 bytes over IPv4, 110 over IPv6.
pub(crate) fn frame(
    family: Family,
    peer: u32,
    peer_port: u16,
    port: u16,
    segment: Segment,
) -> Vec<u8> {
    let (flags, sequence, acknowledgment) = segment.numbers();
    let (from, to) = if segment.is_peers() {
        (peer_port, port)
    } else {
        (port, peer_port)
    };
    let mut tcp = [from.to_be_bytes(), to.to_be_bytes()].concat();
    tcp.extend(sequence.to_be_bytes());
    tcp.extend(acknowledgment.to_be_bytes());
    tcp.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    tcp.resize(tcp.len() + 36, 0xaa);
    let mut out = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    let length = tcp.len() as u16;
    match family {
        Family::V4 => {
            let (peer, local) = (peer4(peer).octets(), LOCAL4.octets());
            out.extend([0x08, 0x00, 0x45, 0]);
            out.extend((length + 20).to_be_bytes());
            out.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
            out.extend(if segment.is_peers() { peer } else { local });
            out.extend(if segment.is_peers() { local } else { peer });
        }
        Family::V6 => {
            let (peer, local) = (peer6(peer).octets(), LOCAL6.octets());
            out.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            out.extend(length.to_be_bytes());
            out.extend([6, 64]);
            out.extend(if segment.is_peers() { peer } else { local });
            out.extend(if segment.is_peers() { local } else { peer });
        }
    }
    out.extend(tcp);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rewriter_writes_where_the_frames_have_it() {
        let peer = PEERS + 0x0001_0203;
        for family in Family::BOTH {
            for (segment, end) in [
                (Segment::Syn, End::Source),
                (Segment::SynAck, End::Destination),
            ] {
                let frame = frame(family, peer, 0x1234, 0x5678, segment);
                let at = family.offsets(end);
                let take = |start: i16, count: usize| &frame[start as usize..][..count];
                assert_eq!(take(at.address, 4), peer.to_be_bytes());
                assert_eq!(take(at.port, 2), [0x12, 0x34]);
                assert_eq!(take(at.other_port, 2), [0x56, 0x78]);
                assert!(frame.len() >= at.end as usize);
            }
        }
    }
}
