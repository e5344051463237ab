//! The parser on frames in memory: what it reads, and what it refuses.
#![allow(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

mod fields;
mod memory;
