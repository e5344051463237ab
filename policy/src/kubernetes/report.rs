//! What reading an object found: what is wrong, and what only the API server would refuse.

use crate::problems::{Problem, Problems};

/// Problems of two kinds.
#[derive(Debug, Default)]
pub(super) struct Report {
    /// What has no meaning, or none that could be kept.
    pub(super) problems: Problems,
    /// What the published limits of the API forbid although its meaning is clear. An object of a
    /// cluster cannot break them; test suites that bypass the API server do.
    pub(super) limits: Problems,
}

impl Report {
    /// Notes what is wrong.
    pub(super) fn push(&mut self, problem: Problem) {
        self.problems.push(problem);
    }

    /// Notes what only the API server refuses.
    pub(super) fn limit(&mut self, problem: Problem) {
        self.limits.push(problem);
    }
}
