//! The programs beside the measured ones: nothing, one hash look-up, and the rewriter that makes the next packet.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::asm::{Asm, MAP_LOOKUP_ELEM, Op, TAIL_CALL, Width};
use crate::frames::Family;
use crate::sys;

/// What the empty program returns: as if the packet passed.
pub(crate) const PASSED: u32 = u32::MAX;
/// `TCX_DROP`.
pub(crate) const DROPPED: u32 = 2;
/// A rewriter whose tail call failed; no program returns it.
const LOST: u32 = 77;

/// Entries of the hash map; a power of two.
const ENTRIES: u32 = 65_536;
/// What a look-up that hits returns.
pub(crate) const HIT: u32 = 1;

/// A program and the maps that it keeps alive.
pub(crate) struct Program {
    fd: OwnedFd,
    _maps: Vec<OwnedFd>,
}

impl AsFd for Program {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// A program that does nothing: what a test run itself costs.
pub(crate) fn empty() -> io::Result<Program> {
    constant("empty", PASSED)
}

/// A program that only returns this.
pub(crate) fn constant(name: &str, result: u32) -> io::Result<Program> {
    let mut asm = Asm::default();
    asm.exit(result);
    Ok(Program {
        fd: sys::load(name, asm.insns())?,
        _maps: Vec::new(),
    })
}

/// The same 32-bit mixing in a program and here: every step can be undone, so different counters give different keys.
fn mix(value: u32) -> u32 {
    let mut x = value;
    x ^= x >> 16;
    x = x.wrapping_mul(0x7feb_352d);
    x ^= x >> 15;
    x = x.wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// `register = mix(register)`; `scratch` is overwritten.
pub(crate) fn emit_mix(asm: &mut Asm, register: u8, scratch: u8) {
    for (shift, factor) in [(16, Some(0x7feb_352d)), (15, Some(0x846c_a68b)), (16, None)] {
        asm.op_reg(Op::Mov, scratch, register)
            .op(Op::Shr, scratch, shift)
            .op_reg(Op::Xor, register, scratch);
        if let Some(factor) = factor {
            asm.op(Op::Mul, register, factor);
        }
    }
}

/// `dst` = the number of this run; `pointer` holds the counter's address afterwards, `scratch` is overwritten.
pub(crate) fn emit_count(
    asm: &mut Asm,
    counter: BorrowedFd<'_>,
    dst: u8,
    pointer: u8,
    scratch: u8,
) {
    asm.map_value(pointer, counter)
        .load(Width::Double, dst, pointer, 0)
        .copy(scratch, dst)
        .advance(scratch, 1)
        .store(Width::Double, pointer, 0, scratch);
}

/// One look-up in a kernel hash of 65,536 entries with 16-byte keys and 64-byte values, and a read of the value: the
/// same key always, or a pseudo-random one of all.
pub(crate) fn hash_lookup(random: bool) -> io::Result<Program> {
    let hash = sys::map(sys::HASH, 16, 64, ENTRIES)?;
    let mut value = [0u8; 64];
    value[0] = 1;
    for number in 0..ENTRIES {
        let mut key = [0u8; 16];
        key[..4].copy_from_slice(&mix(number).to_ne_bytes());
        key[4..8].copy_from_slice(&number.to_ne_bytes());
        sys::update(hash.as_fd(), &key, &value)?;
    }
    let counter = sys::map(sys::ARRAY, 4, 8, 1)?;
    let mut asm = Asm::default();
    if random {
        emit_count(&mut asm, counter.as_fd(), 6, 1, 2);
        emit_mix(&mut asm, 6, 2);
        asm.op(Op::And, 6, ENTRIES - 1);
    } else {
        asm.op(Op::Mov, 6, 4711);
    }
    asm.store(Width::Word, 10, -12, 6);
    emit_mix(&mut asm, 6, 2);
    asm.store(Width::Word, 10, -16, 6)
        .store_imm(Width::Double, 10, -8, 0)
        .copy(2, 10)
        .advance(2, -16)
        .map(1, hash.as_fd())
        .call(MAP_LOOKUP_ELEM)
        .skip_if_zero(0, 2)
        .load(Width::Word, 0, 0, 0)
        .exit_with_result()
        .exit(0);
    Ok(Program {
        fd: sys::load(if random { "hash_random" } else { "hash_hot" }, asm.insns())?,
        _maps: vec![hash, counter],
    })
}

/// Which end of a frame the rewriter changes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum End {
    /// The sender: packets of initiators towards this host.
    Source,
    /// The receiver: this host's answers.
    Destination,
}

/// Which packet is next. Flow `n` is that of peer `n % peers` from its port `1024 + n / peers`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Order {
    /// Flow 0, 1, 2, …: every packet another flow.
    Sequence,
    /// A pseudo-random one of so many flows, a power of two.
    Random(u32),
    /// A pseudo-random peer and source port, as a scan or a flood with made-up senders has them; with `ports`, a
    /// pseudo-random destination port of 20,000 and above too.
    Scan {
        /// Whether the destination port changes.
        ports: bool,
    },
}

