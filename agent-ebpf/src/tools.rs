//! Programs that are never attached: the agent runs them to change a table under its locks.
//!
//! Each takes one entry behind an Ethernet header ([`OFFSET`]) and answers with a number of `datapath::abi::tool`.

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::bpf_skb_load_bytes;
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use datapath::abi::{Flow4, Flow6, tool};
use datapath::flow::FlowRef;
use datapath::packet::{V4, V6};
use datapath::pipeline::Env;
use datapath::table::{self, Tabled};

use crate::env::Kernel;

/// Reads the entry that the agent sent into scratch memory.
#[inline(always)]
fn read<T>(skb: *mut __sk_buff, into: *mut T) -> bool {
    // SAFETY: the helper writes as many bytes as the type has, or fails.
    let result = unsafe {
        bpf_skb_load_bytes(
            skb.cast(),
            tool::OFFSET,
            into.cast(),
            core::mem::size_of::<T>() as u32,
        )
    };
    result == 0
}

#[inline(always)]
fn answer(word: table::Tool) -> i32 {
    word as i32
}

/// Moves what a negative entry has counted to its aggregate; the agent sends the slot's number.
#[classifier]
pub fn cofferdam_fold(ctx: TcContext) -> i32 {
    let skb = ctx.skb.skb;
    let mut slot = 0u32;
    if !read(skb, &raw mut slot) {
        return answer(table::Tool::Failed);
    }
    Env::<V4>::fold(&Kernel::new(skb), slot);
    answer(table::Tool::Done)
}

macro_rules! tools {
    ($seed:ident, $reap:ident, $family:ident, $flow:ident, $scratch:ident) => {
        /// Puts an entry into the table unless its flow is there.
        #[classifier]
        pub fn $seed(ctx: TcContext) -> i32 {
            let skb = ctx.skb.skb;
            let env = Kernel::new(skb);
            let Some(scratch) = env.scratch() else {
                return answer(table::Tool::Failed);
            };
            let flow: *mut $flow = &raw mut scratch.$scratch;
            if !read(skb, flow) {
                return answer(table::Tool::Failed);
            }
            let key = scratch.$scratch.lines[0].key;
            let words = $family::words(&key);
            // SAFETY: this CPU's own memory, a whole entry.
            let entry: FlowRef<$family> = unsafe { FlowRef::new(flow) };
            answer(table::seed(env, &key, &words, entry))
        }

        /// Takes a spilled entry out if it is still as the agent saw it.
        #[classifier]
        pub fn $reap(ctx: TcContext) -> i32 {
            let skb = ctx.skb.skb;
            let env = Kernel::new(skb);
            let Some(scratch) = env.scratch() else {
                return answer(table::Tool::Failed);
            };
            let flow: *mut $flow = &raw mut scratch.$scratch;
            if !read(skb, flow) {
                return answer(table::Tool::Failed);
            }
            let key = scratch.$scratch.lines[0].key;
            let words = $family::words(&key);
            // SAFETY: this CPU's own memory, a whole entry.
            let entry: FlowRef<$family> = unsafe { FlowRef::new(flow) };
            answer(table::reap(env, &key, &words, entry))
        }
    };
}

tools!(cofferdam_seed4, cofferdam_reap4, V4, Flow4, flow4);
tools!(cofferdam_seed6, cofferdam_reap6, V6, Flow6, flow6);
