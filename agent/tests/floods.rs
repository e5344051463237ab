//! Floods against the loaded programs: what is established goes on and loses no count, what is denied is counted, and
//! nothing is let in because something is full.
//!
//! `COFFERDAM_TEST_FLOOD` is the number of packets of a flood.

#![allow(clippy::panic, clippy::expect_used, reason = "tests")]

#[path = "support_kernel/mod.rs"]
mod support;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};

use agent::config::Tables;
use agent::kernel::Totals;
use agent::kernel::loader::{EGRESS, INGRESS, TableSizes};
use datapath::abi::{ActiveWord, AddrValue, RuleKey};
use datapath::conntrack::State;
use datapath::packet::tcp::{ACK, SYN};
use datapath::packet::{Family as _, V4, canonical};
use datapath::record::FlowView;
use datapath::sim::Content;
use datapath::sim::packets::{End, end, fragments, tcp, udp};
use datapath::table::{Tabled as _, spill_room, spot};
use support::convert;
use support::rig::Rig;
use support::rng::{Rng, setting};
use support::run::passes;
use support::scene::{LOCAL, PEER, PEER_ID, cell, mapped, policy};
use support::twin::{ROOMY, default_config};

/// Packets of a flood.
fn flood_size() -> usize {
    setting("COFFERDAM_TEST_FLOOD", 1_000_000)
}

/// Sizes that an agent has when nobody says anything.
fn usual_sizes() -> TableSizes {
    let tables = Tables::default();
    TableSizes {
        flows4: tables.flows4,
        flows6: tables.flows6,
        denies: tables.denies,
        ring: tables.ring_bytes,
        share: tables.share(),
    }
}

/// The usual policy, under which 10.64.0.0/10 is a peer too, and a peer may reach every TCP port from 1000 to 1023.
fn content() -> Content {
    let mut content = policy();
    let peer = AddrValue {
        identity: PEER_ID,
        flags: 0,
    };
    content.addresses.push((mapped("10.64.0.0"), 96 + 10, peer));
    for port in 1000..1024 {
        content
            .rules
            .push((RuleKey::lookup(10, 6, port), cell(true, 31)));
    }
    content
}

/// Loaded programs with sessions that are established.
struct Field {
    rig: Rig,
    programs: [OwnedFd; 2],
    sessions: Vec<Session>,
    before: Totals,
}

/// An established session: its frames, and how many packets went each way.
struct Session {
    frames: [Vec<u8>; 2],
    client: End,
    sent: [u64; 2],
    /// Packets that were dropped because the lock of a set stayed taken: the contract bounds the wait, their sender
    /// sends them again.
    held_up: u64,
}

impl Field {
    fn open(sizes: TableSizes, clients: impl Iterator<Item = End>) -> Option<Self> {
        let mut rig = Rig::open(sizes)?;
        rig.fill(0, &convert::content(&content()));
        rig.set_config(&default_config());
        rig.set_word(ActiveWord::committed(1, 0));
        let programs =
            [INGRESS, EGRESS].map(|name| rig.kernel.program_fd(name).expect("a program"));
        let sessions = clients
            .map(|client| Session::establish(client, &programs))
            .collect();
        rig.drain();
        let before = rig.kernel.totals().expect("totals");
        Some(Self {
            rig,
            programs,
            sessions,
            before,
        })
    }

