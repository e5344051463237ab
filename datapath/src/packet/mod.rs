//! Parsing: from bytes to the tuple that policy and conntrack speak about.
//!
//! Every way a packet can be too short, broken or not understood is an `Err` with its drop reason: no
//! parse failure ever allows. Layouts: RFC 791 (IPv4), RFC 8200 (IPv6 and its extension headers),
//! RFC 4302 (AH), RFC 9293 (TCP), RFC 768 (UDP), RFC 9260 (SCTP), RFC 792 and RFC 4443 (ICMP).
//!
//! A packet that is a fragment says so in [`Packet::piece`]; what becomes of it is [`crate::fragment`]'s.

mod ipv4;
mod ipv6;
mod quoted;
mod transport;

pub use ipv4::parse4;
pub use ipv6::parse6;

use crate::abi::{Flow4, Flow6, Key4, Key6, Line4, Line6};
use crate::drop_reason::DropReason;
use crate::ids::protocol;
use transport::parse_transport;

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
const fn halves(addr: &[u8; 16]) -> (u64, u64) {
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
    /// Whether this is a whole packet or a fragment. Holds even if the parser refused the rest.
    pub piece: Piece,
    /// For a fragment: what it is a part of.
    pub fragment: Fragment,
    /// For [`Kind::IcmpError`]: the quoted packet's sender, receiver and ports.
    pub inner: Inner<A>,
    /// For the parser's own parts. Handed over in memory and not in registers, so that the verifier forgets how it
    /// came about: what follows is walked once and not once for every chain of headers.
    l4: Layer4,
}

/// Whole packet or fragment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Piece {
    /// All of it; an IPv6 atomic fragment (RFC 6946) is whole.
    #[default]
    Whole = 0,
    /// The fragment at offset 0.
    First = 1,
    /// Any other fragment: no ports, so tuple and protocol are unknown until its first fragment's are given to it.
    Later = 2,
}

/// Where a fragment belongs. Offsets and lengths count bytes of the fragmentable part (RFC 8200 §4.5; in
/// IPv4 everything behind the header).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Fragment {
    /// Identification: 16 bits in IPv4, 32 in IPv6.
    pub id: u32,
    /// Offset of this fragment, a multiple of 8.
    pub offset: u16,
    /// Bytes of the original packet that it carries.
    pub length: u16,
    /// For a first fragment: where the transport header ends.
    pub headers: u16,
    /// No fragment follows.
    pub last: bool,
    /// The protocol that tells identifications apart: IPv4's field (RFC 791 §3.2); 0 in IPv6, whose
    /// identifications are the pair's (RFC 8200 §4.5).
    pub protocol: u8,
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
    /// Wire segments and L3 bytes of a packet that the parser or [`crate::fragment`] refused, if its headers say them.
    #[must_use]
    #[inline(always)]
    pub const fn known_weight(&self) -> Option<(u64, u64)> {
        match self.piece {
            Piece::Whole => None,
            Piece::First | Piece::Later => Some((self.packets as u64, self.bytes as u64)),
        }
    }

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

/// Where the last header is, and where the packet ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Layer4 {
    l3: u32,
    offset: u32,
    end: u32,
    protocol: u8,
    /// The family's own control protocol.
    control: u8,
}

/// Parses a fragment whose piece and place are in `out` already. `start`: where its data begins.
///
/// RFC 8200 §4.5 and RFC 791 §3.2: only the last one's length may be no multiple of 8, and no packet is longer than
/// its length field can say. ICMP errors fit the minimum MTU (RFC 4443 §2.4, RFC 1812 §4.3.2.3), and discovery never
/// comes in pieces (RFC 6980): neither is needed, and neither could be understood.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn in_pieces<A, P: PacketRead>(p: &P, start: u32, out: &mut Packet<A>) -> Result<(), DropReason> {
    let (fragment, l4) = (out.fragment, out.l4);
    let end = u32::from(fragment.offset) + u32::from(fragment.length);
    let aligned = fragment.last || fragment.length % 8 == 0;
    if fragment.length == 0 || !aligned || end + (start - l4.l3) > 0xffff {
        return Err(DropReason::FragmentInvalid);
    }
    if let Piece::Later = out.piece {
        return Ok(());
    }
    let headers = parse_transport(p, l4, out)?;
    out.fragment.headers = (l4.l3 + headers).saturating_sub(start) as u16;
    match out.kind {
        Kind::Flow => Ok(()),
        Kind::IcmpError | Kind::LinkLocalControl => Err(DropReason::FragmentInvalid),
    }
}
