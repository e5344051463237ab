//! A host made of ordinary collections: the same pipeline as the kernel's, for tests and what-if.
//!
//! Only with the feature `sim`. It is kept honest by the agent's differential test, which sends the same
//! packets through the loaded object.

extern crate std;

mod fragments;
pub mod packets;
mod tables;

use core::cell::{Cell, RefCell};
use std::boxed::Box;
use std::collections::HashMap;
use std::vec::Vec;

use crate::abi::{
    ActiveWord, AddrValue, ClassKey, ClassValue, Config, Counter, DenyKey, DenyValue,
    EndpointValue, Event, FailsafeKey, FailsafeValue, FilterValue, Flow4, Flow6, FragmentKey,
    FragmentValue, Key4, Key6, Loss, Negative, RuleKey, RuleValue, Set4, Set6, Tables,
    config_flags,
};
use crate::conntrack::State;
use crate::drop_reason::DropReason;
use crate::flow::FlowRef;
use crate::fragment;
use crate::hash::SECRET_WORDS;
use crate::ids::Direction;
use crate::negative::denied_again;
use crate::packet::{Family, PacketRead, V4, V6, parse4, parse6};
use crate::pipeline::{Action, Aggregated, Denial, Direct, Env, Workspace, established};
use crate::table::{self, Memory};
use crate::verdict::PolicyLookup;

use tables::FlowTable;

/// One slot's content, with the kernel's look-up rules.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// Prefix (v4-mapped, so IPv4 lengths are 96 more) → binding.
    pub addresses: Vec<([u8; 16], u32, AddrValue)>,
    /// Endpoint → mode.
    pub endpoints: HashMap<u32, EndpointValue>,
    /// (endpoint, identity, direction) → class.
    pub classes: HashMap<(u32, u32, u32), ClassValue>,
    /// Cells: longest prefix wins.
    pub rules: Vec<(RuleKey, RuleValue)>,
    /// Filter cells.
    pub filters: Vec<(RuleKey, FilterValue)>,
}

/// Whether the first `bits` bits of two byte strings agree.
fn agree(a: &[u8], b: &[u8], bits: u32) -> bool {
    let whole = (bits / 8) as usize;
    let rest = bits % 8;
    a.get(..whole) == b.get(..whole)
        && (rest == 0
            || match (a.get(whole), b.get(whole)) {
                (Some(a), Some(b)) => (a ^ b) >> (8 - rest) == 0,
                _ => false,
            })
}

/// Whether an address is an IPv4 one in its v4-mapped form (no packet carries that form: the parser refuses it).
fn is_mapped(addr: &[u8; 16]) -> bool {
    addr.starts_with(&[0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff])
}

fn rule_bytes(key: &RuleKey) -> [u8; 8] {
    let [a, b, c, d] = key.class.to_ne_bytes();
    let [hi, lo] = key.port;
    [a, b, c, d, key.protocol, hi, lo, key.pad]
}

fn failsafe_bytes(key: &FailsafeKey) -> [u8; 20] {
    let mut out = [0; 20];
    let (head, addr) = out.split_at_mut(4);
    head.copy_from_slice(&[key.direction, key.protocol, key.port[0], key.port[1]]);
    addr.copy_from_slice(&key.addr);
    out
}

impl Content {
    /// The binding of an address by longest prefix; the families are apart, as they are in the kernel's maps.
    #[must_use]
    pub fn binding(&self, addr: &[u8; 16]) -> AddrValue {
        let family = is_mapped(addr);
        self.addresses
            .iter()
            .filter(|(net, bits, _)| {
                (*bits >= 96 && is_mapped(net)) == family && agree(net, addr, *bits)
            })
            .max_by_key(|(_, bits, _)| *bits)
            .map(|(_, _, value)| *value)
            .unwrap_or_default()
    }

