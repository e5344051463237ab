//! One host of a replay: the loaded programs on tables of its own, its policy, and the ordinary collector.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use datapath::abi::{ActiveWord, Event, event_kind, maps};
use datapath::drop_reason::DropReason;
use datapath::ids::Direction;
use policy::snapshot::Snapshot;

use super::time::{HZ, Moment, Timeline};
use super::view::{FlowKey, View};
use super::{ReplayError, Verdict};
use crate::config::Config;
use crate::flows::Record;
use crate::flows::collect::{Collector, Settings};
use crate::flows::names::Names;
use crate::flows::record::{Context, Instance};
use crate::kernel::loader::{EGRESS, INGRESS, TableSizes};
use crate::kernel::replay::PrivatePins;
use crate::kernel::ring::Events;
use crate::kernel::{Kernel, Totals};
use crate::reconcile::failsafes::{self, Failsafe, Needs};
use crate::reconcile::plan::{self, Timebase};

const GENERATION: u32 = 2;
const DENY_IDLE: Duration = Duration::from_secs(120);
/// `TCX_DROP` (include/uapi/linux/bpf.h).
const DROP: u32 = 2;

/// What a program said to a frame.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Judged {
    pub(super) verdict: Verdict,
    pub(super) reason: Cow<'static, str>,
    pub(super) rule: String,
}

/// Why packets of a flow pass.
#[derive(Clone, Debug)]
struct Known {
    uid: String,
    initiator: (std::net::IpAddr, u16),
    reason: &'static str,
    rule: String,
}

pub(super) struct Host {
    pub(super) name: String,
    kernel: Kernel,
    events: Events,
    collector: Collector,
    names: Arc<Names>,
    /// First characters of every uid.
    id: String,
    known: HashMap<FlowKey, Known>,
    /// Packets by reason as far as they are explained.
    counted: BTreeMap<String, u64>,
    records: Vec<Record>,
    by_uid: HashMap<String, usize>,
    /// Bytes that the kernel did not get to see, by uid: initiator → responder and back.
    unseen: HashMap<String, [u64; 2]>,
}

impl Host {
    /// Loads the programs once more and activates a policy in them.
    pub(super) fn open(
        pins: &PrivatePins,
        number: usize,
        config: &Config,
        name: String,
        snapshot: Snapshot,
        timeline: &Timeline,
    ) -> Result<Self, ReplayError> {
        let sizes = TableSizes {
            flows4: config.tables.flows4,
            flows6: config.tables.flows6,
            denies: config.tables.denies,
            ring: config.tables.ring_bytes,
            share: config.tables.share(),
        };
        let kernel = pins.open(&format!("replay-{number}"), sizes)?;
        kernel.set_clock(&timeline.now().clock)?;
        // Every denied packet is announced: its line is to say by what.
        kernel.set_config(datapath::abi::Config {
            deny_every: 1,
            ..crate::daemon::datapath_config(config, HZ)
        })?;
        let failsafes = configured_failsafes(config);
        kernel.set_failsafes(&failsafes::entries(&failsafes))?;
        let (boot_ns, lead_ns) = timeline.base();
        let time = Timebase {
            boot_ns,
            utc_ns: timeline.now().utc_ns,
            lead_ns,
            behind: false,
        };
        kernel.fill(0, &plan::content(&snapshot, &time))?;
        kernel.exchange(kernel.word(), ActiveWord::committed(GENERATION, 0))?;
        let names = Arc::new(Names::new(
            &BTreeMap::from([(GENERATION, Arc::new(snapshot))]),
            &failsafes,
        ));
        let id = format!("replay{number:02x}");
        let mut collector = Collector::new(
            &id,
            Settings {
                interval_ns: 0,
                timeouts: config.timeouts(HZ),
                deny_idle: u32::try_from(DENY_IDLE.as_secs()).unwrap_or(120) * HZ,
            },
            [],
        );
        collector.set_names(Arc::clone(&names));
        Ok(Self {
            events: Events::open(&kernel.dir().map(maps::EVENTS))?,
            name,
            kernel,
            collector,
            names,
            id,
            known: HashMap::new(),
            counted: BTreeMap::new(),
            records: Vec::new(),
            by_uid: HashMap::new(),
            unseen: HashMap::new(),
        })
    }

