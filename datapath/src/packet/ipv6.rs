//! IPv6 and its extension headers (RFC 8200, RFC 4302).

use crate::drop_reason::DropReason;
use crate::ids::protocol;

use super::transport::{is_on_link, parse_transport, weigh};
use super::{Fragment, Kind, Layer4, Packet, PacketRead, Piece, halves, in_pieces, quoted};

/// Length of the fixed header.
pub(super) const HEADER: u32 = 40;
/// Extension headers that are walked before the chain counts as hostile.
const MAX_EXTENSIONS: u32 = 6;

/// The fixed header without its addresses.
#[derive(Clone, Copy)]
pub(super) struct Header {
    /// Length of everything behind the fixed header, as written.
    payload: u16,
    /// What follows.
    pub(super) next: u8,
    hop_limit: u8,
}

impl Header {
    /// Reads the header at `at`, its addresses into place.
    #[inline(always)]
    pub(super) fn read<P: PacketRead>(
        p: &P,
        at: u32,
        src: &mut [u8; 16],
        dst: &mut [u8; 16],
    ) -> Result<Self, DropReason> {
        let bytes: [u8; 8] = p.read(at).ok_or(DropReason::Truncated)?;
        let [version, _, _, _, len_hi, len_lo, next, hop_limit] = bytes;
        if version >> 4 != 6 {
            return Err(DropReason::MalformedIp);
        }
        *src = p.read(at + 8).ok_or(DropReason::Truncated)?;
        *dst = p.read(at + 24).ok_or(DropReason::Truncated)?;
        Ok(Self {
            payload: u16::from_be_bytes([len_hi, len_lo]),
            next,
            hop_limit,
        })
    }
}

/// Parses the IPv6 packet at `l3` into `out`. After an error only addresses, weight and fragment are valid, and
/// those only if [`Packet::piece`] says that it is a fragment.
///
/// # Errors
/// The drop reason of a packet that is too short, broken or not understood.
#[inline(always)]
pub fn parse6<P: PacketRead>(p: &P, l3: u32, out: &mut Packet<[u8; 16]>) -> Result<(), DropReason> {
    out.piece = Piece::Whole;
    let header = Header::read(p, l3, &mut out.src, &mut out.dst)?;
    if is_mapped(&out.src) || is_mapped(&out.dst) {
        return Err(DropReason::MalformedIp);
    }
    let available = p.frame_len().saturating_sub(l3);
    let total = match u32::from(header.payload) {
        0 if p.segments() > 1 => available,
        payload => payload + HEADER,
    };
    if total > available {
        return Err(DropReason::Truncated);
    }
    let chain = match walk(p, header.next, l3 + HEADER, l3 + total, out) {
        Ok(chain) => chain,
        Err(reason) => {
            weigh(p, total, HEADER, out);
            return Err(reason);
        }
    };
    out.l4 = Layer4 {
        l3,
        offset: chain.offset,
        end: l3 + total,
        protocol: chain.protocol,
        control: protocol::ICMPV6,
    };
    if chain.fragmented != 0 && !matches!(out.piece, Piece::Whole) {
        weigh(p, total, chain.fragmented - l3, out);
        return in_pieces(p, chain.fragmented, out);
    }
    whole(p, chain.fragmented != 0, header.hop_limit, out)
}

/// What follows the chain of extension headers of a packet that is no fragment; `atomic`: there was a fragment header.
#[cfg_attr(target_arch = "bpf", inline(never))]
fn whole<P: PacketRead>(
    p: &P,
    atomic: bool,
    hop_limit: u8,
    out: &mut Packet<[u8; 16]>,
) -> Result<(), DropReason> {
    let l4 = out.l4;
    parse_transport(p, l4, out)?;
    match out.kind {
        // RFC 6980 §5: discovery never travels behind a fragment header, not even an atomic one's.
        Kind::LinkLocalControl
            if atomic || !is_on_link((out.policy_port >> 8) as u8, hop_limit, &out.src) =>
        {
            Err(DropReason::NdpInvalid)
        }
        Kind::IcmpError => quoted::inner6(p, out),
        _ => Ok(()),
    }
}

