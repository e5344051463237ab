//! Live output and waiting.

use std::io::{BufRead as _, BufReader, Read as _};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::expected;
use crate::fake::{Behaviour, Fake};

fn spawn(command: &mut Command) -> Child {
    command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Reads so many lines of what a child prints.
fn lines(child: &mut Child, count: usize) -> String {
    let mut reader = BufReader::new(child.stdout.as_mut().unwrap());
    let mut text = String::new();
    for _ in 0..count {
        reader.read_line(&mut text).unwrap();
    }
    text
}

fn interrupt(child: &Child) {
    let id = child.id().to_string();
    assert!(
        Command::new("kill")
            .args(["-INT", &id])
            .status()
            .unwrap()
            .success()
    );
}

#[test]
fn following_prints_at_once_and_ends_with_ctrl_c() {
    let fake = Fake::start(Behaviour::default());
    let mut child = spawn(fake.command().args(["flows", "--follow"]));
    expected::check("flows-follow.txt", &lines(&mut child, 4));
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(0));

    let mut child = spawn(fake.command().args(["flows", "-f", "-o", "json"]));
    let text = lines(&mut child, 3);
    for line in text.lines() {
        let flow: serde_json::Value = serde_json::from_str(line).unwrap();
        assert!(flow["uid"].is_string());
    }
    interrupt(&child);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_stream_whose_server_ends_it_is_an_error() {
    let fake = Fake::start(Behaviour {
        end_streams: true,
        ..Behaviour::default()
    });
    for verb in ["flows", "findings"] {
        let run = fake.run(&[verb, "-f", "-o", "json"]).expect(1);
        assert!(run.stderr.contains("ended the stream"), "{run:?}");
        assert!(!run.stdout.is_empty());
    }
}

#[test]
fn a_follower_is_told_what_it_missed() {
    let fake = Fake::start(Behaviour {
        hostile: true,
        end_streams: true,
        ..Behaviour::default()
    });
    let run = fake.run(&["flows", "-f", "-o", "json"]).expect(1);
    assert_eq!(
        run.stdout.lines().last(),
        Some(r#"{"missed":17}"#),
        "{run:?}"
    );
    let run = fake.run(&["flows", "-f"]).expect(1);
    assert!(run.stderr.starts_with("17 flows came faster"), "{run:?}");
}

#[test]
fn a_stream_whose_server_dies_is_an_error() {
    let mut fake = Fake::start(Behaviour::default());
    let mut child = spawn(fake.command().args(["flows", "-f", "-o", "json"]));
    lines(&mut child, 3);
    fake.stop();
    let code = child.wait().unwrap().code();
    let mut stderr = String::new();
    child.stderr.unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!(code, Some(1), "{stderr}");
    assert!(stderr.contains("stream from https://127.0.0.1"), "{stderr}");
    assert!(stderr.contains("next: "), "{stderr}");
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let fake = Fake::start(Behaviour::default());
    let mut child = spawn(fake.command().args(["flows", "-o", "json"]));
    drop(child.stdout.take());
    let code = child.wait().unwrap().code();
    let mut stderr = String::new();
    child.stderr.unwrap().read_to_string(&mut stderr).unwrap();
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
}

#[test]
fn status_waits_until_the_fleet_has_verified() {
    let fake = Fake::start(Behaviour {
        verified: vec![10, 11, 12],
        ..Behaviour::default()
    });
    let run = fake
        .run(&["status", "--wait", "--revision", "12", "-o", "json"])
        .expect(0);
    let wait = &run.json()["wait"];
    assert_eq!(wait["reached"], true);
    assert_eq!(
        (wait["verified"].as_u64(), wait["agents"].as_u64()),
        (Some(2), Some(2))
    );
}

#[test]
fn status_gives_up_in_time() {
    let fake = Fake::start(Behaviour {
        verified: vec![11],
        ..Behaviour::default()
    });
    let start = Instant::now();
    let run = fake.run(&["status", "--wait", "--timeout", "1s"]).expect(1);
    assert!(start.elapsed() < Duration::from_secs(8));
    assert!(
        run.stdout
            .contains("revision 12: 1 of 2 agents verified after"),
        "{run:?}"
    );
    assert_eq!(run.stderr, "not reached in time\n");
    fake.run(&["status", "--wait", "--percent", "50", "--timeout", "5s"])
        .expect(0);
}
