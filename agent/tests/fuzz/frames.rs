//! Frames of every kind, broken in every way, and what of them may pass without any rule.

use datapath::packet::tcp::ACK;
use datapath::sim::packets::{end, fragments, icmp, tcp, udp};

use crate::support::frames::{
    as_fragment, garble, icmp_error, is_v6, with_extension, with_extensions, with_ip_options,
    with_tcp_options,
};
use crate::support::rig::Merged;
use crate::support::rng::Rng;
use crate::support::scene::{LOCAL, LOCAL6, PEER, PEER6};
use crate::support::traffic::every_kind;

const L3: usize = 14;
const LONGEST: usize = 1_500;

/// Makes frames.
pub(crate) struct Source {
    whole: Vec<Vec<u8>>,
    ethertype: u16,
}

impl Source {
    pub(crate) fn new() -> Self {
        let mut whole = every_kind();
        for (local, peer) in [(LOCAL, PEER), (LOCAL6, PEER6)] {
            let (here, there) = (end(local, 443), end(peer, 40_000));
            // This host's own, both ways, and its talk with itself.
            whole.push(tcp(here, there, ACK, 20));
            whole.push(udp(end(local, 53), there, 20));
            whole.push(tcp(end(local, 9), here, ACK, 0));
            let (error, sent) = if here.addr.is_ipv4() {
                ((3, 4), 60)
            } else {
                ((2, 0), 80)
            };
            let quoted = tcp(here, there, ACK, 60);
            whole.push(icmp_error(there, here, &quoted, error, sent));
            whole.extend(fragments(&udp(there, end(local, 53), 120), 7, 64));
        }
        // Discovery as neighbours send it: hop limit 255, link-local and multicast.
        for kind in [130, 131, 132, 133, 134, 135, 136, 137, 143] {
            let mut frame = icmp(end("fe80::2", 0), end("ff02::1", 0), kind, 0, &[0; 24]);
            frame[L3 + 7] = 255;
            whole.push(frame.clone());
            // MLD comes behind a router alert (RFC 3810 §5).
            whole.push(with_extension(frame, 0, &[0, 5, 2, 0, 0, 1, 0]));
        }
        Self {
            whole,
            ethertype: 0,
        }
    }

    /// The next frame.
    pub(crate) fn next(&mut self, rng: &mut Rng) -> Vec<u8> {
        let at = rng.below(self.whole.len());
        let mut frame = self.whole[at].clone();
        for _ in 0..1 + rng.below(2) {
            frame = self.broken(frame, rng);
        }
        frame.truncate(LONGEST);
        if frame.len() < L3 {
            frame.resize(L3, 0);
        }
        frame
    }

    fn broken(&mut self, mut frame: Vec<u8>, rng: &mut Rng) -> Vec<u8> {
        if frame.len() <= L3 + 1 {
            frame.resize(L3 + 40, 0);
        }
        let plain = frame.len() > L3 + 60;
        match rng.below(16) {
            0 => {
                let length = L3 + rng.below(180);
                let odd = [rng.byte(), rng.byte()];
                let kind = rng.pick(&[[0x08, 0x00], [0x86, 0xdd], odd]);
                let mut random: Vec<u8> = (0..length).map(|_| rng.byte()).collect();
                random[12..14].copy_from_slice(&kind);
                // Half of them with a version and a header that fit.
                if rng.chance(50) && length > L3 {
                    random[L3] = if kind == [0x86, 0xdd] { 0x60 } else { 0x45 };
                }
                random
            }
            1 => {
                self.ethertype = self.ethertype.wrapping_add(1);
                frame[12..14].copy_from_slice(&self.ethertype.to_be_bytes());
                frame
            }
            2 => {
                let other = &self.whole[rng.below(self.whole.len())];
                let cut = L3 + rng.below(frame.len() - L3);
                frame.truncate(cut);
                frame.extend(other.iter().skip(rng.below(other.len())));
                frame
            }
            3 if plain => with_extensions(frame, rng),
            4 if plain => as_fragment(frame, rng.below(8192) as u16, rng.chance(50)),
            5 if plain && !is_v6(&frame) => with_ip_options(frame, rng.below(11)),
            6 if plain => with_tcp_options(frame, rng.below(11)),
            7 => {
                frame.truncate(L3 + rng.below(frame.len() - L3));
                frame
            }
            8 => {
                frame.extend((0..rng.below(64)).map(|_| rng.byte()));
                frame
            }
            9..=11 => {
                for _ in 0..1 + rng.below(12) {
                    let at = 12 + rng.below(frame.len() - 12);
                    frame[at] ^= 1 << rng.below(8);
                }
                frame
            }
            12 => {
                let (at, width) = (L3 + rng.below(frame.len() - L3), 1 + rng.below(4));
                let value = rng.pick(&[0, 1, 0x7f, 0x80, 0xff]);
                let end = (at + width).min(frame.len());
                frame[at..end].fill(value);
                frame
            }
            _ => garble(frame, rng),
        }
    }
}

/// What a driver may say of a merged packet; mostly nothing.
pub(crate) fn merged(rng: &mut Rng) -> Option<Merged> {
    rng.chance(15).then(|| Merged {
        segments: rng.pick(&[0, 1, 2, 3, 44, 65_535]),
        size: rng.pick(&[0, 1, 40, 536, 1_448, 65_535]),
    })
}

/// Why a frame passes without a rule.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Expected {
    /// Neither IPv4 nor IPv6.
    NoIp,
    /// Neighbour and router discovery, multicast listeners (RFC 4890 §4.4.1).
    Discovery,
}

/// The contract's exceptions, read off the frame by hand.
pub(crate) fn by_design(frame: &[u8]) -> Option<Expected> {
    match frame.get(12..14)? {
        [0x08, 0x00] => None,
        [0x86, 0xdd] => discovery(frame),
        _ => Some(Expected::NoIp),
    }
}

/// A message of 130–136, 141–143, 148–149 or 151–153 behind headers that are walked by their lengths alone.
fn discovery(frame: &[u8]) -> Option<Expected> {
    let (mut next, mut at) = (*frame.get(L3 + 6)?, L3 + 40);
    for _ in 0..8 {
        match next {
            58 => {
                let kind = *frame.get(at)?;
                let known = matches!(kind, 130..=136 | 141..=143 | 148 | 149 | 151..=153);
                // Listeners' messages come from the link (RFC 3810 §5), discovery with the highest hop limit
                // (RFC 4861 §7.1): it cannot have been forwarded.
                let near = matches!(kind, 130..=132 | 143 | 151..=153) || frame[L3 + 7] == 255;
                return (known && near).then_some(Expected::Discovery);
            }
            // RFC 4302 §2.2: in words of 4 bytes, minus 2.
            51 => {
                next = *frame.get(at)?;
                at += (usize::from(*frame.get(at + 1)?) + 2) * 4;
            }
            0 | 43 | 60 => {
                next = *frame.get(at)?;
                at += (usize::from(*frame.get(at + 1)?) + 1) * 8;
            }
            _ => return None,
        }
    }
    None
}
