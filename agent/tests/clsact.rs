//! The agent on clsact filters, as kernels without TCX have them: the same promises, kept by other means.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests: one that fails fails the test"
)]

mod common;

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use agent::kernel::attach::{Holder, Hooks, holders};
use common::{Lab, in_namespace};

/// A host whose agents take clsact filters; the peer may reach 5432 and not 22.
fn lab(test: &str) -> Option<Lab> {
    let lab = Lab::new(test)?;
    lab.configure("hooks", "clsact".into());
    lab.allow(&[5432]);
    Some(lab)
}

/// Ours on both hooks of a device of the host.
fn ours(lab: &Lab, device: &str) -> Vec<Holder> {
    in_namespace(&lab.host, || {
        let index = nix::net::if_::if_nametoindex(device).expect("index");
        holders(index)
            .into_iter()
            .filter(|holder| holder.ours)
            .collect()
    })
}

/// One of ours on each hook of `h0`, all of one kind; gives their programs.
fn one_each(lab: &Lab, hooks: Hooks) -> Vec<u32> {
    let found = ours(lab, "h0");
    let sides: Vec<(bool, Hooks)> = found
        .iter()
        .map(|holder| (holder.ingress, holder.hooks))
        .collect();
    assert_eq!(sides, [(true, hooks), (false, hooks)], "{found:?}");
    found.iter().map(|holder| holder.program).collect()
}

fn tc(lab: &Lab, arguments: &[&str]) {
    let done = Command::new("tc")
        .args(["-n", &lab.host])
        .args(arguments)
        .output()
        .expect("tc runs");
    assert!(
        done.status.success(),
        "tc {arguments:?}: {}",
        String::from_utf8_lossy(&done.stderr)
    );
}

/// Runs while somebody else looks all the time whether each hook of `h0` is held, and knocks at a closed port.
fn without_a_gap(lab: &mut Lab, run: impl FnOnce(&mut Lab)) {
    let shut = lab.listen(23);
    shut.set_nonblocking(true).expect("nonblocking");
    let (host, peer, to) = (lab.host.clone(), lab.peer.clone(), lab.v4());
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looking = scope.spawn(|| {
            in_namespace(&host, || {
                let index = nix::net::if_::if_nametoindex("h0").expect("index");
                let mut looks = 0u64;
                while !done.load(Ordering::Relaxed) {
                    let found = holders(index);
                    for ingress in [true, false] {
                        // Listing is two questions: the new hold may come after the first, the old one go
                        // before the second. Both being missed twice in a row is no accident of looking.
                        let held = |found: &[Holder]| {
                            found
                                .iter()
                                .any(|holder| holder.ours && holder.ingress == ingress)
                        };
                        assert!(
                            held(&found) || held(&holders(index)),
                            "nobody holds a hook (ingress: {ingress})"
                        );
                    }
                    looks += 1;
                }
                looks
            })
        });
        let knocking = scope.spawn(|| {
            in_namespace(&peer, || {
                let mut knocks = 0u64;
                while !done.load(Ordering::Relaxed) {
                    let sent = knock(to, 23);
                    knocks += u64::from(sent);
                }
                knocks
            })
        });
        let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| run(lab)));
        done.store(true, Ordering::Relaxed);
        let looks = looking.join().expect("each hook is held all the time");
        let knocks = knocking.join().expect("knocking");
        if let Err(panic) = result {
            std::panic::resume_unwind(panic);
        }
        assert!(looks > 20, "{looks} looks");
        assert!(knocks > 100, "{knocks} knocks");
    });
    assert!(shut.accept().is_err(), "somebody came in");
}

/// One SYN, without waiting for its answer.
fn knock(to: std::net::IpAddr, port: u16) -> bool {
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrStorage, connect, socket};
    let fd = socket(
        AddressFamily::Inet,
        SockType::Stream,
        SockFlag::SOCK_NONBLOCK,
        None,
    )
    .expect("socket");
    let to = SockaddrStorage::from(std::net::SocketAddr::new(to, port));
    match connect(std::os::fd::AsRawFd::as_raw_fd(&fd), &to) {
        Ok(()) | Err(nix::errno::Errno::EINPROGRESS) => true,
        Err(errno) => panic!("connect: {errno}"),
    }
}

