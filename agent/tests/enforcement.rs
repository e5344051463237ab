//! The agent on a real kernel: what passes, what does not, and what goes on without it.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests: one that fails fails the test"
)]

mod common;

use std::time::{Duration, Instant};

use common::Lab;

#[test]
fn default_deny_and_allow_rules_on_both_families() {
    let Some(mut lab) = Lab::new("default_deny_and_allow_rules_on_both_families") else {
        return;
    };
    let open = lab.listen(5432);
    let shut = lab.listen(22);
    assert!(
        lab.connect(lab.v4(), 22).is_ok(),
        "before arming everything passes"
    );
    drop(shut.accept());
    lab.allow(&[5432]);
    lab.start();
    for address in [lab.v4(), lab.v6()] {
        assert!(lab.session(&open, address).works(), "{address}: allowed");
        assert!(lab.connect(address, 22).is_err(), "{address}: denied");
    }
    lab.wait("denials and flows are recorded", |lab| {
        let records = lab.records();
        let has = |family: &str, port: u64, denial: bool| {
            records.iter().any(|record| {
                record["responder_port"] == port
                    && record["denial"] == denial
                    && record["responder"]
                        .as_str()
                        .is_some_and(|address| address.contains(family))
                    && record["rule"]
                        .as_str()
                        .is_some_and(|rule| rule.starts_with("standard/db/ingress"))
            })
        };
        has("10.66", 22, true)
            && has("fd66", 22, true)
            && has("10.66", 5432, false)
            && has("fd66", 5432, false)
    });
    let explained = lab.verb(&["explain", "web-1", "self", "22"]);
    assert_eq!(explained["ends"][0]["enforced"], "deny");
    assert_eq!(explained["ends"][0]["reason"], "default-deny");
}

#[test]
fn a_change_of_policy_cuts_a_live_session() {
    let Some(mut lab) = Lab::new("a_change_of_policy_cuts_a_live_session") else {
        return;
    };
    lab.allow(&[5432, 22]);
    lab.start();
    let (kept, cut) = (lab.listen(5432), lab.listen(22));
    let mut kept = [lab.session(&kept, lab.v4()), lab.session(&kept, lab.v6())];
    let mut cut = [lab.session(&cut, lab.v4()), lab.session(&cut, lab.v6())];
    assert!(kept.iter_mut().chain(&mut cut).all(common::Session::works));
    let before = lab.verb(&["status"])["revision"].as_u64();
    lab.allow(&[5432]);
    let applied = lab.verb(&["apply", "--now"]);
    assert!(applied["revision"].as_u64() > before);
    assert!(
        cut.iter_mut().all(|session| !session.works()),
        "cut at once"
    );
    assert!(
        kept.iter_mut().all(common::Session::works),
        "allowed sessions go on"
    );
    lab.wait("the cut is recorded", |lab| {
        lab.records()
            .iter()
            .any(|record| record["reason"] == "policy-changed" && record["state"] == "cut")
    });
}

#[test]
fn a_bad_policy_is_refused_whole() {
    let Some(mut lab) = Lab::new("a_bad_policy_is_refused_whole") else {
        return;
    };
    lab.allow(&[5432]);
    let before = lab.start();
    std::fs::write(
        lab.policy_dir().join("bad.yaml"),
        "kind: Policy\nspec: {nonsense: 1}\n",
    )
    .expect("write");
    let error = lab.try_verb(&["apply", "--now"]).expect_err("refused");
    assert!(error.contains("bad.yaml:"), "names the place: {error}");
    let after = lab.verb(&["status"]);
    assert_eq!(before["generation"], after["generation"]);
    assert_ne!(after["last_error"], "");
    let open = lab.listen(5432);
    assert!(lab.session(&open, lab.v4()).works());
}

