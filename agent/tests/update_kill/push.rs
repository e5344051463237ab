//! Changes of policy by the agent's engine over loaded programs, in a process of its own that dies under way.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use agent::kernel::Kernel;
use agent::kernel::clock::{boot_id, boot_ns};
use agent::kernel::content::Part;
use agent::kernel::loader::INGRESS;
use agent::reconcile::plan::Limits;
use agent::reconcile::store::{Store, Stored};
use agent::reconcile::{ApplyError, Engine, Found, Push, SystemClock};
use datapath::abi::ActiveWord;
use datapath::ids::Direction::Ingress;
use datapath::pipeline::Action;

use crate::contents::{CONTENTS, crossed, mixture, snapshot, tables, telling, told};
use crate::steps::{End, killed_after, killed_before};
use crate::support::frames::is_v6;
use crate::support::rig::Rig;
use crate::support::rng::{Rng, seed, setting};
use crate::support::run::passes;
use crate::support::twin::{ROOMY, default_config};

type HostEngine = Engine<Arc<Kernel>, SystemClock>;

/// A day: no deadline comes while a test runs.
const LATER: Duration = Duration::from_secs(86_400);

/// The loaded programs and a state directory.
struct Bench {
    rig: Rig,
    dir: tempfile::TempDir,
    revision: u64,
    probes: Vec<Vec<u8>>,
    /// Content by digest of its tables.
    known: BTreeMap<[u8; 32], u8>,
}

/// What is to be found after a death.
struct After {
    /// One of these is active.
    active: &'static [u8],
    /// While something waits for its confirmation, the kernel would fall back to one of these.
    fallback: &'static [u8],
    /// Contents that nobody has confirmed: whoever finds one active finds it waiting.
    unconfirmed: &'static [u8],
    /// Contents that are being confirmed: they wait, or are final.
    confirming: &'static [u8],
}

impl Bench {
    fn open() -> Option<Self> {
        let rig = Rig::open(ROOMY)?;
        rig.set_config(&default_config());
        let bench = Self {
            rig,
            dir: tempfile::tempdir().expect("a directory"),
            revision: 1,
            probes: telling(),
            known: (0..CONTENTS).map(|n| (tables(n).digest(), n)).collect(),
        };
        bench.show_that_mixtures_are_seen();
        let mut engine = bench.engine();
        assert_eq!(engine.start(&[]).expect("start"), Found::Fresh);
        engine.arm().expect("arm");
        Some(bench)
    }

    /// The packets tell every mixture of two contents from both.
    fn show_that_mixtures_are_seen(&self) {
        self.rig.fill(0, &tables(0));
        // What the kernel alone splits a table into is no part of a content.
        for part in Part::ALL
            .into_iter()
            .filter(|part| !tables(0).part(*part).is_empty())
        {
            self.rig.fill(1, &mixture(0, 1, part));
            // A verdict is remembered for its generation.
            self.rig.set_word(ActiveWord::committed(1 + part as u32, 1));
            // Modes say nothing by themselves here; the digest of the tables does.
            assert!(
                self.seen().is_none() || part == Part::Endpoints,
                "{part:?} of another content is not seen"
            );
            assert!(!self.known.contains_key(&mixture(0, 1, part).digest()));
            let slips = crossed()
                .iter()
                .any(|frame| self.rig.send(frame, Ingress, None) == Some(Action::Pass));
            assert_eq!(
                slips,
                matches!(part, Part::Addr4 | Part::Addr6 | Part::Rules)
            );
        }
        self.rig.set_word(ActiveWord(0));
    }

    fn engine(&self) -> HostEngine {
        Engine::new(
            Arc::clone(&self.rig.kernel),
            SystemClock,
            Store::open(self.dir.path()).expect("the state directory"),
            Limits::default(),
            boot_id().expect("the boot has an id"),
        )
        .expect("an engine")
    }

    /// The next agent.
    fn adopted(&self) -> HostEngine {
        let mut engine = self.engine();
        assert_eq!(engine.start(&[]).expect("start"), Found::Adopted);
        engine
    }