#[test]
fn default_deny_and_a_change_of_policy() {
    let Some(mut lab) = lab("default_deny_and_a_change_of_policy") else {
        return;
    };
    let status = lab.start();
    assert_eq!(status["devices"][0]["how"], "filter");
    one_each(&lab, Hooks::Clsact);
    let (open, shut) = (lab.listen(5432), lab.listen(22));
    let mut live = [lab.session(&open, lab.v4()), lab.session(&open, lab.v6())];
    for address in [lab.v4(), lab.v6()] {
        assert!(lab.connect(address, 22).is_err(), "{address}: denied");
    }
    assert!(live.iter_mut().all(common::Session::works), "allowed");
    lab.allow(&[22]);
    lab.verb(&["apply", "--now"]);
    assert!(live.iter_mut().all(|session| !session.works()), "cut");
    for address in [lab.v4(), lab.v6()] {
        assert!(lab.session(&shut, address).works(), "{address}: allowed");
        assert!(lab.connect(address, 5432).is_err(), "{address}: denied");
    }
}

#[test]
fn filters_outlive_a_killed_agent_and_the_next_one_replaces_the_programs() {
    let Some(mut lab) =
        lab("filters_outlive_a_killed_agent_and_the_next_one_replaces_the_programs")
    else {
        return;
    };
    let before = lab.start();
    let old = one_each(&lab, Hooks::Clsact);
    let (open, _shut) = (lab.listen(5432), lab.listen(22));
    let mut live = [lab.session(&open, lab.v4()), lab.session(&open, lab.v6())];
    assert!(live.iter_mut().all(common::Session::works));
    without_a_gap(&mut lab, |lab| {
        lab.kill();
        let dead = lab.verb(&["status"]);
        assert_eq!(dead["daemon"], false);
        assert_eq!(dead["devices"][0]["device"], "h0");
        assert_eq!(dead["devices"][0]["how"], "filter");
        assert!(
            live.iter_mut().all(common::Session::works),
            "sessions go on"
        );
        assert!(lab.session(&open, lab.v6()).works(), "new ones too");
        for address in [lab.v4(), lab.v6()] {
            assert!(lab.connect(address, 22).is_err(), "denials too");
        }
        let after = lab.start();
        assert_eq!(after["generation"], before["generation"]);
        assert_eq!(after["devices"][0]["how"], "filter-adopted");
    });
    let new = one_each(&lab, Hooks::Clsact);
    assert!(
        new.iter().all(|program| !old.contains(program)),
        "{old:?} {new:?}"
    );
    assert!(live.iter_mut().all(common::Session::works));
    assert!(lab.connect(lab.v4(), 22).is_err());
}

#[test]
fn detach_takes_the_filters_off_with_and_without_the_agent() {
    let Some(mut lab) = lab("detach_takes_the_filters_off_with_and_without_the_agent") else {
        return;
    };
    let shut = lab.listen(22);
    for dead in [false, true] {
        lab.start();
        assert!(lab.connect(lab.v4(), 22).is_err());
        if dead {
            lab.kill();
            assert!(lab.connect(lab.v4(), 22).is_err());
        }
        let done = lab.verb(&["detach", "--leave", "open"]);
        assert_eq!(done["daemon"], !dead);
        lab.wait("the agent is gone", |lab| !lab.pinned().exists());
        assert_eq!(ours(&lab, "h0"), []);
        for address in [lab.v4(), lab.v6()] {
            assert!(lab.session(&shut, address).works(), "{address}: open");
        }
        lab.kill();
    }
}