#[test]
fn enforcement_outlives_a_killed_agent_and_the_next_one_adopts_it() {
    let Some(mut lab) = Lab::new("enforcement_outlives_a_killed_agent_and_the_next_one_adopts_it")
    else {
        return;
    };
    lab.allow(&[5432]);
    let before = lab.start();
    let open = lab.listen(5432);
    let _shut = lab.listen(22);
    let mut session = lab.session(&open, lab.v4());
    assert!(session.works());
    lab.kill();
    let dead = lab.verb(&["status"]);
    assert_eq!(dead["daemon"], false);
    assert_eq!(dead["revision"], before["revision"]);
    assert!(session.works(), "sessions go on");
    assert!(lab.session(&open, lab.v6()).works(), "new ones too");
    assert!(lab.connect(lab.v4(), 22).is_err(), "denials too");
    let after = lab.start();
    assert_eq!(
        after["generation"], before["generation"],
        "nothing was activated anew"
    );
    assert_eq!(after["devices"][0]["how"], "adopted");
    assert!(session.works());
    assert!(lab.connect(lab.v6(), 22).is_err());
    // What ended while no agent ran is recorded by the next one, once.
    lab.wait("the flow of the time between is recorded", |lab| {
        lab.records().iter().any(|record| {
            record["responder"] == "fd66::1"
                && record["responder_port"] == 5432
                && record["closed"] == true
        })
    });
}

#[test]
fn an_unconfirmed_change_falls_back_without_the_agent() {
    let Some(mut lab) = Lab::new("an_unconfirmed_change_falls_back_without_the_agent") else {
        return;
    };
    lab.allow(&[5432]);
    let before = lab.start();
    let open = lab.listen(5432);
    let mut session = lab.session(&open, lab.v4());
    lab.allow(&[]);
    let applied = lab.verb(&["apply", "--confirm-within", "3s"]);
    assert!(
        applied["falls_back_in"]
            .as_u64()
            .is_some_and(|seconds| seconds <= 3)
    );
    assert!(
        lab.connect(lab.v4(), 5432).is_err(),
        "the change is enforced"
    );
    lab.kill();
    lab.wait("the kernel falls back", |lab| {
        lab.connect(lab.v4(), 5432).is_ok()
    });
    // That session was cut by the change before the fall-back: it does not come back by itself.
    let _ = session.works();
    let after = lab.start();
    assert_eq!(after["revision"], before["revision"]);
    assert_eq!(after["fell_back_from"], applied["revision"]);
    assert!(
        after["last_error"]
            .as_str()
            .is_some_and(|text| text.contains("nobody confirmed"))
    );
    while open.accept().is_err() {}
    assert!(
        lab.connect(lab.v4(), 5432).is_ok(),
        "a restart does not make the change again"
    );

    lab.verb(&["apply", "--confirm-within", "60s"]);
    assert!(lab.connect(lab.v4(), 5432).is_err());
    lab.kill();
    let confirmed = lab.verb(&["confirm"]);
    assert!(
        confirmed["confirmed"].as_u64() > before["revision"].as_u64(),
        "also without a daemon"
    );
    let last = lab.start();
    assert_eq!(last["revision"], confirmed["confirmed"]);
    assert_eq!(last["pending"], false);
}

#[test]
fn a_change_that_nobody_confirmed_is_not_made_final_by_a_fresh_start() {
    let Some(mut lab) =
        Lab::new("a_change_that_nobody_confirmed_is_not_made_final_by_a_fresh_start")
    else {
        return;
    };
    lab.allow(&[5432]);
    let before = lab.start();
    let _open = lab.listen(5432);
    lab.allow(&[]);
    lab.verb(&["apply", "--confirm-within", "600s"]);
    assert!(lab.connect(lab.v4(), 5432).is_err());
    lab.kill();
    let done = std::process::Command::new("ip")
        .args(["-n", &lab.host, "addr", "add", "10.66.0.77/24", "dev", "h0"])
        .output()
        .expect("ip");
    assert!(done.status.success(), "{done:?}");
    assert_eq!(
        lab.start()["pending"],
        true,
        "another address is no confirmation"
    );
    // Nothing is pinned afterwards, as after a boot.
    lab.verb(&["detach", "--leave", "open"]);
    lab.wait("the agent lets go", |lab| !lab.pinned().exists());
    lab.kill();
    let after = lab.start();
    assert_eq!(after["revision"], before["revision"]);
    assert!(
        after["last_error"]
            .as_str()
            .is_some_and(|text| text.contains("nobody confirmed")),
        "{}",
        after["last_error"]
    );
    assert!(lab.connect(lab.v4(), 5432).is_ok());
}

