//! Reads events and tables into records, and deletes entries whose last word is in the spool.

use std::collections::HashMap;
use std::sync::Arc;

use datapath::abi::{DenyKey, DenyValue, Event, Flow4, Flow6, event_kind};
use datapath::flow::{Meta, slot};
use datapath::record::FlowView;

use super::names::Names;
use super::record::{Context, Instance, Record};
use crate::kernel::clock::Converter;
use crate::kernel::flowtable::Place;
use crate::kernel::{Kernel, OfflineKernel};

/// What was last said of a flow.
#[derive(Clone, Copy, Debug)]
struct Said {
    packets: u64,
    closed: bool,
    /// UTC nanoseconds of the record.
    at: i64,
    /// Sweep in which the entry was last seen.
    sweep: u64,
    icmp: Option<u16>,
}

/// An entry that is over and whose last record was made: to be deleted once that record is spooled.
#[derive(Clone, Copy, Debug)]
enum Finished {
    V4(Place, Flow4),
    V6(Place, Flow6),
    Deny(DenyKey, Seen),
}

/// What tells whether an entry is still the one that a record was made of. A new flow under the same key may
/// have as many packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Seen {
    packets: u64,
    sequence: u64,
    first: u64,
}

impl Seen {
    fn flow(view: &FlowView) -> Self {
        Self {
            packets: packets(view),
            sequence: u64::from(view.sequence),
            first: u64::from(view.first),
        }
    }

    fn denial(value: &DenyValue) -> Self {
        Self {
            packets: value.packets,
            sequence: 0,
            first: u64::from(value.first),
        }
    }
}

/// What one pass over the tables gave.
#[derive(Debug, Default)]
pub struct Pass {
    /// New records.
    pub records: Vec<Record>,
    /// Instances (uids) whose last word is among them.
    pub closed: Vec<String>,
    finished: Vec<Finished>,
    /// Flows in the tables.
    pub flows: u64,
}

/// Settings of the collector.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// How often a live flow is reported, nanoseconds.
    pub interval_ns: i64,
    /// Idle timeouts in ticks by state.
    pub timeouts: [u32; 16],
    /// A denied key is forgotten after so many silent ticks.
    pub deny_idle: u32,
}

/// Turns what the kernel holds into records. Knows what was already said.
#[derive(Debug)]
pub struct Collector {
    boot: String,
    settings: Settings,
    names: Arc<Names>,
    said: HashMap<Instance, Said>,
    denied: HashMap<DenyKey, (u64, u64, u64)>,
    already: HashMap<String, ()>,
    sweeps: u64,
}

/// Packets of an entry, both ways: what tells whether it changed.
const fn packets(view: &FlowView) -> u64 {
    view.packets_out.wrapping_add(view.packets_in)
}

impl Collector {
    /// `already` are the uids whose last word the process before has spooled.
    #[must_use]
    pub fn new(
        boot_id: &str,
        settings: Settings,
        already: impl IntoIterator<Item = String>,
    ) -> Self {
        Self {
            boot: boot_id.chars().filter(|c| *c != '-').take(8).collect(),
            settings,
            names: Arc::default(),
            said: HashMap::new(),
            denied: HashMap::new(),
            already: already.into_iter().map(|uid| (uid, ())).collect(),
            sweeps: 0,
        }
    }

    /// Names of the rules from now on.
    pub fn set_names(&mut self, names: Arc<Names>) {
        self.names = names;
    }

    /// Records of notices.
    pub fn events(&mut self, events: &[Event], clock: &Converter) -> Vec<Record> {
        let names = Arc::clone(&self.names);
        let context = Context {
            boot: &self.boot,
            clock,
            names: &names,
        };
        let mut records = Vec::with_capacity(events.len());
        for event in events {
            match event.kind {
                event_kind::NEW | event_kind::CLOSE => {
                    let closed = event.kind == event_kind::CLOSE;
                    let record = Record::of_event(&context, event, closed);
                    let total = record.packets_out.wrapping_add(record.packets_in);
                    let icmp = (!closed).then_some(event.responder_port);
                    let instance = Instance::of_event(event);
                    let said = self.said.entry(instance).or_insert(Said {
                        packets: 0,
                        closed: false,
                        at: 0,
                        sweep: self.sweeps,
                        icmp,
                    });
                    // A sweep may have been faster than the ring.
                    if said.closed && said.packets >= total {
                        continue;
                    }
                    said.packets = said.packets.max(total);
                    said.closed |= closed;
                    said.at = record.last_ns;
                    said.icmp = said.icmp.or(icmp);
                    let mut record = record;
                    if closed
                        && let Some(icmp) = said.icmp
                        && matches!(record.protocol, 1 | 58)
                    {
                        record.responder_port = icmp;
                    }
                    records.push(record);
                }
                // The sweep reports the totals of a denied key; the notice is its first sight.
                event_kind::DENY => {
                    let mut record = Record::of_event(&context, event, false);
                    record.denial = true;
                    record.state = "denied";
                    record.evaluated_allow = false;
                    record.allowed = false;
                    record.uid = denial_uid(&self.boot, event);
                    let [total, _] = event.packets;
                    let at = u64::try_from(record.last_ns).unwrap_or(0);
                    // A later notice of the same key says one packet; its total comes with the sweep.
                    if self.denied.contains_key(&deny_key(event)) {
                        continue;
                    }
                    self.denied
                        .insert(deny_key(event), (total, at, self.sweeps));
                    records.push(record);
                }
                _ => {}
            }
        }
        records
    }

