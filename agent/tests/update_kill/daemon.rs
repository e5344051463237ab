//! The whole agent, on a device of a namespace with real clients, dies at every step of its start.

use std::collections::BTreeMap;
use std::net::{IpAddr, TcpListener};

use crate::common::{Lab, Session};
use crate::steps::{End, program_killed_before};
use crate::support::rng::setting;

/// A host whose peer may reach 5432 and not 22; both are listened on.
struct Scene {
    lab: Lab,
    open: TcpListener,
    shut: TcpListener,
}

impl Scene {
    fn new(test: &str) -> Option<Self> {
        let lab = Lab::new(test)?;
        lab.allow(&[5432]);
        let (open, shut) = (lab.listen(5432), lab.listen(22));
        shut.set_nonblocking(true).expect("nonblocking");
        Some(Self { lab, open, shut })
    }

    /// An agent that dies before its nth call that leaves a trace, or when it serves its operator: it is armed then.
    fn start_and_die(&self, nth: usize) -> End {
        let socket = self.lab.socket();
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => panic!("{error}"),
            _ => {}
        }
        program_killed_before(self.lab.command(), nth, || socket.exists())
    }

    /// Whether the peer gets in where it may not. What is allowed is let in after it on the same wire, so nothing is
    /// waited for.
    fn lets_in(&self, address: IpAddr, when: &str) -> bool {
        let knocking = self.lab.knock(address, 22);
        let mut session = self.lab.session(&self.open, address);
        assert!(session.works(), "{when}: what is allowed does not work");
        drop(knocking);
        self.shut.accept().is_ok()
    }
}

/// Deaths by the call that was not made any more.
#[derive(Default)]
struct Deaths(BTreeMap<String, usize>);

impl Deaths {
    /// Notes an end; false when it was no death before a call.
    fn note(&mut self, end: End, when: &str) -> bool {
        match end {
            End::Killed(call) => {
                *self.0.entry(call).or_default() += 1;
                true
            }
            End::Done(code) => {
                assert_eq!(code, 0, "{when}");
                false
            }
        }
    }

    fn report(&self) {
        let steps: usize = self.0.values().sum();
        println!("{steps} deaths, before {:?}", self.0);
        assert!(steps > 10, "{steps} steps");
    }
}

/// Every second step of a restart from the first one on: what was enforced goes on, live sessions too.
fn restart(test: &str, first: usize) {
    let Some(mut scene) = Scene::new(test) else {
        return;
    };
    let armed = scene.lab.start();
    let addresses = [scene.lab.v4(), scene.lab.v6()];
    let mut live: Vec<Session> = addresses
        .iter()
        .map(|address| scene.lab.session(&scene.open, *address))
        .collect();
    scene.lab.kill();
    let mut deaths = Deaths::default();
    for nth in (first..).step_by(2) {
        let end = scene.start_and_die(nth);
        let when = format!("step {nth}, {end:?}");
        for address in addresses {
            assert!(!scene.lets_in(address, &when), "{when}: {address} got in");
        }
        for session in &mut live {
            assert!(session.works(), "{when}: a live session was cut");
        }
        if !deaths.note(end, &when) {
            break;
        }
    }
    deaths.report();
    let after = scene.lab.start();
    assert_eq!(after["generation"], armed["generation"]);
    assert_eq!(after["last_error"], "");
}

#[test]
fn a_restart_never_opens_and_never_cuts() {
    restart("a_restart_never_opens_and_never_cuts", 0);
}

#[test]
fn a_restart_never_opens_and_never_cuts_every_other_step() {
    restart("a_restart_never_opens_and_never_cuts_every_other_step", 1);
}

/// A host that was never armed is open, or it is armed: no death leaves it closed to what policy allows, or armed on
/// one family or hook only. The next agent arms it, whatever was left. Every tenth step, or as
/// `COFFERDAM_TEST_STRIDE` says.
#[test]
fn a_first_start_leaves_an_open_host_or_an_armed_one() {
    let Some(mut scene) = Scene::new("a_first_start_leaves_an_open_host_or_an_armed_one") else {
        return;
    };
    let stride = setting("COFFERDAM_TEST_STRIDE", 10);
    let mut deaths = Deaths::default();
    let mut left = [0, 0];
    for nth in (0..).step_by(stride) {
        let end = scene.start_and_die(nth);
        let when = format!("step {nth}, {end:?}");
        let [v4, v6] =
            [scene.lab.v4(), scene.lab.v6()].map(|address| scene.lets_in(address, &when));
        assert_eq!(v4, v6, "{when}: one family is armed");
        left[usize::from(!v4)] += 1;
        let died = deaths.note(end, &when);
        // From whatever was left; the last time, and now and then.
        if !died || nth % (4 * stride) == 0 {
            scene.lab.start();
            assert!(
                !scene.lets_in(scene.lab.v4(), &when),
                "{when}: the next agent arms"
            );
            scene.lab.kill();
        }
        if !died {
            break;
        }
        scene.lab.forget();
        // The kernel lets go of links a moment after their pins.
        let (lab, shut) = (&scene.lab, &scene.shut);
        lab.wait("nothing is left", |lab| lab.connect(lab.v4(), 22).is_ok());
        while shut.accept().is_ok() {}
    }
    deaths.report();
    println!("left open {} times, armed {} times", left[0], left[1]);
    assert!(left.iter().all(|times| *times > 0));
}