#[test]
fn apply_without_changes_waits_for_nobody() {
    let Some(mut lab) = Lab::new("apply_without_changes_waits_for_nobody") else {
        return;
    };
    lab.allow(&[5432]);
    let before = lab.start();
    let same = lab.verb(&["apply", "--confirm-within", "60s"]);
    assert_eq!(same["falls_back_in"], serde_json::Value::Null);
    assert_eq!(same["generation"], before["generation"]);
    lab.allow(&[5432, 22]);
    let waiting = lab.verb(&["apply", "--confirm-within", "60s"]);
    let again = lab.verb(&["apply", "--confirm-within", "600s"]);
    assert_eq!(again["generation"], waiting["generation"]);
    assert!(
        again["falls_back_in"]
            .as_u64()
            .is_some_and(|left| left <= 60)
    );
    let done = lab.verb(&["apply", "--now"]);
    assert_eq!(done["falls_back_in"], serde_json::Value::Null);
    assert_eq!(done["revision"], waiting["revision"]);
    let status = lab.verb(&["status"]);
    assert_eq!(status["pending"], false);
    assert_eq!(status["standalone"], true);
}

#[test]
fn explain_says_panic_and_still_names_the_rule() {
    let Some(mut lab) = Lab::new("explain_says_panic_and_still_names_the_rule") else {
        return;
    };
    lab.allow(&[5432]);
    lab.start();
    for mode in ["open", "close", "off"] {
        lab.verb(&["panic", mode]);
        let explained = lab.verb(&["explain", "web-1", "self", "22"]);
        assert_eq!(explained["panic"], mode);
        let text = explained["text"].as_str().unwrap_or_default();
        assert_eq!(
            text.contains(&format!("PANIC {mode}")),
            mode != "off",
            "{text}"
        );
        assert!(
            explained["ends"][0]["rule"]
                .as_str()
                .is_some_and(|rule| rule.starts_with("standard/db/ingress")),
            "{explained}"
        );
    }
}

#[test]
fn arming_knows_who_began_even_if_the_other_end_speaks() {
    let Some(mut lab) = Lab::new("arming_knows_who_began_even_if_the_other_end_speaks") else {
        return;
    };
    let open = lab.listen(5432);
    let mut session = lab.session(&open, lab.v4());
    assert!(session.works());
    lab.allow(&[5432]);
    let mut speaker = session.server.try_clone().expect("clone");
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = std::sync::Arc::clone(&stop);
    let thread = std::thread::spawn(move || {
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            let _ = std::io::Write::write(&mut speaker, b"x");
            std::thread::sleep(Duration::from_micros(100));
        }
    });
    lab.start();
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    thread.join().expect("speaker");
    lab.wait("the flow is recorded", |lab| {
        lab.records()
            .iter()
            .any(|record| record["responder_port"] == 5432 && record["denial"] == false)
    });
    let turned = lab
        .records()
        .iter()
        .any(|record| record["initiator_port"] == 5432);
    assert!(!turned, "the server was taken for the client");
}

#[test]
fn the_panic_switch_works_with_and_without_the_agent() {
    let Some(mut lab) = Lab::new("the_panic_switch_works_with_and_without_the_agent") else {
        return;
    };
    lab.allow(&[5432]);
    lab.start();
    let (open, shut) = (lab.listen(5432), lab.listen(22));
    for dead in [false, true] {
        if dead {
            lab.kill();
        }
        let mut session = lab.session(&open, lab.v4());
        assert!(session.works());
        lab.verb(&["panic", "close"]);
        assert_eq!(lab.verb(&["status"])["panic"], "close");
        assert!(!session.works(), "established flows too");
        assert!(lab.connect(lab.v4(), 5432).is_err());
        lab.verb(&["panic", "open"]);
        let mut opened = lab.session(&shut, lab.v4());
        assert!(opened.works(), "everything passes");
        lab.verb(&["panic", "off"]);
        assert!(!opened.works(), "what only the open host allowed is cut");
        assert!(lab.connect(lab.v4(), 22).is_err());
        assert!(lab.session(&open, lab.v6()).works(), "policy decides again");
    }
}

#[test]
fn detach_leaves_what_was_asked_for() {
    let Some(mut lab) = Lab::new("detach_leaves_what_was_asked_for") else {
        return;
    };
    lab.allow(&[5432]);
    let _shut = lab.listen(22);
    lab.start();
    let error = lab.try_verb(&["detach"]).expect_err("must be said");
    assert!(error.contains("--leave"), "{error}");
    lab.verb(&["detach", "--leave", "enforcing"]);
    lab.wait("the agent stops", |lab| !lab.socket().exists());
    assert!(lab.connect(lab.v4(), 22).is_err());
    lab.verb(&["detach", "--leave", "open"]);
    assert!(lab.connect(lab.v4(), 22).is_ok());
    assert!(!lab.pinned().exists());
}

