//! The engine against a fake kernel: two slots, a word, and the promise that nobody fills the slot in use.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use policy::snapshot::{AddressBinding, CellVerdict, PortPrefix, RuleCell};

use super::change::*;
use super::engine::Engine;
use super::failsafes::Failsafe;
use super::plan::Limits;
use super::store::{Intent, Store, Stored};
use crate::kernel::KernelError;
use crate::kernel::content::Content;
use datapath::abi::ActiveWord;
use policy::snapshot::{Endpoint, Mode, Snapshot};
use std::time::Duration;

#[derive(Default)]
struct FakeState {
    word: Cell<u64>,
    slots: RefCell<[Option<Content>; 2]>,
    fail_fill: Cell<bool>,
    fail_exchange: Cell<bool>,
    step: Cell<i64>,
    now: Cell<u64>,
    fills: RefCell<Vec<(u32, u64)>>,
}

#[derive(Clone, Default)]
struct Fake(Rc<FakeState>);

impl Slots for Fake {
    fn word(&self) -> ActiveWord {
        ActiveWord(self.0.word.get())
    }

    fn exchange(&self, old: ActiveWord, new: ActiveWord) -> Result<(), KernelError> {
        if self.0.fail_exchange.get() {
            return Err(KernelError::NoObject);
        }
        if self.0.word.get() != old.0 {
            return Err(KernelError::Raced {
                expected: old.generation(),
                found: self.word().generation(),
            });
        }
        self.0.word.set(new.0);
        Ok(())
    }

    fn fill(&self, slot: u32, content: &Content) -> Result<[u8; 32], KernelError> {
        let word = self.word();
        assert!(
            word.is_empty() || word.effective(self.0.now.get()).1 != slot,
            "the slot in use must not be filled"
        );
        assert!(
            !word.is_pending(),
            "the fall-back must not be filled while the kernel may take it"
        );
        if self.0.fail_fill.get() {
            return Err(KernelError::NoObject);
        }
        self.0.fills.borrow_mut().push((slot, self.0.word.get()));
        self.0.slots.borrow_mut()[slot as usize] = Some(content.clone());
        Ok(content.digest())
    }

    fn read(&self, slot: u32) -> Result<Option<Content>, KernelError> {
        Ok(self.0.slots.borrow()[slot as usize].clone())
    }

    fn set_failsafes(&self, _: &[Failsafe]) -> Result<(), KernelError> {
        Ok(())
    }
}

impl Clock for Fake {
    fn boot_ns(&self) -> u64 {
        self.0.now.get() * 1_000_000_000
    }

    fn utc_ns(&self) -> i64 {
        1_700_000_000_000_000_000 + self.0.step.get() + i64::try_from(self.boot_ns()).expect("time")
    }
}

struct Host {
    fake: Fake,
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Self {
        let fake = Fake::default();
        fake.0.now.set(100);
        Self {
            fake,
            dir: tempfile::tempdir().expect("dir"),
        }
    }

    fn engine(&self) -> Engine<Fake, Fake> {
        self.engine_of_boot("boot-1")
    }

    fn engine_of_boot(&self, boot: &str) -> Engine<Fake, Fake> {
        Engine::new(
            self.fake.clone(),
            self.fake.clone(),
            Store::open(self.dir.path()).expect("store"),
            Limits {
                addresses: 10,
                ..Limits::default()
            },
            boot.to_owned(),
        )
        .expect("engine")
    }

    fn armed(&self) -> Engine<Fake, Fake> {
        let mut engine = self.engine();
        assert_eq!(engine.start(&endpoints()).expect("start"), Found::Fresh);
        assert!(self.fake.word().is_learning());
        engine.arm().expect("arm");
        engine
    }

    /// Number of addresses in the content that counts now: tells the snapshots of these tests apart.
    fn enforced(&self) -> usize {
        let (_, slot, _) = self.fake.word().effective(self.fake.0.now.get());
        self.fake.0.slots.borrow()[slot as usize]
            .as_ref()
            .map_or(0, |content| {
                content.part(crate::kernel::content::Part::Addr4).len()
            })
    }
}

fn endpoints() -> Vec<Endpoint> {
    vec![Endpoint {
        id: 1,
        name: "host".into(),
        mode: Mode::Observe,
        addresses: vec![],
    }]
}

