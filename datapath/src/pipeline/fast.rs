//! The packet of a proven flow: no lock, no helper call, one cache line.
//!
//! What is not plain here (options, fragments, flags that change a state, a verdict to be asked again, an entry that is
//! not proven, anything unusual at all) is left to [`super::process`], which does the whole work again from the start; so
//! this path may only answer "passed and counted" or "not my case", and never a drop.

use crate::abi::{Config, panic};
use crate::flow::{FILTERED, Flags, Meta, PROVEN, bits, slot};
use crate::ids::{Direction, protocol};
use crate::negative::Tuple;
use crate::packet::{Family, PacketRead, V4, V6, tcp};
use crate::table::{self, Tabled, WAYS};

use super::Env;

/// A frame whose first bytes can be read without a copy.
pub trait Direct: PacketRead {
    /// The first byte of the frame, if at least `length` bytes of it lie in one piece.
    fn direct(&self, length: u32) -> Option<*const u8>;
}

/// Reads a field of a header.
///
/// # Safety
/// The field lies inside memory that may be read.
#[inline(always)]
unsafe fn field<T: Copy>(start: *const u8, offset: usize) -> T {
    let at = start.wrapping_add(offset).cast::<T>();
    // On the BPF target an unaligned read would become byte reads: the kernel lets programs load words at any
    // address where the machine can (CONFIG_HAVE_EFFICIENT_UNALIGNED_ACCESS), and IP headers are aligned to 4 anyway.
    #[cfg(target_arch = "bpf")]
    // SAFETY: the caller's promise; alignment as said above.
    return unsafe { core::ptr::read_volatile(at) };
    #[cfg(not(target_arch = "bpf"))]
    // SAFETY: the caller's promise.
    unsafe {
        core::ptr::read_unaligned(at)
    }
}

/// What this path needs of a packet.
#[derive(Clone, Copy)]
pub struct Seen<W> {
    words: W,
    from_lo: bool,
    tcp_flags: u8,
    packets: u64,
    bytes: u64,
}

/// Families whose plain packets this path reads.
pub trait Plain: Tabled {
    /// Reads a plain packet of the flow table's scope `scope`; `None` when it is not plain.
    fn read<D: Direct>(frame: &D, scope: u16) -> Option<Seen<Self::Words>>;
    /// Reads a plain SYN: its tuple, wire segments and L3 bytes; `None` when it is anything else.
    fn read_syn<D: Direct>(frame: &D, direction: Direction) -> Option<(Tuple, u64, u64)>;
}

const ETHERNET: u32 = 14;

/// Length of the header behind the IP header, and the flags of TCP; `None` when the flags may change a state, or it is
/// neither TCP nor UDP. One decision, with the read inside: the verifier of Linux 6.1 forgets between two.
#[inline(always)]
fn transport<D: Direct>(frame: &D, l4: usize, number: u8, room: u32) -> Option<(u32, u8)> {
    match number {
        protocol::UDP if room >= 8 => Some((8, 0)),
        protocol::TCP => tcp_header(frame, l4, room),
        _ => None,
    }
}

#[inline(always)]
fn tcp_header<D: Direct>(frame: &D, l4: usize, room: u32) -> Option<(u32, u8)> {
    let start = frame.direct(l4 as u32 + 20)?;
    // SAFETY: the header lies before the end that was asked for.
    let (offset, flags): (u8, u8) = unsafe { (field(start, l4 + 12), field(start, l4 + 13)) };
    let header = u32::from(offset >> 4) * 4;
    if header < 20 || header > room || flags & tcp::CONTROL != tcp::ACK {
        return None;
    }
    Some((header, flags))
}

/// Wire segments and L3 bytes of a packet of `total` L3 bytes, `headers` of which every segment repeats.
#[inline(always)]
fn weight<D: Direct>(frame: &D, total: u32, headers: u32) -> Option<(u64, u64)> {
    let segments = frame.segments();
    if segments > 1 {
        let more = u64::from(segments - 1) * u64::from(headers);
        return Some((u64::from(segments), u64::from(total) + more));
    }
    // Merged by somebody who did not count.
    if segments == 0 && frame.segment_size() != 0 {
        return None;
    }
    Some((1, u64::from(total)))
}

/// The key's last word: ports, protocol, scope. `ports` as they stand in the header.
#[inline(always)]
const fn tail(ports: u32, from_lo: bool, number: u8, scope: u16) -> u64 {
    let ports = if from_lo {
        ports
    } else {
        ports.rotate_left(16)
    };
    ports as u64 | ((number as u64) << 32) | ((scope as u64) << 48)
}

/// Whether the source port is at most the destination port, both as they stand in the header.
#[inline(always)]
const fn ports_in_order(ports: u32) -> bool {
    u16::from_be(ports as u16) <= u16::from_be((ports >> 16) as u16)
}

