//! Rules in short, close to how nft writes them: for reports, never read again.

use serde_json::Value;

use crate::brownfield::json;

/// All statements of a rule.
pub(super) fn rule(statements: &[Value]) -> String {
    let parts: Vec<String> = statements.iter().map(statement).collect();
    parts.join(" ")
}

fn statement(statement: &Value) -> String {
    let Some((kind, body)) = statement
        .as_object()
        .and_then(|statement| statement.iter().next())
    else {
        return statement.to_string();
    };
    match (kind.as_str(), body) {
        (_, Value::Null) => kind.clone(),
        ("match", _) => {
            let operator = match json::text(body, "op") {
                Some("==" | "in") | None => " ".to_owned(),
                Some(other) => format!(" {other} "),
            };
            let side = |key| body.get(key).map(value).unwrap_or_default();
            format!("{}{operator}{}", side("left"), side("right"))
        }
        ("vmap", _) => {
            let side = |key| body.get(key).map(value).unwrap_or_default();
            format!("{} vmap {}", side("key"), side("data"))
        }
        ("jump" | "goto", _) => format!("{kind} {}", json::text(body, "target").unwrap_or("?")),
        ("counter" | "log" | "reject", _) => kind.clone(),
        ("limit", _) => {
            let over = if body.get("inv") == Some(&Value::Bool(true)) {
                "over "
            } else {
                ""
            };
            format!(
                "limit rate {over}{}/{}",
                json::integer(body, "rate").unwrap_or(0),
                json::text(body, "per").unwrap_or("?")
            )
        }
        ("redirect" | "dnat" | "snat" | "masquerade", _) => {
            let part = |key| body.get(key).map(value).unwrap_or_default();
            format!("{kind} to {}:{}", part("addr"), part("port"))
        }
        _ => format!("{kind} {body}"),
    }
}

fn value(of: &Value) -> String {
    let list = |values: &[Value], between: &str| {
        values.iter().map(value).collect::<Vec<_>>().join(between)
    };
    match of {
        Value::String(text) => text.clone(),
        Value::Array(values) => list(values, ","),
        Value::Object(map) => {
            let Some((kind, body)) = map.iter().next() else {
                return String::new();
            };
            match (kind.as_str(), body) {
                ("payload", _) => format!(
                    "{} {}",
                    json::text(body, "protocol").unwrap_or("?"),
                    json::text(body, "field").unwrap_or("?")
                ),
                ("meta" | "ct" | "rt" | "socket", _) => {
                    format!("{kind} {}", json::text(body, "key").unwrap_or("?"))
                }
                ("fib", _) => format!(
                    "fib {} {}",
                    body.get("flags").map(value).unwrap_or_default(),
                    json::text(body, "result").unwrap_or("?")
                ),
                ("prefix", _) => format!(
                    "{}/{}",
                    json::text(body, "addr").unwrap_or("?"),
                    json::integer(body, "len").unwrap_or(0)
                ),
                ("range", Value::Array(ends)) => list(ends, "-"),
                ("concat", Value::Array(parts)) => list(parts, " . "),
                ("&", Value::Array(parts)) => list(parts, " & "),
                ("set", Value::Array(values)) => {
                    // Of maps, the elements are pairs.
                    let pair = |element: &Value| match element.as_array().map(Vec::as_slice) {
                        Some([key, verdict]) => format!("{} : {}", value(key), statement(verdict)),
                        _ => value(element),
                    };
                    let values: Vec<String> = values.iter().map(pair).collect();
                    format!("{{ {} }}", values.join(", "))
                }
                ("elem", _) => body.get("val").map(value).unwrap_or_default(),
                _ => of.to_string(),
            }
        }
        other => other.to_string(),
    }
}
