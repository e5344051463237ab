//! The pipeline on the host: every rule of the datapath that a few packets can show.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "tests")]

mod corners;
mod fragments;
mod hostile;
mod lifetime;
mod negative;
mod policy;
mod sessions;
mod support;
