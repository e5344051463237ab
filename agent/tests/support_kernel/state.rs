//! Everything a packet can leave behind, in a form in which kernel and simulated host compare by `==`.
//!
//! Left out: clocks, socket cookies and the instance number that is made from the clock.

use std::collections::BTreeMap;
use std::net::Ipv6Addr;

use datapath::abi::{
    Body, DenyKey, DenyValue, Event, Flow4, Flow6, FragmentKey, FragmentValue, Key4, Key6, Loss,
};
use datapath::drop_reason::DropReason;
use datapath::flow::Meta;
use datapath::sim::Sim;

use super::rig::Rig;

/// One direction of an entry: packets, bytes, expiry, flags, and rule, draft rule, identity on line 0.
pub type Line = (u64, u64, u32, u32, [u32; 3]);

/// An entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// Generation.
    pub generation: u32,
    /// Slot state.
    pub slot: u8,
    /// Both directions.
    pub lines: [Line; 2],
}

/// What the tables, counters and the ring say.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct State {
    /// Entries by readable key.
    pub flows: BTreeMap<String, Flow>,
    /// Denials by readable key: packets, bytes, identity, generation, draft rule, draft, source port.
    pub denies: BTreeMap<String, [u64; 7]>,
    /// Packets in fragments by readable key: poisoned, end of what passed without a gap, end of the headers, tuple.
    pub fragments: BTreeMap<String, String>,
    /// Notices in order.
    pub events: Vec<String>,
    /// Packets and bytes by reason.
    pub reasons: BTreeMap<String, (u64, u64)>,
    /// Lost records by cause.
    pub losses: BTreeMap<String, u64>,
}

fn line(body: &Body, first: bool) -> Line {
    let words = if first {
        [body.a, body.b, body.c]
    } else {
        [0; 3]
    };
    (body.packets, body.bytes, body.expiry, body.flags, words)
}

fn flow4(key: &Key4, flow: &Flow4) -> (String, Flow) {
    let [a, b] = &flow.lines;
    assert_eq!(
        (a.key, b.key, a.meta),
        (*key, *key, b.meta),
        "both lines carry the key"
    );
    let name = format!(
        "4 {:?}:{} {:?}:{} proto {} scope {}",
        key.lo,
        u16::from_be_bytes(key.lo_port),
        key.hi,
        u16::from_be_bytes(key.hi_port),
        key.protocol,
        key.scope
    );
    (name, flow_of(a.meta, &a.body, &b.body))
}

fn flow6(key: &Key6, flow: &Flow6) -> (String, Flow) {
    let [a, b] = &flow.lines;
    assert_eq!(
        (a.key, b.key, a.meta),
        (*key, *key, b.meta),
        "both lines carry the key"
    );
    let name = format!(
        "6 {}:{} {}:{} proto {} scope {}",
        Ipv6Addr::from(key.lo),
        u16::from_be_bytes(key.lo_port),
        Ipv6Addr::from(key.hi),
        u16::from_be_bytes(key.hi_port),
        key.protocol,
        key.scope
    );
    (name, flow_of(a.meta, &a.body, &b.body))
}

fn flow_of(meta: u64, a: &Body, b: &Body) -> Flow {
    Flow {
        generation: Meta(meta).generation(),
        slot: Meta(meta).slot(),
        lines: [line(a, true), line(b, false)],
    }
}

fn denial(key: &DenyKey, value: &DenyValue) -> (String, [u64; 7]) {
    assert_eq!(key.pad, 0);
    let name = format!(
        "{} {} -> {} port {} proto {} rule {} {} dir {} opening {}",
        key.family,
        Ipv6Addr::from(key.initiator),
        Ipv6Addr::from(key.responder),
        u16::from_be_bytes(key.port),
        key.protocol,
        key.rule,
        reason_name(key.reason),
        key.direction,
        key.opening
    );
    let value = [
        value.packets,
        value.bytes,
        u64::from(value.identity),
        u64::from(value.generation),
        u64::from(value.draft_rule),
        u64::from(value.draft),
        u64::from(value.source_port),
    ];
    (name, value)
}

fn fragment(key: &FragmentKey, value: &FragmentValue) -> (String, String) {
    assert_eq!(value.pad, 0);
    let name = format!(
        "{} -> {} id {} proto {} scope {} dir {}",
        Ipv6Addr::from(key.src),
        Ipv6Addr::from(key.dst),
        key.id,
        key.protocol,
        key.scope,
        key.direction
    );
    let state = if value.poisoned == 0 {
        "known"
    } else {
        "poisoned"
    };
    let tuple = format!(
        "{state} next {} headers {} proto {} ports {} {} {} reply {}",
        value.next,
        value.headers,
        value.protocol,
        value.src_port,
        value.dst_port,
        value.policy_port,
        value.reply_only
    );
    (name, tuple)
}

