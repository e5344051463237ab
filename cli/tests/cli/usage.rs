//! Help, completions and bad flags.

use crate::command::run;
use crate::expected;

const VERBS: &[&[&str]] = &[
    &["apply"],
    &["diff"],
    &["confirm"],
    &["rollback"],
    &["history"],
    &["get"],
    &["explain"],
    &["status"],
    &["workloads"],
    &["flows"],
    &["edges"],
    &["findings"],
    &["isolate"],
    &["restore"],
    &["token"],
    &["token", "create"],
    &["revoke"],
    &["policy"],
    &["policy", "eval"],
    &["policy", "test"],
    &["policy", "check"],
    &["policy", "explain"],
    &["policy", "import"],
    &["policy", "import", "aws"],
    &["policy", "import", "iptables"],
    &["policy", "import", "terraform"],
    &["policy", "import", "nftables"],
    &["context"],
    &["context", "add"],
    &["context", "use"],
    &["context", "list"],
    &["context", "remove"],
    &["completions"],
];

#[test]
fn every_verb_has_help() {
    let home = tempfile::tempdir().unwrap();
    for verb in VERBS {
        let result = run(home.path(), &[verb, &["--help"][..]].concat()).expect(0);
        assert!(result.stdout.contains("Usage: cofferdam "), "{result:?}");
        assert!(result.stdout.contains("--operator-dir"), "{result:?}");
        assert_eq!(result.stderr, "");
        // Without a description a verb is only a name.
        assert!(
            !result.stdout.starts_with("Usage"),
            "{verb:?} has no description"
        );
    }
}

#[test]
fn the_list_of_verbs() {
    let home = tempfile::tempdir().unwrap();
    let result = run(home.path(), &["-h"]).expect(0);
    expected::check("help.txt", &result.stdout);
    let bare = run(home.path(), &[]).expect(1);
    assert!(bare.stderr.contains("Usage: cofferdam"), "{bare:?}");
    let version = run(home.path(), &["--version"]).expect(0);
    assert!(version.stdout.starts_with("cofferdam "), "{version:?}");
}

#[test]
fn completions_for_every_shell() {
    let home = tempfile::tempdir().unwrap();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let result = run(home.path(), &["completions", shell]).expect(0);
        assert!(result.stdout.contains("isolate"), "{shell}");
    }
}

#[test]
fn bad_flags_name_what_is_wrong() {
    let home = tempfile::tempdir().unwrap();
    for (args, said) in [
        (&["aply"][..], "unrecognized subcommand"),
        (&["apply"], "--file"),
        (
            &["apply", "-f", "x", "--confirm-within", "soon"],
            "write it like 90s",
        ),
        (
            &["apply", "-f", "x", "--confirm-within", "0s"],
            "longer than nothing",
        ),
        (
            &["apply", "-f", "x", "--no-confirm", "--confirm-within", "9s"],
            "cannot be used with",
        ),
        (&["status", "--percent", "50"], "--wait"),
        (
            &["status", "--wait", "--percent", "101"],
            "between 0 and 100",
        ),
        (&["explain", "a", "b", "http"], "\"http\" is no port"),
        (&["flows", "--port", "70000"], "is no port"),
        (&["flows", "--protocol", "tpc"], "tcp, udp, sctp"),
        (&["get", "polcy"], "there is no kind"),
        (&["get", "-o", "xml"], "invalid value 'xml'"),
        (
            &[
                "token",
                "create",
                "--workload",
                "w",
                "--address",
                "10.0.0.1/8",
            ],
            "did you mean 10.0.0.0/8",
        ),
        (
            &[
                "token",
                "create",
                "--workload",
                "w",
                "--address",
                "::1",
                "--label",
                "x",
            ],
            "KEY=VALUE",
        ),
        (&["rollback", "new"], "invalid value 'new'"),
        (&["policy", "eval", "--at", "noon"], "2026-11-23T10:00:00Z"),
        (&["completions", "csh"], "invalid value 'csh'"),
        (
            &[
                "status",
                "--controller",
                "http://c:1",
                "--operator-dir",
                ".",
            ],
            "https://",
        ),
    ] {
        let result = run(home.path(), args).expect(1);
        assert!(result.stderr.contains(said), "{args:?}: {result:?}");
        assert_eq!(result.stdout, "", "{args:?}");
    }
}
