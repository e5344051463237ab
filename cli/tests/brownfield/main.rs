//! Imported rule sets against the kernel that enforces the originals: the same connections pass.
//!
//! A namespace gets the rule set, the import gets what `nft -j list ruleset` or `iptables-save` print of
//! it there, and every connection of a matrix is tried between that namespace and a second one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests fail tests"
)]

mod lab;
mod probe;
mod random;
mod rules;

use std::net::IpAddr;

use lab::{HOST, Lab, PEERS};
use policy::brownfield::report::Outcome;
use policy::brownfield::{HostOptions, Imported};
use policy::evaluate::evaluate;
use policy::probe::{Probe, ProbeEnd};
use policy::selectors::{Labels, Selector};
use policy::set::PolicySet;
use policy::world::{Workload, World};
use time::OffsetDateTime;

/// A connection of the matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Connection {
    /// Towards the host that has the rules.
    towards_host: bool,
    host: IpAddr,
    peer: IpAddr,
    protocol: u8,
    /// ICMP: type and code of an echo request.
    port: u16,
}

const TCP: [u16; 7] = [22, 80, 443, 2049, 5432, 8005, 9000];
const UDP: [u16; 3] = [53, 123, 514];

fn matrix() -> Vec<Connection> {
    let mut all = Vec::new();
    for peer in PEERS {
        let peer: IpAddr = peer.parse().unwrap();
        for host in HOST {
            let host: IpAddr = host.parse().unwrap();
            if host.is_ipv4() != peer.is_ipv4() {
                continue;
            }
            let echo = if host.is_ipv4() {
                (1, 8 << 8)
            } else {
                (58, 128 << 8)
            };
            let services = TCP.map(|port| (6, port)).into_iter();
            let services = services.chain(UDP.map(|port| (17, port))).chain([echo]);
            for (protocol, port) in services {
                all.extend([true, false].map(|towards_host| Connection {
                    towards_host,
                    host,
                    peer,
                    protocol,
                    port,
                }));
            }
        }
    }
    all
}

fn options(allow_wider: bool) -> HostOptions {
    HostOptions {
        name: "host/test".into(),
        owner: None,
        subject: Selector::label("role", "host"),
        addresses: HOST
            .iter()
            .map(|address| address.parse().unwrap())
            .collect(),
        interfaces: vec!["h0".into()],
        allow_wider,
    }
}

/// What an imported policy says about a connection, if it were enforced.
struct Judge {
    world: World,
    set: PolicySet,
}

impl Judge {
    fn new(imported: &Imported) -> Self {
        let addresses = HOST
            .iter()
            .map(|address| address.parse().unwrap())
            .collect();
        let labels = Labels::from([("role".to_owned(), "host".to_owned())]);
        let inside = ["10.99.0.0/16", "fd99::/32"].map(|net| net.parse().unwrap());
        Self {
            world: World::new(
                inside.into(),
                vec![Workload::new("host", labels, addresses)],
            ),
            set: PolicySet::build(imported.objects.clone()).unwrap(),
        }
    }

    fn allows(&self, connection: Connection) -> bool {
        let (host, peer) = (
            ProbeEnd::Address(connection.host),
            ProbeEnd::Address(connection.peer),
        );
        let (from, to) = if connection.towards_host {
            (peer, host)
        } else {
            (host, peer)
        };
        let probe = Probe {
            id: String::new(),
            from,
            to,
            protocol: connection.protocol,
            port: connection.port,
        };
        let verdict = evaluate(&self.world, &self.set, &probe, OffsetDateTime::UNIX_EPOCH);
        verdict.unwrap().draft.is_allow()
    }
}