fn snapshot(revision: u64, addresses: u8) -> Snapshot {
    Snapshot {
        revision,
        endpoints: endpoints(),
        addresses: (0..addresses)
            .map(|last| AddressBinding {
                net: format!("10.0.0.{last}/32").parse().expect("net"),
                identity: 300,
                isolated: false,
                local: false,
            })
            .collect(),
        ..Snapshot::default()
    }
}

fn pending(revision: u64, addresses: u8) -> Push {
    Push {
        confirm_within: Some(Duration::from_secs(60)),
        ..Push::now(snapshot(revision, addresses))
    }
}

#[test]
fn a_change_is_active_and_survives_the_process_and_the_boot() {
    let host = Host::new();
    let mut engine = host.armed();
    let before = host.fake.word().generation();
    let applied = engine.apply(Push::now(snapshot(5, 3))).expect("apply");
    assert_eq!(applied.digest, snapshot(5, 3).digest());
    assert!(applied.generation >= before + 2);
    assert_eq!(host.enforced(), 3);

    let mut again = host.engine();
    assert_eq!(again.start(&endpoints()).expect("start"), Found::Adopted);
    assert_eq!(again.active().expect("active").revision(), 5);
    assert_eq!(
        host.fake.word().generation(),
        applied.generation,
        "nothing changed"
    );

    host.fake.0.word.set(0);
    *host.fake.0.slots.borrow_mut() = [None, None];
    let mut rebooted = host.engine_of_boot("boot-2");
    assert_eq!(rebooted.start(&endpoints()).expect("start"), Found::Fresh);
    rebooted.arm().expect("arm");
    assert_eq!(host.enforced(), 3);
    assert_eq!(rebooted.active().expect("active").revision(), 5);
}

#[test]
fn what_fails_or_is_refused_changes_nothing() {
    let host = Host::new();
    let mut engine = host.armed();
    engine.apply(Push::now(snapshot(5, 3))).expect("apply");
    let word = host.fake.word();
    host.fake.0.fail_fill.set(true);
    engine
        .apply(Push::now(snapshot(6, 4)))
        .expect_err("fill fails");
    host.fake.0.fail_fill.set(false);
    let error = engine.apply(Push::now(snapshot(4, 4))).expect_err("older");
    assert_eq!(
        error.to_string(),
        "revision 4 is older than 5, which is applied"
    );
    let error = engine
        .apply(Push::now(snapshot(7, 11)))
        .expect_err("too large");
    assert_eq!(
        error.to_string(),
        "revision 7 does not fit this host: addresses 11 > 10"
    );
    assert_eq!((host.fake.word(), host.enforced()), (word, 3));
    assert_eq!(
        host.engine()
            .store()
            .good()
            .expect("good")
            .expect("some")
            .snapshot
            .revision,
        5
    );
}

#[test]
fn an_unconfirmed_change_falls_back_and_a_confirmed_one_stays() {
    let host = Host::new();
    let mut engine = host.armed();
    engine.apply(Push::now(snapshot(5, 3))).expect("apply");
    let applied = engine.apply(pending(6, 4)).expect("apply");
    assert_eq!(applied.deadline, Some(160));
    assert_eq!(host.enforced(), 4);
    host.fake.0.now.set(161);
    assert_eq!(host.enforced(), 3, "the kernel falls back by itself");
    assert_eq!(
        engine.tick().expect("tick"),
        vec![Notice::FellBack { from: 6, to: 5 }]
    );
    assert!(!host.fake.word().is_pending());
    assert_eq!(host.fake.word().generation(), applied.generation + 1);

    engine.apply(pending(7, 5)).expect("apply");
    assert_eq!(
        engine
            .store()
            .good()
            .expect("good")
            .expect("some")
            .snapshot
            .revision,
        5
    );
    assert_eq!(engine.confirm(0).expect("confirm"), 7);
    host.fake.0.now.set(500);
    assert_eq!(engine.tick().expect("tick"), vec![]);
    assert_eq!(host.enforced(), 5);
    assert_eq!(
        engine
            .store()
            .good()
            .expect("good")
            .expect("some")
            .snapshot
            .revision,
        7
    );
    assert!(matches!(
        engine.confirm(0),
        Err(ApplyError::NothingPending { applied: 7 })
    ));
}

