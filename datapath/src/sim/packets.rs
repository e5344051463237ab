//! Ethernet frames for tests: right where it matters to a datapath (checksums are not looked at and stay zero).

extern crate std;

use std::net::IpAddr;
use std::vec::Vec;

use crate::ids::protocol;

/// An end of a conversation.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct End {
    /// Address.
    pub addr: IpAddr,
    /// Port; echo identifier for ICMP.
    pub port: u16,
}

/// Shorthand for an end.
///
/// # Panics
/// When `addr` is no address: for literals in tests.
#[must_use]
pub fn end(addr: &str, port: u16) -> End {
    match addr.parse() {
        Ok(addr) => End { addr, port },
        Err(_) => End {
            addr: IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED),
            port,
        },
    }
}

/// A TCP segment. Sequence number 1, acknowledgment 2: each end's segments acknowledge the other's initial number, as the
/// first segments of a connection do.
#[must_use]
pub fn tcp(from: End, to: End, flags: u8, payload: usize) -> Vec<u8> {
    let mut l4 = Vec::new();
    l4.extend(from.port.to_be_bytes());
    l4.extend(to.port.to_be_bytes());
    l4.extend([
        0,
        0,
        0,
        1,
        0,
        0,
        0,
        2,
        5 << 4,
        flags,
        0xff,
        0xff,
        0,
        0,
        0,
        0,
    ]);
    l4.resize(l4.len() + payload, 0xaa);
    ip(from.addr, to.addr, protocol::TCP, &l4)
}

/// A UDP datagram.
#[must_use]
pub fn udp(from: End, to: End, payload: usize) -> Vec<u8> {
    let mut l4 = Vec::new();
    l4.extend(from.port.to_be_bytes());
    l4.extend(to.port.to_be_bytes());
    l4.extend(((payload + 8) as u16).to_be_bytes());
    l4.extend([0, 0]);
    l4.resize(l4.len() + payload, 0xbb);
    ip(from.addr, to.addr, protocol::UDP, &l4)
}

/// An SCTP packet with an empty chunk area.
#[must_use]
pub fn sctp(from: End, to: End, payload: usize) -> Vec<u8> {
    let mut l4 = Vec::new();
    l4.extend(from.port.to_be_bytes());
    l4.extend(to.port.to_be_bytes());
    l4.resize(l4.len() + 8 + payload, 0xcc);
    ip(from.addr, to.addr, protocol::SCTP, &l4)
}

/// An ICMP or ICMPv6 message by the family of the addresses; the identifier is `from.port`.
#[must_use]
pub fn icmp(from: End, to: End, kind: u8, code: u8, body: &[u8]) -> Vec<u8> {
    let mut l4 = Vec::new();
    l4.extend([kind, code, 0, 0]);
    l4.extend(from.port.to_be_bytes());
    l4.extend([0, 1]);
    l4.extend(body);
    let number = if from.addr.is_ipv4() {
        protocol::ICMP
    } else {
        protocol::ICMPV6
    };
    ip(from.addr, to.addr, number, &l4)
}

/// A packet of any protocol.
#[must_use]
pub fn other(from: End, to: End, number: u8, payload: usize) -> Vec<u8> {
    let mut l4 = Vec::new();
    l4.resize(payload, 0xdd);
    ip(from.addr, to.addr, number, &l4)
}

/// The IP packet of a frame (what an ICMP error quotes).
#[must_use]
pub fn quoted(frame: &[u8]) -> Vec<u8> {
    frame
        .get(14..)
        .unwrap_or_default()
        .iter()
        .copied()
        .take(60)
        .collect()
}

/// The fragments of a plain frame (no options, no extension headers), each with so many bytes of what is behind the
/// IP header; `size` is a multiple of 8.
#[must_use]
pub fn fragments(frame: &[u8], id: u32, size: usize) -> Vec<Vec<u8>> {
    let length = payload(frame).len();
    (0..length.div_ceil(size.max(8)))
        .map(|index| piece(frame, id, index * size, (index + 1) * size))
        .collect()
}

/// One fragment of a plain frame: bytes `from` to `to` of what is behind the IP header. The last one if it reaches
/// the end.
#[must_use]
pub fn piece(frame: &[u8], id: u32, from: usize, to: usize) -> Vec<u8> {
    let data = payload(frame);
    let more = u16::from(to < data.len());
    let offset = (from / 8) as u16;
    let data = data
        .get(from..to.min(data.len()))
        .unwrap_or_default()
        .to_vec();
    if is_v6(frame) {
        let mut header = frame.get(..54).unwrap_or_default().to_vec();
        let next = frame.get(20).copied().unwrap_or_default();
        if let Some(bytes) = header.get_mut(18..21) {
            let [hi, lo] = ((data.len() + 8) as u16).to_be_bytes();
            bytes.copy_from_slice(&[hi, lo, 44]);
        }
        let [hi, lo] = ((offset << 3) | more).to_be_bytes();
        header.extend([next, 0, hi, lo]);
        header.extend(id.to_be_bytes());
        return [header, data].concat();
    }
    let mut header = frame.get(..34).unwrap_or_default().to_vec();
    if let Some(bytes) = header.get_mut(16..22) {
        let [len_hi, len_lo] = ((data.len() + 20) as u16).to_be_bytes();
        let [id_hi, id_lo] = (id as u16).to_be_bytes();
        let [hi, lo] = (offset | (more << 13)).to_be_bytes();
        bytes.copy_from_slice(&[len_hi, len_lo, id_hi, id_lo, hi, lo]);
    }
    [header, data].concat()
}

fn is_v6(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x86, 0xdd])
}

fn payload(frame: &[u8]) -> &[u8] {
    let start = if is_v6(frame) { 54 } else { 34 };
    frame.get(start..).unwrap_or_default()
}

/// Wraps a payload into IP and Ethernet; addresses of different families give an IPv4 header with zero addresses.
#[must_use]
pub fn ip(from: IpAddr, to: IpAddr, number: u8, l4: &[u8]) -> Vec<u8> {
    let mut frame = std::vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    match (from, to) {
        (IpAddr::V6(from), IpAddr::V6(to)) => {
            frame.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
            frame.extend((l4.len() as u16).to_be_bytes());
            frame.extend([number, hop_limit(number, l4)]);
            frame.extend(from.octets());
            frame.extend(to.octets());
        }
        (from, to) => {
            let octets = |addr| match addr {
                IpAddr::V4(addr) => std::net::Ipv4Addr::octets(&addr),
                IpAddr::V6(_) => [0; 4],
            };
            frame.extend([0x08, 0x00, 0x45, 0]);
            frame.extend(((l4.len() + 20) as u16).to_be_bytes());
            frame.extend([0, 0, 0x40, 0, 64, number, 0, 0]);
            frame.extend(octets(from));
            frame.extend(octets(to));
        }
    }
    frame.extend(l4);
    frame
}

/// As the stack sends it: discovery with 255 (RFC 4861), multicast listener discovery with 1 (RFC 3810 §5).
fn hop_limit(number: u8, l4: &[u8]) -> u8 {
    match l4.first() {
        Some(133..=136 | 141 | 142 | 148 | 149) if number == protocol::ICMPV6 => 255,
        Some(130..=132 | 143 | 151..=153) if number == protocol::ICMPV6 => 1,
        _ => 64,
    }
}