    /// Runs the program of a direction over a frame. `missing`: bytes that were taken from its end. `None`: this
    /// kernel does not run programs over such a frame.
    pub(super) fn judge(
        &mut self,
        frame: &[u8],
        missing: usize,
        view: &View,
        direction: Direction,
        now: &Moment,
    ) -> Result<Option<Judged>, ReplayError> {
        self.kernel.set_clock(&now.clock)?;
        let program = match direction {
            Direction::Ingress => INGRESS,
            Direction::Egress => EGRESS,
        };
        let run = match self.kernel.test_run(program, frame, 1) {
            Ok(run) => run,
            // Newer kernels run nothing over a frame that ends inside its IP header (net/bpf/test_run.c).
            Err(error) if error.is_invalid_argument() => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let verdict = if run.retval == DROP {
            Verdict::Drop
        } else {
            Verdict::Pass
        };
        let mut events = Vec::new();
        self.events.drain(usize::MAX, &mut events);
        let said = self.hear(&events, now);
        let records = self.collector.events(&events, &now.converter);
        self.keep(records);
        let judged = match (said, verdict) {
            (Some((reason, rule)), Verdict::Drop) => Judged {
                verdict,
                reason: reason.into(),
                rule,
            },
            (_, Verdict::Drop) => self.by_counters(verdict)?,
            _ => match view.flow.and_then(|flow| self.known.get(&flow)) {
                Some(known) => Judged {
                    verdict,
                    reason: known.reason.into(),
                    rule: known.rule.clone(),
                },
                None => self.by_counters(verdict)?,
            },
        };
        if missing > 0 && verdict == Verdict::Pass {
            self.remember_unseen(view, missing);
        }
        Ok(Some(judged))
    }

    /// Learns from the notices of one frame; what a denial among them says.
    fn hear(&mut self, events: &[Event], now: &Moment) -> Option<(&'static str, String)> {
        let names = Arc::clone(&self.names);
        let context = Context {
            boot: &self.id,
            clock: &now.converter,
            names: &names,
        };
        let mut denial = None;
        for event in events {
            let record = Record::of_event(&context, event, false);
            match event.kind {
                event_kind::DENY => {
                    let [packets, _] = event.packets;
                    *self.counted.entry(record.reason.to_owned()).or_default() += packets;
                    denial = Some((record.reason, record.rule));
                }
                event_kind::NEW => {
                    let initiator = (record.initiator, record.initiator_port);
                    let key = FlowKey::new(
                        record.protocol,
                        initiator,
                        (record.responder, record.responder_port),
                    );
                    self.known.insert(
                        key,
                        Known {
                            uid: Instance::of_event(event).uid(&self.id),
                            initiator,
                            reason: record.reason,
                            rule: record.rule,
                        },
                    );
                }
                _ => {}
            }
        }
        denial
    }

    /// The reason whose counter moved: of packets that belong to no flow and are announced by nobody.
    fn by_counters(&mut self, verdict: Verdict) -> Result<Judged, ReplayError> {
        let mut reason = None;
        for (name, (packets, _)) in self.kernel.totals()?.reasons {
            let counted = self.counted.entry(name.clone()).or_default();
            if *counted != packets {
                *counted = packets;
                reason = Some(name);
            }
        }
        Ok(Judged {
            verdict,
            reason: reason.map_or(Cow::Borrowed(DropReason::None.name()), Cow::Owned),
            rule: String::new(),
        })
    }

    fn remember_unseen(&mut self, view: &View, missing: usize) {
        let (Some(flow), Some(tuple)) = (view.flow, view.tuple) else {
            return;
        };
        if let Some(known) = self.known.get(&flow) {
            let back = known.initiator != (tuple.source, tuple.source_port);
            let unseen = self.unseen.entry(known.uid.clone()).or_default();
            unseen[usize::from(back)] += missing as u64;
        }
    }

    /// Sweeps the tables as the daemon does, at a moment of the capture.
    pub(super) fn sweep(&mut self, now: &Moment) -> Result<(), ReplayError> {
        let failed = |what| move |source| ReplayError::Collect { what, source };
        let pass = self
            .collector
            .sweep(&self.kernel, &now.converter, now.utc_ns)
            .map_err(failed("reading the flow tables"))?;
        self.collector
            .delete_finished(&self.kernel, &pass)
            .map_err(std::io::Error::other)
            .map_err(failed("deleting finished flows"))?;
        self.keep(pass.records);
        Ok(())
    }

    /// Of one uid the record with the highest counters counts.
    fn keep(&mut self, records: Vec<Record>) {
        for record in records {
            let packets = |record: &Record| record.packets_out.saturating_add(record.packets_in);
            match self.by_uid.get(&record.uid) {
                Some(index) => {
                    if let Some(kept) = self.records.get_mut(*index) {
                        let closed = kept.closed || record.closed;
                        if packets(&record) >= packets(kept) {
                            *kept = record;
                        }
                        kept.closed = closed;
                    }
                }
                None => {
                    self.by_uid.insert(record.uid.clone(), self.records.len());
                    self.records.push(record);
                }
            }
        }
    }

    /// Every flow and every aggregated denial, in the order in which they began.
    pub(super) fn take_records(&mut self) -> Vec<Record> {
        let mut records = std::mem::take(&mut self.records);
        self.by_uid.clear();
        for record in &mut records {
            // Of the socket that a test run makes up.
            record.cookie = 0;
            if let Some([out, back]) = self.unseen.get(&record.uid) {
                record.bytes_out += out;
                record.bytes_in += back;
            }
        }
        records
    }

    /// Counters of the datapath.
    pub(super) fn totals(&self) -> Result<Totals, ReplayError> {
        Ok(self.kernel.totals()?)
    }
}

/// The failsafes that the configuration names by address. This machine's name servers and the controller's name are
/// not the captured host's.
fn configured_failsafes(config: &Config) -> Vec<Failsafe> {
    failsafes::list(&Needs {
        controllers: config
            .controller
            .endpoints
            .iter()
            .filter_map(|endpoint| endpoint.parse().ok())
            .collect(),
        resolvers: config.failsafes.resolvers.clone().unwrap_or_default(),
        management: config
            .failsafes
            .management
            .iter()
            .map(|entry| (entry.cidr, entry.ports.clone()))
            .collect(),
        forensic: config
            .failsafes
            .forensic
            .iter()
            .map(|entry| (entry.cidr, entry.port))
            .collect(),
    })
}
