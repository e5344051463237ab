//! The loaded kernel object on a table of its own, beside a simulated host with the same content.
//!
//! [`Twin`] holds both; every packet goes through both. Maps are pinned on a bpffs that only the thread of the
//! test sees, so that nothing is left behind and any number of processes may run at once.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its part")]
#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "tests"
)]

pub mod convert;
pub mod frames;
pub mod rig;
pub mod rng;
pub mod run;
pub mod scene;
pub mod state;
pub mod traffic;
pub mod twin;
pub mod wire;
pub mod world;

use std::io::Write as _;

/// Says that a test cannot run here, and says it where the test runner counts it.
pub fn skip(why: &str) {
    let line = format!("SKIP: {why}");
    eprintln!("{line}");
    if let Some(path) = std::env::var_os("COFFERDAM_SKIP_LOG").filter(|path| !path.is_empty()) {
        let mut log = std::fs::OpenOptions::new()
            .append(true)
            .create(true)
            .open(path)
            .expect("the list of skips can be written");
        writeln!(log, "{line}").expect("the list of skips can be written");
    }
}
