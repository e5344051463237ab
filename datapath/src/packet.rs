//! Parsing: from bytes to the tuple that policy and conntrack speak about.
//!
//! Every way a packet can be too short, broken or not understood is an `Err` with its drop reason: no
//! parse failure ever allows. Layouts: RFC 791 (IPv4), RFC 8200 (IPv6 and its extension headers),
//! RFC 4302 (AH), RFC 9293 (TCP), RFC 768 (UDP), RFC 9260 (SCTP), RFC 792 and RFC 4443 (ICMP).

use crate::abi::{Flow4, Flow6, Key4, Key6, Line4, Line6};
use crate::drop_reason::DropReason;
use crate::ids::protocol;

/// Bytes of a frame; offsets count from the start of the link-layer header.
pub trait PacketRead {
    /// `N` bytes at `offset`; `None` where the frame ends before them.
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]>;

    /// Length of the frame in bytes, link-layer header included.
    fn frame_len(&self) -> u32;

    /// Wire segments that this (possibly merged) packet stands for; 0 when nobody counted them.
    fn segments(&self) -> u32 {
        1
    }

    /// Payload of one wire segment of a merged packet; 0 when it is none.
    fn segment_size(&self) -> u32 {
        0
    }
}

/// An address family.
pub trait Family: Copy {
    /// 4 or 6.
    const VERSION: u8;
    /// Network byte order.
    type Addr: Copy + PartialEq + Default;
    /// Canonical key of the flow table.
    type Key: Copy + Default;
    /// Entry of the flow table.
    type Flow: Copy + Default;

    /// Whether `a` sorts before `b`.
    fn less(a: &Self::Addr, b: &Self::Addr) -> bool;
    /// The v4-mapped (RFC 4291 §2.5.5.2) or plain IPv6 form.
    fn mapped(addr: &Self::Addr) -> [u8; 16];
    /// Key from ends that are already in canonical order.
    fn key(ends: Ends<Self::Addr>, protocol: u8, scope: u16) -> Self::Key;
    /// Bytes from line 0 to line 1.
    const STRIDE: usize;
    /// Offset of the body in a line.
    const BODY: usize;
    /// Writes key and meta of both lines.
    fn stamp(flow: &mut Self::Flow, key: &Self::Key, meta: u64);
}

/// Two ends in canonical order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Ends<A> {
    /// Numerically lower (address, port).
    pub lo: A,
    /// The other.
    pub hi: A,
    /// Port of `lo`.
    pub lo_port: u16,
    /// Port of `hi`.
    pub hi_port: u16,
}

/// IPv4.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct V4;

/// IPv6.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct V6;

impl Family for V4 {
    const VERSION: u8 = 4;
    const STRIDE: usize = core::mem::size_of::<Line4>();
    const BODY: usize = core::mem::offset_of!(Line4, body);
    type Addr = [u8; 4];
    type Key = Key4;
    type Flow = Flow4;

    #[inline(always)]
    fn less(a: &Self::Addr, b: &Self::Addr) -> bool {
        u32::from_be_bytes(*a) < u32::from_be_bytes(*b)
    }

    #[inline(always)]
    fn mapped(addr: &Self::Addr) -> [u8; 16] {
        let [a, b, c, d] = *addr;
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, a, b, c, d]
    }

    #[inline(always)]
    fn key(ends: Ends<Self::Addr>, protocol: u8, scope: u16) -> Key4 {
        Key4 {
            lo: ends.lo,
            hi: ends.hi,
            lo_port: ends.lo_port.to_be_bytes(),
            hi_port: ends.hi_port.to_be_bytes(),
            protocol,
            pad: 0,
            scope,
        }
    }

    #[inline(always)]
    fn stamp(flow: &mut Flow4, key: &Key4, meta: u64) {
        let [a, b] = &mut flow.lines;
        (a.key, a.meta, b.key, b.meta) = (*key, meta, *key, meta);
    }
}

impl Family for V6 {
    const VERSION: u8 = 6;
    const STRIDE: usize = core::mem::size_of::<Line6>();
    const BODY: usize = core::mem::offset_of!(Line6, body);
    type Addr = [u8; 16];
    type Key = Key6;
    type Flow = Flow6;