/// Compares the rule set in the host's namespace with what was imported of it, in both ways.
///
/// The narrow import must not allow what the kernel drops, the wide one must allow all that passes, and
/// where both agree the kernel has to agree. Returns how many connections passed and were dropped.
fn compare(name: &str, lab: &Lab, narrow: &Imported, wide: &Imported) -> (usize, usize) {
    let counts = narrow.report.counts();
    let sum = counts.exact + counts.narrower + counts.wider + counts.not_carried_over;
    assert_eq!(sum, counts.total, "{name}: {counts:?}");
    assert_eq!(counts.wider, 0, "{name}: nobody asked for it");
    assert_eq!(wide.report.counts().total, counts.total, "{name}");

    let all = matrix();
    let (low, high) = (Judge::new(narrow), Judge::new(wide));
    let mut passed = lab.try_all(&all, probe::SHORT);
    let wrong = |connection: Connection, passed: bool| {
        let (low, high) = (low.allows(connection), high.allows(connection));
        low && !passed || passed && !high
    };
    // What disagrees is tried again with more patience: the machine may be slow.
    let doubtful: Vec<usize> = (0..all.len())
        .filter(|&i| wrong(all[i], passed[i]))
        .collect();
    let again: Vec<Connection> = doubtful.iter().map(|&i| all[i]).collect();
    for (index, result) in doubtful.into_iter().zip(lab.try_all(&again, probe::LONG)) {
        passed[index] = result;
    }
    let mut inexact = 0;
    for (connection, passed) in all.iter().zip(&passed) {
        let (low, high) = (low.allows(*connection), high.allows(*connection));
        assert!(
            !wrong(*connection, *passed),
            "{name}: {connection:?}: kernel {passed}, narrow {low}, wide {high}\n{}",
            lab.ruleset()
        );
        inexact += usize::from(low != high);
    }
    let inexactly = |item: &policy::brownfield::report::Item| {
        matches!(item.outcome, Outcome::Narrower | Outcome::NotCarriedOver)
    };
    if inexact > 0 {
        assert!(
            narrow.report.items.iter().any(inexactly),
            "{name}: {inexact} connections are uncertain, and the report does not say why"
        );
    }
    let open = passed.iter().filter(|passed| **passed).count();
    println!(
        "{name}: {open} of {} connections pass, {inexact} uncertain; {counts:?}",
        all.len()
    );
    (open, all.len() - open)
}

/// Every set of rules must let something pass and drop something, or it proves nothing.
fn compare_varied(name: &str, lab: &Lab, narrow: &Imported, wide: &Imported) {
    let (open, closed) = compare(name, lab, narrow, wide);
    assert!(
        open > 0 && closed > 0,
        "{name}: {open} pass, {closed} do not"
    );
}

#[test]
fn nftables_as_written_by_hand() {
    let Some(lab) = Lab::new("nftables_as_written_by_hand", &["nft"]) else {
        return;
    };
    for (name, text) in rules::NFTABLES {
        let (narrow, wide) = lab.nftables(text);
        compare_varied(name, &lab, &narrow, &wide);
    }
}

#[test]
fn nftables_at_random() {
    let Some(lab) = Lab::new("nftables_at_random", &["nft"]) else {
        return;
    };
    let mut total = (0, 0);
    for seed in 1..=random::ROUNDS {
        let (narrow, wide) = lab.nftables(&random::nftables(seed));
        let (open, closed) = compare(&format!("random nftables {seed}"), &lab, &narrow, &wide);
        total = (total.0 + open, total.1 + closed);
    }
    assert!(total.0 > 100 && total.1 > 100, "{total:?}");
}

#[test]
fn iptables_as_written_by_hand() {
    let needs = ["iptables-restore", "ip6tables-restore", "ipset"];
    let Some(lab) = Lab::new("iptables_as_written_by_hand", &needs) else {
        return;
    };
    for (name, v4, v6, sets) in rules::IPTABLES {
        let (narrow, wide) = lab.iptables(v4, v6, sets);
        compare_varied(name, &lab, &narrow, &wide);
    }
}

#[test]
fn iptables_at_random() {
    let Some(lab) = Lab::new(
        "iptables_at_random",
        &["iptables-restore", "ip6tables-restore"],
    ) else {
        return;
    };
    let mut total = (0, 0);
    for seed in 1..=random::ROUNDS {
        let (v4, v6) = random::iptables(seed);
        let (narrow, wide) = lab.iptables(&v4, &v6, "");
        let (open, closed) = compare(&format!("random iptables {seed}"), &lab, &narrow, &wide);
        total = (total.0 + open, total.1 + closed);
    }
    assert!(total.0 > 100 && total.1 > 100, "{total:?}");
}