#[test]
fn a_fall_back_without_the_agent_is_noticed_by_the_next_one() {
    let host = Host::new();
    let mut engine = host.armed();
    engine.apply(Push::now(snapshot(5, 3))).expect("apply");
    engine.apply(pending(6, 4)).expect("apply");
    drop(engine);
    host.fake.0.now.set(1000);
    let mut again = host.engine();
    again.start(&endpoints()).expect("start");
    assert_eq!(again.active().expect("active").revision(), 5);
    assert_eq!(again.fell_back_from(), 6);
    assert_eq!(host.enforced(), 3);
}

#[test]
fn an_urgent_change_enters_both_contents() {
    let host = Host::new();
    let mut engine = host.armed();
    engine.apply(Push::now(snapshot(5, 3))).expect("apply");
    engine.apply(pending(6, 4)).expect("apply");
    let urgent = Push {
        urgent: true,
        fallback: Some(snapshot(7, 8)),
        ..Push::now(snapshot(7, 9))
    };
    let applied = engine.apply(urgent).expect("apply");
    assert_eq!(applied.deadline, Some(160), "the old deadline stands");
    assert_eq!(host.enforced(), 9);
    host.fake.0.now.set(200);
    assert_eq!(host.enforced(), 8, "the fall-back holds the urgent part");
    engine.tick().expect("tick");
    assert_eq!(
        engine
            .store()
            .good()
            .expect("good")
            .expect("some")
            .snapshot
            .addresses
            .len(),
        8
    );

    engine.apply(pending(8, 4)).expect("apply");
    let final_one = Push {
        urgent: true,
        ..Push::now(snapshot(9, 7))
    };
    assert_eq!(
        engine.apply(final_one).expect("apply").deadline,
        None,
        "nothing to fall back to"
    );
    host.fake.0.now.set(900);
    assert_eq!(host.enforced(), 7);
}

#[test]
fn a_second_unconfirmed_change_falls_back_to_the_last_good_one() {
    let host = Host::new();
    let mut engine = host.armed();
    engine.apply(Push::now(snapshot(5, 3))).expect("apply");
    engine.apply(pending(6, 4)).expect("apply");
    engine.apply(pending(7, 6)).expect("apply");
    assert_eq!(host.enforced(), 6);
    host.fake.0.now.set(1000);
    assert_eq!(host.enforced(), 3);
    assert_eq!(
        engine.tick().expect("tick"),
        vec![Notice::FellBack { from: 7, to: 5 }]
    );
}

#[test]
fn a_failed_change_leaves_the_waiting_one_waiting() {
    let host = Host::new();
    let mut engine = host.armed();
    engine.apply(Push::now(snapshot(5, 3))).expect("apply");
    engine.apply(pending(6, 4)).expect("apply");
    let word = host.fake.word();
    engine.apply(pending(7, 11)).expect_err("too large");
    assert_eq!(host.fake.word(), word);
    host.fake.0.now.set(1000);
    assert_eq!(host.enforced(), 3);
}

#[test]
fn a_lost_snapshot_closes_the_host() {
    let host = Host::new();
    let mut engine = host.armed();
    engine.apply(Push::now(snapshot(5, 3))).expect("apply");
    host.fake.0.word.set(0);
    std::fs::write(host.dir.path().join("good.json"), b"{").expect("write");
    let mut again = host.engine_of_boot("boot-2");
    assert_eq!(again.start(&endpoints()).expect("start"), Found::Closed);
    assert_eq!(again.mode(), Some(Mode::Enforce));
    assert_eq!(host.enforced(), 0);
}

#[test]
fn a_crash_between_the_write_and_its_record_is_put_right() {
    let host = Host::new();
    let mut engine = host.armed();
    engine.apply(Push::now(snapshot(5, 3))).expect("apply");
    engine.apply(pending(6, 4)).expect("apply");
    // The operator confirmed by hand while no daemon ran: the word is final, the file still waits.
    let word = host.fake.word();
    host.fake
        .0
        .word
        .set(ActiveWord::committed(word.generation(), word.slot()).0);
    let mut again = host.engine();
    again.start(&endpoints()).expect("start");
    assert_eq!(
        again
            .store()
            .good()
            .expect("good")
            .expect("some")
            .snapshot
            .revision,
        6
    );
    assert_eq!(again.active().expect("active").revision(), 6);
}