    /// One pass over flow tables and denials.
    ///
    /// # Errors
    /// When a table cannot be read.
    pub fn sweep(
        &mut self,
        kernel: &OfflineKernel,
        clock: &Converter,
        now_ns: i64,
    ) -> std::io::Result<Pass> {
        self.sweeps += 1;
        let mut pass = Pass::default();
        let names = Arc::clone(&self.names);
        kernel.flows4.for_each(|place, flow: Flow4| {
            let view = FlowView::of4(&flow);
            let ended = Meta(flow.lines[0].meta).slot() == slot::CLOSED;
            if self.flow(&mut pass, &names, clock, now_ns, &view, ended) {
                pass.finished.push(Finished::V4(place, flow));
            }
        })?;
        kernel.flows6.for_each(|place, flow: Flow6| {
            let view = FlowView::of6(&flow);
            let ended = Meta(flow.lines[0].meta).slot() == slot::CLOSED;
            if self.flow(&mut pass, &names, clock, now_ns, &view, ended) {
                pass.finished.push(Finished::V6(place, flow));
            }
        })?;
        kernel.denies.for_each(|key: DenyKey, value: DenyValue| {
            self.denial(&mut pass, &names, clock, now_ns, &key, &value);
        })?;
        // Entries that were replaced or deleted: their last word came by event.
        let sweeps = self.sweeps;
        self.said.retain(|_, said| said.sweep + 2 > sweeps);
        self.denied.retain(|_, (_, _, sweep)| *sweep + 2 > sweeps);
        Ok(pass)
    }

    /// Looks at one entry; true when it is over and may be deleted. `ended`: the kernel has closed it already.
    fn flow(
        &mut self,
        pass: &mut Pass,
        names: &Names,
        clock: &Converter,
        now_ns: i64,
        view: &FlowView,
        ended: bool,
    ) -> bool {
        pass.flows += u64::from(!ended);
        let total = packets(view);
        let instance = Instance::of_view(view);
        let timeout = self
            .settings
            .timeouts
            .get(usize::from(view.state.0 & 15))
            .copied()
            .unwrap_or(0);
        let expired = ended || (timeout != 0 && clock.age(view.last) > timeout);
        let closed = view.state.is_closed() || expired;
        let sweep = self.sweeps;
        let said = self.said.get(&instance).copied();
        let news = match said {
            None => true,
            Some(said) => {
                (closed && !said.closed)
                    || (said.packets != total
                        && (closed || now_ns.saturating_sub(said.at) >= self.settings.interval_ns))
            }
        };
        let icmp = said.and_then(|said| said.icmp);
        if news {
            let context = Context {
                boot: &self.boot,
                clock,
                names,
            };
            let mut record = Record::of_view(&context, view, icmp);
            record.closed = closed;
            if closed {
                pass.closed.push(record.uid.clone());
            }
            // The process before has said it and was killed before the entry was deleted.
            if !(closed && self.already.remove(&record.uid).is_some()) {
                pass.records.push(record);
            }
        }
        self.said.insert(
            instance,
            Said {
                packets: if news {
                    total
                } else {
                    said.map_or(total, |said| said.packets)
                },
                closed: closed || said.is_some_and(|said| said.closed && !news),
                at: if news {
                    now_ns
                } else {
                    said.map_or(now_ns, |said| said.at)
                },
                sweep,
                icmp,
            },
        );
        expired
    }

