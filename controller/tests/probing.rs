//! The detector of probing: what it finds, and what leaves it silent.
#![allow(clippy::expect_used, reason = "a test says so by failing")]

use std::net::{IpAddr, Ipv4Addr};

use controller::detect::{Detector as _, Finding, Probing, ProbingConfig};
use controller::flows::Flow;
use proto::v1;

const SECOND: i64 = 1_000_000_000;
const START: i64 = 1_800_000_000 * SECOND;

fn address(n: u32) -> IpAddr {
    Ipv4Addr::from(0x0a00_0000 + n).into()
}

/// A first contact `at` seconds after the start.
fn contact(from: u32, to: u32, port: u16, at: i64, denied: bool) -> Flow {
    let time = START + at * SECOND;
    let record = v1::FlowRecord {
        uid: format!("{from}-{to}-{port}-{at}"),
        host: format!("w{from}"),
        initiator_workload: format!("w{from}"),
        allowed: !denied,
        evaluated_allow: !denied,
        denial: denied,
        opening: denied,
        rule: "standard/closed/egress".into(),
        ..v1::FlowRecord::default()
    };
    Flow {
        record,
        initiator: address(from),
        responder: address(to),
        egress: true,
        protocol: 6,
        port,
        first_seen: time,
        last_seen: time,
    }
}

fn detector() -> Probing {
    Probing::new(ProbingConfig::default())
}

fn all(detector: &mut Probing, flows: impl IntoIterator<Item = Flow>) -> Vec<Finding> {
    flows
        .into_iter()
        .filter_map(|flow| detector.observe(&flow))
        .collect()
}

/// Repeatable numbers that look random.
fn numbers(mut seed: u64) -> impl Iterator<Item = u64> {
    std::iter::repeat_with(move || {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed
    })
}

#[test]
fn a_sweep_and_a_port_scan_are_found_after_a_few_contacts() {
    let sweep = (0..30u32).map(|n| contact(1, 100 + n, 445, n.into(), true));
    let ports = (0..30u16).map(|n| contact(2, 100, 1_000 + n, n.into(), true));
    for flows in [sweep.collect::<Vec<_>>(), ports.collect()] {
        let found = all(&mut detector(), flows);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].evidence.len(), 5, "{:?}", found[0]);
        assert_eq!(found[0].found_at, START + 4 * SECOND);
        assert_eq!(found[0].first_evidence, START);
        assert!(
            found[0].reason.contains("5 of its 5"),
            "{}",
            found[0].reason
        );
    }
}

#[test]
fn slowness_does_not_help() {
    for pause in [1, 60, 3_600, 12 * 3_600] {
        let found = all(
            &mut detector(),
            (0..8u32).map(|n| contact(1, 100 + n, 22, i64::from(n) * pause, true)),
        );
        assert_eq!(found.len(), 1, "one contact in {pause} s");
    }
}

#[test]
fn a_stubborn_client_is_not_a_scanner() {
    let mut detector = detector();
    let retries = (0..20_000).map(|n| contact(1, 100, 5_432, n, true));
    assert_eq!(all(&mut detector, retries), []);
    // Nor are three wrong addresses in one configuration.
    let three = (0..3_000).map(|n| {
        contact(
            2,
            100 + u32::try_from(n % 3).expect("small"),
            5_432,
            n,
            true,
        )
    });
    assert_eq!(all(&mut detector, three), []);
}

#[test]
fn ordinary_traffic_is_silent() {
    // 500 sources, 200 contacts each, two in a hundred denied: 100,000 first contacts.
    let mut random = numbers(42);
    let mut flows = Vec::new();
    for n in 0..100_000i64 {
        let source = u32::try_from(n % 500).expect("small");
        let mut next = || random.next().expect("endless");
        let to = u32::try_from(next() % 3_000).expect("small") + 1_000;
        let port = [80, 443, 5_432, 6_379, 22][usize::try_from(next() % 5).expect("small")];
        flows.push(contact(source, to, port, n, next() % 100 < 2));
    }
    assert_eq!(all(&mut detector(), flows), []);
}

#[test]
fn allowed_contacts_count_the_other_way_but_not_twice() {
    // A guesser who mixes in as many new allowed contacts as denied ones is still found.
    let mixed = (0..60u32).map(|n| contact(1, 100 + n, 80, n.into(), n % 2 == 0));
    assert_eq!(all(&mut detector(), mixed).len(), 1);
    // The same allowed contact again and again is worth nothing.
    let mut detector = detector();
    let flows = (0..40u32).map(|n| {
        if n % 2 == 0 {
            contact(2, 100 + n, 80, n.into(), true)
        } else {
            contact(2, 99, 80, n.into(), false)
        }
    });
    assert_eq!(all(&mut detector, flows).len(), 1);
}

#[test]
fn let_out_here_and_denied_there_is_denied() {
    let mut detector = detector();
    let mut flows = Vec::new();
    for n in 0..8u32 {
        flows.push(contact(1, 100 + n, 22, n.into(), false));
        let mut there = contact(1, 100 + n, 22, n.into(), true);
        there.record.host = format!("w{}", 100 + n);
        there.egress = false;
        flows.push(there);
    }
    let found = all(&mut detector, flows);
    assert_eq!(found.len(), 1);
    assert!(
        found[0].reason.contains("other host(s) only"),
        "{}",
        found[0].reason
    );
}

#[test]
fn observed_denials_say_nothing() {
    let flows = (0..100u32).map(|n| {
        let mut flow = contact(1, 100 + n, 22, n.into(), false);
        flow.record.evaluated_allow = false;
        flow
    });
    assert_eq!(all(&mut detector(), flows), []);
}

#[test]
fn a_source_is_reported_once_a_day() {
    let scan = |from: u32, day: i64| {
        (0..50u32).map(move |n| contact(1, from + n, 22, day * 86_401 + i64::from(n), true))
    };
    let mut detector = detector();
    assert_eq!(all(&mut detector, scan(100, 0)).len(), 1);
    assert_eq!(all(&mut detector, scan(200, 0)).len(), 0);
    assert_eq!(all(&mut detector, scan(300, 1)).len(), 1);
}

#[test]
fn memory_is_bounded_and_the_same_input_finds_the_same() {
    let config = ProbingConfig {
        max_sources: 100,
        max_contacts: 50,
        ..ProbingConfig::default()
    };
    for seed in 1..20 {
        let (mut one, mut other) = (Probing::new(config), Probing::new(config));
        let mut random = numbers(seed);
        for n in 0..20_000 {
            let mut next =
                |below: u64| u32::try_from(random.next().expect("endless") % below).expect("small");
            let (from, to, port) = (next(1_000), next(100_000), next(65_536));
            let flow = contact(
                from,
                to,
                u16::try_from(port).expect("small"),
                n,
                next(4) == 0,
            );
            assert_eq!(one.observe(&flow), other.observe(&flow));
            let (sources, contacts) = one.held();
            assert!(sources <= 100 && contacts <= 50, "{sources} {contacts}");
        }
    }
}
