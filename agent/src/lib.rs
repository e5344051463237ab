//! The agent: enforces the compiled policy of one host in the kernel and accounts for every flow.
//!
//! Start at [`reconcile::Engine`] for policy, at [`flows`] for records, at [`kernel::Kernel`] for the kernel
//! side (the only user of aya). `control` follows the controller, `admin` serves the local operator.
//! Enforcement outlives the process: everything that matters is pinned.

pub mod config;
pub mod flows;
pub mod kernel;
pub mod reconcile;
