//! IPv4 packets with correct checksums: other than in test runs, the rest of the kernel looks at these.

use std::net::Ipv4Addr;

use datapath::ids::protocol;

/// Length of an Ethernet header.
pub(crate) const ETHERNET: usize = 14;
/// The host's device.
pub(crate) const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
/// The peer's device.
pub(crate) const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// TCP flags (RFC 9293 §3.1).
pub(crate) const SYN: u8 = 0x02;
pub(crate) const ACK: u8 = 0x10;

/// Address and port.
pub(crate) type End = (Ipv4Addr, u16);

/// One's complement sum of 16-bit words (RFC 1071), not yet folded.
pub(crate) fn sum(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| match *pair {
            [high, low] => u32::from(u16::from_be_bytes([high, low])),
            [high] => u32::from(high) << 8,
            _ => 0,
        })
        .sum()
}

/// The checksum of a sum.
pub(crate) const fn fold(sum: u32) -> u16 {
    let once = (sum & 0xffff) + (sum >> 16);
    let twice = (once & 0xffff) + (once >> 16);
    !(twice as u16)
}

/// Sum of the pseudo-header (RFC 9293 §3.1).
pub(crate) fn pseudo(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, length: usize) -> u32 {
    sum(&from.octets()) + sum(&to.octets()) + u32::from(protocol) + length as u32
}

fn ip(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, l4: &[u8]) -> Vec<u8> {
    let mut out = vec![0x45, 0];
    out.extend(((20 + l4.len()) as u16).to_be_bytes());
    // Do not fragment; 64 hops.
    out.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
    out.extend(from.octets());
    out.extend(to.octets());
    let checksum = fold(sum(&out)).to_be_bytes();
    out.splice(10..12, checksum);
    out.extend(l4);
    out
}

/// A datagram without a checksum, which IPv4 allows (RFC 768).
pub(crate) fn udp(from: End, to: End, payload: &[u8]) -> Vec<u8> {
    let mut l4 = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    l4.extend(((8 + payload.len()) as u16).to_be_bytes());
    l4.extend([0, 0]);
    l4.extend(payload);
    ip(from.0, to.0, protocol::UDP, &l4)
}

/// A segment without data.
pub(crate) fn tcp(from: End, to: End, numbers: (u32, u32), flags: u8) -> Vec<u8> {
    let mut l4 = [from.1.to_be_bytes(), to.1.to_be_bytes()].concat();
    l4.extend(numbers.0.to_be_bytes());
    l4.extend(numbers.1.to_be_bytes());
    l4.extend([5 << 4, flags, 0xff, 0xff, 0, 0, 0, 0]);
    let checksum = fold(sum(&l4) + pseudo(from.0, to.0, protocol::TCP, l4.len())).to_be_bytes();
    l4.splice(16..18, checksum);
    ip(from.0, to.0, protocol::TCP, &l4)
}

/// A frame from the peer.
pub(crate) fn ethernet(to: [u8; 6], packet: &[u8]) -> Vec<u8> {
    let mut out = [to, PEER_MAC].concat();
    out.extend([0x08, 0x00]);
    out.extend(packet);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn checksums_verify() {
        let ends = (
            (Ipv4Addr::new(10, 64, 0, 9), 40_000),
            (Ipv4Addr::new(10, 0, 0, 1), 443),
        );
        let packet = tcp(ends.0, ends.1, (1000, 0), SYN);
        // A sum that includes the checksum is all ones (RFC 1071 §1).
        assert_eq!(fold(sum(&packet[..20])), 0);
        let l4 = &packet[20..];
        let whole = sum(l4) + pseudo(ends.0.0, ends.1.0, protocol::TCP, l4.len());
        assert_eq!(fold(whole), 0);
        assert_eq!(fold(sum(&udp(ends.0, ends.1, b"abc")[..20])), 0);
    }
}
