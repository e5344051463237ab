//! Wires the deny-rate breaker (`reconcile::breaker`): what is in use before a change, what is denied after it, and what
//! follows when that is too much.

use std::sync::Arc;

use datapath::ids::{Direction, protocol};
use datapath::record::FlowView;
use tracing::{error, warn};

use super::{Host, lock};
use crate::config::{Breaker as Config, OnTrip};
use crate::flows::Record;
use crate::flows::record::address;
use crate::kernel::clock;
use crate::reconcile::breaker::{Breaker, Edge, Settings, Sight, Trip};
use crate::reconcile::store::write_atomically;
use crate::reconcile::{Applied, ApplyError, Push};

/// What the breaker knows, and the last time that it tripped.
#[derive(Debug)]
pub(super) struct State {
    breaker: Breaker,
    tripped: Option<Trip>,
}

fn file(state_dir: &std::path::Path) -> std::path::PathBuf {
    state_dir.join("breaker.json")
}

impl State {
    /// As configured; the last trip is remembered from the agent before.
    pub(super) fn new(config: Config, state_dir: &std::path::Path) -> Self {
        Self {
            breaker: Breaker::new(Settings {
                edges: (config.edges > 0).then_some(config.edges),
                memory_ns: i64::try_from(config.memory.as_nanos()).unwrap_or(i64::MAX),
            }),
            tripped: std::fs::read(file(state_dir))
                .ok()
                .and_then(|bytes| serde_json::from_slice(&bytes).ok()),
        }
    }
}

impl Host {
    /// Applies a change under the breaker's eyes if it waits for a confirmation.
    pub(super) fn apply_watched(&self, push: Push) -> Result<Applied, ApplyError> {
        let within = match push.confirm_within {
            // An urgent change is an isolation or its like: it is meant to cut.
            Some(within) if !push.urgent && lock(&self.breaker).breaker.is_on() => within,
            _ => {
                let applied = self.engine().apply(push)?;
                if applied.deadline.is_none() {
                    lock(&self.breaker).breaker.rest();
                }
                return Ok(applied);
            }
        };
        let live = self.live_edges();
        let (now, revision) = (clock::utc_ns(), push.snapshot.revision);
        let until = now.saturating_add(i64::try_from(within.as_nanos()).unwrap_or(i64::MAX));
        // Held over the change: a record of the new content waits until it is known what to make of it.
        let mut state = lock(&self.breaker);
        for edge in live {
            state.breaker.in_use(edge, now);
        }
        let after = self.kernel.word().generation();
        state.breaker.watch(revision, after, now, until);
        let applied = self.engine().apply(push);
        if !applied
            .as_ref()
            .is_ok_and(|applied| applied.deadline.is_some())
        {
            state.breaker.rest();
        }
        applied
    }

    /// The change that was watched is final.
    pub(super) fn breaker_rests(&self) {
        lock(&self.breaker).breaker.rest();
    }

    /// When the breaker tripped last.
    pub(super) fn tripped(&self) -> Option<Trip> {
        lock(&self.breaker).tripped.clone()
    }

    /// Shows records to the breaker.
    pub(super) fn breaker_sees(self: &Arc<Self>, records: &[Record]) {
        let now = clock::utc_ns();
        let trip = {
            let mut state = lock(&self.breaker);
            if !state.breaker.is_on() {
                return;
            }
            records
                .iter()
                .find_map(|record| state.breaker.see(&Sight::of(record), now))
        };
        if let Some(trip) = trip {
            self.trip(trip);
        }
    }

    fn trip(&self, mut trip: Trip) {
        if self.config.breaker.action == OnTrip::FallBack {
            // Before anything else: every packet until then is judged by the change.
            let done = self.engine().fall_back(trip.revision);
            match done {
                Ok(()) => {
                    trip.fell_back = true;
                    self.forget_waiting();
                    self.refresh_names();
                }
                Err(error) => warn!(%error, "the breaker cannot take the change back"),
            }
        }
        error!(revision = trip.revision, edges = trip.count, fell_back = trip.fell_back, %trip, "breaker tripped");
        *lock(&self.last_error) = trip.to_string();
        let bytes = serde_json::to_vec(&trip).unwrap_or_default();
        if let Err(error) = write_atomically(&file(&self.config.state_dir), &bytes, 0o600) {
            warn!(%error, "the trip is not remembered");
        }
        lock(&self.breaker).tripped = Some(trip);
        self.changed.send_modify(|count| *count += 1);
    }

    /// Edges of the flows in the tables whose both ends have spoken.
    fn live_edges(&self) -> Vec<Edge> {
        let mut edges = std::collections::HashSet::new();
        let mut each = |view: &FlowView| {
            if let Some(edge) = edge_of(view) {
                edges.insert(edge);
            }
        };
        let read = self
            .kernel
            .flows4
            .for_each(|_, flow| each(&FlowView::of4(&flow)))
            .and_then(|()| {
                self.kernel
                    .flows6
                    .for_each(|_, flow| each(&FlowView::of6(&flow)))
            });
        if let Err(error) = read {
            warn!(%error, "the breaker does not know all edges that are in use");
        }
        edges.into_iter().collect()
    }
}

fn edge_of(view: &FlowView) -> Option<Edge> {
    let answered = view.packets_in > 0 && (view.protocol != protocol::TCP || view.packets_out > 1);
    if !view.allowed || view.state.is_closed() || !answered {
        return None;
    }
    let ingress = view.direction == Direction::Ingress;
    Some(Edge {
        ingress,
        peer: address(if ingress {
            view.initiator
        } else {
            view.responder
        }),
        protocol: view.protocol,
        // A flow of ICMP is one of echoes; its entry has the identifier where ports are.
        port: match view.protocol {
            protocol::ICMP => 8 << 8,
            protocol::ICMPV6 => 128 << 8,
            _ => view.responder_port,
        },
    })
}
