//! From what a capture holds of a frame to an Ethernet frame that the programs can be run over.
//!
//! Numbers: <https://www.tcpdump.org/linktypes.html>. Frames without an Ethernet header get one with zero
//! addresses: the datapath reads nothing of it but the type.

use std::borrow::Cow;

/// Length of an Ethernet header.
pub const ETHERNET: usize = 14;

const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];

/// What frames of a capture begin with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// `LINKTYPE_ETHERNET` (1).
    Ethernet,
    /// `LINKTYPE_LINUX_SLL` (113): 16 bytes, the type in the last two.
    Cooked,
    /// `LINKTYPE_LINUX_SLL2` (276): 20 bytes, the type in the first two.
    Cooked2,
    /// `LINKTYPE_RAW` (101; 12 and 14 on some systems), `LINKTYPE_IPV4` (228), `LINKTYPE_IPV6` (229): nothing.
    RawIp,
    /// `LINKTYPE_NULL` (0), `LINKTYPE_LOOP` (108): four bytes of address family, whose numbers differ by system.
    Loopback,
    /// None of these.
    Unsupported(u32),
}

impl Link {
    /// Of a link type number.
    #[must_use]
    pub const fn of(number: u32) -> Self {
        match number {
            1 => Self::Ethernet,
            113 => Self::Cooked,
            276 => Self::Cooked2,
            12 | 14 | 101 | 228 | 229 => Self::RawIp,
            0 | 108 => Self::Loopback,
            other => Self::Unsupported(other),
        }
    }

    /// Bytes in front of the network layer.
    const fn header(self) -> usize {
        match self {
            Self::Ethernet | Self::Unsupported(_) => ETHERNET,
            Self::Cooked => 16,
            Self::Cooked2 => 20,
            Self::RawIp => 0,
            Self::Loopback => 4,
        }
    }

    /// The frame with an Ethernet header, and its length on the wire with that header. `None`: it is too short to
    /// say what it is.
    #[must_use]
    pub fn ethernet<'a>(self, bytes: &'a [u8], original: usize) -> Option<(Cow<'a, [u8]>, usize)> {
        let original = original.max(bytes.len());
        if matches!(self, Self::Ethernet | Self::Unsupported(_)) {
            return Some((Cow::Borrowed(bytes), original));
        }
        let payload = bytes.get(self.header()..)?;
        let by_version = || match payload.first()? >> 4 {
            4 => Some(IPV4),
            6 => Some(IPV6),
            _ => None,
        };
        let kind: [u8; 2] = match self {
            Self::Cooked => bytes.get(14..16)?.try_into().ok()?,
            Self::Cooked2 => bytes.get(0..2)?.try_into().ok()?,
            _ => by_version()?,
        };
        let mut frame = vec![0; ETHERNET - 2];
        frame.extend_from_slice(&kind);
        frame.extend_from_slice(payload);
        Some((
            Cow::Owned(frame),
            original.saturating_sub(self.header()) + ETHERNET,
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_link_type_becomes_ethernet() {
        let packet = [0x45, 1, 2, 3];
        let expected = [&[0; 12][..], &IPV4, &packet].concat();
        let cooked = [&[0; 14][..], &IPV4, &packet].concat();
        let cooked2 = [&IPV4[..], &[0; 18], &packet].concat();
        let loopback = [&[2, 0, 0, 0][..], &packet].concat();
        for (number, bytes) in [
            (113, &cooked[..]),
            (276, &cooked2),
            (101, &packet),
            (0, &loopback),
        ] {
            let (frame, original) = Link::of(number)
                .ethernet(bytes, bytes.len() + 100)
                .expect("converted");
            assert_eq!(frame.as_ref(), expected, "link type {number}");
            assert_eq!(original, expected.len() + 100, "link type {number}");
        }
    }

    #[test]
    fn what_is_too_short_is_said_to_be() {
        for (number, length) in [(113, 15), (276, 19), (101, 0), (0, 4)] {
            assert_eq!(Link::of(number).ethernet(&vec![0x45; length], length), None);
        }
        assert_eq!(Link::of(105), Link::Unsupported(105));
    }
}
