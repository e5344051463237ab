//! Labels and selectors, with the meaning they have in Kubernetes.
//!
//! A workload has two label scopes: its own labels and those of its namespace. One selector speaks
//! about both: a key that starts with `namespace:` is looked up in the namespace's labels.

use std::collections::BTreeMap;

use serde::{Serialize, Serializer};

/// Labels of one scope.
pub type Labels = BTreeMap<String, String>;

/// Prefix of a selector key that speaks about the namespace's labels.
pub const NAMESPACE_PREFIX: &str = "namespace:";

/// The label that every namespace has, with its own name as the value.
pub const NAMESPACE_NAME_LABEL: &str = "kubernetes.io/metadata.name";

/// Anything that has labels in both scopes.
pub trait Labelled {
    /// Value of a key; keys with [`NAMESPACE_PREFIX`] are in the namespace's scope.
    fn label(&self, key: &str) -> Option<&str>;
}

impl Labelled for Labels {
    fn label(&self, key: &str) -> Option<&str> {
        self.get(key).map(String::as_str)
    }
}

/// Which workloads are meant: every pair and every expression must hold. Empty means all.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Selector {
    /// Keys that must have exactly these values.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: Labels,
    /// Further conditions.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<Expression>,
}

/// One condition on one key.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub struct Expression {
    /// The label's key.
    pub key: String,
    /// What must hold.
    pub operator: Operator,
    /// Values of `In` and `NotIn`; empty otherwise.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// Operators of [`Expression`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum Operator {
    /// The key is there with one of the values.
    In,
    /// The key is missing, or there with none of the values.
    NotIn,
    /// The key is there.
    Exists,
    /// The key is missing.
    DoesNotExist,
}

impl Operator {
    /// The words of the language.
    pub(crate) const WORDS: &'static [(&'static str, Self)] = &[
        ("In", Self::In),
        ("NotIn", Self::NotIn),
        ("Exists", Self::Exists),
        ("DoesNotExist", Self::DoesNotExist),
    ];
}

impl Selector {
    /// A selector of one pair.
    #[must_use]
    pub fn label(key: impl Into<String>, value: impl Into<String>) -> Self {
        Self {
            match_labels: [(key.into(), value.into())].into(),
            match_expressions: Vec::new(),
        }
    }

    /// Whether it selects everything.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.match_labels.is_empty() && self.match_expressions.is_empty()
    }

    /// Whether the labels satisfy it.
    #[must_use]
    pub fn matches(&self, labels: &impl Labelled) -> bool {
        self.match_labels
            .iter()
            .all(|(key, value)| labels.label(key) == Some(value))
            && self
                .match_expressions
                .iter()
                .all(|expression| expression.holds(labels))
    }

    /// Every label key it looks at.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.match_labels.keys().map(String::as_str).chain(
            self.match_expressions
                .iter()
                .map(|expression| expression.key.as_str()),
        )
    }
}

impl Expression {
    /// Whether the labels satisfy it.
    #[must_use]
    pub fn holds(&self, labels: &impl Labelled) -> bool {
        let value = labels.label(&self.key);
        let listed = value.is_some_and(|value| self.values.iter().any(|listed| listed == value));
        match self.operator {
            Operator::In => listed,
            Operator::NotIn => !listed,
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
        }
    }
}

/// `app=db,tier in (a, b),!old`: the short form for people.
impl std::fmt::Display for Selector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.is_empty() {
            return f.write_str("all");
        }
        let pairs = self
            .match_labels
            .iter()
            .map(|(key, value)| format!("{key}={value}"));
        let expressions = self.match_expressions.iter().map(|expression| {
            let values = expression.values.join(", ");
            match expression.operator {
                Operator::In => format!("{} in ({values})", expression.key),
                Operator::NotIn => format!("{} not in ({values})", expression.key),
                Operator::Exists => expression.key.clone(),
                Operator::DoesNotExist => format!("!{}", expression.key),
            }
        });
        f.write_str(&pairs.chain(expressions).collect::<Vec<_>>().join(","))
    }
}

/// Serialises a subject: where an empty selector is an error, "everything" is the word `all`.
pub(crate) fn serialize_subject<S: Serializer>(
    selector: &Selector,
    serializer: S,
) -> Result<S::Ok, S::Error> {
    if selector.is_empty() {
        serializer.serialize_str("all")
    } else {
        selector.serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expression(operator: Operator, values: &[&str]) -> Selector {
        Selector {
            match_labels: Labels::new(),
            match_expressions: vec![Expression {
                key: "tier".into(),
                operator,
                values: values.iter().map(|value| (*value).to_owned()).collect(),
            }],
        }
    }

    #[test]
    fn operators_mean_what_they_mean_in_kubernetes() {
        let none = Labels::new();
        let web: Labels = [("tier".to_owned(), "web".to_owned())].into();
        for (operator, values, on_none, on_web) in [
            (Operator::In, vec!["web", "db"], false, true),
            (Operator::In, vec!["db"], false, false),
            (Operator::NotIn, vec!["web"], true, false),
            (Operator::NotIn, vec!["db"], true, true),
            (Operator::Exists, vec![], false, true),
            (Operator::DoesNotExist, vec![], true, false),
        ] {
            let selector = expression(operator, &values);
            assert_eq!(selector.matches(&none), on_none, "{selector}");
            assert_eq!(selector.matches(&web), on_web, "{selector}");
        }
        assert!(Selector::default().matches(&none));
    }
}
