//! Real clients and servers through an attached agent: what stacks and tools do on a wire beyond opening a connection.
//!
//! Not here: a wall clock that jumps. It is the whole machine's, and a time namespace has none of its own; the engine's
//! tests move a clock of theirs.
#![allow(clippy::panic, clippy::expect_used, reason = "tests")]

#[path = "../common/mod.rs"]
mod common;

mod datagrams;
mod far;
mod routed;
mod streams;
mod together;
