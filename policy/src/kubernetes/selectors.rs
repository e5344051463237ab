//! `LabelSelector` of one scope.
//!
//! Syntax of keys and values: Kubernetes documentation, "Labels and Selectors".

use super::metadata::is_subdomain;
use super::report::Report;
use crate::parse::fields::{Fields, list, map_entries, text};
use crate::parse::node::Node;
use crate::parse::peers::expression;
use crate::problems::Problem;
use crate::selectors::{NAMESPACE_PREFIX, Selector};
use crate::source::Place;

/// Whose labels a selector speaks about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scope {
    /// The pod's or the node's own.
    Own,
    /// Those of the pod's namespace.
    Namespace,
}

impl Scope {
    fn key(self, key: &str) -> String {
        match self {
            Self::Own => key.to_owned(),
            Self::Namespace => format!("{NAMESPACE_PREFIX}{key}"),
        }
    }
}

/// Reads a selector; an empty one matches everything.
pub(super) fn selector(
    node: &Node,
    what: &'static str,
    scope: Scope,
    report: &mut Report,
) -> Selector {
    let mut selector = Selector::default();
    let Some(mut fields) = Fields::open(node, what, &mut report.problems) else {
        return selector;
    };
    if let Some(labels) = fields.take("matchLabels") {
        for entry in map_entries(labels, "matchLabels", &mut report.problems).unwrap_or_default() {
            check_key(&entry.key, &entry.place, report);
            if let Some(given) = text(&entry.node, &entry.key, &mut report.problems) {
                check_value(given, &entry.node.place, report);
                selector
                    .match_labels
                    .insert(scope.key(&entry.key), given.to_owned());
            }
        }
    }
    let expressions = fields
        .take("matchExpressions")
        .and_then(|node| list(node, "matchExpressions", &mut report.problems))
        .unwrap_or_default();
    for item in expressions {
        if let Some(mut found) = expression(item, &mut report.problems) {
            check_key(&found.key, &item.place, report);
            for value in &found.values {
                check_value(value, &item.place, report);
            }
            found.key = scope.key(&found.key);
            selector.match_expressions.push(found);
        }
    }
    fields.finish(&mut report.problems);
    selector
}

fn check_key(key: &str, place: &Place, report: &mut Report) {
    if key.starts_with(NAMESPACE_PREFIX) {
        // It would speak about another scope here.
        report.push(Problem::at(place, format!("\"{key}\" is no label key")));
        return;
    }
    let (prefix, name) = match key.split_once('/') {
        Some((prefix, name)) => (Some(prefix), name),
        None => (None, key),
    };
    if prefix.is_some_and(|prefix| !is_subdomain(prefix)) || name.is_empty() || !is_value(name) {
        report.limit(
            Problem::at(place, format!("\"{key}\" is no label key of Kubernetes")).suggest(
                "write [prefix/]name, the name with at most 63 letters, digits, - _ and .",
            ),
        );
    }
}

fn check_value(value: &str, place: &Place, report: &mut Report) {
    if !is_value(value) {
        report.limit(
            Problem::at(
                place,
                format!("\"{value}\" is no label value of Kubernetes"),
            )
            .suggest("use at most 63 letters, digits, - _ and ."),
        );
    }
}

/// At most 63 characters, a letter or digit at both ends; may be empty.
fn is_value(text: &str) -> bool {
    let edge = |c: Option<char>| c.is_none_or(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'))
        && edge(text.chars().next())
        && edge(text.chars().next_back())
}