    /// Sends a packet each way over every session, again and again, while `flood` runs.
    fn during<T>(&mut self, flood: impl FnOnce(&[OwnedFd; 2]) -> T) -> T {
        let (programs, sessions) = (&self.programs, &mut self.sessions);
        let (stop, begun) = (AtomicBool::new(false), AtomicBool::new(false));
        /// Whatever happens to the flood, the sessions end.
        struct Stop<'a>(&'a AtomicBool);
        impl Drop for Stop<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::Release);
            }
        }
        let (result, rounds) = std::thread::scope(|scope| {
            let others = scope.spawn(|| {
                let mut rounds = 0;
                while !stop.load(Ordering::Acquire) || rounds == 0 {
                    for session in &mut *sessions {
                        session.talk(programs);
                        begun.store(true, Ordering::Release);
                    }
                    rounds += 1;
                }
                rounds
            });
            let end = Stop(&stop);
            while !begun.load(Ordering::Acquire) && !others.is_finished() {
                std::thread::yield_now();
            }
            let result = flood(programs);
            drop(end);
            (result, others.join().expect("no session is cut"))
        });
        println!(
            "{} sessions, {rounds} times each way meanwhile",
            sessions.len()
        );
        result
    }

    /// Every entry, by the initiator.
    fn views(&self) -> BTreeMap<([u8; 16], u16, u16), FlowView> {
        let entries = self.rig.kernel.entries4().expect("entries");
        let count = entries.len();
        let views: BTreeMap<_, _> = entries
            .iter()
            .map(|(_, flow)| FlowView::of4(flow))
            .map(|view| {
                (
                    (view.initiator, view.initiator_port, view.responder_port),
                    view,
                )
            })
            .collect();
        assert_eq!(views.len(), count, "no flow has two entries");
        views
    }

    /// What reasons and losses say beyond what they said at the beginning.
    fn counted(&self) -> (BTreeMap<String, u64>, BTreeMap<String, u64>) {
        let now = self.rig.kernel.totals().expect("totals");
        let reasons = now.reasons.iter().map(|(name, (packets, _))| {
            let before = self
                .before
                .reasons
                .get(name)
                .map_or(0, |(packets, _)| *packets);
            (name.clone(), packets - before)
        });
        let losses = now
            .losses
            .iter()
            .map(|(name, count)| (name.clone(), count - self.before.losses[name]));
        let mut reasons: BTreeMap<String, u64> = reasons.collect();
        let held_up: u64 = self.sessions.iter().map(|session| session.held_up).sum();
        let sent: u64 = self.sessions.iter().map(|session| session.sent[0]).sum();
        let contended = reasons.entry("contended".into()).or_default();
        assert!(
            held_up <= *contended,
            "{held_up} packets of sessions dropped"
        );
        assert!(
            held_up * 1_000 <= sent,
            "{held_up} of {sent} and more packets"
        );
        *contended -= held_up;
        reasons.retain(|_, count| *count > 0);
        (reasons, losses.filter(|(_, count)| *count > 0).collect())
    }

    /// No session has lost its entry or a count.
    fn check_sessions(&self, views: &BTreeMap<([u8; 16], u16, u16), FlowView>) {
        for session in &self.sessions {
            let client = session.client;
            let view = views
                .get(&(mapped(&client.addr.to_string()), client.port, 443))
                .unwrap_or_else(|| panic!("{client:?} has lost its entry"));
            assert_eq!(view.state, State::ESTABLISHED, "{client:?}");
            assert_eq!(
                [view.packets_out, view.packets_in],
                // And the handshake.
                [session.sent[0] + 2, session.sent[1] + 1],
                "{client:?}"
            );
        }
    }
}

impl Session {
    fn establish(client: End, programs: &[OwnedFd; 2]) -> Self {
        let server = end(LOCAL, 443);
        assert!(passes(&programs[0], &tcp(client, server, SYN, 0)));
        assert!(passes(&programs[1], &tcp(server, client, SYN | ACK, 0)));
        assert!(passes(&programs[0], &tcp(client, server, ACK, 0)));
        Self {
            frames: [tcp(client, server, ACK, 9), tcp(server, client, ACK, 9)],
            client,
            sent: [0, 0],
            held_up: 0,
        }
    }

    fn talk(&mut self, programs: &[OwnedFd; 2]) {
        for ((program, frame), sent) in programs.iter().zip(&self.frames).zip(&mut self.sent) {
            match passes(program, frame) {
                true => *sent += 1,
                false => self.held_up += 1,
            }
        }
    }
}

/// A SYN whose source can be changed.
struct Syn(Vec<u8>);

impl Syn {
    fn new() -> Self {
        Self(tcp(end(PEER, 1), end(LOCAL, 443), SYN, 0))
    }

