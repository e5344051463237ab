//! What a policy means: labels, selectors, tiers, evaluation, compilation to a [`snapshot::Snapshot`].
//!
//! Pure: no I/O, no clock (time is an argument), no async. The controller compiles with it, the CLI
//! plans and tests with it, and the datapath is property-tested against it.

pub mod snapshot;
