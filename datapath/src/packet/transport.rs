//! The transport header: ports, flags, numbers, and the ICMP types that RFC 792 and RFC 4890 treat apart.

use crate::drop_reason::DropReason;
use crate::ids::protocol;

use super::{Kind, Layer4, Packet, PacketRead, halves, tcp};

/// Reads ports, flags and what else the transport header says; gives the bytes from the IP header to its end.
#[inline(always)]
pub(super) fn parse_transport<A, P: PacketRead>(
    p: &P,
    l4: Layer4,
    out: &mut Packet<A>,
) -> Result<u32, DropReason> {
    let total = l4.end.saturating_sub(l4.l3);
    let room = l4.end.saturating_sub(l4.offset);
    out.protocol = l4.protocol;
    (out.src_port, out.dst_port, out.policy_port) = (0, 0, 0);
    (out.tcp_flags, out.kind, out.reply_only) = (0, Kind::Flow, false);
    (out.seq, out.ack) = (0, 0);
    let mut headers = l4.offset.saturating_sub(l4.l3);
    match l4.protocol {
        protocol::TCP => {
            let bytes: [u8; 14] = p.read(l4.offset).ok_or(DropReason::Truncated)?;
            let [
                s0,
                s1,
                d0,
                d1,
                q0,
                q1,
                q2,
                q3,
                a0,
                a1,
                a2,
                a3,
                offset,
                flags,
            ] = bytes;
            let header = u32::from(offset >> 4) * 4;
            if header < 20 || header > room {
                return Err(DropReason::Truncated);
            }
            if !tcp_flags_possible(flags) {
                return Err(DropReason::TcpInvalid);
            }
            headers += header;
            out.src_port = u16::from_be_bytes([s0, s1]);
            out.dst_port = u16::from_be_bytes([d0, d1]);
            out.policy_port = out.dst_port;
            out.tcp_flags = flags;
            out.seq = u32::from_be_bytes([q0, q1, q2, q3]);
            out.ack = u32::from_be_bytes([a0, a1, a2, a3]);
        }
        protocol::UDP | protocol::SCTP => {
            let header = if l4.protocol == protocol::UDP { 8 } else { 12 };
            if room < header {
                return Err(DropReason::Truncated);
            }
            let [s0, s1, d0, d1] = p.read(l4.offset).ok_or(DropReason::Truncated)?;
            headers += header;
            out.src_port = u16::from_be_bytes([s0, s1]);
            out.dst_port = u16::from_be_bytes([d0, d1]);
            out.policy_port = out.dst_port;
        }
        protocol::ICMP | protocol::ICMPV6 => {
            if room < 8 {
                return Err(DropReason::Truncated);
            }
            let bytes: [u8; 8] = p.read(l4.offset).ok_or(DropReason::Truncated)?;
            let [kind, code, _, _, id_hi, id_lo, _, _] = bytes;
            out.policy_port = u16::from_be_bytes([kind, code]);
            let id = u16::from_be_bytes([id_hi, id_lo]);
            // What is control in one family is nothing in the other, where no stack takes it: policy decides.
            let class = match l4.protocol {
                other if other != l4.control => IcmpClass::Other,
                protocol::ICMP => icmp4_class(kind),
                _ => icmp6_class(kind),
            };
            match class {
                IcmpClass::EchoRequest => (out.src_port, out.dst_port) = (id, echo(l4.protocol)),
                IcmpClass::EchoReply => {
                    (out.src_port, out.dst_port) = (echo(l4.protocol), id);
                    out.reply_only = true;
                }
                IcmpClass::Error => out.kind = Kind::IcmpError,
                IcmpClass::LinkLocal => out.kind = Kind::LinkLocalControl,
                IcmpClass::Redirect => return Err(DropReason::IcmpRedirect),
                IcmpClass::Other => (out.src_port, out.dst_port) = (0, out.policy_port),
            }
        }
        _ => {}
    }
    weigh(p, total, headers, out);
    Ok(headers)
}

/// Wire segments and L3 bytes of a packet with so many bytes of headers.
#[inline(always)]
pub(super) fn weigh<A, P: PacketRead>(p: &P, total: u32, headers: u32, out: &mut Packet<A>) {
    out.packets = match (p.segments(), p.segment_size()) {
        // Merged by a hypervisor or a sender in a guest (virtio): the size is known, the number is not.
        (0, size) if size > 0 && total > headers + size => (total - headers).div_ceil(size),
        (0, _) => 1,
        (segments, _) => segments,
    };
    // Every segment but the first carries its own copy of the headers on the wire.
    out.bytes = total + (out.packets - 1) * headers;
}

/// The "port" of whoever is asked for an echo: the request's type × 256. With the identifier as the port of whoever
/// asks, pings of both ends with one identifier are two flows, each judged in its own direction.
#[inline(always)]
pub(super) const fn echo(protocol: u8) -> u16 {
    if protocol == protocol::ICMP {
        8 << 8
    } else {
        128 << 8
    }
}

/// SYN with FIN or RST, and segments without any of SYN, FIN, RST, ACK, do not occur in RFC 9293.
#[inline(always)]
const fn tcp_flags_possible(flags: u8) -> bool {
    let control = flags & tcp::CONTROL;
    control != 0
        && !(control & tcp::SYN != 0 && control & (tcp::FIN | tcp::RST) != 0)
        && !(control & tcp::FIN != 0 && control & tcp::RST != 0)
}

enum IcmpClass {
    EchoRequest,
    EchoReply,
    Error,
    Redirect,
    LinkLocal,
    Other,
}

#[inline(always)]
const fn icmp4_class(kind: u8) -> IcmpClass {
    match kind {
        8 => IcmpClass::EchoRequest,
        0 => IcmpClass::EchoReply,
        3 | 4 | 11 | 12 => IcmpClass::Error,
        5 => IcmpClass::Redirect,
        _ => IcmpClass::Other,
    }
}

/// RFC 4890 §4.4: what a host must accept on its link, what it must never, and what policy decides.
#[inline(always)]
const fn icmp6_class(kind: u8) -> IcmpClass {
    match kind {
        128 => IcmpClass::EchoRequest,
        129 => IcmpClass::EchoReply,
        1..=4 => IcmpClass::Error,
        // MLD (130–132, 143), router and neighbour discovery (133–136), inverse discovery (141–142), SEND
        // certification paths (148–149), multicast router discovery (151–153).
        130..=136 | 141..=143 | 148 | 149 | 151..=153 => IcmpClass::LinkLocal,
        137 => IcmpClass::Redirect,
        _ => IcmpClass::Other,
    }
}

/// Whether an ICMPv6 message that passes without policy came from this link (RFC 4890 §4.4.1). 255 proves that no
/// router forwarded it (RFC 4861 §6.1, §7.1, RFC 3971 §6.4); the others are sent with 1, which proves nothing, from a
/// link-local address, which no router forwards (RFC 3810 §5, RFC 4286 §3), or from none yet (RFC 3810 §5.2.13).
#[inline(always)]
pub(super) const fn is_on_link(kind: u8, hop_limit: u8, src: &[u8; 16]) -> bool {
    let (hi, lo) = halves(src);
    let link_local = hi >> 54 == 0xfe80 >> 6;
    match kind {
        130..=132 | 143 => link_local || (hi == 0 && lo == 0),
        151..=153 => link_local && hop_limit == 1,
        _ => hop_limit == 255,
    }
}
