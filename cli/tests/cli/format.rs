//! `policy fmt` and `policy schema`.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};

use crate::command::{run, run_with_input};

const UGLY: &str = "# ours
apiVersion:   cofferdam.dev/v1
kind: AddressGroup
metadata: { name: office }   # one place
spec: {cidrs:  [ 192.0.2.0/24 ]}
";

const NEAT: &str = "# ours
apiVersion: cofferdam.dev/v1
kind: AddressGroup
metadata: {name: office} # one place
spec: {cidrs: [192.0.2.0/24]}
";

#[test]
fn check_and_diff_write_nothing() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("a.yaml"), UGLY).unwrap();
    fs::write(home.path().join("b.yaml"), NEAT.replace("office", "other")).unwrap();
    let result = run(home.path(), &["policy", "fmt", "--check", "."]).expect(2);
    assert_eq!(result.stdout, "would format ./a.yaml\n");
    assert_eq!(result.stderr, "1 of 2 files to be formatted\n");
    let result = run(home.path(), &["policy", "fmt", "--diff", "a.yaml"]).expect(0);
    assert!(
        result.stdout.starts_with("--- a.yaml\n+++ a.yaml\n@@ "),
        "{}",
        result.stdout
    );
    assert!(
        result
            .stdout
            .contains("\n-apiVersion:   cofferdam.dev/v1\n+apiVersion: cofferdam.dev/v1\n")
    );
    let result = run(
        home.path(),
        &["policy", "fmt", "--check", "--diff", "-o", "json", "."],
    )
    .expect(2);
    let json = result.json();
    assert_eq!(
        (json["changed"].as_u64(), json["written"].as_bool()),
        (Some(1), Some(false))
    );
    assert!(json["files"][0]["diff"].is_string() && json["files"][1]["diff"].is_null());
    assert_eq!(
        fs::read_to_string(home.path().join("a.yaml")).unwrap(),
        UGLY
    );
}

#[test]
fn writes_whole_files_and_keeps_mode_and_link() {
    let home = tempfile::tempdir().unwrap();
    let (real, link) = (home.path().join("real.yaml"), home.path().join("link.yaml"));
    fs::write(&real, UGLY).unwrap();
    fs::set_permissions(&real, fs::Permissions::from_mode(0o640)).unwrap();
    symlink("real.yaml", &link).unwrap();
    let result = run(home.path(), &["policy", "fmt", "link.yaml"]).expect(0);
    assert_eq!(result.stdout, "formatted link.yaml\n");
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read_to_string(&real).unwrap(), NEAT);
    assert_eq!(
        fs::metadata(&real).unwrap().permissions().mode() & 0o7777,
        0o640
    );
    let result = run(home.path(), &["policy", "fmt", "--check", "real.yaml"]).expect(0);
    assert_eq!(result.stdout, "");
    // Nothing is left behind.
    assert_eq!(fs::read_dir(home.path()).unwrap().count(), 2);
}

#[test]
fn stdin_goes_to_stdout() {
    let home = tempfile::tempdir().unwrap();
    let result = run_with_input(home.path(), &["policy", "fmt", "-"], UGLY).expect(0);
    assert_eq!(result.stdout, NEAT);
    run_with_input(home.path(), &["policy", "fmt", "--check", "-"], UGLY).expect(2);
}

#[test]
fn one_file_that_does_not_parse_keeps_all_as_they_are() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("a.yaml"), UGLY).unwrap();
    fs::write(home.path().join("b.yaml"), "kind: [").unwrap();
    let result = run(home.path(), &["policy", "fmt", "."]).expect(1);
    assert!(result.stderr.contains("./b.yaml:1:"), "{result:?}");
    assert_eq!(
        fs::read_to_string(home.path().join("a.yaml")).unwrap(),
        UGLY
    );
}

#[test]
fn the_schema_is_json() {
    let home = tempfile::tempdir().unwrap();
    let schema = run(home.path(), &["policy", "schema"]).expect(0).json();
    assert_eq!(
        schema["$schema"],
        "https://json-schema.org/draft/2020-12/schema"
    );
    assert!(schema["$defs"]["Policy"].is_object());
    let schema = run(home.path(), &["policy", "schema", "--inventory"])
        .expect(0)
        .json();
    assert!(schema["properties"]["workloads"].is_object());
    run(home.path(), &["policy", "schema", "-o", "yaml"]).expect(1);
}
