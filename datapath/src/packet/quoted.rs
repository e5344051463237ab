//! The packet that an ICMP error quotes (RFC 792, RFC 4443 §2.4c): its header is taken apart as any other's, its end is
//! wherever the error's is.

use crate::drop_reason::DropReason;
use crate::ids::protocol;

use super::ipv6::{Noted, walk};
use super::transport::echo;
use super::{Fragment, Packet, PacketRead, Piece, ipv4, ipv6};

/// Where the quotation begins: RFC 792 and RFC 4443 §2.1 have 8 bytes before it.
const QUOTATION: u32 = 8;

#[cfg_attr(target_arch = "bpf", inline(never))]
pub(super) fn inner4<P: PacketRead>(p: &P, packet: &mut Packet<[u8; 4]>) -> Result<(), DropReason> {
    let l4 = packet.l4;
    let out = &mut packet.inner;
    let start = l4.offset + QUOTATION;
    let Ok(header) = ipv4::Header::read(p, start) else {
        return Err(DropReason::IcmpUnrelated);
    };
    // RFC 1122 §3.2.2: no error is sent about a later fragment, which has no ports either.
    if header.is_later() {
        return Err(DropReason::IcmpUnrelated);
    }
    (out.src, out.dst, out.protocol) = (header.src, header.dst, header.protocol);
    (out.src_port, out.dst_port) = ports(p, start + header.length, l4.end, header.protocol)?;
    Ok(())
}

/// Only whether it is a later fragment matters of a quoted fragment.
struct IsLater(bool);

impl Noted for IsLater {
    #[inline(always)]
    fn note(&mut self, piece: Piece, _: Fragment) -> bool {
        self.0 = matches!(piece, Piece::Later);
        self.0
    }
}

#[cfg_attr(target_arch = "bpf", inline(never))]
pub(super) fn inner6<P: PacketRead>(
    p: &P,
    packet: &mut Packet<[u8; 16]>,
) -> Result<(), DropReason> {
    let l4 = packet.l4;
    let out = &mut packet.inner;
    let start = l4.offset + QUOTATION;
    let Ok(header) = ipv6::Header::read(p, start, &mut out.src, &mut out.dst) else {
        return Err(DropReason::IcmpUnrelated);
    };
    let mut later = IsLater(false);
    let chain = match walk(p, header.next, start + ipv6::HEADER, l4.end, &mut later) {
        Ok(chain) if !later.0 => chain,
        _ => return Err(DropReason::IcmpUnrelated),
    };
    out.protocol = chain.protocol;
    (out.src_port, out.dst_port) = ports(p, chain.offset, l4.end, chain.protocol)?;
    Ok(())
}

/// The ports, or what stands for them, of a transport header that may be cut after 8 bytes (RFC 792).
#[inline(always)]
fn ports<P: PacketRead>(
    p: &P,
    offset: u32,
    end: u32,
    protocol: u8,
) -> Result<(u16, u16), DropReason> {
    let needed = match protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => 4,
        protocol::ICMP | protocol::ICMPV6 => 6,
        _ => 0,
    };
    if offset + needed > end {
        return Err(DropReason::IcmpUnrelated);
    }
    if needed == 0 {
        return Ok((0, 0));
    }
    if needed == 4 {
        let [s0, s1, d0, d1] = p.read(offset).ok_or(DropReason::IcmpUnrelated)?;
        return Ok((u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])));
    }
    let [kind, code, _, _, hi, lo] = p.read(offset).ok_or(DropReason::IcmpUnrelated)?;
    let id = u16::from_be_bytes([hi, lo]);
    Ok(match (protocol, kind) {
        (protocol::ICMP, 8) | (protocol::ICMPV6, 128) => (id, echo(protocol)),
        (protocol::ICMP, 0) | (protocol::ICMPV6, 129) => (echo(protocol), id),
        _ => (0, u16::from_be_bytes([kind, code])),
    })
}
