//! From entries in the kernel's tables to records that leave the host, and the count of every record that did not.
//!
//! [`collect`] reads events and tables, [`spool`] makes batches durable *before* entries are deleted, `export`
//! (in `control`) sends them. Counters in a record are totals since the flow began, so a repetition is harmless.

pub mod attribute;
pub mod collect;
pub mod names;
pub mod process;
pub mod record;
pub mod spool;

pub use record::Record;