    fn denial(
        &mut self,
        pass: &mut Pass,
        names: &Names,
        clock: &Converter,
        now_ns: i64,
        key: &DenyKey,
        value: &DenyValue,
    ) {
        let idle = clock.age(value.last) > self.settings.deny_idle;
        let said = self.denied.get(key).copied();
        let at = u64::try_from(now_ns).unwrap_or(0);
        let interval = u64::try_from(self.settings.interval_ns).unwrap_or(0);
        let news = match said {
            None => true,
            Some((packets, last, _)) => {
                packets != value.packets && (idle || at.saturating_sub(last) >= interval)
            }
        };
        if news {
            let context = Context {
                boot: &self.boot,
                clock,
                names,
            };
            let record = Record::of_denial(&context, key, value, idle);
            if idle {
                pass.closed.push(record.uid.clone());
            }
            if !(idle && self.already.remove(&record.uid).is_some()) {
                pass.records.push(record);
            }
        }
        self.denied.insert(
            *key,
            match said {
                Some((packets, last, _)) if !news => (packets, last, self.sweeps),
                _ => (value.packets, at, self.sweeps),
            },
        );
        if idle {
            pass.finished
                .push(Finished::Deny(*key, Seen::denial(value)));
        }
    }

    /// Deletes the entries that a pass found to be over. Call it only when the pass's records are spooled. An
    /// entry that changed meanwhile goes on.
    ///
    /// # Errors
    /// When a table cannot be changed.
    pub fn delete_finished(
        &mut self,
        kernel: &Kernel,
        pass: &Pass,
    ) -> Result<u64, crate::kernel::KernelError> {
        for finished in &pass.finished {
            match finished {
                Finished::V4(Place::Slot(index), _) => kernel.flows4.begin_close(*index),
                Finished::V6(Place::Slot(index), _) => kernel.flows6.begin_close(*index),
                _ => {}
            }
        }
        if !pass.finished.is_empty() {
            kernel.wait_for_packets();
        }
        let mut deleted = 0;
        for finished in &pass.finished {
            let gone = match finished {
                Finished::V4(Place::Slot(index), flow) => {
                    let seen = Seen::flow(&FlowView::of4(flow));
                    kernel
                        .flows4
                        .finish_close(*index, |flow| Seen::flow(&FlowView::of4(flow)) == seen)
                }
                Finished::V6(Place::Slot(index), flow) => {
                    let seen = Seen::flow(&FlowView::of6(flow));
                    kernel
                        .flows6
                        .finish_close(*index, |flow| Seen::flow(&FlowView::of6(flow)) == seen)
                }
                Finished::V4(Place::Spilled, flow) => kernel.reap4(flow)?,
                Finished::V6(Place::Spilled, flow) => kernel.reap6(flow)?,
                Finished::Deny(key, seen) => {
                    let gone = kernel.take_denial(key, |value| Seen::denial(value) == *seen)?;
                    if gone {
                        self.denied.remove(key);
                    }
                    gone
                }
            };
            deleted += u64::from(gone);
        }
        Ok(deleted)
    }
}

/// The key under which the kernel aggregates what an event announces.
fn deny_key(event: &Event) -> DenyKey {
    DenyKey {
        initiator: event.initiator,
        responder: event.responder,
        rule: event.rule,
        port: event.responder_port.to_be_bytes(),
        protocol: event.protocol,
        reason: event.reason,
        direction: event.direction,
        family: event.family,
        opening: u8::from(event.opening != 0),
        pad: 0,
    }
}

