//! Turns plain frames into unusual ones: options, fragments, extension headers, garbage.

use datapath::sim::packets;

use super::rng::Rng;

const L3: usize = 14;

/// Whether a frame says it carries IPv6.
pub fn is_v6(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x86, 0xdd])
}

/// Where the transport header of a plain frame begins.
fn l4_of(frame: &[u8]) -> usize {
    if is_v6(frame) { L3 + 40 } else { L3 + 20 }
}

/// Writes the IP length that fits the frame.
pub fn fix_length(frame: &mut [u8]) {
    let (at, length) = if is_v6(frame) {
        (L3 + 4, frame.len() - L3 - 40)
    } else {
        (L3 + 2, frame.len() - L3)
    };
    frame[at..at + 2].copy_from_slice(&(length as u16).to_be_bytes());
}

/// IPv4 options of so many 32-bit words (at most 10); IPv6 frames stay as they are.
pub fn with_ip_options(mut frame: Vec<u8>, words: usize) -> Vec<u8> {
    if is_v6(&frame) {
        return frame;
    }
    let at = L3 + 20;
    frame.splice(at..at, vec![1; words * 4]);
    frame[L3] = 0x45 + words as u8;
    fix_length(&mut frame);
    frame
}

/// TCP options of so many 32-bit words (at most 10); frames that are no plain TCP stay as they are.
pub fn with_tcp_options(mut frame: Vec<u8>, words: usize) -> Vec<u8> {
    let at = l4_of(&frame);
    if frame[if is_v6(&frame) { L3 + 6 } else { L3 + 9 }] != 6 {
        return frame;
    }
    frame.splice(at + 20..at + 20, vec![1; words * 4]);
    frame[at + 12] = (5 + words as u8) << 4;
    fix_length(&mut frame);
    frame
}

/// Makes the frame a fragment: offset in 8-byte units, and whether more follow.
pub fn as_fragment(frame: Vec<u8>, offset: u16, more: bool) -> Vec<u8> {
    if is_v6(&frame) {
        let word = (offset << 3) | u16::from(more);
        let [hi, lo] = word.to_be_bytes();
        return with_extension(frame, 44, &[0, hi, lo, 0, 0, 0, 1]);
    }
    let mut frame = frame;
    let word = offset | if more { 0x2000 } else { 0 };
    frame[L3 + 6..L3 + 8].copy_from_slice(&word.to_be_bytes());
    frame
}

/// Puts an extension header of a number before everything that is there; `rest` is what follows the
/// next-header byte.
pub fn with_extension(mut frame: Vec<u8>, number: u8, rest: &[u8]) -> Vec<u8> {
    if !is_v6(&frame) {
        return frame;
    }
    let mut header = vec![frame[L3 + 6]];
    header.extend(rest);
    frame[L3 + 6] = number;
    frame.splice(L3 + 40..L3 + 40, header);
    fix_length(&mut frame);
    frame
}

/// A random chain of extension headers, most of them of the right length.
pub fn with_extensions(mut frame: Vec<u8>, rng: &mut Rng) -> Vec<u8> {
    for _ in 0..1 + rng.below(7) {
        let number = rng.pick(&[0, 43, 60, 51, 44, 0, 60, 60, 59, 135, 139, 140, 253, 50]);
        let units = rng.below(3) as u8;
        let rest = match number {
            // RFC 4302 §2.2: 4-byte units, minus 2.
            51 => [vec![units + 1], vec![0; (usize::from(units) + 3) * 4 - 2]].concat(),
            44 => vec![0, 0, u8::from(rng.chance(50)), 0, 0, 0, 1],
            _ => [vec![units], vec![0; (usize::from(units) + 1) * 8 - 2]].concat(),
        };
        frame = with_extension(frame, number, &rest);
    }
    frame
}

/// An ICMP error that quotes the IP packet of a frame, cut to `quoted` bytes.
pub fn icmp_error(
    from: packets::End,
    to: packets::End,
    sent: &[u8],
    kind: (u8, u8),
    quoted: usize,
) -> Vec<u8> {
    let quote: Vec<u8> = sent.iter().copied().skip(L3).take(quoted).collect();
    packets::icmp(from, to, kind.0, kind.1, &quote)
}

/// A frame of an EtherType.
pub fn ethernet(ethertype: u16, length: usize) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
    frame.extend(ethertype.to_be_bytes());
    frame.resize(frame.len().max(length), 0x5a);
    frame
}

/// Overwrites a few random bytes behind the link layer.
pub fn garble(mut frame: Vec<u8>, rng: &mut Rng) -> Vec<u8> {
    for _ in 0..1 + rng.below(4) {
        if frame.len() > L3 {
            // Headers more often than payload.
            let span = if rng.chance(80) { 60 } else { frame.len() };
            let at = L3 + rng.below(span.min(frame.len() - L3));
            frame[at] = rng.byte();
        }
    }
    frame
}