    fn from(&mut self, addr: [u8; 4], port: u16, to: u16) -> &[u8] {
        self.0[26..30].copy_from_slice(&addr);
        self.0[34..36].copy_from_slice(&port.to_be_bytes());
        self.0[36..38].copy_from_slice(&to.to_be_bytes());
        &self.0
    }
}

fn octets(addr: &str) -> [u8; 4] {
    addr.parse::<Ipv4Addr>().expect("an address").octets()
}

/// Half-open flows from allowed sources. `source` gives the n-th: address, port and port that is asked for.
fn half_open(clients: impl Iterator<Item = End>, source: impl Fn(usize) -> ([u8; 4], u16, u16)) {
    let Some(mut field) = Field::open(usual_sizes(), clients) else {
        return;
    };
    let size = flood_size();
    let (mut passed, mut syn) = (0, Syn::new());
    field.during(|[ingress, _]| {
        for n in 0..size {
            let (addr, port, to) = source(n);
            passed += u64::from(passes(ingress, syn.from(addr, port, to)));
        }
    });
    let views = field.views();
    field.check_sessions(&views);
    let (reasons, losses) = field.counted();
    let refused = size as u64 - passed;
    let half_open = (views.len() - field.sessions.len()) as u64;
    let notices = field.rig.drain().len() as u64;
    println!("{passed} let in, {refused} refused, {half_open} still there, {notices} notices");
    println!("reasons {reasons:?}, losses {losses:?}");
    let lost = |cause: &str| losses.get(cause).copied().unwrap_or(0);
    assert_eq!(
        reasons.values().sum::<u64>(),
        refused,
        "every refusal has its reason"
    );
    assert_eq!(
        half_open + lost("displaced"),
        passed,
        "every flow that was let in is there, or counted as displaced"
    );
    assert!(lost("ring-full") > 0, "nobody emptied the ring");
    assert!(passed > size as u64 / 10, "the flood was let in");
}

#[test]
fn half_open_flows_from_many_addresses_cut_no_session() {
    let clients = (0..10_000u16).map(|n| {
        let [hi, lo] = n.to_be_bytes();
        end(&Ipv4Addr::new(10, 100, hi, lo).to_string(), 40_000)
    });
    half_open(clients, |n| {
        let [_, b, c, d] = (n as u32).to_be_bytes();
        ([10, 64 + (b & 31), c, d], 50_000, 443)
    });
}

#[test]
fn half_open_flows_from_one_address_cut_no_session() {
    // The sessions are of that address too.
    let clients = (0..10_000).map(|n| end(PEER, 20_000 + n));
    half_open(clients, |n| {
        let to = 1000 + (n >> 16) as u16 % 24;
        (octets(PEER), n as u16, to)
    });
}

#[test]
fn what_is_denied_takes_no_room_and_is_counted() {
    let clients = (0..10_000).map(|n| end(PEER, 20_000 + n));
    let Some(mut field) = Field::open(usual_sizes(), clients) else {
        return;
    };
    let size = flood_size() / 2;
    let (mut passed, mut syn, mut rng) = (0, Syn::new(), Rng::new(9));
    field.during(|[ingress, _]| {
        for _ in 0..size {
            // Nobody knows 100.64.0.0/10.
            let [a, b, c, d, e, ..] = rng.bits().to_ne_bytes();
            let addr = [100, 64 + (a & 63), b, c];
            let port = u16::from_be_bytes([d, e]);
            passed += u64::from(passes(ingress, syn.from(addr, port, 443)));
        }
    });
    let views = field.views();
    field.check_sessions(&views);
    let (reasons, losses) = field.counted();
    println!("reasons {reasons:?}, losses {losses:?}");
    assert_eq!(passed, 0);
    assert_eq!(views.len(), field.sessions.len(), "no entry was made");
    assert_eq!(reasons.values().sum::<u64>(), size as u64);
    field.rig.kernel.fold_negatives().expect("moved");
    let denials = field.rig.kernel.denial_entries().expect("denials");
    let told: u64 = denials.iter().map(|(_, value)| value.packets).sum();
    let unnamed = losses.get("deny-table-full").copied().unwrap_or(0);
    println!(
        "{} aggregates tell {told} packets, {unnamed} have none",
        denials.len()
    );
    assert_eq!(told + unnamed, size as u64, "told, or counted as not told");
    assert!(
        unnamed > 0,
        "more peers than the table of denials has room for"
    );
}

