//! The real binary, against files and against a small server that speaks the API.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of tests fail tests"
)]

mod command;
mod context;
mod expected;
mod fake;
mod format;
mod formats;
mod import;
mod kubernetes;
mod lint;
mod manual;
mod mutations;
mod offline;
mod pki;
mod plan;
mod reach;
mod recommend;
mod samples;
mod streams;
mod unreachable;
mod usage;