    #[inline(always)]
    fn less(a: &Self::Addr, b: &Self::Addr) -> bool {
        let (a_hi, a_lo) = halves(a);
        let (b_hi, b_lo) = halves(b);
        a_hi < b_hi || (a_hi == b_hi && a_lo < b_lo)
    }

    #[inline(always)]
    fn mapped(addr: &Self::Addr) -> [u8; 16] {
        *addr
    }

    #[inline(always)]
    fn key(ends: Ends<Self::Addr>, protocol: u8, scope: u16) -> Key6 {
        Key6 {
            lo: ends.lo,
            hi: ends.hi,
            lo_port: ends.lo_port.to_be_bytes(),
            hi_port: ends.hi_port.to_be_bytes(),
            protocol,
            pad: 0,
            scope,
        }
    }

    #[inline(always)]
    fn stamp(flow: &mut Flow6, key: &Key6, meta: u64) {
        let [a, b] = &mut flow.lines;
        (a.key, a.meta, b.key, b.meta) = (*key, meta, *key, meta);
    }
}

/// The two 64-bit halves of an IPv6 address: compared as numbers, because 128-bit arithmetic and `memcmp`
/// are calls on the BPF target.
#[inline(always)]
fn halves(addr: &[u8; 16]) -> (u64, u64) {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = *addr;
    (
        u64::from_be_bytes([a, b, c, d, e, f, g, h]),
        u64::from_be_bytes([i, j, k, l, m, n, o, p]),
    )
}

/// TCP header flags.
pub mod tcp {
    /// Sender has finished.
    pub const FIN: u8 = 0x01;
    /// Synchronise sequence numbers.
    pub const SYN: u8 = 0x02;
    /// Reset.
    pub const RST: u8 = 0x04;
    /// Acknowledgment is valid.
    pub const ACK: u8 = 0x10;
    /// The flags that say what a segment does to a connection.
    pub const CONTROL: u8 = FIN | SYN | RST | ACK;
}

/// What kind of treatment a packet asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Kind {
    /// Judged by policy and tracked.
    #[default]
    Flow = 0,
    /// ICMP error: allowed if the quoted packet belongs to a tracked flow.
    IcmpError = 1,
    /// Neighbour discovery or multicast listener discovery that passes by the RFC 4890 §4.4 table.
    LinkLocalControl = 2,
}

/// A parsed packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Packet<A> {
    /// Sender.
    pub src: A,
    /// Receiver.
    pub dst: A,
    /// Source port; ICMP echo request: the identifier, reply: the request's type × 256.
    pub src_port: u16,
    /// Destination port; ICMP echo request: its type × 256, reply: the identifier.
    pub dst_port: u16,
    /// What policy calls the port: destination port, or type × 256 + code for ICMP.
    pub policy_port: u16,
    /// IANA protocol number (the last header's).
    pub protocol: u8,
    /// TCP flags, else 0.
    pub tcp_flags: u8,
    /// TCP sequence number in host order, else 0.
    pub seq: u32,
    /// TCP acknowledgment number in host order (meaningless without ACK), else 0.
    pub ack: u32,
    /// Treatment.
    pub kind: Kind,
    /// ICMP echo reply: belongs to the flow of the request, never opens one.
    pub reply_only: bool,
    /// Wire segments.
    pub packets: u32,
    /// L3 bytes summed over wire segments.
    pub bytes: u32,
    /// For [`Kind::IcmpError`]: the quoted packet's sender, receiver and ports.
    pub inner: Inner<A>,
}

/// The packet that an ICMP error quotes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Inner<A> {
    /// Sender of the quoted packet.
    pub src: A,
    /// Receiver of the quoted packet.
    pub dst: A,
    /// Source port or echo identifier.
    pub src_port: u16,
    /// Destination port or echo identifier.
    pub dst_port: u16,
    /// IANA protocol number.
    pub protocol: u8,
}

