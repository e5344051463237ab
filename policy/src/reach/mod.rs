//! Exact reachability: who can open which flows to whom, as sets of ends, protocols and ports.
//!
//! Nothing is sampled. Ends that policy cannot tell apart are one class ([`classes`]); every rule is
//! matched against all classes at once ([`program`]); each end gives a row of port sets, one for each
//! peer ([`rows`]); and what passes between two classes is what passes at both ends ([`ask`]).
//! Property tests prove it equal to [`crate::evaluate`].
//!
//! The answer is about new flows, as the evaluator's is: failsafes are the agent's business, and what
//! a stateless filter does to replies is not looked at. Where no end is managed nothing is decided,
//! and nothing is answered; traffic of a workload with itself is never meant.

use serde::Serialize;
use time::OffsetDateTime;

use crate::set::PolicySet;
use crate::world::World;

mod arena;
mod ask;
mod bits;
mod blast;
mod classes;
mod ends;
mod pieces;
mod portset;
mod program;
mod report;
mod rows;
mod space;
mod vocabulary;

pub use ask::{Example, Found, Question, RuleAt, Side, Wanted};
pub use blast::{BlastRadius, Direction, Reached, Spread, Step, blast_radius};
pub use ends::{End, EndError};
pub use pieces::{Group, Member, Network, Piece, Pieces};
pub use portset::{PortSet, Range};
pub use report::{Report, Request, RequestError};

/// Under which circumstances a flow passes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Lens {
    /// What passes now: the enforced policies, and modes that only observe let the rest through.
    Enforced,
    /// What the enforced policies say, as if every workload were in mode enforce.
    Evaluated,
    /// As if every staged policy were enforced, and every workload in mode enforce.
    #[default]
    Draft,
}

impl Lens {
    /// The words of the language.
    pub const WORDS: &'static [(&'static str, Self)] = &[
        ("enforced", Self::Enforced),
        ("evaluated", Self::Evaluated),
        ("draft", Self::Draft),
    ];

    /// The word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Enforced => "enforced",
            Self::Evaluated => "evaluated",
            Self::Draft => "draft",
        }
    }
}

/// A world and a policy set at one moment, ready for any number of questions.
pub struct Reach<'a> {
    world: &'a World,
    set: &'a PolicySet,
    rows: rows::Rows<'a>,
}

impl std::fmt::Debug for Reach<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reach")
            .field("classes", &self.classes())
            .finish_non_exhaustive()
    }
}

impl<'a> Reach<'a> {
    /// Sorts ends into classes and matches every rule; what passes is computed when it is asked for.
    #[must_use]
    pub fn new(world: &'a World, set: &'a PolicySet, at: OffsetDateTime) -> Self {
        let words = vocabulary::Vocabulary::of(set, at);
        let classes = classes::Classes::new(world, set, &words);
        let mut arena = arena::Arena::new();
        let program = program::Program::new(set, at, &classes, &words, &mut arena);
        Self {
            world,
            set,
            rows: rows::Rows::new(classes, program, arena),
        }
    }

    /// How many classes of ends policy tells apart.
    #[must_use]
    pub fn classes(&self) -> usize {
        self.rows.classes.list.len()
    }
}
