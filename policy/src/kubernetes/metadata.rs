//! `ObjectMeta`: who an object is. What the API server and its clients note beside that is passed over.
//!
//! Fields: Kubernetes API reference, meta/v1 `ObjectMeta`.

use super::report::Report;
use crate::parse::fields::{Fields, map_entries, text};
use crate::parse::node::Node;
use crate::problems::{Problem, Problems};
use crate::selectors::Labels;

/// The namespace of a namespaced object that names none.
pub(super) const DEFAULT_NAMESPACE: &str = "default";

/// A whole copy of the object that `kubectl apply` leaves behind.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// Fields that say nothing about the meaning of the object.
const BOOKKEEPING: [&str; 11] = [
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "managedFields",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// Who an object is.
#[derive(Debug)]
pub(super) struct Meta {
    pub(super) name: String,
    /// [`DEFAULT_NAMESPACE`] where none is named; means nothing for objects of the cluster.
    pub(super) namespace: String,
    pub(super) labels: Labels,
    pub(super) annotations: Labels,
}

/// Reads `metadata`.
pub(super) fn metadata(node: &Node, namespaced: bool, report: &mut Report) -> Option<Meta> {
    let mut fields = Fields::open(node, "metadata", &mut report.problems)?;
    let name = fields
        .require("name", &mut report.problems)
        .and_then(|node| {
            let name = text(node, "name", &mut report.problems)?;
            if !is_subdomain(name) {
                report.limit(
                Problem::at(&node.place, format!("\"{name}\" is no name of Kubernetes")).suggest(
                    "use 1–253 small letters, digits, - and ., with a letter or digit at both ends",
                ),
            );
            }
            Some(name.to_owned())
        });
    let namespace_node = fields.take("namespace");
    let mut namespace = DEFAULT_NAMESPACE.to_owned();
    if let Some(node) = namespace_node
        && let Some(given) = text(node, "namespace", &mut report.problems)
        && !given.is_empty()
    {
        if !namespaced {
            report.limit(
                Problem::at(&node.place, "this kind belongs to the whole cluster")
                    .suggest("remove \"namespace\""),
            );
        } else if !is_label(given) {
            report.limit(
                Problem::at(&node.place, format!("\"{given}\" is no namespace")).suggest(
                    "use 1–63 small letters, digits and -, with a letter or digit at both ends",
                ),
            );
        }
        given.clone_into(&mut namespace);
    }
    let labels = pairs(fields.take("labels"), "labels", &mut report.problems);
    let mut annotations = pairs(
        fields.take("annotations"),
        "annotations",
        &mut report.problems,
    );
    annotations.remove(LAST_APPLIED);
    for key in BOOKKEEPING {
        let _passed_over = fields.take(key);
    }
    fields.finish(&mut report.problems);
    Some(Meta {
        name: name?,
        namespace,
        labels,
        annotations,
    })
}

/// Pairs of texts.
pub(super) fn pairs(node: Option<&Node>, what: &str, problems: &mut Problems) -> Labels {
    let mut labels = Labels::new();
    let Some(node) = node else {
        return labels;
    };
    for entry in map_entries(node, what, problems).unwrap_or_default() {
        if let Some(value) = text(&entry.node, &entry.key, problems) {
            labels.insert(entry.key.clone(), value.to_owned());
        }
    }
    labels
}

/// DNS-1123 label.
fn is_label(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&text.len())
        && text.chars().all(inner)
        && !text.starts_with('-')
        && !text.ends_with('-')
}

/// DNS-1123 subdomain; its parts may be longer than 63 characters.
pub(super) fn is_subdomain(text: &str) -> bool {
    let part = |part: &str| {
        !part.is_empty()
            && part
                .chars()
                .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    (1..=253).contains(&text.len()) && text.split('.').all(part)
}
