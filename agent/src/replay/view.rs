//! What a frame says of itself, read by the datapath's own parser; and how a frame that was captured in part, or is
//! too long for a test run, is made fit for one.

use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use datapath::drop_reason::DropReason;
use datapath::ids::protocol;
use datapath::packet::{Family, Kind, Packet, PacketRead, V4, V6, parse4, parse6};
use serde::Serialize;

use super::link::ETHERNET;
use crate::flows::record::address;

/// Longest frame that is given to the kernel. `BPF_PROG_TEST_RUN` takes what fits a page beside the headroom and
/// the tail of a socket buffer (net/bpf/test_run.c): about 3.7 KiB where pages have 4 KiB.
pub const LONGEST: usize = 3072;

/// The tuple of a packet as it is on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Tuple {
    /// IANA number.
    pub protocol: u8,
    /// Sender.
    pub source: IpAddr,
    /// Port; ICMP echo: the identifier where the datapath has it on this side.
    pub source_port: u16,
    /// Receiver.
    pub destination: IpAddr,
    /// Port; ICMP: type × 256 + code.
    pub destination_port: u16,
}

/// What identifies a flow, whoever speaks: ends in the order of their addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowKey {
    protocol: u8,
    ends: [(IpAddr, u16); 2],
}

impl FlowKey {
    /// Of two ends. `port` of ICMP is the identifier, at the end that asked.
    #[must_use]
    pub fn new(number: u8, a: (IpAddr, u16), b: (IpAddr, u16)) -> Self {
        // Of an echo the identifier is the only port, and both ends send it.
        let (a, b) = if matches!(number, protocol::ICMP | protocol::ICMPV6) {
            ((a.0, a.1), (b.0, a.1))
        } else {
            (a, b)
        };
        Self {
            protocol: number,
            ends: if a <= b { [a, b] } else { [b, a] },
        }
    }
}

/// What a frame says.
#[derive(Clone, Copy, Debug, Default)]
pub struct View {
    /// Sender and receiver, where there is an IP header.
    pub ends: Option<(IpAddr, IpAddr)>,
    /// Where the parser understood it.
    pub tuple: Option<Tuple>,
    /// The flow it belongs to, if it is a packet of one.
    pub flow: Option<FlowKey>,
    /// Its headers go on behind what was captured.
    pub cut: bool,
}

/// Captured bytes of a frame that was longer.
struct Bytes<'a> {
    captured: &'a [u8],
    original: usize,
}

impl PacketRead for Bytes<'_> {
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = offset as usize;
        self.captured
            .get(start..start.checked_add(N)?)?
            .try_into()
            .ok()
    }

    fn frame_len(&self) -> u32 {
        u32::try_from(self.original).unwrap_or(u32::MAX)
    }
}

impl View {
    /// Reads an Ethernet frame of which `captured` is what there is.
    #[must_use]
    pub fn of(captured: &[u8], original: usize) -> Self {
        let bytes = Bytes { captured, original };
        let l3 = u32::try_from(ETHERNET).unwrap_or(0);
        match bytes.read::<2>(12) {
            Some([0x08, 0x00]) => {
                let mut packet = Packet::default();
                let parsed = parse4(&bytes, l3, &mut packet);
                let ends = bytes.read(26).zip(bytes.read(30)).map(v4);
                Self::from_parsed::<V4>(&bytes, parsed, &packet, ends)
            }
            Some([0x86, 0xdd]) => {
                let mut packet = Packet::default();
                let parsed = parse6(&bytes, l3, &mut packet);
                let ends = bytes.read(22).zip(bytes.read(38)).map(v6);
                Self::from_parsed::<V6>(&bytes, parsed, &packet, ends)
            }
            _ => Self::default(),
        }
    }

    fn from_parsed<F: Family>(
        bytes: &Bytes<'_>,
        parsed: Result<(), DropReason>,
        packet: &Packet<F::Addr>,
        ends: Option<(IpAddr, IpAddr)>,
    ) -> Self {
        match parsed {
            Err(reason) => Self {
                ends,
                cut: reason == DropReason::Truncated && bytes.captured.len() < bytes.original,
                ..Self::default()
            },
            Ok(()) => {
                let (source, destination) = (
                    address(F::mapped(&packet.src)),
                    address(F::mapped(&packet.dst)),
                );
                let icmp = matches!(packet.protocol, protocol::ICMP | protocol::ICMPV6);
                let (from, to) = ((source, packet.src_port), (destination, packet.dst_port));
                let key = if icmp && packet.reply_only {
                    FlowKey::new(packet.protocol, to, from)
                } else {
                    FlowKey::new(packet.protocol, from, to)
                };
                Self {
                    ends,
                    tuple: Some(Tuple {
                        protocol: packet.protocol,
                        source,
                        source_port: packet.src_port,
                        destination,
                        destination_port: packet.policy_port,
                    }),
                    flow: (packet.kind == Kind::Flow).then_some(key),
                    cut: false,
                }
            }
        }
    }
}

fn v4((source, destination): ([u8; 4], [u8; 4])) -> (IpAddr, IpAddr) {
    (
        Ipv4Addr::from(source).into(),
        Ipv4Addr::from(destination).into(),
    )
}

fn v6((source, destination): ([u8; 16], [u8; 16])) -> (IpAddr, IpAddr) {
    (
        Ipv6Addr::from(source).into(),
        Ipv6Addr::from(destination).into(),
    )
}

/// The frame as the kernel gets it: with zeros where the capture ends early (the datapath reads headers only), and
/// without its end, lengths corrected, where it is longer than [`LONGEST`]. With it the bytes of the network layer
/// that are missing from it.
#[must_use]
pub fn fit(captured: &[u8], original: usize) -> (Cow<'_, [u8]>, usize) {
    let original = original.max(captured.len());
    if captured.len() == original && original <= LONGEST {
        return (Cow::Borrowed(captured), 0);
    }
    let mut frame = captured.to_vec();
    frame.resize(original.min(LONGEST), 0);
    if original <= LONGEST {
        return (Cow::Owned(frame), 0);
    }
    let room = LONGEST - ETHERNET;
    // Offset of the length field, and what it leaves out (RFC 791 §3.1, RFC 8200 §3).
    let (field, header) = match frame.get(12..14) {
        Some([0x08, 0x00]) => (16, 0),
        Some([0x86, 0xdd]) => (18, 40),
        _ => return (Cow::Owned(frame), original - LONGEST),
    };
    let mut missing = 0;
    if let Some(length) = frame.get_mut(field..field + 2) {
        let says = usize::from(u16::from_be_bytes([length[0], length[1]])) + header;
        // A length beyond the frame is the frame's own fault, and stays.
        if says > room && says <= original - ETHERNET {
            missing = says - room;
            let short = u16::try_from(room - header).unwrap_or(0);
            length.copy_from_slice(&short.to_be_bytes());
        }
    }
    (Cow::Owned(frame), missing)
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
