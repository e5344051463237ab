//! `docs/cli.md` shows what the program really prints.

use std::fs;
use std::path::Path;

const SHOWN: &[&str] = &[
    "apply.txt",
    "apply-dry-run.txt",
    "edges.txt",
    "eval.jsonl",
    "explain.txt",
    "findings.txt",
    "flows.txt",
    "get.txt",
    "get.yaml",
    "history.txt",
    "import.txt",
    "plan.txt",
    "import-kubernetes.yaml",
    "lint.txt",
    "policy-explain.txt",
    "recommend.txt",
    "status.txt",
    "test-fail.txt",
    "token.txt",
    "workloads.txt",
];

#[test]
fn the_manual_shows_what_is_printed() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manual = fs::read_to_string(root.join("../docs/cli.md")).unwrap();
    for name in SHOWN {
        let printed = fs::read_to_string(root.join("tests/expected").join(name)).unwrap();
        let block: String = printed
            .lines()
            .map(|line| match line {
                "" => "\n".to_owned(),
                _ => format!("    {line}\n"),
            })
            .collect();
        assert!(
            manual.contains(&block),
            "docs/cli.md lacks {name}:\n{block}"
        );
    }
}

#[test]
fn the_manual_names_every_field() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let manual = fs::read_to_string(root.join("../docs/cli.md")).unwrap();
    for entry in fs::read_dir(root.join("tests/expected")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "json") {
            continue;
        }
        let value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        let mut fields = Vec::new();
        collect(&value, &mut fields);
        for field in fields {
            let quoted = [format!("`{field}`"), format!("`{field}[]`")];
            assert!(
                quoted.iter().any(|field| manual.contains(field)),
                "docs/cli.md lacks the field {field} of {}",
                path.display()
            );
        }
    }
}

/// Names of all fields; what is below labels, causes, classes and the controller's walk is not ours.
fn collect(value: &serde_json::Value, fields: &mut Vec<String>) {
    match value {
        serde_json::Value::Object(map) => {
            for (key, value) in map {
                fields.push(key.clone());
                if !matches!(
                    key.as_str(),
                    "documents" | "labels" | "losses" | "walk" | "classes"
                ) {
                    collect(value, fields);
                }
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| collect(item, fields)),
        _ => {}
    }
}