/// What a rewriter does.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) struct Rewrite {
    /// Of the frame.
    pub(crate) family: Family,
    /// Which end.
    pub(crate) end: End,
    /// Last 32 bits of peer 0's address.
    pub(crate) base: u32,
    /// How many peers there are.
    pub(crate) peers: u32,
    /// Which is next.
    pub(crate) order: Order,
    /// Number of the first packet.
    pub(crate) first: u32,
}

/// The rewriter: writes the address (its last 32 bits) and port of the next packet and tail-calls `target`. Each has a
/// counter of its own that goes on from burst to burst.
pub(crate) fn rewriter(what: &Rewrite, target: BorrowedFd<'_>) -> io::Result<Program> {
    let offsets = what.family.offsets(what.end);
    let counter = sys::map(sys::ARRAY, 4, 8, 1)?;
    let first = u64::from(what.first).to_ne_bytes();
    sys::update(counter.as_fd(), &[0; 4], &first)?;
    let programs = sys::tail(target)?;
    let mut asm = Asm::default();
    // `data` and `data_end` of `__sk_buff`; too short a frame ends as a lost tail call does.
    asm.copy(6, 1)
        .load(Width::Word, 7, 1, 76)
        .load(Width::Word, 3, 1, 80)
        .copy(4, 7)
        .advance(4, i32::from(offsets.end))
        .skip_if_above(3, 4, 2)
        .exit(LOST);
    emit_count(&mut asm, counter.as_fd(), 8, 1, 2);
    asm.op_reg(Op::Mov, 9, 8);
    if !matches!(what.order, Order::Sequence) {
        emit_mix(&mut asm, 9, 2);
    }
    if let Order::Random(flows) = what.order {
        asm.op(Op::And, 9, flows - 1);
    }
    asm.op_reg(Op::Mov, 1, 9)
        .op(Op::Mod, 1, what.peers)
        .op(Op::Add, 1, what.base)
        .network_order(1, 32)
        .store(Width::Word, 7, offsets.address, 1);
    if let Order::Scan { ports } = what.order {
        asm.op_reg(Op::Mov, 1, 8).op(Op::And, 1, 0x7fff);
        if ports {
            asm.op_reg(Op::Mov, 2, 9)
                .op(Op::Shr, 2, 17)
                .op(Op::Add, 2, 20_000)
                .network_order(2, 16)
                .store(Width::Half, 7, offsets.other_port, 2);
        }
    } else {
        asm.op_reg(Op::Mov, 1, 9).op(Op::Div, 1, what.peers);
    }
    asm.op(Op::Add, 1, 1024)
        .network_order(1, 16)
        .store(Width::Half, 7, offsets.port, 1)
        .copy(1, 6)
        .map(2, programs.as_fd())
        .op(Op::Mov, 3, 0)
        .call(TAIL_CALL)
        .exit(LOST);
    Ok(Program {
        fd: sys::load("rewriter", asm.insns())?,
        _maps: vec![counter, programs],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixing_gives_every_key_once() {
        let keys: std::collections::BTreeSet<u32> = (0..ENTRIES).map(mix).collect();
        assert_eq!(keys.len(), ENTRIES as usize);
    }
}
