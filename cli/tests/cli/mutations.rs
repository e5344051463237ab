//! Verbs that change something.

use std::fs;

use proto::v1;
use tonic::Code;

use crate::expected;
use crate::fake::{Behaviour, Fake};

const POLICY: &str = "\
apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {name: shop-db}
spec:
  state: enforced
  subject: {app: db}
  ingress:
    - action: allow
      peers: [{selector: {app: web}}]
      ports: [{port: 5432}]
";

fn with_policy(behaviour: Behaviour) -> Fake {
    let fake = Fake::start(behaviour);
    fs::write(fake.home().join("shop.yaml"), POLICY).unwrap();
    fake
}

#[test]
fn apply_shows_the_diff_the_deadline_and_how_to_confirm() {
    let fake = with_policy(Behaviour::default());
    let run = fake.run(&["apply", "-f", "shop.yaml"]).expect(0);
    expected::check("apply.txt", &run.stdout);
    let run = fake
        .run(&["apply", "-f", "shop.yaml", "-o", "json"])
        .expect(0);
    expected::check("apply.json", &run.stdout);
    let seen = fake.seen().pop().unwrap();
    assert!(seen.contains("name: \"shop.yaml\""), "{seen}");
    assert!(seen.contains("confirm_within_seconds: 0"), "{seen}");
}

#[test]
fn the_confirm_line_repeats_the_connection_flags() {
    let fake = with_policy(Behaviour::default());
    let directory = fake.operator_dir();
    let args = [
        "--controller",
        fake.url(),
        "--operator-dir",
        directory.to_str().unwrap(),
    ];
    let run = fake
        .run(&[&["apply", "-f", "shop.yaml", "-o", "json"], &args[..]].concat())
        .expect(0);
    assert_eq!(
        run.json()["confirm_command"],
        format!("cofferdam {} confirm --revision 12", args.join(" "))
    );
}

#[test]
fn apply_sends_what_the_flags_say() {
    let fake = with_policy(Behaviour::default());
    fake.run(&[
        "apply",
        "-f",
        "shop.yaml",
        "--prune",
        "--confirm-within",
        "90s",
        "--expect-revision",
        "11",
        "--idempotency-key",
        "k1",
    ])
    .expect(0);
    let seen = fake.seen().pop().unwrap();
    for part in [
        "prune: true",
        "confirm_within_seconds: 90",
        "expected_revision: 11",
        "idempotency_key: \"k1\"",
    ] {
        assert!(seen.contains(part), "{seen}");
    }
    fake.run(&["apply", "-f", "shop.yaml", "--no-confirm"])
        .expect(0);
    assert!(
        fake.seen()
            .pop()
            .unwrap()
            .contains("confirm_within_seconds: -1")
    );
    let run = fake
        .run(&["apply", "-f", "shop.yaml", "--dry-run"])
        .expect(0);
    expected::check("apply-dry-run.txt", &run.stdout);
    assert!(fake.seen().pop().unwrap().contains("dry_run: true"));
}

#[test]
fn a_file_that_is_wrong_never_reaches_the_server() {
    let fake = Fake::start(Behaviour::default());
    fs::write(
        fake.home().join("bad.yaml"),
        POLICY.replace("ingress", "ingres"),
    )
    .unwrap();
    let run = fake.run(&["apply", "-f", "bad.yaml"]).expect(1);
    assert!(run.stderr.starts_with("bad.yaml:7:3: error: "), "{run:?}");
    assert!(run.stderr.ends_with("nothing was applied\n"), "{run:?}");
    assert!(fake.seen().is_empty());
    let run = fake
        .run(&["diff", "-f", "bad.yaml", "-o", "json"])
        .expect(1);
    assert_eq!(run.json()["problems"][0]["line"], 7);
}

#[test]
fn what_the_server_finds_is_shown_like_what_is_found_here() {
    let fake = with_policy(Behaviour {
        problems: vec![v1::Problem {
            file: "shop.yaml".into(),
            line: 9,
            column: 15,
            message: "there is no AddressGroup \"offce\"".into(),
            suggestion: "did you mean \"office\"?".into(),
        }],
        ..Behaviour::default()
    });
    for verb in ["apply", "diff"] {
        let run = fake.run(&[verb, "-f", "shop.yaml"]).expect(1);
        assert_eq!(
            run.stderr,
            "shop.yaml:9:15: error: there is no AddressGroup \"offce\"; did you mean \
             \"office\"?\nnothing was applied\n"
        );
    }
    let run = fake.run(&["rollback", "10"]).expect(1);
    assert!(run.stderr.contains("nothing was rolled back"), "{run:?}");
}

#[test]
fn diff_tells_changes_by_its_exit_code() {
    let fake = with_policy(Behaviour::default());
    let run = fake.run(&["diff", "-f", "shop.yaml"]).expect(2);
    expected::check("apply-dry-run.txt", &run.stdout);
    assert!(fake.seen().pop().unwrap().contains("dry_run: true"));
    let fake = with_policy(Behaviour {
        unchanged: true,
        ..Behaviour::default()
    });
    let run = fake.run(&["diff", "-f", "shop.yaml"]).expect(0);
    assert_eq!(run.stdout, "no changes; revision 12\n");
}

