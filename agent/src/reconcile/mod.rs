//! From a snapshot to what the kernel enforces.
//!
//! [`plan`] decides (pure), [`Engine`] executes: fill the slot that nobody looks at, read it back, compare,
//! and activate it by one 64-bit write. On any error the old content stays. [`store`] keeps the last good
//! snapshot on disk.

pub mod breaker;
mod change;
mod engine;
#[cfg(test)]
mod engine_tests;
pub mod failsafes;
pub mod lookup;
pub mod plan;
pub mod store;

pub use change::{Active, Applied, ApplyError, Clock, Found, Notice, Push, Slots, SystemClock};
pub use engine::Engine;