/// The uid that the sweep gives to the same denied key.
fn denial_uid(boot: &str, event: &Event) -> String {
    format!(
        "{boot}-deny-{:x}-{}-{}-{}-{}-{}:{}-{}-{}",
        event.first,
        event.protocol,
        event.rule,
        event.reason,
        super::record::address(event.initiator),
        super::record::address(event.responder),
        event.responder_port,
        event.direction,
        event.opening
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use datapath::abi::Clock;

    fn settings() -> Settings {
        Settings {
            interval_ns: 1_000_000_000,
            timeouts: [100; 16],
            deny_idle: 1000,
        }
    }

    fn event(kind: u8, packets: u64) -> Event {
        let mut initiator = [0; 16];
        initiator[10..].copy_from_slice(&[255, 255, 10, 0, 0, 1]);
        Event {
            kind,
            protocol: 6,
            verdict: 1,
            state: 3,
            family: 4,
            initiator,
            responder: initiator,
            initiator_port: 4000,
            responder_port: 443,
            sequence: 7,
            packets: [packets, 0],
            first: 50,
            last: 60,
            ..Event::default()
        }
    }

    fn view(packets_out: u64) -> FlowView {
        let mut flow = Flow4::default();
        flow.lines[0].key.protocol = 6;
        let mut view = FlowView::of4(&flow);
        let event = event(event_kind::NEW, 1);
        view.initiator = event.initiator;
        view.responder = event.responder;
        view.initiator_port = 4000;
        view.responder_port = 443;
        view.sequence = 7;
        view.first = 50;
        view.last = 60;
        view.packets_out = packets_out;
        view.state = datapath::conntrack::State::ESTABLISHED;
        view
    }

    #[test]
    fn a_flow_is_said_at_its_start_at_intervals_and_at_its_end() {
        let mut collector = Collector::new("abcdef01-23", settings(), []);
        let clock = Converter::new(
            Clock {
                jiffies: 70,
                boot_ns: 1_000_000_000_000,
            },
            0,
            100,
        );
        let records = collector.events(&[event(event_kind::NEW, 1)], &clock);
        assert_eq!(records.len(), 1);
        let uid = records[0].uid.clone();
        assert!(uid.starts_with("abcdef01-32-7-6-10.0.0.1:4000"), "{uid}");
        let names = Names::default();
        let sweep = |collector: &mut Collector, packets, now, clock: &Converter| {
            let mut pass = Pass::default();
            let over = collector.flow(&mut pass, &names, clock, now, &view(packets), false);
            (
                pass.records
                    .into_iter()
                    .map(|record| (record.uid, record.closed))
                    .collect::<Vec<_>>(),
                over,
            )
        };
        let start = 1_000_000_000_000;
        assert_eq!(
            sweep(&mut collector, 1, start, &clock),
            (vec![], false),
            "nothing new"
        );
        assert_eq!(
            sweep(&mut collector, 5, start + 1, &clock).0,
            vec![],
            "not yet"
        );
        assert_eq!(
            sweep(&mut collector, 5, start + 2_000_000_000, &clock).0,
            vec![(uid.clone(), false)]
        );
        let late = Converter::new(
            Clock {
                jiffies: 170,
                boot_ns: start as u64,
            },
            0,
            100,
        );
        assert_eq!(
            sweep(&mut collector, 5, start + 2_000_000_001, &late),
            (vec![(uid, true)], true),
            "idle"
        );
    }

    #[test]
    fn another_flow_with_as_many_packets_is_not_the_one_that_was_recorded() {
        let old = view(3);
        let mut same = view(3);
        same.last += 5;
        assert_eq!(Seen::flow(&old), Seen::flow(&same));
        let mut next = view(3);
        next.sequence += 1;
        assert_ne!(Seen::flow(&old), Seen::flow(&next));
        let mut later = view(3);
        later.first += 1;
        assert_ne!(Seen::flow(&old), Seen::flow(&later));
        let denied = DenyValue {
            packets: 3,
            first: 50,
            ..DenyValue::default()
        };
        let anew = DenyValue {
            first: 51,
            ..denied
        };
        assert_ne!(Seen::denial(&denied), Seen::denial(&anew));
    }

    #[test]
    fn what_the_process_before_has_spooled_is_not_said_again() {
        let clock = Converter::new(
            Clock {
                jiffies: 400,
                boot_ns: 1,
            },
            0,
            100,
        );
        let mut first = Collector::new("abcdef01", settings(), []);
        let mut pass = Pass::default();
        assert!(first.flow(&mut pass, &Names::default(), &clock, 5, &view(3), false));
        assert_eq!(pass.records.len(), 1);
        let mut second = Collector::new("abcdef01", settings(), pass.closed);
        let mut pass = Pass::default();
        assert!(
            second.flow(&mut pass, &Names::default(), &clock, 5, &view(3), false),
            "still to be deleted"
        );
        assert_eq!(pass.records.len(), 0);
    }

    #[test]
    fn a_close_event_after_the_sweep_is_not_a_second_record() {
        let clock = Converter::new(
            Clock {
                jiffies: 70,
                boot_ns: 1_000_000_000_000,
            },
            0,
            100,
        );
        let mut collector = Collector::new("abcdef01", settings(), []);
        assert_eq!(
            collector
                .events(&[event(event_kind::CLOSE, 9)], &clock)
                .len(),
            1
        );
        assert_eq!(
            collector
                .events(&[event(event_kind::CLOSE, 9)], &clock)
                .len(),
            0
        );
        assert_eq!(
            collector
                .events(&[event(event_kind::CLOSE, 12)], &clock)
                .len(),
            1,
            "traffic went on"
        );
    }
}