#[test]
fn a_crash_before_a_waiting_change_is_replaced_leaves_it_waiting() {
    let host = Host::new();
    let mut engine = host.armed();
    engine.apply(Push::now(snapshot(5, 3))).expect("apply");
    engine.apply(pending(6, 4)).expect("apply");
    let waiting = host.fake.word();
    engine.apply(pending(7, 5)).expect("apply");
    // As after a crash just before the word was to select the third: it says "final" of the second.
    let store = Store::open(host.dir.path()).expect("store");
    let third = store.intent().expect("it waits");
    let held = ActiveWord::committed(waiting.generation(), waiting.slot());
    store
        .set_intent(&Intent {
            held: true,
            replaces: Some(Box::new(Intent {
                stored: Stored::new(snapshot(6, 4)),
                generation: waiting.generation(),
                slot: waiting.slot(),
                held: true,
                ..third.clone()
            })),
            ..third
        })
        .expect("write");
    host.fake.0.word.set(held.0);
    let mut again = host.engine();
    again.start(&endpoints()).expect("start");
    assert_eq!(again.active().expect("active").revision(), 6);
    assert_eq!(host.fake.word(), waiting);
    host.fake.0.now.set(waiting.deadline() + 1);
    assert_eq!(
        again.tick().expect("tick"),
        [Notice::FellBack { from: 6, to: 5 }]
    );
}

fn good(engine: &Engine<Fake, Fake>) -> Snapshot {
    let good = engine.store().good().expect("good").expect("some");
    good.snapshot
}

#[test]
fn a_reboot_remembers_that_nobody_confirmed() {
    let host = Host::new();
    let mut engine = host.armed();
    engine.apply(Push::now(snapshot(5, 3))).expect("apply");
    engine.apply(pending(6, 4)).expect("apply");
    drop(engine);
    host.fake.0.word.set(0);
    *host.fake.0.slots.borrow_mut() = [None, None];
    let mut rebooted = host.engine_of_boot("boot-2");
    assert_eq!(rebooted.start(&endpoints()).expect("start"), Found::Fresh);
    assert_eq!(host.enforced(), 3);
    let digest = Some(hex::encode(snapshot(6, 4).digest()));
    assert_eq!(rebooted.store().rejected(), digest);
    // The same content for other addresses does not forget it; the change itself, made again, does.
    rebooted.apply(Push::now(snapshot(6, 5))).expect("apply");
    assert_eq!(rebooted.store().rejected(), digest);
    rebooted.apply(Push::now(snapshot(7, 4))).expect("apply");
    assert_eq!(rebooted.store().rejected(), None);
}

#[test]
fn a_fall_back_is_remembered_before_the_word_says_so() {
    let host = Host::new();
    let mut engine = host.armed();
    engine.apply(Push::now(snapshot(5, 3))).expect("apply");
    engine.apply(pending(6, 4)).expect("apply");
    host.fake.0.now.set(1000);
    host.fake.0.fail_exchange.set(true);
    engine.tick().expect_err("the process dies here");
    assert_eq!(
        engine.store().rejected(),
        Some(hex::encode(snapshot(6, 4).digest()))
    );
    host.fake.0.fail_exchange.set(false);
    assert_eq!(
        engine.tick().expect("tick"),
        vec![Notice::FellBack { from: 6, to: 5 }]
    );
}

#[test]
fn the_fall_back_that_comes_with_a_change_is_made_final_first() {
    for (urgent, revision) in [(true, 7), (false, 7), (false, 4)] {
        let host = Host::new();
        let mut engine = host.armed();
        engine.apply(Push::now(snapshot(5, 3))).expect("apply");
        // Revision 6 (policy, to be confirmed) was overtaken by the isolation 7 before it was sent.
        let push = Push {
            urgent,
            fallback: Some(snapshot(revision, 8)),
            ..pending(7, 9)
        };
        let applied = engine.apply(push).expect("apply");
        assert_eq!((applied.revision, applied.deadline), (7, Some(160)));
        assert_eq!(host.enforced(), 9);
        assert_eq!(good(&engine).addresses.len(), 8);
        host.fake.0.now.set(900);
        assert_eq!(host.enforced(), 8, "the fall-back holds the isolation");
        assert_eq!(
            engine.tick().expect("tick"),
            vec![Notice::FellBack {
                from: 7,
                to: revision
            }]
        );
    }
}

