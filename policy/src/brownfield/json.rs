//! JSON as other tools print it: read within bounds, with the place of every mistake.
//!
//! A repeated key is an error, as one of the two would be dropped without a word.

use std::cell::Cell;
use std::fmt;

use serde::de::{DeserializeSeed, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::source::Source;

/// Most values of one text: memory stays below some hundred MiB.
const MAX_VALUES: usize = 2_000_000;

/// A text that is no JSON, or too much of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: error: {message}")]
pub struct JsonError {
    /// Name of the source.
    pub file: String,
    /// From 1.
    pub line: usize,
    /// From 1; 0 before the first character of a line.
    pub column: usize,
    /// What is wrong.
    pub message: String,
}

/// Reads one JSON document. Nesting is limited to 128 levels.
pub(crate) fn read(source: &Source) -> Result<Value, JsonError> {
    let left = Cell::new(MAX_VALUES);
    let mut reader = serde_json::Deserializer::from_str(&source.text);
    let value = Bounded(&left).deserialize(&mut reader);
    value
        .and_then(|value| reader.end().map(|()| value))
        .map_err(|error| {
            let text = error.to_string();
            JsonError {
                file: source.name.to_string(),
                line: error.line(),
                column: error.column(),
                message: text
                    .split(" at line ")
                    .next()
                    .unwrap_or("not JSON")
                    .to_owned(),
            }
        })
}

struct Bounded<'a>(&'a Cell<usize>);

impl<'de> DeserializeSeed<'de> for Bounded<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        let left = self.0.get();
        if left == 0 {
            return Err(D::Error::custom(format!(
                "the text has more than {MAX_VALUES} values"
            )));
        }
        self.0.set(left - 1);
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Bounded<'_> {
    type Value = Value;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = list.next_element_seed(Bounded(self.0))? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut entries = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let value = map.next_value_seed(Bounded(self.0))?;
            if entries.contains_key(&key) {
                return Err(A::Error::custom(format!("the key {key:?} is repeated")));
            }
            entries.insert(key, value);
        }
        Ok(Value::Object(entries))
    }
}

/// A list below a key; nothing when it is missing or `null`.
pub(crate) fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value
        .get(key)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// A text below a key that says something.
pub(crate) fn text<'a>(value: &'a Value, key: &str) -> Option<&'a str> {
    value
        .get(key)
        .and_then(Value::as_str)
        .filter(|text| !text.is_empty())
}

/// A whole number below a key, also when it is written as a text, as some tools do.
pub(crate) fn integer(value: &Value, key: &str) -> Option<i64> {
    match value.get(key)? {
        Value::String(text) => text.parse().ok(),
        // Terraform prints every number as a float.
        Value::Number(number) => number.as_i64().or_else(|| {
            let float = number.as_f64()?;
            #[allow(
                clippy::cast_possible_truncation,
                reason = "it is whole and small, which is checked first"
            )]
            (float.fract() == 0.0 && float.abs() < 1e15).then_some(float as i64)
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(text: &str) -> JsonError {
        read(&Source::new("x.json", text)).unwrap_err()
    }

    #[test]
    fn mistakes_have_a_place() {
        let error = error("{\"a\": 1,\n \"b\": }");
        assert_eq!((error.line, error.column), (2, 7), "{error}");
        assert!(
            error.to_string().starts_with("x.json:2:7: error: "),
            "{error}"
        );
    }

    #[test]
    fn hostile_texts_are_refused() {
        assert!(error(&"[".repeat(100_000)).message.contains("recursion"));
        assert!(error("{\"a\": 1, \"a\": 2}").message.contains("repeated"));
        assert!(error("[] []").message.contains("trailing"));
        let many = format!("[{}0]", "0,".repeat(MAX_VALUES));
        assert!(error(&many).message.contains("more than"));
    }
}
