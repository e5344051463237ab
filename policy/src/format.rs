//! The canonical layout of policy files: indentation, spacing, quotes and line breaks; comments stay.
//!
//! The layout is `pretty_yaml`'s. A file that is in danger is never trusted to it: what it made is read
//! again, and where a value, a key, its order or a comment would be lost, the text is refused and stays as
//! it is.

use std::sync::Arc;

use granit_parser::{Event, Parser};
use pretty_yaml::config::{FormatOptions, LanguageOptions, LayoutOptions};

use crate::parse::node::{Node, Value, documents};
use crate::parse::objects_of;
use crate::problems::{Problem, Problems};
use crate::source::{Place, Source};
use crate::world::World;

/// Columns that a line may have before a `{…}` or `[…]` is broken up.
const WIDTH: usize = 120;

/// Rounds after which the layout must have come to rest.
const ROUNDS: usize = 4;

/// A text in canonical layout. Formatting it again changes nothing.
///
/// # Errors
/// When the text is neither policy documents nor an inventory, or when it cannot be laid out without a
/// change of its meaning or its comments.
pub fn format(source: &Source) -> Result<String, Problems> {
    let before = documents(source)?;
    // An inventory has no kind; what has one is judged as policy.
    if let Err(problems) = objects_of(&before)
        && (before.iter().any(has_kind) || World::parse(source).is_err())
    {
        return Err(problems);
    }
    let text = source.text.strip_prefix('\u{feff}').unwrap_or(&source.text);
    let options = options();
    let mut laid_out = text.to_owned();
    for _ in 0..ROUNDS {
        let next = pretty_yaml::format_text(&laid_out, &options)
            .map_err(|error| refused(source, &error.to_string()))?;
        let rests = next == laid_out;
        laid_out = next;
        if rests {
            check(source, text, &before, &laid_out)?;
            return Ok(laid_out);
        }
    }
    Err(refused(source, "its layout does not come to rest"))
}

fn has_kind(document: &Node) -> bool {
    matches!(&document.value, Value::Map(entries) if entries.iter().any(|entry| entry.key == "kind"))
}

fn options() -> FormatOptions {
    FormatOptions {
        layout: LayoutOptions {
            print_width: WIDTH,
            ..LayoutOptions::default()
        },
        language: LanguageOptions {
            // JSON stays JSON.
            trailing_comma: false,
            brace_spacing: false,
            prefer_single_line: true,
            // No comment switches it off: the library does not honour that everywhere.
            ignore_comment_directive: "\n".to_owned(),
            ..LanguageOptions::default()
        },
    }
}

/// Nothing may be lost.
fn check(source: &Source, text: &str, before: &[Node], after: &str) -> Result<(), Problems> {
    let read = documents(&Source::new(Arc::clone(&source.name), after))
        .map_err(|_| refused(source, "the result is not the same"))?;
    let alike = before.len() == read.len()
        && before
            .iter()
            .zip(&read)
            .all(|(left, right)| same(left, right));
    if !alike {
        return Err(refused(source, "the result is not the same"));
    }
    if comments(text) != comments(after) {
        return Err(refused(source, "a comment would be lost"));
    }
    Ok(())
}

fn refused(source: &Source, why: &str) -> Problems {
    let place = Place::new(Arc::clone(&source.name), 1, 1);
    Problem::at(&place, format!("this file cannot be formatted: {why}"))
        .suggest("leave it as it is, or write its unusual part in plain block style")
        .into()
}

/// Whether two trees hold the same, in the same order.
fn same(left: &Node, right: &Node) -> bool {
    match (&left.value, &right.value) {
        (Value::Null, Value::Null) | (Value::Float, Value::Float) => true,
        (Value::Bool(left), Value::Bool(right)) => left == right,
        (Value::Int(left), Value::Int(right)) => left == right,
        (Value::Text(left), Value::Text(right)) => left == right,
        (Value::List(left), Value::List(right)) => {
            left.len() == right.len()
                && left
                    .iter()
                    .zip(right)
                    .all(|(left, right)| same(left, right))
        }
        (Value::Map(left), Value::Map(right)) => {
            left.len() == right.len()
                && (left.iter().zip(right))
                    .all(|(left, right)| left.key == right.key && same(&left.node, &right.node))
        }
        _ => false,
    }
}

/// A comment of a YAML text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Comment {
    /// What follows the `#`, without blanks around it.
    pub(crate) text: String,
    /// From 1.
    pub(crate) line: u64,
    /// From 1, in characters.
    pub(crate) column: u64,
}

/// The comments of a text that reads as YAML, in order.
pub(crate) fn comments_of(text: &str) -> Vec<Comment> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut comments = Vec::new();
    for event in Parser::new_from_str(text) {
        match event {
            Ok((Event::Comment(text, _), span)) => comments.push(Comment {
                text: text.trim().to_owned(),
                line: span.start.line() as u64,
                column: span.start.col() as u64 + 1,
            }),
            Ok(_) => {}
            Err(_) => break,
        }
    }
    comments
}

fn comments(text: &str) -> Vec<String> {
    comments_of(text)
        .into_iter()
        .map(|comment| comment.text)
        .collect()
}
