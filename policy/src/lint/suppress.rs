//! Findings that the author of a file has thought about.
//!
//! A comment inside a rule or right above it means the findings of that rule; above an object or among its
//! metadata, those of the object: `# cofferdam-lint: ignore ID: reason`. Or the annotation `cofferdam.dev/lint-ignore: "ID: reason"`,
//! several of them separated by `;`.

use std::collections::BTreeSet;

use super::finding::{Finding, Suppression};
use crate::format::{Comment, comments_of};
use crate::model::Object;
use crate::problems::did_you_mean;
use crate::set::PolicySet;
use crate::source::{Place, Source};

const COMMENT: &str = "cofferdam-lint: ignore";
const ANNOTATION: &str = "cofferdam.dev/lint-ignore";

/// One wish.
struct Wish {
    id: String,
    reason: String,
    place: Place,
    /// Lines of a file whose findings are meant, or an object.
    scope: Scope,
    used: bool,
}

enum Scope {
    /// What begins at this line.
    Line(u64),
    /// The whole object.
    Object(String),
}

pub(super) fn apply(set: &PolicySet, sources: &[Source], findings: &mut Vec<Finding>) {
    let mut wishes = Vec::new();
    let starts = starts(set);
    for source in sources {
        from_comments(source, &starts, &mut wishes);
    }
    for object in set.objects() {
        from_annotation(&object, &mut wishes);
    }
    for finding in findings.iter_mut() {
        for wish in wishes.iter_mut().filter(|wish| wish.id == finding.id) {
            let meant = match &wish.scope {
                Scope::Object(object) => *object == finding.object,
                Scope::Line(line) => {
                    *wish.place.file == *finding.place.file
                        && (finding.place.line == *line || finding.object_place.line == *line)
                }
            };
            if meant {
                wish.used = true;
                // Without a reason it does not count.
                if !wish.reason.is_empty() && finding.suppressed.is_none() {
                    finding.suppressed = Some(Suppression {
                        reason: wish.reason.clone(),
                        place: wish.place.clone(),
                    });
                }
            }
        }
    }
    for wish in wishes {
        findings.extend(complaint(&wish));
    }
}

fn complaint(wish: &Wish) -> Option<Finding> {
    let ids = || super::lints().iter().map(|lint| lint.id);
    let (id, message, fix) = if super::lint_of(&wish.id).is_none() {
        let fix = did_you_mean(&wish.id, ids())
            .unwrap_or_else(|| "`cofferdam policy lint --list` names them all".to_owned());
        (
            "suppression-unknown",
            format!("there is no lint \"{}\"", wish.id),
            fix,
        )
    } else if wish.reason.is_empty() {
        (
            "suppression-without-reason",
            format!(
                "this suppression of {} gives no reason, and does not count",
                wish.id
            ),
            format!("write: ignore {}: why it is right here", wish.id),
        )
    } else if !wish.used {
        (
            "suppression-unused",
            format!("there is no finding {} here to suppress", wish.id),
            "remove the suppression".to_owned(),
        )
    } else {
        return None;
    };
    let object = match &wish.scope {
        Scope::Object(object) => object.clone(),
        Scope::Line(_) => wish.place.file.to_string(),
    };
    Some(Finding::new(id, object, &wish.place, message, fix).detail(&wish.id))
}

/// The lines of files at which objects and rules begin.
fn starts(set: &PolicySet) -> BTreeSet<(String, u64)> {
    let mut starts = BTreeSet::new();
    let mut add = |place: &Place| starts.insert((place.file.to_string(), place.line));
    for object in set.objects() {
        add(object.place());
        match &object {
            Object::Policy(policy) => {
                for rule in policy.ingress.iter().chain(&policy.egress).flatten() {
                    add(&rule.place);
                }
            }
            Object::Filter(filter) => {
                for entry in &filter.entries {
                    add(&entry.place);
                }
            }
            _ => {}
        }
    }
    starts
}

/// `ID: reason` of a comment that begins as agreed.
fn from_comments(source: &Source, starts: &BTreeSet<(String, u64)>, wishes: &mut Vec<Wish>) {
    if !source.text.contains(COMMENT) {
        return;
    }
    let lines: Vec<&str> = source.text.lines().collect();
    let is_comment = |line: u64| {
        let index = usize::try_from(line)
            .ok()
            .and_then(|line| line.checked_sub(1));
        let text = index.and_then(|index| lines.get(index));
        text.is_none_or(|text| text.trim_start().starts_with('#'))
    };
    for Comment { text, line, column } in comments_of(&source.text) {
        let Some(rest) = text.strip_prefix(COMMENT) else {
            continue;
        };
        // A comment of its own speaks about the next line that is none.
        let mut about = line;
        while is_comment(about) && about <= lines.len() as u64 {
            about += 1;
        }
        // Inside a rule it means that rule.
        let file = source.name.to_string();
        let before = starts.range((file.clone(), 0)..=(file, about)).next_back();
        let about = before.map_or(about, |(_, line)| *line);
        let (id, reason) = split(rest);
        wishes.push(Wish {
            id,
            reason,
            place: Place::new(std::sync::Arc::clone(&source.name), line, column),
            scope: Scope::Line(about),
            used: false,
        });
    }
}

fn from_annotation(object: &Object, wishes: &mut Vec<Wish>) {
    let Some(text) = object.metadata().annotations.get(ANNOTATION) else {
        return;
    };
    for part in text.split(';').filter(|part| !part.trim().is_empty()) {
        let (id, reason) = split(part);
        wishes.push(Wish {
            id,
            reason,
            place: object.place().clone(),
            scope: Scope::Object(object.id()),
            used: false,
        });
    }
}

fn split(text: &str) -> (String, String) {
    let (id, reason) = text.split_once(':').unwrap_or((text, ""));
    (id.trim().to_owned(), reason.trim().to_owned())
}