/// Tuples towards this host that all lie in one set of the table, for somebody who knew its secret.
fn conflicting(field: &Field, with: End, count: usize) -> Vec<End> {
    let tables = field.rig.kernel.tables().expect("tables");
    let set_of = |addr: [u8; 4], port: u16| {
        let (ends, _) = canonical::<V4>(&addr, &octets(LOCAL), port, 443);
        spot::<V4>(&tables, &V4::words(&V4::key(ends, 6, 1))).set
    };
    let IpAddr::V4(addr) = with.addr else {
        panic!("IPv4 only")
    };
    let wanted = set_of(addr.octets(), with.port);
    (0..1u32 << 22)
        .map(|n| {
            let [_, b, c, d] = n.to_be_bytes();
            [10, 64 + (b & 63), c, d]
        })
        .filter(|addr| set_of(*addr, 50_000) == wanted)
        .map(|addr| end(&Ipv4Addr::from(addr).to_string(), 50_000))
        .take(count)
        .collect()
}

#[test]
fn conflicts_in_one_set_cut_no_session_and_let_nobody_in() {
    const HALF_OPEN: usize = 2_000;
    let sizes = TableSizes {
        flows4: 4_096,
        share: 0,
        ..ROOMY
    };
    let spill = u64::from(spill_room(sizes.flows4));
    let Some(mut field) = Field::open(sizes, (0..400).map(|n| end(PEER, 20_000 + n))) else {
        return;
    };
    let victim = field.sessions[0].client;
    let clients = conflicting(&field, victim, HALF_OPEN + 1_000);
    assert_eq!(clients.len(), HALF_OPEN + 1_000);
    let (half, whole) = clients.split_at(HALF_OPEN);
    let server = end(LOCAL, 443);
    // Half-open ones displace each other, in the ways that the set's sessions leave them.
    let passed = field.during(|[ingress, _]| {
        let frames = half.iter().map(|client| tcp(*client, server, SYN, 0));
        frames.filter(|frame| passes(ingress, frame)).count()
    });
    let views = field.views();
    field.check_sessions(&views);
    let (_, losses) = field.counted();
    println!("{passed} half-open flows in one set: losses {losses:?}");
    // Whoever proves itself stays: beyond the set and its spill there is no room, and that denies.
    let established = field.during(|programs| {
        let opens = |client: &&End| passes(&programs[0], &tcp(**client, server, SYN, 0));
        whole
            .iter()
            .filter(opens)
            .map(|client| {
                assert!(passes(&programs[1], &tcp(server, *client, SYN | ACK, 0)));
                assert!(passes(&programs[0], &tcp(*client, server, ACK, 0)));
            })
            .count()
    });
    let (reasons, losses) = field.counted();
    println!("{established} sessions of one set: reasons {reasons:?}, losses {losses:?}");
    assert!(established as u64 <= spill + 4, "a set and its spill");
    assert!(reasons["table-full"] >= 400, "the rest is denied");
    let others = reasons
        .keys()
        .filter(|name| !["table-full", "contended"].contains(&name.as_str()));
    assert_eq!(others.count(), 0, "{reasons:?}");
    let views = field.views();
    field.check_sessions(&views);
    // Everybody else gets in as before: all the other sets have room.
    let welcome = (0..100)
        .filter(|n| {
            passes(
                &field.programs[0],
                &tcp(end(PEER, 30_000 + n), server, SYN, 0),
            )
        })
        .count();
    println!("{welcome} of 100 others got in");
    assert!(welcome >= 90);
}

