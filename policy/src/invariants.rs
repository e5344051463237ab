//! The [`Invariant`]s of a set, checked exactly by [`crate::reach`].
//!
//! `expect: unreachable` says that no flow from any of one side to any of the other passes on any of
//! the ports, `expect: reachable` that every one does. A workload is never asked about itself.

use std::fmt;

use serde::Serialize;
use time::OffsetDateTime;

use crate::matching::blocks;
use crate::model::{Expectation, Invariant, Peer};
use crate::problems::Problem;
use crate::reach::{End, EndError, Example, Lens, PortSet, Question, Reach, Step, Wanted};
use crate::set::PolicySet;
use crate::source::Place;
use crate::world::World;

/// How one invariant fares.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct InvariantResult {
    /// Its name.
    pub name: String,
    /// Where it stands.
    #[serde(skip)]
    pub place: Place,
    /// `env=dev → data-class=pci: unreachable`.
    pub claim: String,
    /// Why it must hold, as it says itself.
    pub reason: Option<String>,
    /// Under which circumstances it was checked.
    pub lens: Lens,
    /// Workloads and networks on the one side.
    pub sources: usize,
    /// Workloads and networks on the other side.
    pub destinations: usize,
    /// What came out.
    pub outcome: InvariantOutcome,
}

/// What came out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase", tag = "result")]
pub enum InvariantOutcome {
    /// It holds.
    Holds,
    /// It does not, and this is the plainest flow that says so.
    Broken {
        /// The flow; several where it takes workloads in between.
        #[serde(rename = "counter_example")]
        breach: Breach,
        /// Further pairs of classes of ends for which it does not hold either; not counted where
        /// there are workloads in between.
        further: usize,
    },
    /// Nothing was checked, as no flow is meant.
    Empty {
        /// Why.
        why: String,
    },
}

/// A counter-example.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Breach {
    /// One flow.
    Flow(Example),
    /// One flow after the other.
    Way(Vec<Step>),
}

impl InvariantResult {
    /// Whether it was checked and holds.
    #[must_use]
    pub fn holds(&self) -> bool {
        self.outcome == InvariantOutcome::Holds
    }

    /// Whether it was checked and does not hold.
    #[must_use]
    pub const fn is_broken(&self) -> bool {
        matches!(self.outcome, InvariantOutcome::Broken { .. })
    }

    /// What to tell whoever wanted to change something; `None` when it holds.
    #[must_use]
    pub fn problem(&self) -> Option<Problem> {
        let message = match &self.outcome {
            InvariantOutcome::Holds => return None,
            outcome => format!("invariant \"{}\" ({}) {outcome}", self.name, self.claim),
        };
        let problem = Problem::at(&self.place, message);
        Some(match (&self.outcome, &self.reason) {
            (InvariantOutcome::Broken { .. }, Some(reason)) => {
                problem.suggest(format!("it says why it must hold: {reason}"))
            }
            (InvariantOutcome::Empty { .. }, _) => {
                problem.suggest("a check of nothing never fails: mean somebody, or remove it")
            }
            _ => problem,
        })
    }
}

/// `does not hold: web-1 (10.0.0.5) → …, and for 3 further pairs of classes`.
impl fmt::Display for InvariantOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Holds => f.write_str("holds"),
            Self::Empty { why } => write!(f, "checks nothing: {why}"),
            Self::Broken { breach, further } => {
                f.write_str("does not hold: ")?;
                match breach {
                    Breach::Flow(flow) => write!(f, "{flow}")?,
                    Breach::Way(steps) => {
                        let steps: Vec<String> = steps.iter().map(ToString::to_string).collect();
                        f.write_str(&steps.join(", then "))?;
                    }
                }
                match further {
                    0 => Ok(()),
                    1 => f.write_str("; and for one more pair of classes"),
                    more => write!(f, "; and for {more} more pairs of classes"),
                }
            }
        }
    }
}

/// Checks every invariant of a set.
#[must_use]
pub fn check_invariants(
    world: &World,
    set: &PolicySet,
    at: OffsetDateTime,
) -> Vec<InvariantResult> {
    if set.invariants().is_empty() {
        return Vec::new();
    }
    let mut reach = Reach::new(world, set, at);
    set.invariants()
        .iter()
        .map(|invariant| check(&mut reach, set, invariant))
        .collect()
}

fn check(reach: &mut Reach<'_>, set: &PolicySet, invariant: &Invariant) -> InvariantResult {
    let ports = PortSet::of(&blocks(set, &invariant.ports, &[]));
    let mut result = InvariantResult {
        name: invariant.metadata.name.clone(),
        place: invariant.place.clone(),
        claim: claim(invariant, &ports),
        reason: invariant.reason.clone(),
        lens: invariant.lens,
        sources: 0,
        destinations: 0,
        outcome: InvariantOutcome::Holds,
    };
    let outcome = outcome(reach, invariant, ports, &mut result);
    result.outcome = outcome.unwrap_or_else(|error| InvariantOutcome::Empty {
        why: error.to_string(),
    });
    result
}

fn outcome(
    reach: &mut Reach<'_>,
    invariant: &Invariant,
    ports: PortSet,
    result: &mut InvariantResult,
) -> Result<InvariantOutcome, EndError> {
    let ends = |peers: &[Peer]| -> Vec<End> { peers.iter().cloned().map(End::Peer).collect() };
    let question = Question {
        from: ends(&invariant.from),
        to: ends(&invariant.to),
        ports,
        lens: invariant.lens,
        wanted: match invariant.expect {
            Expectation::Unreachable => Wanted::Passing,
            Expectation::Reachable => Wanted::Denied,
        },
    };
    let found = reach.ask(&question)?;
    result.sources = found.from.workloads + found.from.networks;
    result.destinations = found.to.workloads + found.to.networks;
    for (side, what, peers) in [
        (&found.from, "from", &invariant.from),
        (&found.to, "to", &invariant.to),
    ] {
        if side.is_empty() {
            let why = format!("\"{what}\" means nobody that is there ({})", text(peers));
            return Ok(InvariantOutcome::Empty { why });
        }
    }
    if found.compared == 0 {
        let why = "no flow from one side to the other has an end that is managed".to_owned();
        return Ok(InvariantOutcome::Empty { why });
    }
    if let Some(flow) = reach.example(&found) {
        return Ok(InvariantOutcome::Broken {
            breach: Breach::Flow(flow),
            further: found.pairs().saturating_sub(1),
        });
    }
    if invariant.transitive {
        let way = reach.way(
            &question.from,
            &question.to,
            &question.ports,
            invariant.lens,
        )?;
        if let Some(way) = way {
            return Ok(InvariantOutcome::Broken {
                breach: Breach::Way(way),
                further: 0,
            });
        }
    }
    Ok(InvariantOutcome::Holds)
}

fn claim(invariant: &Invariant, ports: &PortSet) -> String {
    let expect = match (invariant.expect, invariant.transitive) {
        (Expectation::Reachable, _) => "reachable",
        (Expectation::Unreachable, false) => "unreachable",
        (Expectation::Unreachable, true) => "unreachable over any number of workloads",
    };
    let on = if *ports == PortSet::ALL {
        String::new()
    } else {
        format!(" on {ports}")
    };
    format!(
        "{} → {}{on}: {expect}",
        text(&invariant.from),
        text(&invariant.to)
    )
}

fn text(peers: &[Peer]) -> String {
    let texts: Vec<String> = peers
        .iter()
        .map(|peer| End::Peer(peer.clone()).to_string())
        .collect();
    texts.join(" or ")
}