    fn longest<T: Copy>(cells: &[(RuleKey, T)], key: &RuleKey) -> Option<T> {
        cells
            .iter()
            .filter(|(cell, _)| agree(&rule_bytes(cell), &rule_bytes(key), cell.prefix_len))
            .max_by_key(|(cell, _)| cell.prefix_len)
            .map(|(_, value)| *value)
    }
}

/// A host with two slots, tables, clocks and counters.
#[derive(Default)]
pub struct Sim {
    /// Contents of the slots.
    pub slots: [Content; 2],
    /// Settings.
    pub config: Config,
    /// The active word.
    pub word: Cell<ActiveWord>,
    /// Configured failsafes.
    pub failsafes: Vec<(FailsafeKey, FailsafeValue)>,
    /// Low 32 bits of jiffies.
    pub jiffies: Cell<u32>,
    /// Nanoseconds since boot.
    pub boot_ns: Cell<u64>,
    /// Device of every packet.
    pub ifindex: u32,
    /// Whether packets of proven flows take the short way, as in the kernel.
    pub fast: bool,
    /// How many aggregated denials fit.
    pub deny_capacity: usize,
    /// How many notices fit until somebody takes them out.
    pub ring_capacity: usize,
    /// Geometry and secret of the flow tables.
    pub tables: Tables,
    table4: FlowTable<Set4, Key4, Flow4>,
    table6: FlowTable<Set6, Key6, Flow6>,
    buckets: tables::Words,
    negatives: tables::Negatives,
    /// Denials; those that negative entries have counted come with [`Sim::fold`].
    pub denies: RefCell<HashMap<DenyKey, DenyValue>>,
    /// Packets that come in fragments.
    pub fragments: RefCell<HashMap<FragmentKey, Box<FragmentValue>>>,
    /// How many of them fit.
    pub fragment_capacity: usize,
    /// Notices.
    pub events: RefCell<Vec<Event>>,
    /// Counters by reason number.
    pub reasons: RefCell<HashMap<u8, Counter>>,
    /// Lost records by cause number.
    pub losses: RefCell<HashMap<u32, u64>>,
}

/// Reads a frame from memory.
struct Bytes<'a> {
    frame: &'a [u8],
    segments: u32,
    size: u32,
}

impl Bytes<'_> {
    /// Segments and bytes behind the link layer, when the headers say nothing.
    fn weight(&self) -> (u64, u64) {
        let bytes = self.frame.len().saturating_sub(14) as u64;
        (u64::from(self.segments.max(1)), bytes)
    }
}

impl PacketRead for Bytes<'_> {
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = offset as usize;
        self.frame
            .get(start..start.checked_add(N)?)?
            .try_into()
            .ok()
    }

    fn frame_len(&self) -> u32 {
        self.frame.len() as u32
    }

    fn segments(&self) -> u32 {
        self.segments
    }

    fn segment_size(&self) -> u32 {
        self.size
    }
}

impl Direct for Bytes<'_> {
    fn direct(&self, length: u32) -> Option<*const u8> {
        (self.frame.len() >= length as usize).then_some(self.frame.as_ptr())
    }
}

impl Sim {
    /// A host with the default timeouts, room for 65,536 flows of each family and nothing activated.
    #[must_use]
    pub fn new() -> Self {
        let mut config = Config {
            endpoint: 1,
            hz: 250,
            ..Config::default()
        };
        for (number, timeout) in config.timeouts.iter_mut().enumerate() {
            *timeout = State(number as u8).default_timeout() * 250;
        }
        let mut sim = Self {
            config,
            ifindex: 1,
            fast: true,
            deny_capacity: 65_536,
            ring_capacity: usize::MAX,
            fragment_capacity: 8_192,
            jiffies: Cell::new(1_000_000),
            boot_ns: Cell::new(4_000_000_000_000),
            ..Self::default()
        };
        let mut secret = [0; SECRET_WORDS];
        for (index, word) in secret.iter_mut().enumerate() {
            *word = (index as u32 + 1).wrapping_mul(0x9e37_79b9);
        }
        sim.tables.secret = secret;
        sim.resize(65_536, 65_536);
        sim
    }

