//! An agent that is killed at any step of a change of policy leaves the old content or the new one, whole; the next
//! agent knows which, and goes on.
#![allow(clippy::panic, clippy::expect_used, reason = "tests")]

#[path = "../support_kernel/mod.rs"]
mod support;

#[path = "../common/mod.rs"]
mod common;

mod contents;
mod daemon;
mod push;
mod steps;