#[test]
fn a_switch_of_hooks_leaves_neither_a_gap_nor_both() {
    let Some(mut lab) = lab("a_switch_of_hooks_leaves_neither_a_gap_nor_both") else {
        return;
    };
    lab.configure("hooks", "auto".into());
    let before = lab.start();
    if ours(&lab, "h0")
        .iter()
        .any(|holder| holder.hooks == Hooks::Clsact)
    {
        common::skip(
            "a_switch_of_hooks_leaves_neither_a_gap_nor_both",
            "needs a kernel with TCX",
        );
        return;
    }
    let open = lab.listen(5432);
    let mut session = lab.session(&open, lab.v4());
    for (word, hooks, how) in [
        ("clsact", Hooks::Clsact, "filter"),
        ("auto", Hooks::Auto, "linked"),
        ("clsact", Hooks::Clsact, "filter"),
    ] {
        without_a_gap(&mut lab, |lab| {
            lab.kill();
            lab.configure("hooks", word.into());
            let status = lab.start();
            assert_eq!(status["devices"][0]["how"], how);
            assert_eq!(status["generation"], before["generation"]);
        });
        one_each(&lab, hooks);
        assert!(session.works(), "sessions go on");
        assert!(lab.session(&open, lab.v6()).works());
    }
    lab.kill();
    // Whatever the configuration says now, all of it goes.
    lab.configure("hooks", "auto".into());
    lab.verb(&["detach", "--leave", "open"]);
    assert_eq!(ours(&lab, "h0"), []);
}

#[test]
fn devices_that_are_left_out_are_let_go() {
    let Some(mut lab) = lab("devices_that_are_left_out_are_let_go") else {
        return;
    };
    lab.start();
    one_each(&lab, Hooks::Clsact);
    lab.kill();
    lab.configure("devices", serde_json::json!({ "include": ["h1"] }));
    lab.spawn();
    lab.wait("the device is let go", |lab| ours(lab, "h0").is_empty());
}

#[test]
fn filters_of_others_stay_and_a_filter_that_is_taken_away_comes_back() {
    let Some(mut lab) = lab("filters_of_others_stay_and_a_filter_that_is_taken_away_comes_back")
    else {
        return;
    };
    if Command::new("tc").arg("-V").output().is_err() {
        common::skip(
            "filters_of_others_stay_and_a_filter_that_is_taken_away_comes_back",
            "needs tc",
        );
        return;
    }
    lab.start();
    let filter = ["filter", "add", "dev", "h0", "ingress", "prio", "9"];
    let all = ["bpf", "bytecode", "1,6 0 0 0,"];
    tc(&lab, &[filter.as_slice(), all.as_slice()].concat());
    tc(
        &lab,
        &["filter", "del", "dev", "h0", "ingress", "prio", "7"],
    );
    lab.wait("the filter is back", |lab| ours(lab, "h0").len() == 2);
    assert!(lab.connect(lab.v4(), 22).is_err());
    let report = lab.try_verb(&["preflight"]).expect("preflight");
    assert_eq!(report["hook"], "clsact");
    let told = report["devices"].to_string();
    assert!(told.contains("ingress clsact filter 9 bpf"), "{told}");
    assert!(!told.contains("cofferdam"), "{told}");
    lab.verb(&["detach", "--leave", "open"]);
    lab.wait("the agent is gone", |lab| !lab.pinned().exists());
    let left: Vec<String> = in_namespace(&lab.host, || {
        let index = nix::net::if_::if_nametoindex("h0").expect("index");
        holders(index)
            .into_iter()
            .map(|holder| holder.text)
            .collect()
    });
    assert_eq!(left.len(), 1, "{left:?}");
}

#[test]
fn three_capabilities_are_enough_for_filters_too() {
    let Some(mut lab) = lab("three_capabilities_are_enough_for_filters_too") else {
        return;
    };
    if Command::new("setpriv").arg("--version").output().is_err() {
        common::skip(
            "three_capabilities_are_enough_for_filters_too",
            "needs setpriv",
        );
        return;
    }
    let (open, _shut) = (lab.listen(5432), lab.listen(22));
    lab.confine();
    for how in ["filter", "filter-adopted"] {
        let status = lab.start();
        assert_eq!(status["devices"][0]["how"], how);
        assert_eq!(status["last_error"], "");
        assert!(lab.session(&open, lab.v4()).works());
        assert!(lab.connect(lab.v4(), 22).is_err());
        lab.kill();
    }
    one_each(&lab, Hooks::Clsact);
}
