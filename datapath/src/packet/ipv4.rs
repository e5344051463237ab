//! IPv4 (RFC 791).

use crate::drop_reason::DropReason;
use crate::ids::protocol;

use super::transport::{parse_transport, weigh};
use super::{Fragment, Kind, Layer4, Packet, PacketRead, Piece, in_pieces, quoted};

const HEADER: u32 = 20;
/// "More fragments" in the word of flags and offset.
const MORE: u16 = 0x2000;
/// The offset in that word, in units of 8 bytes.
const OFFSET: u16 = 0x1fff;

/// The fixed part of an IPv4 header.
#[derive(Clone, Copy)]
pub(super) struct Header {
    /// Length of the header, options included.
    pub(super) length: u32,
    /// Length of the packet as written.
    pub(super) total: u16,
    pub(super) id: u16,
    /// Flags and fragment offset.
    pub(super) fragment: u16,
    pub(super) protocol: u8,
    pub(super) src: [u8; 4],
    pub(super) dst: [u8; 4],
}

impl Header {
    /// Reads the header at `at`; options are not looked at.
    #[inline(always)]
    pub(super) fn read<P: PacketRead>(p: &P, at: u32) -> Result<Self, DropReason> {
        let bytes: [u8; 20] = p.read(at).ok_or(DropReason::Truncated)?;
        let [
            vihl,
            _,
            len_hi,
            len_lo,
            id_hi,
            id_lo,
            frag_hi,
            frag_lo,
            _,
            protocol,
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
        ] = bytes;
        let length = u32::from(vihl & 0x0f) * 4;
        if vihl >> 4 != 4 || length < HEADER {
            return Err(DropReason::MalformedIp);
        }
        Ok(Self {
            length,
            total: u16::from_be_bytes([len_hi, len_lo]),
            id: u16::from_be_bytes([id_hi, id_lo]),
            fragment: u16::from_be_bytes([frag_hi, frag_lo]),
            protocol,
            src: [s0, s1, s2, s3],
            dst: [d0, d1, d2, d3],
        })
    }

    /// Whether it is a fragment other than the first.
    #[inline(always)]
    pub(super) const fn is_later(&self) -> bool {
        self.fragment & OFFSET != 0
    }
}

/// Parses the IPv4 packet at `l3` into `out`. After an error only addresses, weight and fragment are valid, and
/// those only if [`Packet::piece`] says that it is a fragment.
///
/// # Errors
/// The drop reason of a packet that is too short, broken or not understood.
#[inline(always)]
pub fn parse4<P: PacketRead>(p: &P, l3: u32, out: &mut Packet<[u8; 4]>) -> Result<(), DropReason> {
    out.piece = Piece::Whole;
    let header = Header::read(p, l3)?;
    let available = p.frame_len().saturating_sub(l3);
    let total = match u32::from(header.total) {
        // BIG TCP: a merged packet beyond 64 KiB carries 0 here.
        0 if p.segments() > 1 => available,
        total => total,
    };
    if total < header.length {
        return Err(DropReason::MalformedIp);
    }
    if total > available {
        return Err(DropReason::Truncated);
    }
    (out.src, out.dst) = (header.src, header.dst);
    let l4 = Layer4 {
        l3,
        offset: l3 + header.length,
        end: l3 + total,
        protocol: header.protocol,
        control: protocol::ICMP,
    };
    if header.fragment & (MORE | OFFSET) != 0 {
        return fragment(p, &header, l4, out);
    }
    parse_transport(p, l4, out)?;
    if let Kind::IcmpError = out.kind {
        out.l4 = l4;
        quoted::inner4(p, out)?;
    }
    Ok(())
}

#[inline(always)]
fn fragment<P: PacketRead>(
    p: &P,
    header: &Header,
    l4: Layer4,
    out: &mut Packet<[u8; 4]>,
) -> Result<(), DropReason> {
    weigh(p, l4.end - l4.l3, header.length, out);
    out.fragment = Fragment {
        id: u32::from(header.id),
        offset: (header.fragment & OFFSET) << 3,
        length: (l4.end - l4.offset) as u16,
        headers: 0,
        last: header.fragment & MORE == 0,
        protocol: header.protocol,
    };
    out.piece = if header.is_later() {
        Piece::Later
    } else {
        Piece::First
    };
    out.l4 = l4;
    in_pieces(p, l4.offset, out)
}
