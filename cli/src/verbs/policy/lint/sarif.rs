//! Findings as SARIF 2.1.0 (OASIS), which code hosts show beside the lines of a change.

use policy::lint::{Finding, Level, lints};
use policy::source::Place;
use serde_json::{Value, json};

/// Where the schema of the format is published.
const SCHEMA: &str =
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json";

/// One log with one run.
pub(super) fn log(findings: &[Finding]) -> Value {
    let rules: Vec<Value> = (lints().iter())
        .map(|lint| {
            json!({
                "id": lint.id,
                "name": pascal(lint.id),
                "shortDescription": {"text": lint.title},
                "fullDescription": {"text": lint.help},
                "help": {"text": lint.help},
                "defaultConfiguration": {"level": level(lint.level)},
            })
        })
        .collect();
    let results: Vec<Value> = findings.iter().map(result).collect();
    json!({
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [{
            "tool": {"driver": {
                "name": "cofferdam policy lint",
                "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": rules,
            }},
            // Columns are counted in characters, not in UTF-16 units.
            "columnKind": "unicodeCodePoints",
            "results": results,
        }],
    })
}

fn result(finding: &Finding) -> Value {
    let about = finding.rule.as_deref().unwrap_or(&finding.object);
    let mut result = json!({
        "ruleId": finding.id,
        "ruleIndex": lints().iter().position(|lint| lint.id == finding.id),
        "level": level(finding.level),
        "message": {"text": format!("{about}: {}. Fix: {}.", finding.message, finding.fix)},
        "locations": [location(&finding.place, None)],
        "partialFingerprints": {"cofferdam/v1": finding.fingerprint},
    });
    if !finding.related.is_empty() {
        let related: Vec<Value> = (finding.related.iter())
            .map(|related| location(&related.place, Some(&related.text)))
            .collect();
        result["relatedLocations"] = Value::Array(related);
    }
    if let Some(suppression) = &finding.suppressed {
        result["suppressions"] = json!([{
            "kind": "inSource",
            "justification": suppression.reason,
        }]);
    }
    result
}

fn location(place: &Place, text: Option<&str>) -> Value {
    let mut location = json!({
        "physicalLocation": {
            "artifactLocation": {"uri": uri(&place.file)},
            "region": {"startLine": place.line.max(1), "startColumn": place.column.max(1)},
        },
    });
    if let Some(text) = text {
        location["message"] = json!({"text": text});
    }
    location
}

const fn level(level: Level) -> &'static str {
    level.name()
}

/// A path as a URI reference, with everything escaped that may not stand in one (RFC 3986).
fn uri(path: &str) -> String {
    let path = path.strip_prefix("./").unwrap_or(path);
    let mut uri = String::with_capacity(path.len());
    for byte in path.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'/' | b'-' | b'.' | b'_' | b'~') {
            uri.push(char::from(byte));
        } else {
            uri.push_str(&format!("%{byte:02X}"));
        }
    }
    uri
}

/// `shadowed-rule` as `ShadowedRule`, the style that SARIF asks for in names.
fn pascal(id: &str) -> String {
    id.split('-')
        .flat_map(|word| {
            let mut letters = word.chars();
            letters
                .next()
                .map(|first| first.to_ascii_uppercase())
                .into_iter()
                .chain(letters)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_become_uris() {
        assert_eq!(
            uri("./policies/shop ü#1.yaml"),
            "policies/shop%20%C3%BC%231.yaml"
        );
        assert_eq!(uri("<stdin>"), "%3Cstdin%3E");
        assert_eq!(pascal("any-any-allow"), "AnyAnyAllow");
    }
}
