//! Explicit runs: a small policy, one packet a step, and every trace that it leaves written down.
//!
//! A step names all that changed, in words separated by blanks; a trace that nobody wrote down fails the test:
//! `flow:syn-sent` a new entry, `state:a>b`, `gen:1>2`, `why:a>b` (the reason in an entry), `out+1/40` and `in+1/40`
//! packets and bytes in entries seen from the initiator, `reason:default-deny+1/40`, `deny:new` a new aggregate,
//! `denied+1/40` in aggregates, `event:new`, `event:close`, `event:deny`, `loss:ring-full+1`, `fragment:known`,
//! `fragment:poisoned`, `fragment:gone` what is remembered of packets in fragments.

use std::ops::{Deref, DerefMut};
use std::sync::{Mutex, PoisonError};

use datapath::abi::{
    ActiveWord, AddrValue, ClassValue, EndpointValue, FailsafeKey, FailsafeValue, RuleKey,
    RuleValue, addr_flags, mode, rule_flags,
};
use datapath::conntrack::State as Conn;
use datapath::drop_reason::DropReason;
use datapath::flow::{Flags, bits};
use datapath::ids::Direction::{self, Egress, Ingress};
use datapath::packet::tcp::{ACK, SYN};
use datapath::pipeline::Action;
use datapath::sim::Content;
use datapath::sim::packets::{End, end, tcp};

use super::rig::Merged;
use super::state::{Flow, State, reason_name};
use super::twin::{ROOMY, Twin};

/// This host.
pub const LOCAL: &str = "10.0.0.1";
/// Whom the policy allows something.
pub const PEER: &str = "10.0.0.2";
/// Whom it allows nothing.
pub const OTHER: &str = "10.0.0.3";
/// This host, IPv6.
pub const LOCAL6: &str = "fd00::1";
/// The peer, IPv6.
pub const PEER6: &str = "fd00::2";
/// Identities.
pub const PEER_ID: u32 = 300;
/// Of [`OTHER`].
pub const OTHER_ID: u32 = 301;
/// Of [`LOCAL`].
pub const LOCAL_ID: u32 = 302;

/// A client of this host's service.
pub fn client() -> End {
    end(PEER, 40_000)
}

/// This host's service.
pub fn server() -> End {
    end(LOCAL, 443)
}

/// An address in the form of contents and failsafes.
pub fn mapped(addr: &str) -> [u8; 16] {
    match addr.parse().expect("an address") {
        std::net::IpAddr::V4(addr) => addr.to_ipv6_mapped().octets(),
        std::net::IpAddr::V6(addr) => addr.octets(),
    }
}

/// A cell whose both verdicts agree and that is enforced.
pub fn cell(allow: bool, rule: u32) -> RuleValue {
    let reason = if allow {
        0
    } else {
        DropReason::DefaultDeny as u8
    };
    RuleValue {
        enforced: u8::from(allow),
        draft: u8::from(allow),
        rule,
        draft_rule: rule,
        reason,
        draft_reason: reason,
        flags: rule_flags::ENFORCED,
        ..RuleValue::default()
    }
}

/// The key of a class's last word.
pub fn any(class: u32) -> RuleKey {
    RuleKey {
        prefix_len: RuleKey::ANY_PROTOCOL,
        class,
        ..RuleKey::default()
    }
}

/// The key of one port.
pub fn port(class: u32, protocol: u8, port: u16) -> RuleKey {
    RuleKey::lookup(class, protocol, port)
}

/// PEER may reach 443/tcp, 53/udp, 99/sctp, echo and GRE; this host may reach 5432/tcp, 53/udp and echo there.
pub fn policy() -> Content {
    let mut content = Content::default();
    for (addr, identity, flags) in [
        (LOCAL, LOCAL_ID, addr_flags::LOCAL),
        (PEER, PEER_ID, 0),
        (OTHER, OTHER_ID, 0),
        (LOCAL6, LOCAL_ID, addr_flags::LOCAL),
        (PEER6, PEER_ID, 0),
    ] {
        let value = AddrValue { identity, flags };
        content.addresses.push((mapped(addr), 128, value));
    }
    set_mode(&mut content, mode::ENFORCE);
    for identity in [0, 2, PEER_ID, OTHER_ID, LOCAL_ID] {
        for direction in [0, 1] {
            let class = if identity == PEER_ID {
                10 + direction
            } else {
                1
            };
            content
                .classes
                .insert((1, identity, direction), ClassValue { class, filter: 0 });
        }
    }
    for (class, rule) in [(1, 90), (10, 91), (11, 92)] {
        content.rules.push((any(class), cell(false, rule)));
    }
    for (class, protocol, number, rule) in [
        (10, 6, 443, 11),
        (10, 17, 53, 12),
        (10, 132, 99, 13),
        (10, 1, 8 << 8, 14),
        (10, 58, 128 << 8, 15),
        (10, 47, 0, 16),
        (11, 6, 5432, 21),
        (11, 17, 53, 22),
        (11, 1, 8 << 8, 23),
        (11, 58, 128 << 8, 24),
    ] {
        let key = port(class, protocol, number);
        content.rules.push((key, cell(true, rule)));
    }
    content
}

