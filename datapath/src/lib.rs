//! The code that decides on a packet, and the types that cross the kernel boundary.
//!
//! Built twice from one source: for the host (agent, controller, CLI, tests) and for BPF
//! (`agent-ebpf`). No allocation, no I/O, no clock and no dependency: time is an argument and maps
//! are behind [`pipeline::Env`]. If two parts of the project disagree on a verdict, the mistake is
//! not here, because there is no second copy.
#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]
#![deny(clippy::indexing_slicing)]

pub mod abi;
pub mod conntrack;
pub mod drop_reason;
pub mod failsafe;
pub mod flow;
pub mod fragment;
pub mod hash;
pub mod ids;
pub mod lines;
pub mod negative;
pub mod owner;
pub mod packet;
pub mod pipeline;
pub mod record;
#[cfg(feature = "sim")]
pub mod sim;
pub mod table;
pub mod verdict;
pub mod word;