    /// Empties the flow tables and gives them room for so many flows.
    pub fn resize(&mut self, flows4: u32, flows6: u32) {
        self.tables.mask4 = table::sets(flows4) - 1;
        self.tables.mask6 = table::sets(flows6) - 1;
        self.table4 = FlowTable::new(flows4);
        self.table6 = FlowTable::new(flows6);
        self.buckets = tables::Words::new(table::BUCKETS as usize);
        self.negatives = tables::Negatives::new();
    }

    /// Empties the negative entries, and with them what was not moved.
    pub fn clear_negatives(&mut self) {
        self.negatives = tables::Negatives::new();
    }

    /// Moves what negative entries have counted to the aggregates.
    pub fn fold(&self) {
        for slot in 0..crate::negative::SLOTS {
            crate::negative::fold_now::<V4, _>(self, slot);
        }
    }

    /// Every IPv4 flow.
    #[must_use]
    pub fn flows4(&self) -> Vec<(Key4, Flow4)> {
        self.table4.entries()
    }

    /// Every IPv6 flow.
    #[must_use]
    pub fn flows6(&self) -> Vec<(Key6, Flow6)> {
        self.table6.entries()
    }

    /// IPv4 entries that are closed and not yet taken out.
    #[must_use]
    pub fn closed4(&self) -> Vec<Flow4> {
        self.table4.closed()
    }

    /// Changes every IPv4 flow.
    pub fn rewrite4(&self, each: impl FnMut(&mut Flow4)) {
        self.table4.rewrite(each);
    }

    /// Changes every IPv6 flow.
    pub fn rewrite6(&self, each: impl FnMut(&mut Flow6)) {
        self.table6.rewrite(each);
    }

    /// Sends an Ethernet frame through a hook.
    pub fn send(&self, frame: &[u8], direction: Direction) -> Action {
        self.send_merged(frame, direction, 1)
    }

    /// Sends a frame that stands for several wire segments.
    pub fn send_merged(&self, frame: &[u8], direction: Direction, segments: u32) -> Action {
        self.send_sized(frame, direction, segments, 0)
    }

    /// Sends a frame with what the driver says of its segments: their number (0 = not counted) and payload size.
    pub fn send_sized(
        &self,
        frame: &[u8],
        direction: Direction,
        segments: u32,
        size: u32,
    ) -> Action {
        let bytes = Bytes {
            frame,
            segments,
            size,
        };
        let protocol = bytes.read::<2>(12).map_or(0, u16::from_be_bytes);
        match protocol {
            0x0800 if self.fast && established::<V4, _, _>(self, &bytes) => Action::Pass,
            0x86dd if self.fast && established::<V6, _, _>(self, &bytes) => Action::Pass,
            0x0800 if self.fast && denied_again::<V4, _, _>(self, &bytes, direction) => {
                Action::Drop
            }
            0x86dd if self.fast && denied_again::<V6, _, _>(self, &bytes, direction) => {
                Action::Drop
            }
            0x0800 => {
                let mut w = Workspace::<V4>::default();
                let parsed = parse4(&bytes, 14, &mut w.packet);
                let judged = fragment::judge::<V4, _>(self, &mut w, direction, parsed);
                judged.unwrap_or_else(|reason| {
                    self.unparsable(reason, w.packet.known_weight().unwrap_or(bytes.weight()))
                })
            }
            0x86dd => {
                let mut w = Workspace::<V6>::default();
                let parsed = parse6(&bytes, 14, &mut w.packet);
                let judged = fragment::judge::<V6, _>(self, &mut w, direction, parsed);
                judged.unwrap_or_else(|reason| {
                    self.unparsable(reason, w.packet.known_weight().unwrap_or(bytes.weight()))
                })
            }
            0x0806 => Action::Pass,
            _ => {
                let (packets, length) = bytes.weight();
                self.tally(DropReason::NonIp, packets, length);
                if self.config.flags & config_flags::L2_DROP != 0 {
                    Action::Drop
                } else {
                    Action::Pass
                }
            }
        }
    }

