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
mod content;
mod denials;
mod env;
mod fragments;
mod maps;
mod skb;
mod tools;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_tail_call;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use datapath::abi::{Clock, config_flags, tails};
use datapath::drop_reason::DropReason;
use datapath::fragment;
use datapath::ids::Direction;
use datapath::negative::denied_again;
use datapath::packet::{V4, V6, parse4, parse6};
use datapath::pipeline::{Action, Workspace, established};

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
    let env = Kernel::new(skb);
    let frame = Frame::new(skb);
    match protocol {
        0x0800 if established::<V4, _, _>(env, &frame) => NEXT,
        0x86dd if established::<V6, _, _>(env, &frame) => NEXT,
        0x0800 if denied_again::<V4, _, _>(env, &frame, direction) => DROP,
        0x86dd if denied_again::<V6, _, _>(env, &frame, direction) => DROP,
        0x0800 => whole_way(skb, direction, tails::READ4),
        0x86dd => whole_way(skb, direction, tails::READ6),
        other => not_ip(skb, other),
    }
}

/// Goes on in another program, with a stack and a call depth of its own. Only an empty slot comes back here: unknown
/// denies.
#[inline(always)]
fn whole_way(skb: *mut __sk_buff, direction: Direction, slot: u32) -> i32 {
    // SAFETY: the context is valid while the program runs; `cb` is the programs' own and survives the call.
    unsafe { (*skb).cb[0] = direction as u32 };
    go_on(skb, slot)
}

/// Runs the program in a slot of TAILS in the place of this one.
#[inline(always)]
fn go_on(skb: *mut __sk_buff, slot: u32) -> i32 {
    // SAFETY: the context is valid while the program runs.
    unsafe { bpf_tail_call(skb.cast(), (&raw const maps::TAILS).cast_mut().cast(), slot) };
    let env = Kernel::new(skb);
    let (packets, bytes) = weight(&env);
    env.tally(DropReason::NoPolicy, packets, bytes);
    DROP
}

/// What the hook wrote down before it went on.
#[inline(always)]
fn direction(skb: *mut __sk_buff) -> Direction {
    // SAFETY: the context is valid while the program runs.
    Direction::from_u8(unsafe { (*skb).cb[0] } as u8)
}

macro_rules! stages {
    ($read:ident, $parse:ident, $judge:ident, $slot:ident, $family:ident, $work:ident) => {
        /// Reads a packet into this CPU's scratch memory; reached from the hooks.
        #[classifier]
        pub fn $read(ctx: TcContext) -> i32 {
            let skb = ctx.skb.skb;
            let Some(scratch) = Kernel::new(skb).scratch() else {
                return DROP;
            };
            let reason = $parse(skb, &mut scratch.$work);
            // SAFETY: the context is valid while the program runs.
            unsafe { (*skb).cb[1] = reason };
            go_on(skb, tails::$slot)
        }

        /// Judges the packet that was read. A program of its own, so that the verifier looks at it once and not once for
        /// every way through the parser; no other packet uses this CPU's scratch memory in between.
        #[classifier]
        pub fn $judge(ctx: TcContext) -> i32 {
            let skb = ctx.skb.skb;
            let env = Kernel::new(skb);
            let Some(scratch) = env.scratch() else {
                return DROP;
            };
            let w = &mut scratch.$work;
            // SAFETY: the context is valid while the program runs.
            let parsed = outcome(unsafe { (*skb).cb[1] });
            match fragment::judge::<$family, _>(env, w, direction(skb), parsed) {
                Ok(judged) => action(judged),
                Err(reason) => unparsable(&env, reason, w.packet.known_weight()),
            }
        }
    };
}

stages!(cofferdam_read4, read4, cofferdam_judge4, JUDGE4, V4, work4);
stages!(cofferdam_read6, read6, cofferdam_judge6, JUDGE6, V6, work6);

/// What a parser's number says.
#[inline(always)]
const fn outcome(reason: u32) -> Result<(), DropReason> {
    match DropReason::from_u8(reason as u8) {
        Some(DropReason::None) => Ok(()),
        Some(reason) => Err(reason),
        None => Err(DropReason::MalformedIp),
    }
}

/// Parses into the workspace and gives the number of the drop reason: see [`read6`].
#[inline(never)]
fn read4(skb: *mut __sk_buff, w: &mut Workspace<V4>) -> u32 {
    match parse4(&Frame::new(skb), ETHERNET, &mut w.packet) {
        Ok(()) => DropReason::None as u32,
        Err(reason) => reason as u32,
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