    /// The content that packets meet; `None` when it is none of those that were pushed.
    fn seen(&self) -> Option<u8> {
        self.rig.kernel.clear_flows().expect("flows");
        let passed: Vec<bool> = self
            .probes
            .iter()
            .map(|frame| self.rig.send(frame, Ingress, None) == Some(Action::Pass))
            .collect();
        told(&passed)
    }

    fn next(&mut self, which: u8) -> policy::snapshot::Snapshot {
        self.revision += 1;
        snapshot(which, self.revision)
    }

    /// Makes `good` final, and lets `waiting` wait over it.
    fn begin(&mut self, good: u8, waiting: Option<u8>) {
        let mut engine = self.adopted();
        if self.rig.kernel.word().is_pending() {
            engine.confirm(0).expect("confirm");
        }
        engine.apply(Push::now(self.next(good))).expect("a push");
        if let Some(waiting) = waiting {
            let push = Push {
                confirm_within: Some(LATER),
                ..Push::now(self.next(waiting))
            };
            engine.apply(push).expect("a push");
        }
        assert_eq!(self.seen(), Some(waiting.unwrap_or(good)));
    }

    /// The content of a slot.
    fn held(&self, slot: u32) -> Option<u8> {
        let content = self.rig.kernel.read(slot).expect("the slot is readable")?;
        self.known.get(&content.digest()).copied()
    }

    /// What a death has left is whole, the next agent knows it, and it can be changed again.
    fn look(&self, after: &After, when: &str) -> u8 {
        let word = self.rig.kernel.word();
        let (_, slot, fell) = word.effective(boot_ns() / 1_000_000_000);
        let seen = self
            .seen()
            .unwrap_or_else(|| panic!("{when}: packets meet a mixture"));
        assert!(
            after.active.contains(&seen),
            "{when}: content {seen} is active"
        );
        assert_eq!(self.held(slot), Some(seen), "{when}: the tables are others");
        if word.is_pending() && !fell {
            let fallback = self.held(slot ^ 1);
            assert!(
                fallback.is_some_and(|content| after.fallback.contains(&content)),
                "{when}: the fall-back holds {fallback:?}"
            );
        }
        let engine = self.adopted();
        let active = engine.active().expect("something is active");
        let digest = Stored::new(snapshot(seen, 0)).digest;
        assert_eq!(
            active.digest, digest,
            "{when}: the next agent takes it for another"
        );
        assert_eq!(
            self.seen(),
            Some(seen),
            "{when}: the next agent changes nothing"
        );
        let word = self.rig.kernel.word();
        assert!(
            after.confirming.contains(&seen)
                || word.is_pending() == after.unconfirmed.contains(&seen),
            "{when}: {word:?}"
        );
        if word.is_pending() {
            let fallback = self.held(word.slot() ^ 1);
            assert!(
                fallback.is_some_and(|content| after.fallback.contains(&content)),
                "{when}: the next agent's fall-back holds {fallback:?}"
            );
        } else {
            let good = engine
                .store()
                .good()
                .expect("readable")
                .expect("a snapshot");
            assert_eq!(good.digest, digest, "{when}: a boot would bring another");
        }
        seen
    }
}

/// One change: from which state, what is done, what may be found.
struct Change {
    name: &'static str,
    good: u8,
    waiting: Option<u8>,
    act: fn(&mut HostEngine, u64) -> Result<(), ApplyError>,
    after: After,
    /// What is active when nobody is killed.
    done: u8,
}

