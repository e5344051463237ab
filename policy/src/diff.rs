//! What changes between two policy sets, for people. For verdicts, see [`crate::snapshot_diff`].

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;
use serde_json::Value;

use crate::set::PolicySet;

/// What happened to one object.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "lowercase", tag = "change")]
pub enum ObjectChange {
    /// It is new.
    Added,
    /// It is gone.
    Removed,
    /// Some fields are different.
    Changed {
        /// Which ones.
        fields: Vec<FieldChange>,
    },
}

/// One field that is different.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct FieldChange {
    /// `spec.ingress[0].action`.
    pub path: String,
    /// Value before; `None` = was not there.
    pub before: Option<Value>,
    /// Value after; `None` = is not there.
    pub after: Option<Value>,
}

/// Differences between two sets, by `Kind/name`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct SetDiff {
    /// Only what is different.
    pub objects: BTreeMap<String, ObjectChange>,
}

impl SetDiff {
    /// Whether nothing is different.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.objects.is_empty()
    }
}

/// Compares two sets.
#[must_use]
pub fn diff_sets(before: &PolicySet, after: &PolicySet) -> SetDiff {
    let (before, after) = (by_id(before), by_id(after));
    let ids: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let mut diff = SetDiff::default();
    for id in ids {
        let change = match (before.get(id), after.get(id)) {
            (None, _) => ObjectChange::Added,
            (_, None) => ObjectChange::Removed,
            (Some(before), Some(after)) => {
                let mut fields = Vec::new();
                compare("", before, after, &mut fields);
                if fields.is_empty() {
                    continue;
                }
                ObjectChange::Changed { fields }
            }
        };
        diff.objects.insert(id.clone(), change);
    }
    diff
}

fn by_id(set: &PolicySet) -> BTreeMap<String, Value> {
    set.objects()
        .iter()
        .map(|object| (object.id(), object.to_json()))
        .collect()
}

fn compare(path: &str, before: &Value, after: &Value, fields: &mut Vec<FieldChange>) {
    if before == after {
        return;
    }
    match (before, after) {
        (Value::Object(left), Value::Object(right)) => {
            let keys: BTreeSet<&String> = left.keys().chain(right.keys()).collect();
            for key in keys {
                let path = if path.is_empty() {
                    key.clone()
                } else {
                    format!("{path}.{key}")
                };
                parts(path, left.get(key), right.get(key), fields);
            }
        }
        (Value::Array(left), Value::Array(right)) => {
            for index in 0..left.len().max(right.len()) {
                let path = format!("{path}[{index}]");
                parts(path, left.get(index), right.get(index), fields);
            }
        }
        _ => parts(path.to_owned(), Some(before), Some(after), fields),
    }
}

fn parts(
    path: String,
    before: Option<&Value>,
    after: Option<&Value>,
    fields: &mut Vec<FieldChange>,
) {
    match (before, after) {
        (Some(left), Some(right)) if left == right => {}
        (Some(left @ (Value::Object(_) | Value::Array(_))), Some(right))
            if std::mem::discriminant(left) == std::mem::discriminant(right) =>
        {
            compare(&path, left, right, fields);
        }
        _ => fields.push(FieldChange {
            path,
            before: before.cloned(),
            after: after.cloned(),
        }),
    }
}

impl fmt::Display for SetDiff {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (id, change) in &self.objects {
            match change {
                ObjectChange::Added => writeln!(f, "+ {id}")?,
                ObjectChange::Removed => writeln!(f, "- {id}")?,
                ObjectChange::Changed { fields } => {
                    writeln!(f, "~ {id}")?;
                    for field in fields {
                        let text = |value: &Option<Value>| {
                            value
                                .as_ref()
                                .map_or("(absent)".to_owned(), Value::to_string)
                        };
                        let (before, after) = (text(&field.before), text(&field.after));
                        writeln!(f, "    {}: {before} → {after}", field.path)?;
                    }
                }
            }
        }
        Ok(())
    }
}