impl Plain for V4 {
    #[inline(always)]
    fn read<D: Direct>(frame: &D, scope: u16) -> Option<Seen<[u64; 2]>> {
        const L4: usize = 34;
        let start = frame.direct(L4 as u32 + 8)?;
        // SAFETY: 42 bytes may be read.
        let (vihl, number): (u8, u8) = unsafe { (field(start, 14), field(start, 23)) };
        // SAFETY: as above.
        let (total, fragment): (u16, u16) = unsafe { (field(start, 16), field(start, 20)) };
        if vihl != 0x45 || u16::from_be(fragment) & 0x3fff != 0 {
            return None;
        }
        let total = u32::from(u16::from_be(total));
        if total < 20 || total > frame.frame_len().saturating_sub(ETHERNET) {
            return None;
        }
        let (header, tcp_flags) = transport(frame, L4, number, total - 20)?;
        // SAFETY: as above.
        let (src, dst): (u32, u32) = unsafe { (field(start, 26), field(start, 30)) };
        // SAFETY: as above.
        let ports: u32 = unsafe { field(start, L4) };
        let from_lo = if src == dst {
            ports_in_order(ports)
        } else {
            u32::from_be(src) < u32::from_be(dst)
        };
        let (lo, hi) = if from_lo { (src, dst) } else { (dst, src) };
        let (packets, bytes) = weight(frame, total, 20 + header)?;
        Some(Seen {
            words: [
                u64::from(lo) | (u64::from(hi) << 32),
                tail(ports, from_lo, number, scope),
            ],
            from_lo,
            tcp_flags,
            packets,
            bytes,
        })
    }

    #[inline(always)]
    fn read_syn<D: Direct>(frame: &D, direction: Direction) -> Option<(Tuple, u64, u64)> {
        const L4: usize = 34;
        let start = frame.direct(L4 as u32 + 20)?;
        // SAFETY: 54 bytes may be read.
        let (vihl, number): (u8, u8) = unsafe { (field(start, 14), field(start, 23)) };
        // SAFETY: as above.
        let (total, fragment): (u16, u16) = unsafe { (field(start, 16), field(start, 20)) };
        if vihl != 0x45 || number != protocol::TCP || u16::from_be(fragment) & 0x3fff != 0 {
            return None;
        }
        let total = u32::from(u16::from_be(total));
        // One packet on the wire: nobody merges SYNs.
        if total < 40
            || total > frame.frame_len().saturating_sub(ETHERNET)
            || frame.segments() > 1
            || frame.segment_size() != 0
        {
            return None;
        }
        // SAFETY: as above.
        if unsafe { !is_syn(start, L4, total - 20) } {
            return None;
        }
        // SAFETY: as above.
        let (src, dst): ([u8; 4], [u8; 4]) = unsafe { (field(start, 26), field(start, 30)) };
        // SAFETY: as above.
        let port: u16 = unsafe { field(start, L4 + 2) };
        let tuple = Tuple::syn(
            Self::mapped_words(&src),
            Self::mapped_words(&dst),
            port,
            direction,
            <Self as Family>::VERSION,
        );
        Some((tuple, 1, u64::from(total)))
    }
}

/// Checks that a TCP header is that of a plain SYN.
///
/// # Safety
/// The 20 bytes of a TCP header lie at `l4`.
#[inline(always)]
unsafe fn is_syn(start: *const u8, l4: usize, room: u32) -> bool {
    // SAFETY: the caller's promise.
    let (offset, flags): (u8, u8) = unsafe { (field(start, l4 + 12), field(start, l4 + 13)) };
    let header = u32::from(offset >> 4) * 4;
    header >= 20 && header <= room && flags & tcp::CONTROL == tcp::SYN
}

impl Plain for V6 {
    #[inline(always)]
    fn read<D: Direct>(frame: &D, scope: u16) -> Option<Seen<[u64; 5]>> {
        const L4: usize = 54;
        let start = frame.direct(L4 as u32 + 8)?;
        // SAFETY: 62 bytes may be read.
        let (version, number): (u8, u8) = unsafe { (field(start, 14), field(start, 20)) };
        // SAFETY: as above.
        let payload: u16 = unsafe { field(start, 18) };
        if version >> 4 != 6 {
            return None;
        }
        let payload = u32::from(u16::from_be(payload));
        if payload == 0 || payload + 40 > frame.frame_len().saturating_sub(ETHERNET) {
            return None;
        }
        let (header, tcp_flags) = transport(frame, L4, number, payload)?;
        // SAFETY: as above.
        let src: [u64; 2] = unsafe { [field(start, 22), field(start, 30)] };
        // SAFETY: as above.
        let dst: [u64; 2] = unsafe { [field(start, 38), field(start, 46)] };
        let [src_hi, src_lo] = src;
        let [dst_hi, dst_lo] = dst;
        // SAFETY: as above.
        let ports: u32 = unsafe { field(start, L4) };
        // v4-mapped addresses have no place on the wire; the whole parser says why.
        const MAPPED: u64 = 0xffff;
        if (src_hi == 0 && u64::from_be(src_lo) >> 32 == MAPPED)
            || (dst_hi == 0 && u64::from_be(dst_lo) >> 32 == MAPPED)
        {
            return None;
        }
        let from_lo = if src_hi != dst_hi {
            u64::from_be(src_hi) < u64::from_be(dst_hi)
        } else if src_lo != dst_lo {
            u64::from_be(src_lo) < u64::from_be(dst_lo)
        } else {
            ports_in_order(ports)
        };
        let last = tail(ports, from_lo, number, scope);
        let (packets, bytes) = weight(frame, payload + 40, 40 + header)?;
        Some(Seen {
            words: if from_lo {
                [src_hi, src_lo, dst_hi, dst_lo, last]
            } else {
                [dst_hi, dst_lo, src_hi, src_lo, last]
            },
            from_lo,
            tcp_flags,
            packets,
            bytes,
        })
    }

