//! Recommended policies against the evaluator, which knows nothing of them.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

mod brute;
mod estate;
mod mislabels;
mod properties;
mod small;
mod trace;
