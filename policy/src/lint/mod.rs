//! What is allowed in a policy file and still is a mistake, or may be one.
//!
//! A finding is right or it is not made: shadowed and redundant rules are found by exact reasoning about
//! sets of flows ([`region`]), never by comparing text, and a property test removes what is called
//! superfluous and sees every verdict stay. What is not certain without an inventory is left out.

mod catalogue;
mod exposure;
mod finding;
mod names;
mod order;
mod region;
mod spans;
mod superfluous;
mod suppress;
mod traffic;
mod workloads;

use time::{Duration, OffsetDateTime};

pub use catalogue::{Lint, lint_of, lints};
pub use finding::{Finding, Level, Related, Suppression};
pub use traffic::{Talk, parse_flows};

use crate::set::PolicySet;
use crate::snapshot::FlowDirection;
use crate::source::Source;
use crate::world::World;
use order::Order;

/// What to judge by.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// The moment that deadlines are compared with.
    pub at: OffsetDateTime,
    /// A deadline that is nearer than this is announced.
    pub soon: Duration,
    /// A grant that lasts longer is no just-in-time access.
    pub long_grant: Duration,
    /// A policy that has been staged for longer is forgotten.
    pub long_staged: Duration,
}

impl Settings {
    /// A week, a month and a month.
    #[must_use]
    pub const fn at(at: OffsetDateTime) -> Self {
        Self {
            at,
            soon: Duration::days(7),
            long_grant: Duration::days(30),
            long_staged: Duration::days(30),
        }
    }
}

/// Judges a set. `sources` are the texts that it was read from: comments in them suppress findings. With
/// a world, selectors that select nobody are found; with traffic too, rules that are wider than it.
///
/// Findings come in the order of the text; suppressed ones are among them.
#[must_use]
pub fn lint(
    set: &PolicySet,
    sources: &[Source],
    world: Option<&World>,
    talks: &[Talk],
    settings: &Settings,
) -> Vec<Finding> {
    let orders = [FlowDirection::Ingress, FlowDirection::Egress]
        .map(|direction| Order::new(set, direction, settings.at));
    let mut findings = Vec::new();
    names::check(set, settings, &mut findings);
    for order in &orders {
        superfluous::check(order, &mut findings);
    }
    exposure::check(set, world, &orders, &mut findings);
    if let Some(world) = world {
        workloads::check(set, world, &mut findings);
        traffic::check(set, world, &orders, talks, settings, &mut findings);
    }
    suppress::apply(set, sources, &mut findings);
    finding::finish(&mut findings);
    findings
}