#[test]
fn confirm_and_rollback() {
    let fake = Fake::start(Behaviour::default());
    let run = fake.run(&["confirm", "--revision", "12"]).expect(0);
    assert_eq!(run.stdout, "revision 12 is final\n");
    let run = fake.run(&["confirm", "-o", "json"]).expect(0);
    assert_eq!(run.json(), serde_json::json!({"revision": 12}));
    let run = fake.run(&["rollback", "10"]).expect(0);
    expected::check("rollback.txt", &run.stdout);
    assert!(fake.seen().pop().unwrap().contains("to_revision: 10"));
}

#[test]
fn isolate_succeeds_only_when_all_have_verified() {
    let complete = Fake::start(Behaviour {
        isolation_complete: true,
        ..Behaviour::default()
    });
    let run = complete
        .run(&[
            "isolate",
            "web-1",
            "--ttl",
            "30m",
            "--reason",
            "seen scanning",
        ])
        .expect(0);
    assert!(
        run.stdout.starts_with("web-1 isolated: revision 13, 3 of 3 agents verified\n  stored         2.2 ms\n  sent           3.5 ms\n  verified      41.8 ms\n  answered  "),
        "{run:?}"
    );
    let seen = complete.seen().pop().unwrap();
    for part in [
        "ttl_seconds: 1800",
        "reason: \"seen scanning\"",
        "wait_milliseconds: 5000",
    ] {
        assert!(seen.contains(part), "{seen}");
    }
    let partly = Fake::start(Behaviour::default());
    let run = partly.run(&["isolate", "web-1", "-o", "json"]).expect(1);
    let mut json = run.json();
    assert!(json["answered_ms"].take().as_f64().unwrap() > 0.0);
    expected::check(
        "isolate-partly.json",
        &format!("{}\n", serde_json::to_string_pretty(&json).unwrap()),
    );
    let run = partly.run(&["restore", "web-1"]).expect(1);
    assert!(run.stdout.contains("NOT proved restored"), "{run:?}");
    assert!(run.stdout.ends_with("not verified: db-2\n"), "{run:?}");
}

#[test]
fn tokens_and_revocation() {
    let fake = Fake::start(Behaviour::default());
    let args = [
        "token",
        "create",
        "--workload",
        "web-1",
        "--label",
        "app=web",
        "--label",
        "env=prod",
        "--address",
        "10.0.0.5",
        "--address",
        "fd00::/64",
        "--ttl",
        "2h",
    ];
    let run = fake.run(&args).expect(0);
    expected::check("token.txt", &run.stdout);
    let run = fake.run(&[&args[..], &["-o", "json"]].concat()).expect(0);
    expected::check("token.json", &run.stdout);
    let seen = fake.seen().pop().unwrap();
    assert!(seen.contains("ttl_seconds: 7200"), "{seen}");
    assert!(
        seen.contains("length: 32") && seen.contains("length: 64"),
        "{seen}"
    );
    let run = fake.run(&["revoke", "web-1"]).expect(0);
    assert_eq!(run.stdout, "the agent of web-1 is revoked (revision 14)\n");
}

#[test]
fn keys_are_fresh_unless_given() {
    let fake = Fake::start(Behaviour::default());
    fake.run(&["confirm"]).expect(0);
    fake.run(&["confirm"]).expect(0);
    let seen = fake.seen();
    assert_ne!(seen[0], seen[1]);
}

#[test]
fn refusals_say_what_to_do_next() {
    for (code, said, next) in [
        (
            Code::Aborted,
            "refused: moved on",
            "next: look at what changed",
        ),
        (
            Code::PermissionDenied,
            "not allowed: moved on",
            "next: ask somebody",
        ),
        (
            Code::Unauthenticated,
            "not authenticated: moved on",
            "next: use an operator's",
        ),
        (Code::NotFound, "error: moved on", ""),
    ] {
        let fake = Fake::start(Behaviour {
            fail: Some((code, "moved on".into())),
            ..Behaviour::default()
        });
        let run = fake.run(&["confirm"]).expect(1);
        assert!(
            run.stderr.contains(said) && run.stderr.contains(next),
            "{run:?}"
        );
        assert_eq!(run.stdout, "");
    }
}

#[test]
fn a_mutation_without_an_answer_can_be_repeated_safely() {
    let fake = Fake::start(Behaviour {
        hang: true,
        ..Behaviour::default()
    });
    let run = fake.run(&["confirm", "--request-timeout", "1s"]).expect(1);
    assert!(run.stderr.contains("no answer within 1s"), "{run:?}");
    assert!(run.stderr.contains("--idempotency-key "), "{run:?}");
}
