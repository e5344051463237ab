//! The deny-rate breaker over real connections: a change that cuts what is in use trips it, a scan does not.
#![allow(clippy::expect_used, clippy::panic, reason = "tests")]

mod common;

use common::{Lab, Session, in_namespace};
use serde_json::{Value, json};
use std::net::TcpListener;

const PORTS: [u16; 5] = [7001, 7002, 7003, 7004, 7005];

struct Scene {
    lab: Lab,
    listeners: Vec<TcpListener>,
    sessions: Vec<Session>,
}

/// Five sessions over five edges, under a breaker that lets four be cut.
fn scene(test: &str, action: &str) -> Option<Scene> {
    let mut lab = Lab::new(test)?;
    lab.configure("breaker", json!({ "edges": 4, "action": action }));
    lab.allow(&PORTS);
    let status = lab.start();
    assert_eq!(status["breaker"], Value::Null);
    let listeners: Vec<_> = PORTS.iter().map(|port| lab.listen(*port)).collect();
    let mut sessions: Vec<_> = listeners
        .iter()
        .map(|listener| lab.session(listener, lab.v4()))
        .collect();
    assert!(sessions.iter_mut().all(Session::works));
    Some(Scene {
        lab,
        listeners,
        sessions,
    })
}

fn status(lab: &Lab) -> Value {
    lab.verb(&["status"])
}

/// One SYN to each port that nobody was ever let in to.
fn scan(lab: &Lab) {
    in_namespace(&lab.peer, || {
        // Not waited for: a socket that does not block sends its SYN and returns.
        let sockets: Vec<_> = (20_000..21_000u16)
            .map(|port| {
                use nix::sys::socket::{
                    AddressFamily, SockFlag, SockType, SockaddrIn, connect, socket,
                };
                let socket = socket(
                    AddressFamily::Inet,
                    SockType::Stream,
                    SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
                    None,
                )
                .expect("socket");
                let to = SockaddrIn::new(10, 66, 0, 1, port);
                let begun = connect(std::os::fd::AsRawFd::as_raw_fd(&socket), &to);
                assert_eq!(begun, Err(nix::errno::Errno::EINPROGRESS));
                socket
            })
            .collect();
        drop(sockets);
    });
}

#[test]
fn a_change_that_cuts_five_edges_in_use_is_taken_back() {
    let test = "a_change_that_cuts_five_edges_in_use_is_taken_back";
    let Some(mut scene) = scene(test, "fall-back") else {
        return;
    };
    let revision = status(&scene.lab)["revision"].as_u64().expect("revision");
    scene.lab.allow(&[]);
    scene.lab.verb(&["apply", "--confirm-within", "300s"]);
    let cut = scene
        .sessions
        .iter_mut()
        .filter_map(|session| (!session.works()).then_some(()));
    assert!(cut.count() >= 4, "the change cuts");
    scene
        .lab
        .wait("the breaker trips", |lab| !status(lab)["breaker"].is_null());
    let after = status(&scene.lab);
    let trip = &after["breaker"];
    assert_eq!(trip["count"], 5, "{trip}");
    assert_eq!(trip["fell_back"], true, "{trip}");
    assert_eq!(trip["edges"][0]["peer"], "10.66.0.2", "{trip}");
    assert_eq!(after["pending"], false, "{after}");
    assert_eq!(after["revision"], revision, "{after}");
    assert_eq!(after["fell_back_from"], revision + 1, "{after}");
    // The old content is enforced: these ports are open again, and no other ever was.
    for (listener, port) in scene.listeners.iter().zip(PORTS) {
        let client = scene.lab.connect(scene.lab.v4(), port).expect("open again");
        listener.accept().expect("accept");
        drop(client);
    }
    let _other = scene.lab.listen(7100);
    assert!(scene.lab.connect(scene.lab.v4(), 7100).is_err());
    // And it is remembered.
    scene.lab.kill();
    assert_eq!(scene.lab.start()["breaker"]["count"], 5);
}

#[test]
fn a_change_that_cuts_too_much_is_reported_and_goes_on() {
    let test = "a_change_that_cuts_too_much_is_reported_and_goes_on";
    let Some(mut scene) = scene(test, "report") else {
        return;
    };
    scene.lab.allow(&[]);
    scene.lab.verb(&["apply", "--confirm-within", "300s"]);
    for session in &mut scene.sessions {
        assert!(!session.works());
    }
    scene
        .lab
        .wait("the breaker trips", |lab| !status(lab)["breaker"].is_null());
    let after = status(&scene.lab);
    assert_eq!(after["breaker"]["fell_back"], false, "{after}");
    assert_eq!(after["pending"], true, "{after}");
    assert!(
        after["last_error"]
            .as_str()
            .is_some_and(|text| text.contains("cuts 5 edges that were in use")),
        "{after}"
    );
    assert!(scene.lab.connect(scene.lab.v4(), PORTS[0]).is_err());
}

#[test]
fn four_cut_edges_and_a_scan_of_a_thousand_ports_do_not_trip_it() {
    let test = "four_cut_edges_and_a_scan_of_a_thousand_ports_do_not_trip_it";
    let Some(mut scene) = scene(test, "fall-back") else {
        return;
    };
    scan(&scene.lab);
    scene.lab.allow(&PORTS[4..]);
    scene.lab.verb(&["apply", "--confirm-within", "300s"]);
    scan(&scene.lab);
    let (kept, cut) = scene.sessions.split_last_mut().expect("sessions");
    for session in cut {
        assert!(!session.works());
    }
    assert!(kept.works());
    // Once the records of the scan and of the cut are there, the breaker has seen them.
    scene.lab.wait("the scan is recorded", |lab| {
        let records = lab.records();
        let denied: std::collections::BTreeSet<_> = records
            .iter()
            .filter(|record| record["allowed"] == false && record["revision"].as_u64() > Some(1))
            .filter_map(|record| record["responder_port"].as_u64())
            .collect();
        denied.range(20_000..21_000).count() >= 900
            && PORTS[..4]
                .iter()
                .all(|port| denied.contains(&u64::from(*port)))
    });
    let after = status(&scene.lab);
    assert_eq!(after["breaker"], Value::Null, "{after}");
    assert_eq!(after["pending"], true, "{after}");
}