/// A v4-mapped address has no place on the wire (RFC 4942 §2.2): failsafes and records are keyed by that form,
/// so an IPv6 packet that carries it would speak for an IPv4 address.
#[inline(always)]
const fn is_mapped(addr: &[u8; 16]) -> bool {
    let (hi, lo) = halves(addr);
    hi == 0 && lo >> 32 == 0xffff
}

/// Where a chain of extension headers leads.
#[derive(Clone, Copy)]
pub(super) struct Chain {
    /// The first header that is no extension; of a later fragment, what its fragment header claims.
    pub(super) protocol: u8,
    /// Where that begins.
    pub(super) offset: u32,
    /// Where the fragmentable part begins; 0 without a fragment header.
    pub(super) fragmented: u32,
}

/// Where a fragment header is noted. A quoted packet's is only asked whether it is a later fragment.
pub(super) trait Noted {
    /// Notes the fragment header; `true` ends the walk, because what follows is the middle of a packet.
    fn note(&mut self, piece: Piece, fragment: Fragment) -> bool;
}

impl<A> Noted for Packet<A> {
    #[inline(always)]
    fn note(&mut self, piece: Piece, fragment: Fragment) -> bool {
        (self.piece, self.fragment) = (piece, fragment);
        matches!(piece, Piece::Later)
    }
}

/// Skips extension headers by their own lengths; a later fragment ends the walk.
#[inline(always)]
pub(super) fn walk<P: PacketRead>(
    p: &P,
    first: u8,
    start: u32,
    end: u32,
    noted: &mut impl Noted,
) -> Result<Chain, DropReason> {
    let mut chain = Chain {
        protocol: first,
        offset: start,
        fragmented: 0,
    };
    for _ in 0..MAX_EXTENSIONS {
        let unit = match chain.protocol {
            0 | 43 | 60 => 8,
            // RFC 4302 §2.2: the authentication header counts 4-byte units, minus 2.
            51 => 4,
            44 => 0,
            59 | 135 | 139 | 140 | 253 | 254 => return Err(DropReason::UnknownExtension),
            _ => return Ok(chain),
        };
        let bytes: [u8; 4] = p.read(chain.offset).ok_or(DropReason::Truncated)?;
        let [following, length, frag_hi, frag_lo] = bytes;
        let at = chain.offset;
        chain.offset += match unit {
            0 => 8,
            4 => (u32::from(length) + 2) * 4,
            _ => (u32::from(length) + 1) * 8,
        };
        if chain.offset > end {
            return Err(DropReason::Truncated);
        }
        chain.protocol = following;
        if unit == 0 {
            // One packet is fragmented once.
            if chain.fragmented != 0 {
                return Err(DropReason::UnknownExtension);
            }
            chain.fragmented = chain.offset;
            let id: [u8; 4] = p.read(at + 4).ok_or(DropReason::Truncated)?;
            // RFC 8200 §4.5: the upper 13 bits are the offset in units of 8 bytes, the lowest says that more follow.
            let word = u16::from_be_bytes([frag_hi, frag_lo]);
            let fragment = Fragment {
                id: u32::from_be_bytes(id),
                offset: word & 0xfff8,
                length: (end - chain.offset) as u16,
                headers: 0,
                last: word & 1 == 0,
                protocol: 0,
            };
            let piece = match word & 0xfff9 {
                0 => Piece::Whole,
                1 => Piece::First,
                _ => Piece::Later,
            };
            if noted.note(piece, fragment) {
                return Ok(chain);
            }
        }
    }
    match chain.protocol {
        0 | 43 | 44 | 51 | 59 | 60 | 135 | 139 | 140 | 253 | 254 => {
            Err(DropReason::UnknownExtension)
        }
        _ => Ok(chain),
    }
}
