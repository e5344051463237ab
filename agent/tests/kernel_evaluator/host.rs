//! The loaded object with an agent's engine above it, and what it says of a packet.

use std::sync::Arc;

use agent::kernel::{Kernel, clock};
use agent::reconcile::failsafes::{Failsafe, name_of};
use agent::reconcile::plan::Limits;
use agent::reconcile::store::Store;
use agent::reconcile::{Clock, Engine, Push};
use datapath::abi::{Config, Event, event_kind};
use datapath::drop_reason::DropReason;
use datapath::flow::bits;
use datapath::ids::RuleId;
use datapath::pipeline::Action;
use policy::snapshot::Snapshot;
use policy::walk::names;

use crate::ask::Ask;
use crate::support::rig::Rig;
use crate::support::twin::{ROOMY, default_config};
use crate::wanted::{Scene, packets_come};

/// This machine's boot clock, and a wall clock on which the packets come when the generator's deadlines want them.
#[derive(Clone, Copy)]
struct TestClock {
    began: u64,
}

impl Clock for TestClock {
    fn boot_ns(&self) -> u64 {
        clock::boot_ns()
    }

    fn utc_ns(&self) -> i64 {
        let start = i64::try_from(packets_come().unix_timestamp_nanos()).expect("a year near ours");
        start + i64::try_from(clock::boot_ns() - self.began).expect("a short test")
    }
}

/// A host under test.
pub(crate) struct Host {
    rig: Rig,
    engine: Engine<Arc<Kernel>, TestClock>,
    revision: u64,
    _state: tempfile::TempDir,
}

/// What the kernel did with a packet.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) pass: bool,
    pub(crate) notice: Option<Said>,
}

/// What it told of it.
#[derive(Clone, Debug)]
pub(crate) struct Said {
    pub(crate) evaluated: bool,
    pub(crate) draft: bool,
    pub(crate) keep: bool,
    pub(crate) rule: String,
    pub(crate) draft_rule: String,
    pub(crate) reason: DropReason,
}

impl Host {
    /// Loads the object and arms an engine over it; `None`, loudly, where that cannot be done.
    pub(crate) fn open() -> Option<Self> {
        let mut rig = Rig::open(ROOMY)?;
        rig.set_config(&Config {
            // Every denial is announced, not only the first of its kind.
            deny_every: 1,
            ..default_config()
        });
        let state = tempfile::tempdir().expect("a directory");
        let store = Store::open(&state.path().join("state")).expect("a store");
        let clock = TestClock {
            began: clock::boot_ns(),
        };
        let mut engine = Engine::new(
            Arc::clone(&rig.kernel),
            clock,
            store,
            Limits::default(),
            "boot".into(),
        )
        .expect("an engine");
        engine.start(&[]).expect("the first content");
        engine.arm().expect("armed");
        rig.drain();
        Some(Self {
            rig,
            engine,
            revision: 0,
            _state: state,
        })
    }

    pub(crate) fn next_revision(&mut self) -> u64 {
        self.revision += 1;
        self.revision
    }

    /// Makes a snapshot the active content, as the agent does, on a host without flows.
    pub(crate) fn activate(&mut self, snapshot: &Snapshot, failsafes: Vec<Failsafe>) {
        self.engine.set_failsafes(failsafes).expect("failsafes");
        self.engine
            .apply(Push::now(snapshot.clone()))
            .expect("the content fits");
        self.rig.clear();
    }

    /// Sends a packet through the hook of its direction.
    pub(crate) fn send(&mut self, ask: &Ask, snapshot: &Snapshot, scene: &Scene<'_>) -> Seen {
        let action = self.rig.send(&ask.frame, ask.direction.into(), None);
        let pass = action.expect("a whole frame") == Action::Pass;
        let mut events = self.rig.drain();
        // Flows that were never answered make room for others, and leave with a notice of their own.
        events.retain(|event| event.kind != event_kind::CLOSE);
        assert!(events.len() <= 1, "one notice a packet: {events:?}");
        Seen {
            pass,
            notice: events
                .first()
                .map(|event| said(event, pass, snapshot, scene)),
        }
    }
}

fn said(event: &Event, pass: bool, snapshot: &Snapshot, scene: &Scene<'_>) -> Said {
    let kind = if pass {
        event_kind::NEW
    } else {
        event_kind::DENY
    };
    assert_eq!(event.kind, kind, "the notice fits the verdict");
    let reason = DropReason::from_u8(event.reason).expect("a known reason");
    let name = |rule: u32| {
        let named = snapshot.rule_name(RuleId(rule)).map(str::to_owned);
        named
            .or_else(|| name_of(&scene.failsafes, rule))
            .unwrap_or_else(|| match reason {
                DropReason::Isolated | DropReason::PeerIsolated => names::ISOLATION.into(),
                _ => format!("no name for rule {rule}"),
            })
    };
    Said {
        evaluated: event.verdict & bits::EVALUATED_DENY == 0,
        draft: event.verdict & bits::DRAFT_DENY == 0,
        keep: event.verdict & bits::KEEP != 0,
        rule: name(event.rule),
        draft_rule: name(event.draft_rule),
        reason,
    }
}