const CHANGES: [Change; 7] = [
    Change {
        name: "a final change",
        good: 0,
        waiting: None,
        act: |engine, revision| engine.apply(Push::now(snapshot(1, revision))).map(drop),
        after: After {
            active: &[0, 1],
            fallback: &[],
            unconfirmed: &[],
            confirming: &[],
        },
        done: 1,
    },
    Change {
        name: "a change that waits",
        good: 0,
        waiting: None,
        act: |engine, revision| {
            let push = Push {
                confirm_within: Some(LATER),
                ..Push::now(snapshot(1, revision))
            };
            engine.apply(push).map(drop)
        },
        after: After {
            active: &[0, 1],
            fallback: &[0],
            unconfirmed: &[1],
            confirming: &[],
        },
        done: 1,
    },
    Change {
        name: "a confirmation",
        good: 0,
        waiting: Some(1),
        act: |engine, _| engine.confirm(0).map(drop),
        after: After {
            active: &[1],
            fallback: &[0],
            unconfirmed: &[],
            confirming: &[1],
        },
        done: 1,
    },
    Change {
        name: "a return to what was before",
        good: 0,
        waiting: Some(1),
        act: |engine, revision| engine.fall_back(revision - 1),
        after: After {
            active: &[0, 1],
            fallback: &[0],
            unconfirmed: &[1],
            confirming: &[],
        },
        done: 0,
    },
    Change {
        name: "a change that waits in place of another one",
        good: 0,
        waiting: Some(1),
        act: |engine, revision| {
            let push = Push {
                confirm_within: Some(LATER),
                ..Push::now(snapshot(2, revision))
            };
            engine.apply(push).map(drop)
        },
        after: After {
            active: &[1, 2],
            fallback: &[0],
            unconfirmed: &[1, 2],
            confirming: &[],
        },
        done: 2,
    },
    Change {
        name: "an urgent change of what waits and of what it falls back to",
        good: 0,
        waiting: Some(1),
        act: |engine, revision| {
            let push = Push {
                urgent: true,
                fallback: Some(snapshot(3, revision)),
                ..Push::now(snapshot(2, revision))
            };
            engine.apply(push).map(drop)
        },
        after: After {
            active: &[1, 2],
            fallback: &[0, 3],
            unconfirmed: &[1, 2],
            confirming: &[],
        },
        done: 2,
    },
    Change {
        name: "a change that brings what it falls back to",
        good: 0,
        waiting: None,
        act: |engine, revision| {
            let push = Push {
                confirm_within: Some(LATER),
                fallback: Some(snapshot(3, revision)),
                ..Push::now(snapshot(1, revision))
            };
            engine.apply(push).map(drop)
        },
        after: After {
            active: &[0, 3, 1],
            fallback: &[3],
            unconfirmed: &[1],
            confirming: &[],
        },
        done: 1,
    },
];

/// Sends packets that only a mixture lets in, until told to stop: how many, and how many passed.
struct Watch<'a> {
    stop: &'a AtomicBool,
    sent: &'a AtomicU64,
    passed: &'a AtomicU64,
}

impl Watch<'_> {
    fn run(&self, program: &std::os::fd::OwnedFd) {
        let mut frames = crossed();
        let mut ports = (1024..=u16::MAX).cycle();
        while !self.stop.load(Ordering::Acquire) {
            // Denials of a tuple are remembered: each packet is to be judged.
            let port = ports.next().expect("a cycle").to_be_bytes();
            for frame in &mut frames {
                let at = if is_v6(frame) { 54 } else { 34 };
                frame[at..at + 2].copy_from_slice(&port);
                let passed = passes(program, frame);
                self.passed.fetch_add(u64::from(passed), Ordering::Relaxed);
            }
            self.sent.fetch_add(2, Ordering::Relaxed);
            std::thread::yield_now();
        }
    }
}

/// Calls `work` while packets that only a mixture lets in keep coming.
fn watched(bench: &mut Bench, work: impl FnOnce(&mut Bench)) {
    let program = bench.rig.kernel.program_fd(INGRESS).expect("a program");
    let (stop, sent, passed) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let watch = Watch {
        stop: &stop,
        sent: &sent,
        passed: &passed,
    };
    /// Whatever happens to the work, the watch ends.
    struct Stop<'a>(&'a AtomicBool);
    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    std::thread::scope(|scope| {
        scope.spawn(|| watch.run(&program));
        let _stop = Stop(&stop);
        work(bench);
    });
    let (sent, passed) = (sent.into_inner(), passed.into_inner());
    println!("{sent} packets that only a mixture lets in, {passed} passed");
    assert_eq!(passed, 0, "a packet met a mixture");
    assert!(sent > 100);
}