#[test]
fn a_device_that_appears_later_is_armed() {
    let Some(mut lab) = Lab::new("a_device_that_appears_later_is_armed") else {
        return;
    };
    lab.allow(&[5432]);
    lab.start();
    let add = |arguments: &[&str]| {
        let done = std::process::Command::new("ip")
            .args(arguments)
            .output()
            .expect("ip");
        assert!(done.status.success(), "{arguments:?}");
    };
    add(&[
        "link", "add", "h1", "netns", &lab.host, "type", "veth", "peer", "name", "p1", "netns",
        &lab.peer,
    ]);
    add(&["-n", &lab.host, "link", "set", "h1", "up"]);
    lab.wait("the new device is armed", |lab| {
        lab.verb(&["status"])["devices"]
            .as_array()
            .is_some_and(|devices| devices.iter().any(|device| device["device"] == "h1"))
    });
    add(&["-n", &lab.host, "link", "del", "h1"]);
    lab.wait("the gone device is let go", |lab| {
        lab.verb(&["status"])["devices"]
            .as_array()
            .is_some_and(|devices| devices.len() == 1)
    });
}

#[test]
fn arming_keeps_live_connections_and_then_lets_nobody_in() {
    let Some(mut lab) = Lab::new("arming_keeps_live_connections_and_then_lets_nobody_in") else {
        return;
    };
    const ATTEMPTS: u64 = 10_000;
    let (open, shut) = (lab.listen(5432), lab.listen(22));
    let mut live = [
        lab.session(&open, lab.v4()),
        lab.session(&open, lab.v6()),
        lab.session(&shut, lab.v4()),
        lab.session(&shut, lab.v6()),
    ];
    lab.allow(&[5432]);
    lab.spawn();
    shut.set_nonblocking(true).expect("nonblocking");
    // Somebody keeps knocking while the host is being armed.
    lab.wait("armed while under attack", |lab| {
        knock(lab, 50);
        lab.try_verb(&["status"])
            .is_ok_and(|status| status["daemon"] == true && status["state"] == "armed")
    });
    // Whoever came in before is in; from here on nobody does.
    while shut.accept().is_ok() {}
    let mut attempts = 0;
    let started = Instant::now();
    while attempts < ATTEMPTS {
        attempts += knock(&lab, 500);
        assert!(
            shut.accept().is_err(),
            "an unauthorised connection came in after arming"
        );
        assert!(started.elapsed() < Duration::from_secs(120));
    }
    assert!(shut.accept().is_err());
    assert!(
        live.iter_mut().all(common::Session::works),
        "live connections are kept"
    );
    let status = lab.verb(&["status"]);
    let adopted = |key: &str| status["adopted"][key].as_u64().unwrap_or(0);
    assert!(adopted("adopted") + adopted("known") >= 4);
    assert!(
        status["adopted"]["tolerated"]
            .as_array()
            .is_some_and(|list| list.len() >= 2),
        "and those that policy denies are said: {}",
        status["adopted"]
    );
    // The next change of policy cuts what was only tolerated.
    lab.allow(&[5432, 5433]);
    lab.verb(&["apply", "--now"]);
    let works: Vec<bool> = live.iter_mut().map(common::Session::works).collect();
    assert_eq!(works, [true, true, false, false]);
}

/// Sends SYNs to the closed port, half of them over each family, without waiting for answers.
fn knock(lab: &Lab, count: u64) -> u64 {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
    let doors = [lab.v4(), lab.v6()].map(|address| std::net::SocketAddr::new(address, 22));
    common::in_namespace(&lab.peer, || {
        let mut sent = 0;
        for door in doors.iter().cycle().take(count as usize) {
            let family = if door.is_ipv4() {
                AddressFamily::Inet
            } else {
                AddressFamily::Inet6
            };
            let fd =
                socket(family, SockType::Stream, SockFlag::SOCK_NONBLOCK, None).expect("socket");
            let to = SockaddrStorage::from(*door);
            match connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &to) {
                Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => sent += 1,
                Err(errno) => panic!("connect: {errno}"),
            }
        }
        sent
    })
}

