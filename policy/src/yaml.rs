//! JSON values as YAML. Strings that could be read as anything else are quoted.

use std::fmt::Write as _;

use serde_json::Value;

/// Block style, two spaces; ends with a line end.
#[must_use]
pub fn to_string(value: &Value) -> String {
    let mut text = String::new();
    match value {
        Value::Object(map) if !map.is_empty() => block(value, 0, &mut text),
        Value::Array(items) if !items.is_empty() => block(value, 0, &mut text),
        _ => {
            scalar(value, &mut text);
            text.push('\n');
        }
    }
    text
}

fn block(value: &Value, depth: usize, text: &mut String) {
    match value {
        Value::Object(map) => {
            for (index, (key, value)) in map.iter().enumerate() {
                // The first key of a map in a list stands behind the dash.
                if index > 0 || !text.ends_with("- ") {
                    indent(depth, text);
                }
                string(key, text);
                text.push(':');
                child(value, depth + 1, text);
            }
        }
        Value::Array(items) => {
            for item in items {
                indent(depth, text);
                text.push_str("- ");
                if is_block(item) && item.is_object() {
                    block(item, depth + 1, text);
                } else if is_block(item) {
                    text.push('\n');
                    block(item, depth + 1, text);
                } else {
                    scalar(item, text);
                    text.push('\n');
                }
            }
        }
        _ => scalar(value, text),
    }
}

fn child(value: &Value, depth: usize, text: &mut String) {
    if is_block(value) {
        text.push('\n');
        block(value, depth, text);
    } else {
        text.push(' ');
        scalar(value, text);
        text.push('\n');
    }
}

fn is_block(value: &Value) -> bool {
    match value {
        Value::Object(map) => !map.is_empty(),
        Value::Array(items) => !items.is_empty(),
        _ => false,
    }
}

fn indent(depth: usize, text: &mut String) {
    for _ in 0..depth {
        text.push_str("  ");
    }
}

fn scalar(value: &Value, text: &mut String) {
    match value {
        Value::String(content) => string(content, text),
        // Empty maps and lists, numbers, booleans and null are the same in both languages.
        other => {
            let _ = write!(text, "{other}");
        }
    }
}

fn string(content: &str, text: &mut String) {
    if is_plain(content) {
        text.push_str(content);
    } else {
        let _ = write!(text, "{}", Value::String(content.to_owned()));
    }
}

/// Safe without quotes in every YAML version: starts with a letter, holds nothing special, is no word
/// that some reader takes for a boolean or null.
fn is_plain(content: &str) -> bool {
    let mut characters = content.chars();
    characters
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && content
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '-' | '.' | '/'))
        && !matches!(
            content.to_ascii_lowercase().as_str(),
            "y" | "n" | "yes" | "no" | "on" | "off" | "true" | "false" | "null"
        )
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn reads_back_as_the_same_value() {
        let value = json!({
            "revision": 12,
            "empty": {}, "none": [], "nothing": null, "yes": "no", "time": "2026-11-23T10:00:00Z",
            "list": [{"a": 1, "b": ["x", "y: z"]}, [1, [2]], "two\nlines", "-", "12", ""],
        });
        let text = to_string(&value);
        let back: Value = serde_saphyr::from_str(&text).unwrap();
        assert_eq!(back, value, "{text}");
    }
}