/// Dies at every step of a change, one after the other, until the change is made.
fn every_step(change: &Change) {
    let Some(mut bench) = Bench::open() else {
        return;
    };
    let mut died = BTreeMap::<String, usize>::new();
    let mut left = BTreeMap::<u8, usize>::new();
    watched(&mut bench, |bench| {
        for nth in 0.. {
            bench.begin(change.good, change.waiting);
            bench.revision += 1;
            let revision = bench.revision;
            let end = killed_before(nth, || {
                let mut engine = bench.engine();
                engine.start(&[]).map_err(|error| error.to_string())?;
                (change.act)(&mut engine, revision).map_err(|error| error.to_string())
            });
            let when = format!("{}, step {nth}, {end:?}", change.name);
            let seen = bench.look(&change.after, &when);
            *left.entry(seen).or_default() += 1;
            match end {
                End::Killed(call) => *died.entry(call).or_default() += 1,
                End::Done(code) => {
                    assert_eq!((code, seen), (0, change.done), "{when}");
                    break;
                }
            }
        }
    });
    println!("{}: died before {died:?}", change.name);
    println!(
        "{}: content left behind, and how often: {left:?}",
        change.name
    );
    let steps: usize = died.values().sum();
    assert!(steps >= 8, "{steps} steps");
    for content in change.after.active {
        assert!(
            left.contains_key(content),
            "content {content} was never left"
        );
    }
}

#[test]
fn a_final_change() {
    every_step(&CHANGES[0]);
}

#[test]
fn a_change_that_waits() {
    every_step(&CHANGES[1]);
}

#[test]
fn a_confirmation() {
    every_step(&CHANGES[2]);
}

#[test]
fn a_return_to_what_was_before() {
    every_step(&CHANGES[3]);
}

#[test]
fn a_change_that_waits_in_place_of_another_one() {
    every_step(&CHANGES[4]);
}

#[test]
fn an_urgent_change_of_what_waits_and_of_what_it_falls_back_to() {
    every_step(&CHANGES[5]);
}

#[test]
fn a_change_that_brings_what_it_falls_back_to() {
    every_step(&CHANGES[6]);
}

/// Whatever a call is doing when the signal comes.
#[test]
fn at_any_time() {
    let Some(mut bench) = Bench::open() else {
        return;
    };
    let mut rng = Rng::new(seed(3));
    let rounds = setting("COFFERDAM_TEST_DEATHS", 60);
    let mut left = BTreeMap::<(&str, u8), usize>::new();
    let mut killed = 0;
    watched(&mut bench, |bench| {
        // As long as a change takes undisturbed; measured on the way.
        let mut longest = Duration::from_millis(20);
        for round in 0..rounds {
            let change = &CHANGES[round % CHANGES.len()];
            bench.begin(change.good, change.waiting);
            bench.revision += 1;
            let revision = bench.revision;
            let time = longest.mul_f64(rng.below(1_000) as f64 / 1_000.0);
            let began = Instant::now();
            let end = killed_after(time, || {
                let mut engine = bench.engine();
                engine.start(&[]).map_err(|error| error.to_string())?;
                (change.act)(&mut engine, revision).map_err(|error| error.to_string())
            });
            match end {
                End::Done(_) => longest = began.elapsed(),
                End::Killed(_) => {
                    killed += 1;
                    // Long enough that the end of a change is met too.
                    longest = longest.mul_f64(1.1);
                }
            }
            let seen = bench.look(&change.after, &format!("{}, after {time:?}", change.name));
            *left.entry((change.name, seen)).or_default() += 1;
        }
    });
    println!("{killed} of {rounds} killed; content left behind, and how often: {left:?}");
    assert!(killed > rounds / 4, "{killed} of {rounds} killed");
}
