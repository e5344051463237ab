//! Contexts.

use crate::command::run;
use crate::fake::{Behaviour, Fake};

#[test]
fn a_context_is_all_that_later_calls_need() {
    let fake = Fake::start(Behaviour::default());
    let home = fake.home();
    run(home, &["workloads"]).expect(1);
    let url = fake.url();
    let add = [
        "context",
        "add",
        "lab",
        "--controller",
        url,
        "--operator-dir",
        "operator",
    ];
    run(home, &add).expect(0);
    let names = run(home, &["workloads", "-o", "name"]).expect(0);
    assert_eq!(names.stdout, "db-1\nweb-1\n");
    let list = run(home, &["context", "list", "-o", "json"])
        .expect(0)
        .json();
    assert_eq!(list["current"], "lab");
    assert_eq!(list["contexts"][0]["controller"], url);
    assert!(std::path::Path::new(list["contexts"][0]["key"].as_str().unwrap()).is_absolute());
}

#[test]
fn contexts_are_chosen_by_name() {
    let fake = Fake::start(Behaviour::default());
    let home = fake.home();
    let add = |name, url| {
        run(
            home,
            &[
                "context",
                "add",
                name,
                "--controller",
                url,
                "--operator-dir",
                "operator",
            ],
        )
        .expect(0)
    };
    add("dead", "https://127.0.0.1:1");
    add("lab", fake.url());
    run(home, &["workloads"]).expect(1);
    run(home, &["workloads", "--context", "lab"]).expect(0);
    run(home, &["context", "use", "lab"]).expect(0);
    run(home, &["workloads"]).expect(0);
    let wrong = run(home, &["context", "use", "lob"]).expect(1);
    assert!(wrong.stderr.contains("there are: dead, lab"), "{wrong:?}");
    run(home, &["context", "remove", "lab"]).expect(0);
    let gone = run(home, &["workloads"]).expect(1);
    assert!(gone.stderr.contains("not known where"), "{gone:?}");
}

#[test]
fn a_context_with_missing_files_is_not_added() {
    let home = tempfile::tempdir().unwrap();
    let args = [
        "context",
        "add",
        "x",
        "--controller",
        "https://c:1",
        "--operator-dir",
        "none",
    ];
    let result = run(home.path(), &args).expect(1);
    assert!(
        result.stderr.contains("cannot find none/ca.pem"),
        "{result:?}"
    );
    let result = run(
        home.path(),
        &["context", "add", "x", "--controller", "http://c:1"],
    )
    .expect(1);
    assert!(result.stderr.contains("mutual TLS"), "{result:?}");
}