    /// As the kernel's shell treats a packet that does not parse.
    fn unparsable(&self, reason: DropReason, (packets, bytes): (u64, u64)) -> Action {
        let word = self.word.get();
        let (_, slot, _) = word.effective(self.boot_ns.get() / 1_000_000_000);
        let endpoint = self
            .slots
            .get(slot as usize)
            .and_then(|content| content.endpoints.get(&self.config.endpoint));
        let observed = endpoint.is_some_and(|endpoint| endpoint.mode == crate::abi::mode::OBSERVE);
        let open = word.is_learning() || self.config.panic == crate::abi::panic::OPEN;
        if open || (observed && self.config.panic == crate::abi::panic::NONE) {
            self.tally(DropReason::ModeObserve, packets, bytes);
            return Action::Pass;
        }
        self.tally(reason, packets, bytes);
        Action::Drop
    }

    fn tally(&self, reason: DropReason, packets: u64, bytes: u64) {
        let mut reasons = self.reasons.borrow_mut();
        let counter = reasons.entry(reason as u8).or_default();
        counter.packets += packets;
        counter.bytes += bytes;
    }

    fn miss(&self, cause: Loss) {
        *self.losses.borrow_mut().entry(cause as u32).or_default() += 1;
    }

    /// Packets counted under a reason.
    #[must_use]
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.reasons
            .borrow()
            .get(&(reason as u8))
            .map_or(0, |counter| counter.packets)
    }

    /// Moves both clocks.
    pub fn advance_seconds(&self, seconds: u32) {
        self.jiffies
            .set(self.jiffies.get().wrapping_add(seconds * self.config.hz));
        self.boot_ns
            .set(self.boot_ns.get() + u64::from(seconds) * 1_000_000_000);
    }
}

/// Look-ups in one slot.
pub struct SlotView<'a> {
    sim: &'a Sim,
    slot: u32,
}

impl SlotView<'_> {
    fn content(&self) -> Option<&Content> {
        self.sim.slots.get(self.slot as usize)
    }
}

impl PolicyLookup for SlotView<'_> {
    type Class = ClassValue;
    type Cell = RuleValue;

    fn endpoint(&self, endpoint: u32) -> Option<EndpointValue> {
        self.content()?.endpoints.get(&endpoint).copied()
    }

    fn class(&self, key: &ClassKey) -> Option<ClassValue> {
        self.content()?
            .classes
            .get(&(key.endpoint, key.identity, key.direction))
            .copied()
    }

    fn rule(&self, class: &ClassValue, protocol: u8, port: u16) -> Option<RuleValue> {
        let key = RuleKey::lookup(class.class, protocol, port);
        Content::longest(&self.content()?.rules, &key)
    }

    fn filter(&self, key: &RuleKey) -> Option<FilterValue> {
        Content::longest(&self.content()?.filters, key)
    }

    fn failsafe(&self, key: &FailsafeKey) -> Option<FailsafeValue> {
        self.sim
            .failsafes
            .iter()
            .filter(|(cell, _)| agree(&failsafe_bytes(cell), &failsafe_bytes(key), cell.prefix_len))
            .max_by_key(|(cell, _)| cell.prefix_len)
            .map(|(_, value)| *value)
    }

    fn boot_ns(&self) -> u64 {
        self.sim.boot_ns.get()
    }
}