impl<A: Copy> Packet<A> {
    /// Whether the packet asks for a new flow: a bare SYN, or anything that is not TCP and no reply by nature.
    #[must_use]
    #[inline(always)]
    pub const fn is_opening(&self) -> bool {
        if self.protocol == protocol::TCP {
            self.tcp_flags & tcp::CONTROL == tcp::SYN
        } else {
            !self.reply_only
        }
    }
}

/// Puts the ends of a tuple into canonical order; the flag tells whether the source is the lower end.
#[inline(always)]
pub fn canonical<F: Family>(
    src: &F::Addr,
    dst: &F::Addr,
    src_port: u16,
    dst_port: u16,
) -> (Ends<F::Addr>, bool) {
    let from_lo = if *src == *dst {
        src_port <= dst_port
    } else {
        F::less(src, dst)
    };
    if from_lo {
        (
            Ends {
                lo: *src,
                hi: *dst,
                lo_port: src_port,
                hi_port: dst_port,
            },
            true,
        )
    } else {
        (
            Ends {
                lo: *dst,
                hi: *src,
                lo_port: dst_port,
                hi_port: src_port,
            },
            false,
        )
    }
}

const IPV4_MIN: u32 = 20;
const IPV6_HEADER: u32 = 40;
/// Extension headers that are walked before the chain counts as hostile.
const MAX_EXTENSIONS: u32 = 6;

/// Parses the IPv4 packet at `l3` into `out`, which is meaningless after an error.
///
/// # Errors
/// The drop reason of a packet that is too short, broken or not understood.
#[inline(always)]
pub fn parse4<P: PacketRead>(p: &P, l3: u32, out: &mut Packet<[u8; 4]>) -> Result<(), DropReason> {
    let header: [u8; 20] = p.read(l3).ok_or(DropReason::Truncated)?;
    let [
        vihl,
        _,
        len_hi,
        len_lo,
        _,
        _,
        frag_hi,
        frag_lo,
        _,
        proto,
        _,
        _,
        s0,
        s1,
        s2,
        s3,
        d0,
        d1,
        d2,
        d3,
    ] = header;
    let ihl = u32::from(vihl & 0x0f) * 4;
    if vihl >> 4 != 4 || ihl < IPV4_MIN {
        return Err(DropReason::MalformedIp);
    }
    let available = p.frame_len().saturating_sub(l3);
    let total = match u32::from(u16::from_be_bytes([len_hi, len_lo])) {
        // BIG TCP: a merged packet beyond 64 KiB carries 0 here.
        0 if p.segments() > 1 => available,
        total => total,
    };
    if total < ihl {
        return Err(DropReason::MalformedIp);
    }
    if total > available {
        return Err(DropReason::Truncated);
    }
    if u16::from_be_bytes([frag_hi & 0x1f, frag_lo]) != 0 {
        return Err(DropReason::Fragment);
    }
    out.src = [s0, s1, s2, s3];
    out.dst = [d0, d1, d2, d3];
    let l4 = Layer4 {
        l3,
        offset: l3 + ihl,
        end: l3 + total,
        protocol: proto,
        control: protocol::ICMP,
    };
    parse_transport(p, l4, out)?;
    if let Kind::IcmpError = out.kind {
        inner4(p, l4, &mut out.inner)?;
    }
    Ok(())
}