    #[inline(always)]
    fn read_syn<D: Direct>(frame: &D, direction: Direction) -> Option<(Tuple, u64, u64)> {
        const L4: usize = 54;
        let start = frame.direct(L4 as u32 + 20)?;
        // SAFETY: 74 bytes may be read.
        let (version, number): (u8, u8) = unsafe { (field(start, 14), field(start, 20)) };
        // SAFETY: as above.
        let payload: u16 = unsafe { field(start, 18) };
        let payload = u32::from(u16::from_be(payload));
        if version >> 4 != 6
            || number != protocol::TCP
            || payload < 20
            || payload + 40 > frame.frame_len().saturating_sub(ETHERNET)
            || frame.segments() > 1
            || frame.segment_size() != 0
        {
            return None;
        }
        // SAFETY: as above.
        if unsafe { !is_syn(start, L4, payload) } {
            return None;
        }
        // SAFETY: as above.
        let (src, dst): ([u64; 2], [u64; 2]) = unsafe {
            (
                [field(start, 22), field(start, 30)],
                [field(start, 38), field(start, 46)],
            )
        };
        // SAFETY: as above.
        let port: u16 = unsafe { field(start, L4 + 2) };
        let tuple = Tuple::syn(src, dst, port, direction, <Self as Family>::VERSION);
        Some((tuple, 1, u64::from(payload + 40)))
    }
}

/// States in which a plain packet changes nothing, one bit a number: established, half closed, answered.
const STEADY: u32 = 1 << 3 | 1 << 4 | 1 << 5 | 1 << 9;

/// Whether the packet belongs to a proven, allowed flow of the active content and was counted for it.
#[inline(always)]
pub fn established<F: Plain, E: Env<F>, D: Direct>(env: E, frame: &D) -> bool {
    let Some(config) = env.config() else {
        return false;
    };
    let word = env.active();
    // Learning, a content that is not confirmed yet, or a panic switch: the whole way.
    if word.is_learning() || word.is_pending() || word.is_empty() || config.panic != panic::NONE {
        return false;
    }
    let Some(seen) = F::read(frame, config.endpoint as u16) else {
        return false;
    };
    let Some(tables) = env.tables() else {
        return false;
    };
    let spot = table::spot::<F>(tables, &seen.words);
    let Some(set) = env.set(spot.set) else {
        return false;
    };
    let meta = Meta::new(word.generation(), 0, slot::LIVE).0;
    let mut index = 0;
    while index < WAYS {
        if count::<F, E>(env, config, set, spot.start + index, meta, &seen) {
            return true;
        }
        index += 1;
    }
    false
}

/// Counts the packet if the way holds its flow and nothing is to be done but count.
#[inline(always)]
fn count<F: Plain, E: Env<F>>(
    env: E,
    config: &Config,
    set: *mut u8,
    way: u32,
    current: u64,
    seen: &Seen<F::Words>,
) -> bool {
    /// The meta word without the sequence.
    const MASK: u64 = 0xffff_ffff_0000_00ff;
    // SAFETY: a whole set of the table, readable and writable while the program runs.
    let entry = unsafe { table::way::<F>(set, way) };
    let number = usize::from(!seen.from_lo);
    let meta = entry.meta_of(number);
    if meta.0 & MASK != current || !entry.line_has_key(number, &seen.words) {
        return false;
    }
    let line = entry.line(seen.from_lo);
    let flags = line.flags();
    if !is_plain(flags, seen.tcp_flags) || line.expiry() != 0 {
        return false;
    }
    let now = env.jiffies();
    let last = line.last();
    if last != now {
        let timeout = match config.timeouts.get((flags.state().0 & 15) as usize) {
            Some(timeout) => *timeout,
            None => 0,
        };
        if timeout != 0 && now.wrapping_sub(last) > timeout {
            return false;
        }
    }
    // The key was read between two equal readings of the word that would have changed before it.
    if entry.meta_of(number) != meta {
        return false;
    }
    line.add(seen.packets, seen.bytes);
    if last != now {
        line.set_last(now);
    }
    true
}

/// Whether a packet with these TCP flags only adds to the counters of an entry with this word.
#[inline(always)]
const fn is_plain(flags: Flags, tcp_flags: u8) -> bool {
    let marks = (flags.0 >> 8) as u8 & (PROVEN | FILTERED);
    marks == PROVEN
        && STEADY & (1 << flags.state().0) != 0
        && flags.verdict() & bits::ALLOW != 0
        && flags.tcp() | tcp_flags == flags.tcp()
}