macro_rules! env {
    ($family:ident, $table:ident, $key:ident) => {
        impl<'a> Memory<$family> for &'a Sim {
            fn tables(&self) -> Option<&Tables> {
                Some(&self.tables)
            }

            fn set(&self, index: u32) -> Option<*mut u8> {
                self.$table.set(index)
            }

            fn lock_word(&self, index: u32) -> Option<*mut u64> {
                self.$table.locks.at(index)
            }

            fn bucket(&self, index: u32) -> Option<*mut u64> {
                self.buckets.at(index)
            }

            fn spilled(&self, key: &$key) -> Option<FlowRef<$family>> {
                let flow = self.$table.spilled(key)?;
                // SAFETY: entries are boxed and stay while a packet is on its way.
                Some(unsafe { FlowRef::new(flow) })
            }

            fn spill(&self, key: &$key, fill: impl FnOnce(FlowRef<$family>)) -> bool {
                self.$table.spill(key, |flow| {
                    // SAFETY: an entry of our own until it is in the map.
                    fill(unsafe { FlowRef::new(flow) });
                })
            }

            fn unspill(&self, key: &$key) -> bool {
                self.$table.unspill(key)
            }
        }

        impl<'a> Env<$family> for &'a Sim {
            type Policy = SlotView<'a>;

            fn config(&self) -> Option<&Config> {
                Some(&self.config)
            }

            fn active(&self) -> ActiveWord {
                self.word.get()
            }

            fn jiffies(&self) -> u32 {
                self.jiffies.get()
            }

            fn boot_ns(&self) -> u64 {
                self.boot_ns.get()
            }

            fn policy(&self, slot: u32) -> SlotView<'a> {
                SlotView { sim: self, slot }
            }

            fn binding(&self, slot: u32, addr: &<$family as Family>::Addr) -> AddrValue {
                self.slots
                    .get(slot as usize)
                    .map(|content| content.binding(&$family::mapped(addr)))
                    .unwrap_or_default()
            }

            fn emit(&self, fill: impl FnOnce(&mut Event)) -> bool {
                let mut events = self.events.borrow_mut();
                if events.len() >= self.ring_capacity {
                    self.miss(Loss::RingFull);
                    return false;
                }
                let mut event = Event::default();
                fill(&mut event);
                events.push(event);
                true
            }

            fn negative(&self, slot: u32) -> Option<*mut Negative> {
                self.negatives.at(slot)
            }

            fn deny(&self, key: &DenyKey, denial: &Denial, told: &mut Aggregated) {
                let mut denies = self.denies.borrow_mut();
                if let Some(value) = denies.get_mut(key) {
                    let again = denial.is_announced(&self.config, value.packets, value.announced);
                    value.packets += denial.packets;
                    value.bytes += denial.bytes;
                    value.last = denial.now;
                    value.generation = denial.generation;
                    if again {
                        value.announced = denial.now;
                    }
                    *told = Aggregated {
                        announce: again,
                        again: true,
                        packets: value.packets,
                        announced: value.announced,
                    };
                    return;
                }
                if denies.len() >= self.deny_capacity {
                    self.miss(Loss::DenyTableFull);
                    told.announce = true;
                    return;
                }
                denies.insert(
                    *key,
                    DenyValue {
                        packets: denial.packets,
                        bytes: denial.bytes,
                        first: denial.now,
                        last: denial.now,
                        announced: denial.now,
                        identity: denial.identity,
                        generation: denial.generation,
                        draft_rule: denial.draft_rule,
                        draft: denial.draft,
                        source_port: u32::from(denial.source_port),
                    },
                );
                told.announce = true;
            }

            fn count(&self, reason: DropReason, packets: u64, bytes: u64) {
                self.tally(reason, packets, bytes);
            }

            fn lose(&self, cause: Loss) {
                self.miss(cause);
            }

            fn ifindex(&self) -> u32 {
                self.ifindex
            }

            fn cookie(&self) -> u64 {
                0
            }
        }
    };
}

env!(V4, table4, Key4);
env!(V6, table6, Key6);
