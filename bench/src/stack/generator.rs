//! Packets made in the kernel: an XDP program writes the next packet's source into a frame and sends it out of the peer's
//! device, by test runs with live frames (Documentation/bpf/bpf_prog_run.rst). No system call a packet, no copy, and the
//! frame goes through the veth pair, the receiver's NAPI, its hook and its stack on the CPU that made it.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use datapath::ids::protocol;

use super::wire::{self, ETHERNET, End};
use crate::asm::{Asm, Op, Width};
use crate::programs::{emit_count, emit_mix};
use crate::sys;

/// `bpf_redirect` (include/uapi/linux/bpf.h).
const REDIRECT: i32 = 23;
/// `XDP_DROP`.
const XDP_DROP: u32 = 1;
/// First source port of a generated packet.
pub(crate) const FIRST_PORT: u16 = 1024;

/// Which packet is next. Flow `n` is that of peer `n % peers` from its port `1024 + n / peers`.
#[derive(Clone, Copy)]
pub(crate) enum Order {
    /// The frame as it is.
    Same,
    /// Flow 0, 1, 2, …
    Sequence,
    /// A pseudo-random one of so many flows, a power of two.
    Random(u32),
}

/// What a generator makes.
#[derive(Clone, Copy)]
pub(crate) struct Traffic {
    /// Last 32 bits of peer 0's address.
    pub(crate) base: u32,
    /// How many peers there are.
    pub(crate) peers: u32,
    /// Which packet is next.
    pub(crate) order: Order,
    /// Number of the first packet.
    pub(crate) first: u32,
}

/// Where its frames go.
#[derive(Clone, Copy)]
pub(crate) enum Way {
    /// Out of the device of this index, in the namespace of the caller of [`Generator::burst`].
    Device(u32),
    /// Nowhere: what making them costs.
    Nowhere,
}

/// A generator.
pub(crate) struct Generator {
    program: OwnedFd,
    _counter: OwnedFd,
    frame: Vec<u8>,
}

/// Flow `number` of some peers: address and port.
pub(crate) fn source(base: u32, peers: u32, number: u32) -> End {
    let port = u32::from(FIRST_PORT) + number / peers;
    (
        Ipv4Addr::from(base + number % peers),
        u16::try_from(port).unwrap_or(u16::MAX),
    )
}

impl Generator {
    /// Of frames made from one: an Ethernet frame with an IPv4 packet, UDP without checksum or TCP.
    pub(crate) fn new(frame: Vec<u8>, traffic: &Traffic, way: Way) -> io::Result<Self> {
        let counter = sys::map(sys::ARRAY, 4, 8, 1)?;
        let first = u64::from(traffic.first).to_ne_bytes();
        sys::update(counter.as_fd(), &[0; 4], &first)?;
        let program = sys::load_xdp("generator", program(&frame, traffic, way, &counter).insns())?;
        Ok(Self {
            program,
            _counter: counter,
            frame,
        })
    }

    /// Makes `count` frames and waits until they are where they go; nanoseconds a frame.
    pub(crate) fn burst(&self, count: u32) -> io::Result<u32> {
        sys::live_frames(self.program.as_fd(), &self.frame, count)
    }
}

fn program(frame: &[u8], traffic: &Traffic, way: Way, counter: &OwnedFd) -> Asm {
    let mut asm = Asm::default();
    // `data` and `data_end` of `xdp_md`; a frame that is too short goes nowhere.
    asm.load(Width::Word, 7, 1, 0)
        .load(Width::Word, 3, 1, 4)
        .copy(4, 7)
        .advance(4, frame.len() as i32 - 1)
        .skip_if_above(3, 4, 2)
        .exit(XDP_DROP);
    if !matches!(traffic.order, Order::Same) {
        number(&mut asm, traffic, counter.as_fd());
        rewrite(&mut asm, frame, traffic);
    }
    match way {
        Way::Device(index) => {
            asm.op(Op::Mov, 1, index)
                .op(Op::Mov, 2, 0)
                .call(REDIRECT)
                .exit_with_result();
        }
        Way::Nowhere => {
            asm.exit(XDP_DROP);
        }
    }
    asm
}

/// Register 9 = number of the next flow.
fn number(asm: &mut Asm, traffic: &Traffic, counter: BorrowedFd<'_>) {
    emit_count(asm, counter, 8, 1, 2);
    asm.op_reg(Op::Mov, 9, 8);
    if let Order::Random(flows) = traffic.order {
        emit_mix(asm, 9, 2);
        asm.op(Op::And, 9, flows - 1);
    }
}

/// Writes source address, source port and checksums. Register 7 is the frame, 9 the flow's number.
fn rewrite(asm: &mut Asm, frame: &[u8], traffic: &Traffic) {
    let blank = blank(frame);
    let (ip, l4) = blank.split_at(20.min(blank.len()));
    asm.op_reg(Op::Mov, 1, 9)
        .op(Op::Mod, 1, traffic.peers)
        .op(Op::Add, 1, traffic.base)
        // Register 6 = sum of the address.
        .op_reg(Op::Mov, 6, 1)
        .op(Op::Shr, 6, 16)
        .op_reg(Op::Mov, 2, 1)
        .op(Op::And, 2, 0xffff)
        .op_reg(Op::Add, 6, 2)
        .network_order(1, 32)
        .store(Width::Word, 7, ETHERNET as i16 + 12, 1)
        .op_reg(Op::Mov, 1, 6)
        .op(Op::Add, 1, wire::sum(ip));
    checksum(asm, ETHERNET as i16 + 10);
    asm.op_reg(Op::Mov, 3, 9)
        .op(Op::Div, 3, traffic.peers)
        .op(Op::Add, 3, u32::from(FIRST_PORT))
        .op_reg(Op::Mov, 1, 3)
        .network_order(1, 16)
        .store(Width::Half, 7, ETHERNET as i16 + 20, 1);
    if ip.get(9) == Some(&protocol::TCP) {
        let destination = ip.get(16..20).map_or(0, wire::sum);
        let base = wire::sum(l4) + destination + u32::from(protocol::TCP) + l4.len() as u32;
        asm.op_reg(Op::Mov, 1, 6)
            .op_reg(Op::Add, 1, 3)
            .op(Op::Add, 1, base);
        checksum(asm, ETHERNET as i16 + 36);
    }
}

/// Stores the checksum of the sum in register 1; registers 1 and 2 are overwritten.
fn checksum(asm: &mut Asm, at: i16) {
    for _ in 0..2 {
        asm.op_reg(Op::Mov, 2, 1)
            .op(Op::Shr, 2, 16)
            .op(Op::And, 1, 0xffff)
            .op_reg(Op::Add, 1, 2);
    }
    asm.op(Op::Xor, 1, 0xffff)
        .network_order(1, 16)
        .store(Width::Half, 7, at, 1);
}

/// The packet of a frame with zeros for everything that is rewritten.
fn blank(frame: &[u8]) -> Vec<u8> {
    let mut packet = frame.get(ETHERNET..).unwrap_or_default().to_vec();
    let mut clear = |range: std::ops::Range<usize>| {
        if let Some(bytes) = packet.get_mut(range) {
            bytes.fill(0);
        }
    };
    clear(10..16);
    clear(20..22);
    if frame.get(ETHERNET + 9) == Some(&protocol::TCP) {
        clear(36..38);
    }
    packet
}
