//! The JSON Schema and the parser, held against each other in both directions: what the parser accepts
//! validates, and what it refuses for a structural reason does not.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "tests"
)]

use std::collections::BTreeMap;

use jsonschema::Validator;
use policy::parse::parse;
use policy::problems::Problems;
use policy::schema;
use policy::source::Source;
use policy::testing::{Random, objects};
use policy::world::World;
use serde_json::{Value, json};

const GUIDE: &str = include_str!("../../docs/policy.md");

/// Documents that use every field of every kind.
const FULL: &str = include_str!("data/full.yaml");

fn validator(schema: &Value) -> Validator {
    jsonschema::draft202012::meta::validate(schema).unwrap();
    jsonschema::draft202012::new(schema).unwrap()
}

fn documents(text: &str) -> Vec<Value> {
    serde_saphyr::from_multiple::<Value>(text).unwrap()
}

/// Blocks of the guide with exactly this info string.
fn guide(info: &str) -> Vec<Value> {
    let mut blocks = Vec::new();
    let mut lines = GUIDE.lines();
    while let Some(line) = lines.next() {
        if let Some(found) = line.strip_prefix("```") {
            let text: Vec<&str> = lines.by_ref().take_while(|line| *line != "```").collect();
            if found == info {
                blocks.extend(documents(&text.join("\n")));
            }
        }
    }
    blocks
}

fn accepted() -> Vec<Value> {
    let mut all = documents(FULL);
    all.extend(guide("yaml"));
    for seed in 0..40 {
        all.extend(
            objects(&mut Random::new(seed))
                .iter()
                .map(|object| object.to_json()),
        );
    }
    all.retain(|document| !document.is_null() && read(document).is_ok());
    all
}

fn read(document: &Value) -> Result<(), Problems> {
    parse(&[Source::new("x.json", document.to_string())]).map(|_| ())
}

#[test]
fn the_committed_copies_are_current() {
    let docs = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/schema");
    for (name, generated) in [
        ("policy.schema.json", schema::documents()),
        ("inventory.schema.json", schema::inventory()),
    ] {
        let text = serde_json::to_string_pretty(&generated).unwrap() + "\n";
        if std::env::var_os("COFFERDAM_EXPECTED").is_some_and(|value| value == "write") {
            std::fs::write(docs.join(name), &text).unwrap();
        }
        let committed = std::fs::read_to_string(docs.join(name)).unwrap_or_default();
        assert!(
            committed == text,
            "docs/schema/{name} differs; if that is meant, run with COFFERDAM_EXPECTED=write"
        );
    }
}

#[test]
fn what_the_parser_accepts_validates() {
    let validator = validator(&schema::documents());
    let accepted = accepted();
    assert!(accepted.len() > 300, "{}", accepted.len());
    for document in &accepted {
        if let Err(error) = validator.validate(document) {
            panic!("{error} at {}\n{document:#}", error.instance_path());
        }
    }
    let inventories = guide("yaml inventory");
    assert_eq!(inventories.len(), 1);
    let validator = self::validator(&schema::inventory());
    assert!(validator.is_valid(&inventories[0]));
}

/// The full documents use every field that the schema has.
#[test]
fn the_full_documents_are_full() {
    let mut used: Vec<String> = Vec::new();
    for document in documents(FULL) {
        read(&document).unwrap();
        keys(&document, &mut used);
    }
    let mut known = Vec::new();
    properties(&schema::documents(), &mut known);
    assert!(known.len() > 50, "{}", known.len());
    for name in known {
        assert!(used.contains(&name), "no full document uses {name}");
    }
}

fn keys(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                found.push(key.clone());
                keys(value, found);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| keys(item, found)),
        _ => {}
    }
}