#[test]
fn three_capabilities_are_enough_to_arm_and_to_adopt() {
    let Some(mut lab) = Lab::new("three_capabilities_are_enough_to_arm_and_to_adopt") else {
        return;
    };
    if std::process::Command::new("setpriv")
        .arg("--version")
        .output()
        .is_err()
    {
        common::skip(
            "three_capabilities_are_enough_to_arm_and_to_adopt",
            "needs setpriv",
        );
        return;
    }
    lab.allow(&[5432]);
    let open = lab.listen(5432);
    let _shut = lab.listen(22);
    lab.confine();
    let before = lab.start();
    assert!(
        matches!(before["attribution"]["state"].as_str(), Some("on"))
            || before["attribution"]["missing"]["all"] == "cgroup2 is not mounted",
        "{}",
        before["attribution"]
    );
    assert!(lab.session(&open, lab.v4()).works());
    assert!(lab.connect(lab.v4(), 22).is_err());
    lab.kill();
    let after = lab.start();
    assert_eq!(after["generation"], before["generation"]);
    assert_eq!(after["revision"], before["revision"]);
    assert_eq!(after["last_error"], "");
    lab.allow(&[5432, 22]);
    lab.verb(&["apply", "--now"]);
    assert!(lab.connect(lab.v4(), 22).is_ok());
}

#[test]
fn records_survive_a_killed_agent_without_gap_or_repetition() {
    let Some(mut lab) = Lab::new("records_survive_a_killed_agent_without_gap_or_repetition") else {
        return;
    };
    const CONNECTIONS: usize = 200;
    lab.allow(&[5432]);
    lab.start();
    let open = lab.listen(5432);
    for index in 0..CONNECTIONS {
        drop(lab.session(&open, if index % 2 == 0 { lab.v4() } else { lab.v6() }));
        // In the middle of everything, more than once.
        if index % 60 == 59 {
            lab.kill();
            lab.start();
        }
    }
    let records = |lab: &Lab| -> Vec<proto::v1::FlowRecord> {
        use prost::Message;
        agent::flows::spool::Spool::open(&lab.dir.path().join("state/spool"), u64::MAX)
            .and_then(|spool| spool.read_from(1, usize::MAX))
            .expect("spool")
            .iter()
            .flat_map(|batch| {
                proto::v1::FlowBatch::decode(batch.payload.as_slice())
                    .expect("batch")
                    .records
            })
            .filter(|record| record.responder_port == 5432 && record.closed)
            .collect()
    };
    lab.wait("every connection has its last word", |lab| {
        let uids: std::collections::BTreeSet<String> =
            records(lab).into_iter().map(|record| record.uid).collect();
        uids.len() >= CONNECTIONS
    });
    lab.kill();
    let all = records(&lab);
    let uids: std::collections::BTreeSet<&str> =
        all.iter().map(|record| record.uid.as_str()).collect();
    assert_eq!(
        uids.len(),
        CONNECTIONS,
        "no connection is missing or named twice"
    );
    let said: std::collections::BTreeSet<(&str, u64, u64)> = all
        .iter()
        .map(|record| (record.uid.as_str(), record.packets_out, record.packets_in))
        .collect();
    assert_eq!(said.len(), all.len(), "no last word is said twice");
}

#[test]
fn an_expiry_ends_a_live_session_without_the_agent() {
    let Some(mut lab) = Lab::new("an_expiry_ends_a_live_session_without_the_agent") else {
        return;
    };
    lab.allow(&[5432]);
    let path = lab.policy_dir().join("policy.json");
    let text = std::fs::read_to_string(&path).expect("policy");
    let mut policy: serde_json::Value = serde_json::from_str(&text).expect("policy");
    let end = time::OffsetDateTime::now_utc() + Duration::from_secs(8);
    policy["spec"]["expires"] = end
        .format(&time::format_description::well_known::Rfc3339)
        .expect("time")
        .into();
    std::fs::write(&path, policy.to_string()).expect("policy");
    lab.start();
    let open = lab.listen(5432);
    let mut session = lab.session(&open, lab.v4());
    assert!(session.works(), "before it expires");
    lab.kill();
    assert!(
        time::OffsetDateTime::now_utc() < end,
        "the test was too slow to show anything"
    );
    lab.wait("the session ends", |_| !session.works());
    let late = time::OffsetDateTime::now_utc() - end;
    assert!(late > time::Duration::seconds(-1), "not early: {late}");
    assert!(lab.connect(lab.v4(), 5432).is_err(), "new ones neither");
}