/// Proven flows everywhere: new ones are denied, whatever they are; those that are in go on.
#[test]
fn a_table_full_of_sessions_denies() {
    const FLOOD: usize = 50_000;
    let sizes = TableSizes {
        flows4: 1_024,
        share: 0,
        ..ROOMY
    };
    let Some(mut field) = Field::open(sizes, (0..400).map(|n| end(PEER, 20_000 + n))) else {
        return;
    };
    let server = end(LOCAL, 443);
    let mut syn = Syn::new();
    // Until every set is full of them, and the spill too.
    let clients = (0..1u32 << 14).map(|n| {
        let [_, _, c, d] = n.to_be_bytes();
        end(&Ipv4Addr::new(10, 64, c, d).to_string(), 50_000)
    });
    let mut filled = 0;
    for client in clients {
        if passes(&field.programs[0], &tcp(client, server, SYN, 0)) {
            assert!(passes(
                &field.programs[1],
                &tcp(server, client, SYN | ACK, 0)
            ));
            assert!(passes(&field.programs[0], &tcp(client, server, ACK, 0)));
            filled += 1;
        }
    }
    let (before, _) = field.counted();
    let room = field.views().len();
    println!("{filled} more sessions, {room} entries");
    assert_eq!(
        room as u64,
        1_024 + u64::from(spill_room(1_024)),
        "no way is free"
    );
    let passed = field.during(|[ingress, egress]| {
        let mut passed = 0;
        for n in 0..FLOOD {
            let [_, b, c, d] = (n as u32).to_be_bytes();
            let addr = [10, 80 + (b & 15), c, d];
            passed += u64::from(passes(ingress, syn.from(addr, 50_001, 443)));
            if n % 50 == 0 {
                let [client, stranger] = [addr, [100, 64, c, d]]
                    .map(|addr| end(&Ipv4Addr::from(addr).to_string(), 50_001));
                // Neither what was never opened, nor another protocol, nor this host's own.
                let middle = tcp(client, server, ACK, 5);
                passed += u64::from(passes(ingress, &middle));
                passed += u64::from(passes(ingress, &udp(client, end(LOCAL, 53), 5)));
                passed += u64::from(passes(ingress, &tcp(stranger, server, SYN, 0)));
                let own = tcp(end(LOCAL, 50_001), end(PEER, 5432), SYN, 0);
                passed += u64::from(passes(egress, &own));
            }
        }
        passed
    });
    let (reasons, losses) = field.counted();
    println!("reasons {reasons:?}, losses {losses:?}");
    assert_eq!(passed, 0, "a full table lets nobody in");
    let count = |reasons: &BTreeMap<String, u64>| -> u64 {
        let names = ["table-full", "contended"].iter();
        names.filter_map(|name| reasons.get(*name)).sum()
    };
    assert_eq!(
        count(&reasons) - count(&before),
        FLOOD as u64 + 2 * FLOOD as u64 / 50,
        "each is counted"
    );
    let views = field.views();
    field.check_sessions(&views);
    assert_eq!(views.len(), room);
}

/// First fragments of ever new datagrams fill what is remembered of fragments; later ones of unknown datagrams are dropped.
#[test]
fn fragments_without_end_cut_no_session_and_pass_only_after_their_first() {
    const DATAGRAMS: u32 = 50_000;
    let Some(mut field) = Field::open(ROOMY, (0..400).map(|n| end(PEER, 20_000 + n))) else {
        return;
    };
    let datagram = udp(end(PEER, 7), end(LOCAL, 53), 64);
    let unknown = udp(end("10.64.0.9", 7), end(LOCAL, 53), 64);
    let [first, unheard] = field.during(|[ingress, _]| {
        let mut passed = [0, 0];
        for id in 0..DATAGRAMS {
            // No last one: it is never forgotten by itself.
            let pieces = fragments(&datagram, id, 32);
            passed[0] += u32::from(passes(ingress, &pieces[0]));
            let late = fragments(&unknown, id, 32).pop().expect("pieces");
            passed[1] += u32::from(passes(ingress, &late));
        }
        passed
    });
    let (reasons, losses) = field.counted();
    println!("reasons {reasons:?}, losses {losses:?}");
    assert_eq!(first, DATAGRAMS, "what is allowed begins");
    assert_eq!(unheard, 0, "what never began does not go on");
    assert_eq!(reasons["fragment"], u64::from(DATAGRAMS));
    let views = field.views();
    field.check_sessions(&views);
}
