//! Errors as a person meets them: what went wrong, and what to do next.

use std::fmt;
use std::io::Write as _;

/// An error that knows what to do next.
#[derive(Debug)]
pub(crate) struct Failure {
    message: String,
    next: Option<String>,
}

impl Failure {
    /// An error and the next step.
    pub(crate) fn new(message: impl Into<String>, next: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            next: Some(next.into()),
        }
    }

    /// An error whose text is enough.
    pub(crate) fn plain(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            next: None,
        }
    }

    /// The next step.
    pub(crate) fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}

/// Ctrl-C, with what the user should know.
#[derive(Debug)]
pub(crate) struct Interrupted {
    /// What may have happened all the same.
    pub(crate) note: Option<String>,
}

impl fmt::Display for Interrupted {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("interrupted")
    }
}

impl std::error::Error for Interrupted {}

/// Writes a line to stderr. That stderr is closed cannot be told to anybody.
pub(crate) fn complain(line: &str) {
    let _ = writeln!(std::io::stderr(), "{}", crate::output::printable(line));
}
