//! YAML and JSON to a tree in which every value knows its place.
//!
//! The tree is checked by hand-written decoders instead of derived ones, because a derived decoder
//! stops at the first problem and knows nothing about suggestions. Everything that makes a parser
//! run away (aliases, nesting, size) is bounded here.

use std::fmt;
use std::sync::Arc;

use granit_parser::{Event, Parser};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_saphyr::options::DuplicateKeyPolicy;
use serde_saphyr::{Location, Options, Spanned};

use crate::problems::{Problem, Problems};
use crate::source::{MAX_SOURCE_BYTES, Place, Source, too_long};

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    /// The place of its first character.
    pub(crate) place: Place,
    /// What it is.
    pub(crate) value: Value,
}

/// What a node holds.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// Nothing.
    Null,
    /// `true` or `false`.
    Bool(bool),
    /// A whole number.
    Int(i128),
    /// Any other number.
    Float,
    /// Text.
    Text(String),
    /// A list.
    List(Vec<Node>),
    /// A mapping in the order of the text; keys may repeat, the decoder says so.
    Map(Vec<Entry>),
}

/// A key and its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    /// Place of the key.
    pub(crate) place: Place,
    /// The key.
    pub(crate) key: String,
    /// The value.
    pub(crate) node: Node,
}

impl Node {
    /// What a person would call the kind of value.
    pub(crate) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Bool(_) => "a boolean",
            Value::Int(_) => "a number",
            Value::Float => "a fraction",
            Value::Text(_) => "a text",
            Value::List(_) => "a list",
            Value::Map(_) => "a mapping",
        }
    }
}

/// Every document of a source.
pub(crate) fn documents(source: &Source) -> Result<Vec<Node>, Problems> {
    if source.text.len() > MAX_SOURCE_BYTES {
        return Err(too_long(&source.name, source.text.len()).into());
    }
    let text = source.text.strip_prefix('\u{feff}').unwrap_or(&source.text);
    match serde_saphyr::from_multiple_with_options::<Spanned<Raw>>(text, options()) {
        Ok(documents) => match foreign_tag(&source.name, text) {
            Some(problem) => Err(problem.into()),
            None => Ok(documents
                .into_iter()
                .map(|document| node(&source.name, document))
                .collect()),
        },
        Err(error) => Err(syntax_problem(&source.name, &error).into()),
    }
}

/// The first tag that is none of YAML's own. The reader passes over tags that it does not know; what their
/// author meant by them would be lost.
fn foreign_tag(file: &Arc<str>, text: &str) -> Option<Problem> {
    // Most texts have no tag at all, and need no second look.
    if !text.contains('!') {
        return None;
    }
    for event in Parser::new_from_str(text) {
        let (
            Event::Scalar(_, _, _, Some(tag))
            | Event::SequenceStart(_, _, Some(tag))
            | Event::MappingStart(_, _, Some(tag)),
            span,
        ) = event.ok()?
        else {
            continue;
        };
        let known = ["str", "int", "bool", "null", "float", "seq", "map"];
        if tag.is_yaml_core_schema() && known.contains(&tag.suffix()) {
            continue;
        }
        let place = Place::new(
            Arc::clone(file),
            span.start.line() as u64,
            span.start.col() as u64 + 1,
        );
        return Some(
            Problem::at(&place, format!("the tag {tag} has no meaning here")).suggest("remove it"),
        );
    }
    None
}

fn options() -> Options {
    serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: 48,
            flow_nesting_limit: 48,
            max_documents: 16_384,
            max_events: 1_500_000,
            max_nodes: 500_000,
            max_anchors: 1_000,
            max_aliases: 2_000,
            max_recorded_anchor_events: 20_000,
            max_recorded_anchor_bytes: 1024 * 1024,
            max_merge_keys: 1_000,
            max_total_scalar_bytes: MAX_SOURCE_BYTES,
        },
        alias_limits: serde_saphyr::alias_limits! {
            max_total_replayed_events: 20_000,
            max_replay_stack_depth: 8,
        },
        // The decoder reports repeated keys itself, all of them and with both places.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        strict_booleans: true,
        with_snippet: false,
    }
}

fn syntax_problem(file: &Arc<str>, error: &serde_saphyr::Error) -> Problem {
    let place = error.location().map_or_else(
        || Place::new(Arc::clone(file), 1, 1),
        |location| place(file, location),
    );
    // The parser's text ends with the place, which the problem already has.
    let text = error.without_snippet().to_string();
    let text = text.lines().next().unwrap_or("not YAML");
    let text = text
        .rfind(" at line ")
        .and_then(|end| text.get(..end))
        .unwrap_or(text);
    Problem::at(&place, text.trim_end_matches('.'))
}

fn place(file: &Arc<str>, location: Location) -> Place {
    Place::new(
        Arc::clone(file),
        location.line().max(1),
        location.column().max(1),
    )
}

/// The tree as the YAML reader builds it, before places are attached.
enum Raw {
    Null,
    Bool(bool),
    Int(i128),
    Float,
    Text(String),
    List(Vec<Spanned<Raw>>),
    Map(Vec<(Spanned<String>, Spanned<Raw>)>),
}

fn node(file: &Arc<str>, raw: Spanned<Raw>) -> Node {
    Node {
        place: place(file, raw.referenced),
        value: match raw.value {
            Raw::Null => Value::Null,
            Raw::Bool(value) => Value::Bool(value),
            Raw::Int(value) => Value::Int(value),
            Raw::Float => Value::Float,
            Raw::Text(value) => Value::Text(value),
            Raw::List(items) => {
                Value::List(items.into_iter().map(|item| node(file, item)).collect())
            }
            Raw::Map(entries) => Value::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| Entry {
                        place: place(file, key.referenced),
                        key: key.value,
                        node: node(file, value),
                    })
                    .collect(),
            ),
        },
    }
}

impl<'de> Deserialize<'de> for Raw {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(RawVisitor)
    }
}

struct RawVisitor;

impl<'de> Visitor<'de> for RawVisitor {
    type Value = Raw;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_none<E>(self) -> Result<Raw, E> {
        Ok(Raw::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Raw, D::Error> {
        Raw::deserialize(deserializer)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Raw, E> {
        Ok(Raw::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Raw, E> {
        Ok(Raw::Int(i128::from(value)))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Raw, E> {
        Ok(Raw::Int(i128::from(value)))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Raw, E> {
        Ok(Raw::Int(value))
    }

    fn visit_u128<E: serde::de::Error>(self, value: u128) -> Result<Raw, E> {
        i128::try_from(value)
            .map(Raw::Int)
            .map_err(|_| E::custom("the number is too large"))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Raw, E> {
        // No field takes a fraction; that it is one is all a message needs.
        Ok(Raw::Float)
    }

    fn visit_str<E>(self, value: &str) -> Result<Raw, E> {
        Ok(Raw::Text(value.to_owned()))
    }

    fn visit_string<E>(self, value: String) -> Result<Raw, E> {
        Ok(Raw::Text(value))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Raw, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Raw::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Raw, A::Error> {
        let mut map = Vec::new();
        while let Some(key) = entries.next_key()? {
            if map.len() >= 100_000 {
                return Err(A::Error::custom("a mapping has more than 100000 keys"));
            }
            map.push((key, entries.next_value()?));
        }
        Ok(Raw::Map(map))
    }
}