/// Parses the IPv6 packet at `l3` into `out`, which is meaningless after an error.
///
/// # Errors
/// The drop reason of a packet that is too short, broken or not understood.
#[inline(always)]
pub fn parse6<P: PacketRead>(p: &P, l3: u32, out: &mut Packet<[u8; 16]>) -> Result<(), DropReason> {
    let header: [u8; 8] = p.read(l3).ok_or(DropReason::Truncated)?;
    let [version, _, _, _, len_hi, len_lo, next, hop_limit] = header;
    if version >> 4 != 6 {
        return Err(DropReason::MalformedIp);
    }
    out.src = p.read(l3 + 8).ok_or(DropReason::Truncated)?;
    out.dst = p.read(l3 + 24).ok_or(DropReason::Truncated)?;
    if is_mapped(&out.src) || is_mapped(&out.dst) {
        return Err(DropReason::MalformedIp);
    }
    let available = p.frame_len().saturating_sub(l3);
    let total = match u32::from(u16::from_be_bytes([len_hi, len_lo])) {
        0 if p.segments() > 1 => available,
        payload => payload + IPV6_HEADER,
    };
    if total > available {
        return Err(DropReason::Truncated);
    }
    let (protocol, offset) = walk_extensions(p, next, l3 + IPV6_HEADER, l3 + total)?;
    let l4 = Layer4 {
        l3,
        offset,
        end: l3 + total,
        protocol,
        control: protocol::ICMPV6,
    };
    parse_transport(p, l4, out)?;
    match out.kind {
        // RFC 4861 §6.1, §7.1: 255 proves that no router forwarded it. MLD is sent with 1 (RFC 3810 §5).
        Kind::LinkLocalControl if is_ndp(out.policy_port) && hop_limit != 255 => {
            Err(DropReason::NdpInvalid)
        }
        Kind::IcmpError => inner6(p, l4, &mut out.inner),
        _ => Ok(()),
    }
}

/// A v4-mapped address has no place on the wire (RFC 4942 §2.2): failsafes and records are keyed by that form,
/// so an IPv6 packet that carries it would speak for an IPv4 address.
#[inline(always)]
fn is_mapped(addr: &[u8; 16]) -> bool {
    let (hi, lo) = halves(addr);
    hi == 0 && lo >> 32 == 0xffff
}

/// Where the last header is, and where the packet ends.
#[derive(Clone, Copy)]
struct Layer4 {
    l3: u32,
    offset: u32,
    end: u32,
    protocol: u8,
    /// The family's own control protocol.
    control: u8,
}

#[inline(always)]
fn parse_transport<A, P: PacketRead>(
    p: &P,
    l4: Layer4,
    out: &mut Packet<A>,
) -> Result<(), DropReason> {
    let total = l4.end.saturating_sub(l4.l3);
    let room = l4.end.saturating_sub(l4.offset);
    let segments = p.segments();
    out.protocol = l4.protocol;
    (out.src_port, out.dst_port, out.policy_port) = (0, 0, 0);
    (out.tcp_flags, out.kind, out.reply_only) = (0, Kind::Flow, false);
    (out.seq, out.ack) = (0, 0);
    out.bytes = total;
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
    out.packets = match (segments, p.segment_size()) {
        // Merged by a hypervisor or a sender in a guest (virtio): the size is known, the number is not.
        (0, size) if size > 0 && total > headers + size => (total - headers).div_ceil(size),
        (0, _) => 1,
        (segments, _) => segments,
    };
    // Every segment but the first carries its own copy of the headers on the wire.
    out.bytes = total + (out.packets - 1) * headers;
    Ok(())
}

/// The "port" of whoever is asked for an echo: the request's type × 256. With the identifier as the port of whoever
/// asks, pings of both ends with one identifier are two flows, each judged in its own direction.
#[inline(always)]
const fn echo(protocol: u8) -> u16 {
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
        // MLD (130–132, 143), router and neighbour discovery (133–136), inverse discovery (141–142).
        130..=136 | 141..=143 => IcmpClass::LinkLocal,
        137 => IcmpClass::Redirect,
        _ => IcmpClass::Other,
    }
}

const fn is_ndp(policy_port: u16) -> bool {
    matches!(policy_port >> 8, 133..=136 | 141..=142)
}