/// Sets the endpoint's mode; observe takes the enforcement off every cell, as a compiler would.
pub fn set_mode(content: &mut Content, mode: u32) {
    let value = EndpointValue { mode, reserved: 0 };
    content.endpoints.insert(1, value);
    if mode == mode::OBSERVE {
        for (_, cell) in &mut content.rules {
            cell.flags &= !rule_flags::ENFORCED;
        }
    }
}

/// Changes the cells of one port.
pub fn edit(content: &mut Content, number: u16, edit: impl Fn(&mut RuleValue)) {
    for (key, value) in &mut content.rules {
        if key.prefix_len == RuleKey::FULL && key.port == number.to_be_bytes() {
            edit(value);
        }
    }
}

/// Takes the cells of one port away.
pub fn without(mut content: Content, number: u16) -> Content {
    content
        .rules
        .retain(|(key, _)| key.prefix_len != RuleKey::FULL || key.port != number.to_be_bytes());
    content
}

/// A failsafe under rule 7.
pub fn failsafe(
    direction: Direction,
    protocol: u8,
    port: u16,
    addr: &str,
    flags: u32,
) -> (FailsafeKey, FailsafeValue) {
    let key = FailsafeKey {
        prefix_len: 160,
        direction: direction as u8,
        protocol,
        port: port.to_be_bytes(),
        addr: mapped(addr),
    };
    (key, FailsafeValue { flags, rule: 7 })
}

/// Hosts that are given back when a test has succeeded: loading the object takes longer than most tests.
pub struct Lease {
    twin: Option<Twin>,
    shared: bool,
}

static POOL: Mutex<Vec<Twin>> = Mutex::new(Vec::new());

impl Lease {
    /// Hosts with roomy tables, used before or new.
    pub fn shared() -> Option<Self> {
        let used = POOL.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let twin = match used {
            Some(mut twin) => {
                twin.rig.enter();
                twin.reset();
                twin
            }
            None => Twin::open(ROOMY)?,
        };
        Some(Self {
            twin: Some(twin),
            shared: true,
        })
    }

    /// Hosts for one test.
    pub fn own(twin: Twin) -> Self {
        Self {
            twin: Some(twin),
            shared: false,
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(twin) = self.twin.take()
            && self.shared
            && !std::thread::panicking()
        {
            POOL.lock()
                .unwrap_or_else(PoisonError::into_inner)
                .push(twin);
        }
    }
}

impl Deref for Lease {
    type Target = Twin;

    fn deref(&self) -> &Twin {
        self.twin.as_ref().expect("held until dropped")
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Twin {
        self.twin.as_mut().expect("held until dropped")
    }
}

/// Both hosts with a policy, generation 1, slot 0.
pub struct Scene {
    /// The hosts.
    pub twin: Lease,
    last: State,
    /// Steps so far.
    pub steps: u32,
}

impl Scene {
    /// With [`policy`] in slot 0 and `next` in slot 1.
    pub fn open(next: Content) -> Option<Self> {
        Self::with(Lease::shared()?, policy(), next)
    }

    /// With these contents.
    pub fn of(first: Content, next: Content) -> Option<Self> {
        Self::with(Lease::shared()?, first, next)
    }

    /// Over these hosts.
    pub fn with(mut twin: Lease, first: Content, next: Content) -> Option<Self> {
        twin.fill([first, next]);
        twin.set_failsafes(Vec::new());
        twin.set_word(ActiveWord::committed(1, 0));
        let (last, host) = twin.states();
        assert_eq!(last.differences(&host), Vec::<String>::new());
        Some(Self {
            twin,
            last,
            steps: 0,
        })
    }

    /// Activates a slot for good.
    pub fn commit(&mut self, generation: u32, slot: u32) {
        self.twin.set_word(ActiveWord::committed(generation, slot));
    }

    /// A packet towards this host that passes.
    pub fn pass_in(&mut self, frame: &[u8], changes: &str) {
        self.step(frame, Ingress, None, Action::Pass, changes);
    }

    /// A packet towards this host that is dropped.
    pub fn drop_in(&mut self, frame: &[u8], changes: &str) {
        self.step(frame, Ingress, None, Action::Drop, changes);
    }

    /// A packet of this host that passes.
    pub fn pass_out(&mut self, frame: &[u8], changes: &str) {
        self.step(frame, Egress, None, Action::Pass, changes);
    }

    /// A packet of this host that is dropped.
    pub fn drop_out(&mut self, frame: &[u8], changes: &str) {
        self.step(frame, Egress, None, Action::Drop, changes);
    }

