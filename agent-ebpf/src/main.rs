//! The programs that run in the kernel: hooks, maps and nothing that decides.
//!
//! What happens to a packet is in `datapath::pipeline`; this crate gives it bytes, maps and helpers.
//! Built for the BPF target only, by `cargo xtask build-ebpf`.
#![no_std]
#![no_main]
#![deny(clippy::indexing_slicing)]
#![allow(
    missing_docs,
    reason = "the hook macros generate undocumented functions"
)]
#![allow(
    unreachable_pub,
    reason = "a program has no users; the maps and hooks are its interface"
)]

mod attribution;
mod clock;
mod env;
mod fragments;
mod maps;
mod skb;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use datapath::abi::{Clock, config_flags};
use datapath::drop_reason::DropReason;
use datapath::fragment;
use datapath::ids::Direction;
use datapath::packet::{V4, V6, parse4, parse6};
use datapath::pipeline::{Action, Workspace};

use crate::env::Kernel;
use crate::skb::Frame;

/// `TCX_NEXT` (and `TC_ACT_UNSPEC`): the next program, or the stack (include/uapi/linux/bpf.h).
const NEXT: i32 = -1;
/// `TCX_DROP` (and `TC_ACT_SHOT`).
const DROP: i32 = 2;

/// Length of an Ethernet header; only Ethernet devices are hooked.
const ETHERNET: u32 = 14;

/// Packets that enter the endpoint.
#[classifier]
pub fn cofferdam_ingress(ctx: TcContext) -> i32 {
    judge(ctx.skb.skb, Direction::Ingress)
}

/// Packets that leave the endpoint.
#[classifier]
pub fn cofferdam_egress(ctx: TcContext) -> i32 {
    judge(ctx.skb.skb, Direction::Egress)
}

/// Never attached: run once by the agent to learn how jiffies and boot time belong together.
#[classifier]
pub fn cofferdam_clock(_ctx: TcContext) -> i32 {
    let now = Clock {
        jiffies: clock::jiffies(),
        boot_ns: clock::boot_ns(),
    };
    if let Some(clock) = maps::CLOCK.get_ptr_mut(0) {
        // SAFETY: the pointer is to a whole map value.
        unsafe { *clock = now };
    }
    NEXT
}

#[inline(always)]
fn judge(skb: *mut __sk_buff, direction: Direction) -> i32 {
    // SAFETY: the context is valid while the program runs.
    let protocol = u16::from_be(unsafe { (*skb).protocol } as u16);
    match protocol {
        0x0800 => judge4(skb, direction as u32),
        0x86dd => match Kernel::new(skb).scratch(0) {
            Some(scratch) => {
                let reason = read6(skb, &mut scratch.work6);
                judge6(skb, &mut scratch.work6, direction as u32, reason)
            }
            None => DROP,
        },
        other => not_ip(skb, other),
    }
}

#[inline(never)]
fn judge4(skb: *mut __sk_buff, direction: u32) -> i32 {
    let env = Kernel::new(skb);
    let Some(scratch) = env.scratch(0) else {
        return DROP;
    };
    let w = &mut scratch.work4;
    let parsed = parse4(&Frame::new(skb), ETHERNET, &mut w.packet);
    match fragment::judge::<V4, _>(env, w, Direction::from_u8(direction as u8), parsed) {
        Ok(judged) => action(judged),
        Err(reason) => unparsable(&env, reason, w.packet.known_weight()),
    }
}

#[inline(never)]
fn judge6(skb: *mut __sk_buff, w: &mut Workspace<V6>, direction: u32, reason: u32) -> i32 {
    let env = Kernel::new(skb);
    let parsed = match DropReason::from_u8(reason as u8) {
        Some(DropReason::None) => Ok(()),
        Some(reason) => Err(reason),
        None => Err(DropReason::MalformedIp),
    };
    match fragment::judge::<V6, _>(env, w, Direction::from_u8(direction as u8), parsed) {
        Ok(judged) => action(judged),
        Err(reason) => unparsable(&env, reason, w.packet.known_weight()),
    }
}

/// Parses into the workspace and gives the number of the drop reason. In a frame of its own: what the parser
/// keeps on the stack must not lie below the whole pipeline, whose calls have 512 bytes together.
#[inline(never)]
fn read6(skb: *mut __sk_buff, w: &mut Workspace<V6>) -> u32 {
    match parse6(&Frame::new(skb), ETHERNET, &mut w.packet) {
        Ok(()) => DropReason::None as u32,
        Err(reason) => reason as u32,
    }
}

#[inline(always)]
const fn action(action: Action) -> i32 {
    match action {
        Action::Pass => NEXT,
        Action::Drop => DROP,
    }
}

/// Segments and bytes behind the link layer of a packet whose headers say nothing.
#[inline(always)]
fn weight(env: &Kernel) -> (u64, u64) {
    let segments = u64::from(env.segments());
    let bytes = u64::from(env.length().saturating_sub(ETHERNET));
    (if segments > 1 { segments } else { 1 }, bytes)
}

/// No parse failure ever allows, unless nothing is enforced on this host at all.
#[inline(always)]
fn unparsable(env: &Kernel, reason: DropReason, known: Option<(u64, u64)>) -> i32 {
    let (packets, bytes) = match known {
        Some(weight) => weight,
        None => weight(env),
    };
    if env.nothing_enforced() {
        env.tally(DropReason::ModeObserve, packets, bytes);
        return NEXT;
    }
    env.tally(reason, packets, bytes);
    DROP
}

/// ARP passes (there is no IPv4 without it); other frames pass and are counted, or drop where configured.
#[inline(always)]
fn not_ip(skb: *mut __sk_buff, protocol: u16) -> i32 {
    const ARP: u16 = 0x0806;
    if protocol == ARP {
        return NEXT;
    }
    let env = Kernel::new(skb);
    let drop = match maps::CONFIG.get(0) {
        Some(config) => config.flags & config_flags::L2_DROP != 0,
        None => true,
    };
    let (packets, bytes) = weight(&env);
    env.tally(DropReason::NonIp, packets, bytes);
    if drop { DROP } else { NEXT }
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Unreachable: the object is refused by the build if a panic path is left in it.
    loop {}
}

/// The licence under which the kernel lets the programs use its GPL helpers.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