/// Skips IPv6 extension headers; a later fragment has no ports and is refused.
#[inline(always)]
fn walk_extensions<P: PacketRead>(
    p: &P,
    first: u8,
    start: u32,
    end: u32,
) -> Result<(u8, u32), DropReason> {
    let mut next = first;
    let mut offset = start;
    for _ in 0..MAX_EXTENSIONS {
        let unit = match next {
            0 | 43 | 60 => 8,
            // RFC 4302 §2.2: the authentication header counts 4-byte units, minus 2.
            51 => 4,
            44 => 0,
            59 | 135 | 139 | 140 | 253 | 254 => return Err(DropReason::UnknownExtension),
            _ => return Ok((next, offset)),
        };
        let bytes: [u8; 4] = p.read(offset).ok_or(DropReason::Truncated)?;
        let [following, length, frag_hi, frag_lo] = bytes;
        let size = match unit {
            0 => {
                // RFC 8200 §4.5: the upper 13 bits are the offset.
                if u16::from_be_bytes([frag_hi, frag_lo]) & 0xfff8 != 0 {
                    return Err(DropReason::Fragment);
                }
                8
            }
            4 => (u32::from(length) + 2) * 4,
            _ => (u32::from(length) + 1) * 8,
        };
        offset += size;
        if offset > end {
            return Err(DropReason::Truncated);
        }
        next = following;
    }
    match next {
        0 | 43 | 44 | 51 | 59 | 60 | 135 | 139 | 140 | 253 | 254 => {
            Err(DropReason::UnknownExtension)
        }
        _ => Ok((next, offset)),
    }
}

#[inline(always)]
fn inner4<P: PacketRead>(p: &P, l4: Layer4, out: &mut Inner<[u8; 4]>) -> Result<(), DropReason> {
    let start = l4.offset + 8;
    let header: [u8; 20] = p.read(start).ok_or(DropReason::IcmpUnrelated)?;
    let [
        vihl,
        _,
        _,
        _,
        _,
        _,
        frag_hi,
        frag_lo,
        _,
        proto,
        _,
        _,
        s0,
        s1,
        s2,
        s3,
        d0,
        d1,
        d2,
        d3,
    ] = header;
    let ihl = u32::from(vihl & 0x0f) * 4;
    if vihl >> 4 != 4 || ihl < IPV4_MIN || u16::from_be_bytes([frag_hi & 0x1f, frag_lo]) != 0 {
        return Err(DropReason::IcmpUnrelated);
    }
    let (src_port, dst_port) = inner_ports(p, start + ihl, proto)?;
    (out.src, out.dst) = ([s0, s1, s2, s3], [d0, d1, d2, d3]);
    (out.src_port, out.dst_port, out.protocol) = (src_port, dst_port, proto);
    Ok(())
}

#[inline(always)]
fn inner6<P: PacketRead>(p: &P, l4: Layer4, out: &mut Inner<[u8; 16]>) -> Result<(), DropReason> {
    let start = l4.offset + 8;
    let header: [u8; 8] = p.read(start).ok_or(DropReason::IcmpUnrelated)?;
    let [version, _, _, _, _, _, proto, _] = header;
    if version >> 4 != 6 {
        return Err(DropReason::IcmpUnrelated);
    }
    out.src = p.read(start + 8).ok_or(DropReason::IcmpUnrelated)?;
    out.dst = p.read(start + 24).ok_or(DropReason::IcmpUnrelated)?;
    let (src_port, dst_port) = inner_ports(p, start + IPV6_HEADER, proto)?;
    (out.src_port, out.dst_port, out.protocol) = (src_port, dst_port, proto);
    Ok(())
}

#[inline(always)]
fn inner_ports<P: PacketRead>(p: &P, offset: u32, protocol: u8) -> Result<(u16, u16), DropReason> {
    match protocol {
        protocol::TCP | protocol::UDP | protocol::SCTP => {
            let [s0, s1, d0, d1] = p.read(offset).ok_or(DropReason::IcmpUnrelated)?;
            Ok((u16::from_be_bytes([s0, s1]), u16::from_be_bytes([d0, d1])))
        }
        protocol::ICMP | protocol::ICMPV6 => {
            let [kind, code, _, _, hi, lo] = p.read(offset).ok_or(DropReason::IcmpUnrelated)?;
            let id = u16::from_be_bytes([hi, lo]);
            Ok(match (protocol, kind) {
                (protocol::ICMP, 8) | (protocol::ICMPV6, 128) => (id, echo(protocol)),
                (protocol::ICMP, 0) | (protocol::ICMPV6, 129) => (echo(protocol), id),
                _ => (0, u16::from_be_bytes([kind, code])),
            })
        }
        _ => Ok((0, 0)),
    }
}
