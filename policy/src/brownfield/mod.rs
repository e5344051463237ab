//! Brown-field import: rule sets of other systems as staged policy, with a report of every rule.
//!
//! The importers read texts and give objects; they do no I/O. What policy cannot say exactly becomes
//! narrower (it allows less), unless the caller asks for wider; [`report`] names every such rule. The
//! meaning that is carried over is that of *connections*: policy is stateful.

pub mod aws;
pub mod cloud;
mod emit;
pub mod firewall;
pub mod intervals;
pub mod iptables;
mod json;
pub mod nftables;
pub mod problem;
pub mod region;
pub mod report;
pub mod terraform;

use crate::model::Object;
use report::Report;

pub use cloud::{AclForm, CloudOptions};
pub use firewall::HostOptions;
pub use json::JsonError;
pub use problem::{ImportError, Limit};

/// Annotation of imported objects: what they were made of.
pub(crate) const SOURCE_ANNOTATION: &str = "cofferdam.dev/imported-from";

/// The names of some sources.
pub(crate) fn files<'a>(sources: impl IntoIterator<Item = &'a crate::source::Source>) -> String {
    let names: Vec<&str> = sources.into_iter().map(|source| &*source.name).collect();
    names.join(", ")
}

/// What an import gives: objects that a [`crate::set::PolicySet`] accepts, and what became of every rule.
#[derive(Clone, Debug, Default)]
pub struct Imported {
    /// Staged policies and what they need, in a stable order.
    pub objects: Vec<Object>,
    /// One item a source rule.
    pub report: Report,
}

/// A name of an object made of parts, with what may not stand in one replaced.
#[must_use]
pub fn name(parts: &[&str]) -> String {
    let fits =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '@');
    let clean: String = parts
        .join("/")
        .chars()
        .map(|c| if fits(c) { c } else { '-' })
        .take(253)
        .collect();
    if clean.is_empty() {
        "imported".to_owned()
    } else {
        clean
    }
}
