//! What stops an import.

use super::json::JsonError;
use crate::problems::{Problem, Problems};
use crate::source::Place;

/// A bound that a rule set exceeds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Limit {
    /// One set of flows falls apart into too many pieces.
    #[error("the rules cut the traffic into more than {0} pieces")]
    Cells(usize),
    /// Jumps multiply the rules.
    #[error("following the jumps meets more than {0} rules")]
    Visits(usize),
    /// Jumps go too deep.
    #[error("the jumps go deeper than {0} chains, or in a circle")]
    Depth(usize),
    /// The policy becomes too large.
    #[error("the policy would have more than {0} rules")]
    Rules(usize),
}

/// Why nothing was imported.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ImportError {
    /// The text is not what it should be.
    #[error(transparent)]
    Text(#[from] Problems),
    /// Bad JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// Too much for one import.
    #[error("{limit}; import a smaller part of the rule set")]
    Limit {
        /// Which bound.
        limit: Limit,
    },
}

impl From<Limit> for ImportError {
    fn from(limit: Limit) -> Self {
        Self::Limit { limit }
    }
}

impl From<Problem> for ImportError {
    fn from(problem: Problem) -> Self {
        Self::Text(problem.into())
    }
}

impl ImportError {
    /// A problem of a whole file.
    pub(crate) fn file(file: &str, message: impl Into<String>, fix: impl Into<String>) -> Self {
        Problem::at(&Place::new(file, 0, 0), message)
            .suggest(fix)
            .into()
    }
}