fn properties(schema: &Value, found: &mut Vec<String>) {
    match schema {
        Value::Object(map) => {
            if let (Some(Value::Object(fields)), Some(_)) =
                (map.get("properties"), map.get("additionalProperties"))
            {
                found.extend(fields.keys().cloned());
            }
            map.values().for_each(|value| properties(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| properties(item, found)),
        _ => {}
    }
}

/// Whether a refusal is one that a schema can say.
fn is_structural(problems: &Problems) -> bool {
    problems.0.iter().any(|problem| {
        let text = &problem.message;
        text.starts_with("unknown ")
            || text.contains("\" must be ")
            || text.contains(" has no \"")
            || text.contains(", outside ")
            || text.starts_with("there is no \"subject\"")
            || text.contains("says nothing")
            || text.contains("says two things")
            || text.contains("brings its own protocol and port")
            || text.contains("\"endPort\" needs a \"port\"")
            || text.contains("\"except\" needs a \"cidr\"")
            || text.contains(" is a text")
    })
}

/// Every way to spoil one place of a document.
fn mutations(document: &Value) -> Vec<Value> {
    let mut paths = Vec::new();
    places(document, "", &mut paths);
    let mut spoilt = Vec::new();
    for path in &paths {
        for new in [
            json!(true),
            json!(7),
            json!(-1),
            json!(70_000),
            json!(1.5),
            json!("some-word"),
            json!("443"),
            json!([]),
            json!({}),
            json!(["x"]),
            json!([{}]),
            json!({"someField": "x"}),
        ] {
            let mut changed = document.clone();
            *changed.pointer_mut(path).unwrap() = new;
            spoilt.push(changed);
        }
        let (parent, key) = path.rsplit_once('/').unwrap();
        let key = key.replace("~1", "/").replace("~0", "~");
        let mut changed = document.clone();
        if let Some(Value::Object(map)) = changed.pointer_mut(parent) {
            let value = map.remove(&key).unwrap();
            spoilt.push(changed.clone());
            if let Some(Value::Object(map)) = changed.pointer_mut(parent) {
                map.insert(format!("{key}x"), value);
            }
            spoilt.push(changed);
        }
        for extra in [
            "endPort",
            "service",
            "selector",
            "entity",
            "code",
            "someField",
        ] {
            let mut changed = document.clone();
            if let Some(Value::Object(map)) = changed.pointer_mut(path) {
                map.insert(extra.to_owned(), json!("x"));
                spoilt.push(changed);
            }
        }
    }
    spoilt
}

fn places(value: &Value, path: &str, found: &mut Vec<String>) {
    let escape = |key: &str| key.replace('~', "~0").replace('/', "~1");
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                let path = format!("{path}/{}", escape(key));
                found.push(path.clone());
                places(value, &path, found);
            }
        }
        Value::Array(items) => {
            for (index, value) in items.iter().enumerate() {
                let path = format!("{path}/{index}");
                found.push(path.clone());
                places(value, &path, found);
            }
        }
        _ => {}
    }
}

#[test]
fn both_refuse_what_is_spoilt() {
    let validator = validator(&schema::documents());
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let sample: Vec<Value> = documents(FULL).into_iter().chain(guide("yaml")).collect();
    for document in sample.iter().flat_map(mutations) {
        let valid = validator.is_valid(&document);
        match read(&document) {
            Ok(()) => {
                *counts.entry("accepted").or_default() += 1;
                assert!(
                    valid,
                    "the parser accepts, the schema refuses:\n{document:#}"
                );
            }
            Err(problems) if is_structural(&problems) => {
                *counts.entry("refused by both").or_default() += 1;
                assert!(
                    !valid,
                    "the parser refuses, the schema accepts: {problems}\n{document:#}"
                );
            }
            Err(_) => *counts.entry("refused for its meaning").or_default() += 1,
        }
    }
    println!("{counts:?}");
    assert!(counts.values().all(|count| *count > 100), "{counts:?}");
}

#[test]
fn inventories_too() {
    let validator = validator(&schema::inventory());
    let mut refused = 0;
    for document in guide("yaml inventory").iter().flat_map(mutations) {
        let valid = validator.is_valid(&document);
        match World::parse(&Source::new("inv.json", document.to_string())) {
            Ok(_) => assert!(valid, "{document:#}"),
            Err(problems) if is_structural(&problems) => {
                refused += 1;
                assert!(!valid, "{problems}\n{document:#}");
            }
            Err(_) => {}
        }
    }
    assert!(refused > 100, "{refused}");
}
