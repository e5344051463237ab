//! One finding.

use std::collections::HashMap;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::source::Place;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// To be known.
    Note,
    /// Probably not meant.
    Warning,
    /// Dangerous, or surely not meant.
    Error,
}

impl Level {
    /// The word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Error => "error",
        }
    }
}

/// Another place that belongs to a finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Related {
    /// What stands there.
    pub text: String,
    /// Where.
    pub place: Place,
}

/// Why a finding does not count.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Suppression {
    /// What the author of the file wrote.
    pub reason: String,
    /// Where.
    pub place: Place,
}

/// One finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// Stable name of the kind of finding: [`super::lints`] lists them.
    pub id: &'static str,
    /// How bad it is.
    pub level: Level,
    /// `Policy/shop-db`.
    pub object: String,
    /// The rule, as records name it, where it is about one.
    pub rule: Option<String>,
    /// Where it stands.
    pub place: Place,
    /// Where the object begins.
    pub object_place: Place,
    /// What is found, without a full stop.
    pub message: String,
    /// What to do about it.
    pub fix: String,
    /// Other places.
    pub related: Vec<Related>,
    /// Why it does not count.
    pub suppressed: Option<Suppression>,
    /// Stays the same when lines move; two findings never share one.
    pub fingerprint: String,
    /// What tells findings of one id about one rule apart.
    pub(super) detail: String,
}

impl Finding {
    pub(super) fn new(
        id: &'static str,
        object: impl Into<String>,
        object_place: &Place,
        message: impl Into<String>,
        fix: impl Into<String>,
    ) -> Self {
        Self {
            id,
            level: super::lint_of(id).map_or(Level::Warning, |lint| lint.level),
            object: object.into(),
            rule: None,
            place: object_place.clone(),
            object_place: object_place.clone(),
            message: message.into(),
            fix: fix.into(),
            related: Vec::new(),
            suppressed: None,
            fingerprint: String::new(),
            detail: String::new(),
        }
    }

    pub(super) fn rule(mut self, name: impl Into<String>, place: &Place) -> Self {
        self.rule = Some(name.into());
        self.place = place.clone();
        self
    }

    pub(super) fn level(mut self, level: Level) -> Self {
        self.level = level;
        self
    }

    pub(super) fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = detail.into();
        self
    }

    pub(super) fn related(mut self, text: impl Into<String>, place: &Place) -> Self {
        self.related.push(Related {
            text: text.into(),
            place: place.clone(),
        });
        self
    }
}

/// Sorts by place and gives every finding its fingerprint.
pub(super) fn finish(findings: &mut [Finding]) {
    findings.sort_by(|left, right| {
        let key = |finding: &Finding| {
            let place = &finding.place;
            (
                place.file.to_string(),
                place.line,
                place.column,
                finding.id,
                finding.detail.clone(),
            )
        };
        key(left).cmp(&key(right))
    });
    let mut seen: HashMap<String, usize> = HashMap::new();
    for finding in findings {
        // No file and no line: moving a rule within or between files does not make it another finding.
        let rule = finding.rule.as_deref().unwrap_or_default();
        let text = [finding.id, &finding.object, rule, &finding.detail].join("\u{0}");
        let times = seen.entry(text.clone()).or_default();
        let digest = Sha256::digest(format!("{text}\u{0}{times}"));
        *times += 1;
        finding.fingerprint = hex::encode(digest).chars().take(32).collect();
    }
}
