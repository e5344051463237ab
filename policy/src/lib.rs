//! What a policy means: labels, selectors, tiers, evaluation, compilation to a [`snapshot::Snapshot`].
//!
//! Pure: no I/O, no clock (time is an argument), no async. The controller compiles with it, the CLI
//! plans and tests with it, and the datapath is property-tested against it.
//!
//! The way of a policy: [`source::Source`] → [`parse`] → [`model`] objects → [`set::PolicySet`]
//! (checked against each other) → [`evaluate`] (the meaning) or [`mod@compile`] (the same meaning as
//! tables). Every error of a text is a [`problems::Problem`] with its place.

mod matching;
mod model_json;

pub mod api;
pub mod brownfield;
pub mod compile;
pub mod conformance;
pub mod diff;
pub mod enrolled;
pub mod evaluate;
pub mod explain;
pub mod filetests;
pub mod format;
pub mod invariants;
pub mod judge;
pub mod kubernetes;
pub mod lint;
pub mod locate;
pub mod model;
pub mod parse;
pub mod plan;
pub mod ports;
pub mod posture;
pub mod probe;
pub mod problems;
pub mod reach;
pub mod recommend;
pub mod schema;
pub mod selectors;
pub mod set;
pub mod snapshot;
pub mod snapshot_diff;
pub mod source;
pub mod suggest;
#[cfg(feature = "testing")]
pub mod testing;
pub mod walk;
pub mod world;
pub mod yaml;
