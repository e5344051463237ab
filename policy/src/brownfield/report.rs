//! What became of every rule of the source: nothing is dropped without a word.

use serde::Serialize;

/// How a source rule was carried over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// The policy means the same.
    Exact,
    /// The policy allows less than the rule did.
    Narrower,
    /// The policy allows more than the rule did; only where it was asked for.
    Wider,
    /// Nothing of the rule is in the policy; what only the rule allowed is denied.
    NotCarriedOver,
}

impl Outcome {
    /// Every outcome, best first.
    pub const ALL: [Self; 4] = [
        Self::Exact,
        Self::Narrower,
        Self::Wider,
        Self::NotCarriedOver,
    ];

    /// The words for people.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Exact => "exact",
            Self::Narrower => "narrower",
            Self::Wider => "wider",
            Self::NotCarriedOver => "not carried over",
        }
    }
}

/// What became of one source rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Item {
    /// Name of the source.
    pub file: String,
    /// Line, JSON path or resource address inside it.
    pub place: String,
    /// What the rule says, shortened.
    pub rule: String,
    /// How it was carried over.
    pub outcome: Outcome,
    /// Why it is not exact, or what exactness rests on.
    pub reason: Option<String>,
    /// The rules that it became, as records and `explain` name them.
    pub carried_as: Vec<String>,
}

/// What became of everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// One item a source rule, in the order of the source.
    pub items: Vec<Item>,
    /// What concerns the import as a whole.
    pub remarks: Vec<String>,
}

/// How many rules had which outcome.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// The policy means the same.
    pub exact: usize,
    /// The policy allows less.
    pub narrower: usize,
    /// The policy allows more.
    pub wider: usize,
    /// Nothing of the rule is in the policy.
    pub not_carried_over: usize,
    /// All of them.
    pub total: usize,
}

impl Report {
    /// How many rules had which outcome.
    #[must_use]
    pub fn counts(&self) -> Counts {
        let count = |outcome| {
            self.items
                .iter()
                .filter(|item| item.outcome == outcome)
                .count()
        };
        Counts {
            exact: count(Outcome::Exact),
            narrower: count(Outcome::Narrower),
            wider: count(Outcome::Wider),
            not_carried_over: count(Outcome::NotCarriedOver),
            total: self.items.len(),
        }
    }

    /// Adds a remark once.
    pub(crate) fn remark(&mut self, remark: impl Into<String>) {
        let remark = remark.into();
        if !self.remarks.contains(&remark) {
            self.remarks.push(remark);
        }
    }
}

/// Longest text of a source rule in a report, in characters.
const MAX_SHOWN: usize = 300;

/// A text that fits a report and a rule's name: one line, not too long.
pub(crate) fn shown(text: &str) -> String {
    let flat: String = text
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    if flat.chars().count() <= MAX_SHOWN {
        return flat;
    }
    let mut cut: String = flat.chars().take(MAX_SHOWN - 1).collect();
    cut.push('…');
    cut
}
