//! The agent: enforces the compiled policy of one host in the kernel and accounts for every flow.
//!
//! Start at [`reconcile::Engine`] for policy, at [`flows`] for records, at [`kernel::Kernel`] for the kernel
//! side (the only user of aya). `control` follows the controller, `admin` serves the local operator.
//! Enforcement outlives the process: everything that matters is pinned.

pub mod admin;
pub mod cli;
pub mod config;
pub mod control;
pub mod daemon;
pub mod flows;
pub mod kernel;
mod metrics;
pub mod reconcile;
pub mod replay;
pub mod standalone;
