//! Explicit runs of the loaded object: what each packet does, and every counter, entry and notice that it changes.
//! The simulated host runs beside it and must leave the same traces.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

#[path = "../support_kernel/mod.rs"]
mod support;

mod broken;
mod datagrams;
mod fragments;
mod limits;
mod merged;
mod operator;
mod policy;
mod revisions;
mod tcp;