/// The name of a reason number, or the number.
pub fn reason_name(number: u8) -> String {
    DropReason::from_u8(number).map_or_else(|| number.to_string(), |reason| reason.name().into())
}

fn event(event: &Event) -> String {
    assert_eq!(event.pad, 0);
    format!(
        "kind {} {} {}:{} -> {}:{} proto {} dir {} verdict {:#04x} {} state {} tcp {:#04x} gen {} rules {}/{} id {} packets {:?} bytes {:?} dev {} opening {}",
        event.kind,
        event.family,
        Ipv6Addr::from(event.initiator),
        event.initiator_port,
        Ipv6Addr::from(event.responder),
        event.responder_port,
        event.protocol,
        event.direction,
        event.verdict,
        reason_name(event.reason),
        event.state,
        event.tcp_flags,
        event.generation,
        event.rule,
        event.draft_rule,
        event.identity,
        event.packets,
        event.bytes,
        event.ifindex,
        event.opening,
    )
}

impl State {
    /// Of a simulated host.
    pub fn of_sim(sim: &Sim) -> Self {
        let mut state = Self {
            events: sim.events.borrow().iter().map(event).collect(),
            ..Self::default()
        };
        for (key, value) in &sim.flows4() {
            state.flows.extend([flow4(key, value)]);
        }
        for (key, value) in &sim.flows6() {
            state.flows.extend([flow6(key, value)]);
        }
        sim.fold();
        for (key, value) in sim.denies.borrow().iter() {
            state.denies.extend([denial(key, value)]);
        }
        for (key, value) in sim.fragments.borrow().iter() {
            state.fragments.extend([fragment(key, value)]);
        }
        for (number, counter) in sim.reasons.borrow().iter() {
            if counter.packets > 0 {
                state
                    .reasons
                    .insert(reason_name(*number), (counter.packets, counter.bytes));
            }
        }
        for loss in Loss::ALL {
            let count = sim.losses.borrow().get(&(loss as u32)).copied();
            state
                .losses
                .insert(loss.name().into(), count.unwrap_or_default());
        }
        state
    }

    /// Of the kernel, whose ring is emptied into `events`; counters from the beginning of time.
    pub fn of_rig(rig: &mut Rig, events: &mut Vec<Event>) -> Self {
        events.extend(rig.drain());
        let totals = rig.kernel.totals().expect("counters");
        let mut state = Self {
            events: events.iter().map(event).collect(),
            reasons: totals.reasons,
            losses: totals.losses,
            ..Self::default()
        };
        for (key, value) in rig.kernel.entries4().expect("flows") {
            state.flows.extend([flow4(&key, &value)]);
        }
        for (key, value) in rig.kernel.entries6().expect("flows") {
            state.flows.extend([flow6(&key, &value)]);
        }
        rig.kernel.fold_negatives().expect("negative entries");
        for (key, value) in rig.kernel.denial_entries().expect("denials") {
            state.denies.extend([denial(&key, &value)]);
        }
        for (key, value) in rig.kernel.fragment_entries().expect("fragments") {
            state.fragments.extend([fragment(&key, &value)]);
        }
        state
    }

    /// Takes off the counters of an earlier state.
    pub fn since(mut self, earlier: &Self) -> Self {
        for (name, (packets, bytes)) in &earlier.reasons {
            if let Some(counter) = self.reasons.get_mut(name) {
                counter.0 -= packets;
                counter.1 -= bytes;
            }
        }
        self.reasons.retain(|_, (packets, _)| *packets > 0);
        for (name, count) in &earlier.losses {
            if let Some(counter) = self.losses.get_mut(name) {
                *counter -= count;
            }
        }
        self
    }

    /// What differs, one line each; empty when nothing does.
    pub fn differences(&self, other: &Self) -> Vec<String> {
        let mut out = Vec::new();
        compare("flow", &self.flows, &other.flows, &mut out);
        compare("denial", &self.denies, &other.denies, &mut out);
        compare("fragment", &self.fragments, &other.fragments, &mut out);
        compare("reason", &self.reasons, &other.reasons, &mut out);
        compare("loss", &self.losses, &other.losses, &mut out);
        if self.events != other.events {
            let longest = self.events.len().max(other.events.len());
            for index in 0..longest {
                let (a, b) = (self.events.get(index), other.events.get(index));
                if a != b {
                    out.push(format!(
                        "event {index}:\n    kernel {a:?}\n    host   {b:?}"
                    ));
                }
            }
        }
        out
    }
}

fn compare<T: PartialEq + std::fmt::Debug>(
    what: &str,
    kernel: &BTreeMap<String, T>,
    host: &BTreeMap<String, T>,
    out: &mut Vec<String>,
) {
    let names: std::collections::BTreeSet<_> = kernel.keys().chain(host.keys()).collect();
    for name in names {
        let (a, b) = (kernel.get(name), host.get(name));
        if a != b {
            out.push(format!(
                "{what} {name}:\n    kernel {a:?}\n    host   {b:?}"
            ));
        }
    }
}