    /// One packet, the answer, and everything that changed.
    pub fn step(
        &mut self,
        frame: &[u8],
        direction: Direction,
        merged: Option<Merged>,
        expected: Action,
        changes: &str,
    ) {
        self.steps += 1;
        let step = self.steps;
        let (kernel, host) = self
            .twin
            .send(frame, direction, merged)
            .expect("a frame that the kernel runs programs over");
        assert_eq!(kernel, expected, "step {step}: the kernel's answer");
        assert_eq!(host, expected, "step {step}: the simulated host's answer");
        let (now, other) = self.twin.states();
        let differences = now.differences(&other);
        assert!(
            differences.is_empty(),
            "step {step}:\n{}",
            differences.join("\n")
        );
        let mut written: Vec<String> = changes.split_whitespace().map(str::to_owned).collect();
        let mut found = changes_between(&self.last, &now);
        written.sort();
        found.sort();
        assert_eq!(
            found.join(" "),
            written.join(" "),
            "step {step}: (left) what changed, (right) what is written down"
        );
        self.last = now;
    }

    /// A TCP connection up to established, without looking.
    pub fn establish(&mut self, from: End, to: End, inbound: bool) {
        let (there, back) = if inbound {
            (Ingress, Egress)
        } else {
            (Egress, Ingress)
        };
        for (frame, direction) in [
            (tcp(from, to, SYN, 0), there),
            (tcp(to, from, SYN | ACK, 0), back),
            (tcp(from, to, ACK, 0), there),
        ] {
            let answers = self.twin.send(&frame, direction, None);
            assert_eq!(answers, Some((Action::Pass, Action::Pass)));
        }
        self.look_away();
    }

    /// What happened since the last step is not looked at.
    pub fn look_away(&mut self) {
        let (now, host) = self.twin.states();
        assert_eq!(now.differences(&host), Vec::<String>::new());
        self.last = now;
    }

    /// The only entry.
    pub fn entry(&self) -> Flow {
        assert_eq!(self.last.flows.len(), 1, "one entry");
        *self.last.flows.values().next().expect("one")
    }

    /// The last notice.
    pub fn event(&self) -> &str {
        self.last.events.last().expect("a notice")
    }
}

fn state(flow: &Flow) -> &'static str {
    Conn(Flags(flow.lines[0].3).state().0).name()
}

fn reason(flow: &Flow) -> String {
    reason_name(Flags(flow.lines[0].3).reason())
}

/// Packets and bytes: initiator → responder, and back.
fn weights(state: &State) -> [(i64, i64); 2] {
    let mut sums = [(0, 0); 2];
    for flow in state.flows.values() {
        let swap = usize::from(Flags(flow.lines[0].3).verdict() & bits::INITIATOR_HI != 0);
        for (index, line) in flow.lines.iter().enumerate() {
            let sum = &mut sums[index ^ swap];
            sum.0 += line.0 as i64;
            sum.1 += line.1 as i64;
        }
    }
    sums
}

fn changes_between(old: &State, new: &State) -> Vec<String> {
    let mut out = Vec::new();
    for (key, flow) in &new.flows {
        let Some(was) = old.flows.get(key) else {
            out.push(format!("flow:{}", state(flow)));
            continue;
        };
        if state(was) != state(flow) {
            out.push(format!("state:{}>{}", state(was), state(flow)));
        }
        if was.generation != flow.generation {
            out.push(format!("gen:{}>{}", was.generation, flow.generation));
        }
        if reason(was) != reason(flow) {
            out.push(format!("why:{}>{}", reason(was), reason(flow)));
        }
    }
    let (was, is) = (weights(old), weights(new));
    for (index, name) in ["out", "in"].into_iter().enumerate() {
        let packets = is[index].0 - was[index].0;
        let bytes = is[index].1 - was[index].1;
        if (packets, bytes) != (0, 0) {
            out.push(format!("{name}{packets:+}/{bytes}"));
        }
    }
    for (name, (packets, bytes)) in &new.reasons {
        let (p, b) = old.reasons.get(name).copied().unwrap_or_default();
        if packets != &p {
            out.push(format!("reason:{name}+{}/{}", packets - p, bytes - b));
        }
    }
    let mut denied = (0, 0);
    for (key, value) in &new.denies {
        let was = old.denies.get(key);
        if was.is_none() {
            out.push("deny:new".into());
        }
        let was = was.copied().unwrap_or_default();
        denied = (denied.0 + value[0] - was[0], denied.1 + value[1] - was[1]);
    }
    if denied != (0, 0) {
        out.push(format!("denied+{}/{}", denied.0, denied.1));
    }
    for (key, value) in &new.fragments {
        let state = value.split(' ').next().unwrap_or_default();
        match old.fragments.get(key) {
            None => out.push(format!("fragment:{state}")),
            Some(was) if !was.starts_with(state) => out.push(format!("fragment:{state}")),
            Some(_) => {}
        }
    }
    for key in old.fragments.keys() {
        if !new.fragments.contains_key(key) {
            out.push("fragment:gone".into());
        }
    }
    for event in new.events.iter().skip(old.events.len()) {
        let kind = match event.split_whitespace().nth(1) {
            Some("1") => "new",
            Some("2") => "close",
            Some("3") => "deny",
            _ => "unknown",
        };
        out.push(format!("event:{kind}"));
    }
    for (name, count) in &new.losses {
        let was = old.losses.get(name).copied().unwrap_or_default();
        if *count != was {
            out.push(format!("loss:{name}+{}", count - was));
        }
    }
    out
}
