//! The kernel layer on a real kernel: pins, slots, sizes.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests: one that fails fails the test"
)]

mod common;

use std::sync::Arc;

use agent::kernel::Kernel;
use agent::kernel::loader::{Pins, TableSizes};
use agent::reconcile::plan::{self, Limits, Timebase};
use agent::reconcile::store::Store;
use agent::reconcile::{ApplyError, Engine, Push, SystemClock};
use common::Lab;
use datapath::drop_reason::DropReason;
use policy::snapshot::{CellVerdict, Endpoint, Mode, PortPrefix, RuleCell, Snapshot};

const SIZES: TableSizes = TableSizes {
    flows4: 1024,
    flows6: 1024,
    denies: 1024,
    ring: 1 << 16,
    share: 0,
};

fn snapshot(revision: u64, classes: u32) -> Snapshot {
    let verdict = CellVerdict {
        allow: false,
        rule: 1,
        reason: DropReason::DefaultDeny as u8,
    };
    Snapshot {
        revision,
        endpoints: vec![Endpoint {
            id: 1,
            name: "host".into(),
            mode: Mode::Enforce,
            addresses: vec![],
        }],
        rules: (1..=classes)
            .map(|class| RuleCell {
                class,
                ports: PortPrefix {
                    protocol: Some(6),
                    port: 443,
                    port_bits: 16,
                },
                enforced: verdict,
                draft: verdict,
                expires: None,
                after: None,
                mode_enforced: true,
                keep: false,
                audit: false,
                hard: false,
            })
            .collect(),
        ..Snapshot::default()
    }
}

fn engine(lab: &Lab, kernel: &Arc<Kernel>, limits: Limits) -> Engine<Arc<Kernel>, SystemClock> {
    let store = Store::open(&lab.dir.path().join("state")).expect("store");
    Engine::new(
        Arc::clone(kernel),
        SystemClock,
        store,
        limits,
        "boot".into(),
    )
    .expect("engine")
}

#[test]
fn an_oversize_snapshot_is_refused_whole_and_a_large_one_is_read_back() {
    let Some(lab) = Lab::new("an_oversize_snapshot_is_refused_whole") else {
        return;
    };
    let kernel = Arc::new(Kernel::open(lab.pin(), SIZES, None).expect("kernel"));
    let limits = Limits {
        rules: 20_000,
        ..Limits::default()
    };
    let mut engine = engine(&lab, &kernel, limits);
    engine.start(&snapshot(0, 0).endpoints).expect("start");
    engine.arm().expect("arm");
    engine.apply(Push::now(snapshot(3, 20_000))).expect("fits");
    let word = kernel.word();
    let time = Timebase {
        boot_ns: 0,
        utc_ns: 0,
        lead_ns: 0,
        behind: false,
    };
    let held = kernel.read(word.slot()).expect("read").expect("content");
    assert_eq!(held, plan::content(&snapshot(3, 20_000), &time));

    let error = engine
        .apply(Push::now(snapshot(4, 20_001)))
        .expect_err("too large");
    assert!(matches!(error, ApplyError::Oversize(_)));
    assert_eq!(
        error.to_string(),
        "revision 4 does not fit this host: rules 20001 > 20000"
    );
    assert_eq!(kernel.word(), word, "nothing was activated");
    assert_eq!(
        kernel.read(word.slot()).expect("read"),
        Some(held),
        "nothing was written"
    );
}

#[test]
fn a_pin_of_another_shape_is_reported_and_rebuilt() {
    let Some(lab) = Lab::new("a_pin_of_another_shape_is_reported_and_rebuilt") else {
        return;
    };
    let kernel = Kernel::open(lab.pin(), SIZES, None).expect("kernel");
    assert!(matches!(kernel.pins(), Pins::Fresh));
    let remembered = kernel.pin_state().clone();
    drop(kernel);
    let again = Kernel::open(lab.pin(), SIZES, Some(&remembered)).expect("kernel");
    assert!(matches!(again.pins(), Pins::Reused));
    drop(again);
    let larger = TableSizes {
        flows4: 2048,
        ..SIZES
    };
    let rebuilt = Kernel::open(lab.pin(), larger, Some(&remembered)).expect("kernel");
    let Pins::Rebuilt(problems) = rebuilt.pins() else {
        panic!("{:?}", rebuilt.pins());
    };
    assert_eq!(
        problems[0].to_string(),
        "FLOWS4 has max_entries 256, not 512"
    );
    drop(rebuilt);
    // Right in shape, but not what this agent pinned.
    let foreign = Kernel::open(lab.pin(), larger, Some(&remembered)).expect("kernel");
    let Pins::Rebuilt(problems) = foreign.pins() else {
        panic!("{:?}", foreign.pins());
    };
    assert!(
        problems[0].what.contains("but this agent pinned id"),
        "{problems:?}"
    );
}

#[test]
fn the_clock_program_tells_ticks_and_boot_time_together() {
    let Some(lab) = Lab::new("the_clock_program_tells_ticks_and_boot_time_together") else {
        return;
    };
    let kernel = Kernel::open(lab.pin(), SIZES, None).expect("kernel");
    let before = agent::kernel::clock::boot_ns();
    let clock = kernel.clock().expect("clock");
    let after = agent::kernel::clock::boot_ns();
    assert!((before..=after).contains(&clock.boot_ns));
    let later = kernel.clock().expect("clock");
    assert!(later.jiffies >= clock.jiffies && clock.jiffies > 0);
}