#[test]
fn the_fall_back_that_comes_with_a_change_replaces_that_of_a_waiting_one() {
    let host = Host::new();
    let mut engine = host.armed();
    engine.apply(Push::now(snapshot(5, 3))).expect("apply");
    engine.apply(pending(6, 4)).expect("apply");
    let push = Push {
        fallback: Some(snapshot(7, 8)),
        ..pending(7, 9)
    };
    engine.apply(push).expect("apply");
    host.fake.0.now.set(900);
    assert_eq!(host.enforced(), 8, "the fall-back holds the isolation");
}

#[test]
fn a_fall_back_that_is_active_already_is_not_activated_again() {
    let host = Host::new();
    let mut engine = host.armed();
    let before = engine.apply(Push::now(snapshot(5, 3))).expect("apply");
    let push = Push {
        fallback: Some(snapshot(4, 3)),
        ..pending(7, 9)
    };
    let applied = engine.apply(push).expect("apply");
    assert_eq!(applied.generation, before.generation + 2);
    host.fake.0.now.set(900);
    assert_eq!(host.enforced(), 3);
}

/// What the panic switch does to the word, with or without an agent.
fn throw_panic(host: &Host) {
    host.fake.0.word.set(host.fake.0.word.get() + (2 << 32));
}

#[test]
fn an_offline_panic_during_a_waiting_change_keeps_it_confirmable() {
    let host = Host::new();
    let mut engine = host.armed();
    engine.apply(Push::now(snapshot(5, 3))).expect("apply");
    engine.apply(pending(6, 4)).expect("apply");
    drop(engine);
    throw_panic(&host);
    throw_panic(&host);
    let mut again = host.engine();
    again.start(&endpoints()).expect("start");
    assert_eq!(again.active().expect("active").revision(), 6);
    again.confirm(0).expect("confirm");
    assert_eq!(good(&again).revision, 6);
}

#[test]
fn the_panic_switch_does_not_lose_the_names() {
    let host = Host::new();
    let mut engine = host.armed();
    let applied = engine.apply(Push::now(snapshot(5, 3))).expect("apply");
    throw_panic(&host);
    throw_panic(&host);
    engine.refresh_names();
    let known = |engine: &Engine<Fake, Fake>, generation| {
        engine
            .generations()
            .get(&generation)
            .map(|snapshot| snapshot.revision)
    };
    for moved in [0, 2, 4] {
        assert_eq!(known(&engine, applied.generation + moved), Some(5));
    }
    drop(engine);
    throw_panic(&host);
    let mut again = host.engine();
    again.start(&endpoints()).expect("start");
    for moved in [0, 2, 4, 6] {
        assert_eq!(known(&again, applied.generation + moved), Some(5));
    }
}

#[test]
fn a_clock_that_moves_while_a_change_waits_is_caught_up_with_afterwards() {
    let host = Host::new();
    let mut engine = host.armed();
    let allow = CellVerdict {
        allow: true,
        rule: 3,
        reason: 0,
    };
    let expiring = |revision, addresses| Snapshot {
        rules: vec![RuleCell {
            class: 1,
            ports: PortPrefix::ANY,
            enforced: allow,
            draft: allow,
            expires: Some(1_800_000_000_000_000_000),
            after: None,
            mode_enforced: true,
            keep: false,
            audit: false,
            hard: false,
        }],
        ..snapshot(revision, addresses)
    };
    engine.apply(Push::now(expiring(5, 3))).expect("apply");
    let push = Push {
        confirm_within: Some(Duration::from_secs(60)),
        ..Push::now(expiring(6, 4))
    };
    engine.apply(push).expect("apply");
    host.fake.0.step.set(3_600_000_000_000);
    assert_eq!(engine.tick().expect("tick"), vec![]);
    engine.confirm(0).expect("confirm");
    assert_eq!(engine.tick().expect("tick"), vec![Notice::ClockMoved]);
    assert_eq!(host.enforced(), 4);
    assert_eq!(engine.tick().expect("tick"), vec![], "once");
}
