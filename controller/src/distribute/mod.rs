//! Distribution: what every agent should have, and what it has.
//!
//! [`follow`] turns each state into desired snapshots; one [`session`] per connected agent brings
//! them across. Between the two stands a slot per agent that holds the newest desire only, so that a
//! newer push takes the place of an older one that was not sent.

mod planning;
pub mod session;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use policy::snapshot::Snapshot;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock;
use crate::store::Revision;

pub use planning::{follow, timers};

/// What an agent should have.
#[derive(Clone, Debug)]
pub struct Desired {
    /// Revision of the content.
    pub revision: Revision,
    /// Of the content.
    pub digest: [u8; 32],
    /// The content.
    pub snapshot: Arc<Snapshot>,
    /// With an unconfirmed change: the content to fall back to, which isolations of now hold in.
    pub fallback: Option<Arc<Snapshot>>,
    /// The moment of falling back; UTC nanoseconds.
    pub deadline: Option<i64>,
    /// The newest isolation that the content knows: a session that sent an older one is in a hurry.
    pub isolations: Revision,
}

/// What is known of an agent.
#[derive(Clone, Debug, Default)]
pub struct AgentState {
    /// A session is open.
    pub connected: bool,
    /// As the agent says.
    pub hostname: String,
    /// As the agent says.
    pub version: String,
    /// As the agent says.
    pub kernel: String,
    /// What it should have.
    pub desired: Revision,
    /// What it says it has.
    pub applied: Revision,
    /// What it has proved to have, by digest.
    pub verified: Revision,
    /// The digest of what it has is the digest of what it should have.
    pub digest_matches: bool,
    /// Why there is no content for it at the newest revision: it keeps what it should have had.
    pub unfit: String,
    /// Why the last push failed.
    pub last_error: String,
    /// What it has waits for a confirmation.
    pub pending: bool,
    /// UTC nanoseconds.
    pub last_seen: i64,
    /// Lost records and the like, by cause.
    pub losses: BTreeMap<String, u64>,
    /// Last push.
    pub sent_at: Option<Instant>,
    /// Revision of the last push.
    pub sent: Revision,
    /// Last proof.
    pub verified_at: Option<Instant>,
}

#[derive(Debug)]
struct Slot {
    desired: watch::Sender<Option<Arc<Desired>>>,
    state: AgentState,
    session: Option<(u64, CancellationToken)>,
}

impl Default for Slot {
    fn default() -> Self {
        Self {
            desired: watch::Sender::new(None),
            state: AgentState::default(),
            session: None,
        }
    }
}

/// All agents.
#[derive(Debug)]
pub struct Hub {
    slots: Mutex<BTreeMap<String, Slot>>,
    changed: watch::Sender<u64>,
    planned: watch::Sender<Revision>,
    /// Why workloads do not get in, by workload.
    refused: Mutex<BTreeMap<String, String>>,
}

impl Default for Hub {
    fn default() -> Self {
        Self {
            slots: Mutex::default(),
            changed: watch::Sender::new(0),
            planned: watch::Sender::new(0),
            refused: Mutex::default(),
        }
    }
}

impl Hub {
    fn slots(&self) -> MutexGuard<'_, BTreeMap<String, Slot>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn touch(&self) {
        self.changed.send_modify(|count| *count += 1);
    }

    /// Wakes at every change of any agent.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Every agent.
    #[must_use]
    pub fn agents(&self) -> BTreeMap<String, AgentState> {
        self.slots()
            .iter()
            .map(|(name, slot)| (name.clone(), slot.state.clone()))
            .collect()
    }

    /// One agent.
    #[must_use]
    pub fn agent(&self, name: &str) -> Option<AgentState> {
        self.slots().get(name).map(|slot| slot.state.clone())
    }

    /// Waits until the snapshots of a revision are worked out.
    pub async fn planned(&self, revision: Revision) {
        let mut planned = self.planned.subscribe();
        // An error means that the controller stops; nobody waits for anything then.
        let _stopping = planned.wait_for(|planned| *planned >= revision).await;
    }

    /// The newest revision that has been turned into desired snapshots; follows it when it moves.
    pub(crate) fn follow_planned(&self) -> watch::Receiver<Revision> {
        self.planned.subscribe()
    }

    /// Notes why a workload does not get in, or that it did.
    pub(crate) fn refuse(&self, workload: &str, reason: Option<String>) {
        let changed = {
            let mut refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
            match reason {
                Some(reason) => {
                    refused.insert(workload.to_owned(), reason.clone()).as_ref() != Some(&reason)
                }
                None => refused.remove(workload).is_some(),
            }
        };
        if changed {
            self.touch();
        }
    }

    /// Why workloads do not get in, by workload.
    #[must_use]
    pub fn refused(&self) -> BTreeMap<String, String> {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        refused.clone()
    }

    /// Sets what agents should have, and forgets agents that no longer exist. Those that `unfit`
    /// names, with the reason, keep what they should have had, unless `desired` says otherwise.
    pub(crate) fn desire(
        &self,
        desired: BTreeMap<String, Desired>,
        mut unfit: BTreeMap<String, String>,
        revision: Revision,
    ) {
        {
            let mut slots = self.slots();
            for name in unfit.keys() {
                slots.entry(name.clone()).or_default();
            }
            for (name, slot) in slots.iter_mut() {
                slot.state.unfit = unfit.remove(name).unwrap_or_default();
                if !desired.contains_key(name) && slot.state.unfit.is_empty() {
                    slot.desired.send_replace(None);
                    if let Some((_, session)) = &slot.session {
                        session.cancel();
                    }
                }
            }
            slots.retain(|name, slot| {
                desired.contains_key(name) || slot.state.connected || !slot.state.unfit.is_empty()
            });
            for (name, desired) in desired {
                let slot = slots.entry(name).or_default();
                slot.state.desired = desired.revision;
                slot.state.digest_matches &= slot.state.verified == desired.revision;
                slot.desired.send_replace(Some(Arc::new(desired)));
            }
        }
        self.planned.send_replace(revision);
        self.touch();
    }

    /// A revision changed nothing for any agent.
    pub(crate) fn still_planned(&self, revision: Revision) {
        self.planned.send_replace(revision);
    }

    /// What an agent should have now.
    pub(crate) fn desired(&self, name: &str) -> Option<Arc<Desired>> {
        self.slots()
            .get(name)
            .and_then(|slot| slot.desired.borrow().clone())
    }

    /// An agent came back with the right content under the number that it had then.
    pub(crate) fn resume(&self, name: &str, desired: &Desired, applied: Revision) {
        {
            let mut slots = self.slots();
            let Some(slot) = slots.get_mut(name) else {
                return;
            };
            if applied <= desired.revision {
                slot.state.desired = applied;
                let resumed = Desired {
                    revision: applied,
                    ..desired.clone()
                };
                slot.desired.send_replace(Some(Arc::new(resumed)));
            }
        }
        self.touch();
    }

    /// Opens a session; an older one of the same agent ends.
    pub(crate) fn connect(
        &self,
        name: &str,
        id: u64,
    ) -> (watch::Receiver<Option<Arc<Desired>>>, CancellationToken) {
        let token = CancellationToken::new();
        let receiver = {
            let mut slots = self.slots();
            let slot = slots.entry(name.to_owned()).or_default();
            if let Some((_, older)) = slot.session.replace((id, token.clone())) {
                older.cancel();
            }
            slot.state.connected = true;
            slot.desired.subscribe()
        };
        self.touch();
        (receiver, token)
    }

    /// Ends a session.
    pub(crate) fn disconnect(&self, name: &str, id: u64) {
        {
            let mut slots = self.slots();
            let Some(slot) = slots.get_mut(name) else {
                return;
            };
            // A newer session may have taken its place.
            if slot.session.as_ref().is_none_or(|(open, _)| *open != id) {
                return;
            }
            slot.session = None;
            slot.state.connected = false;
        }
        self.touch();
    }

    /// Changes what is known of an agent.
    pub(crate) fn update(&self, name: &str, change: impl FnOnce(&mut AgentState)) {
        {
            let mut slots = self.slots();
            let Some(slot) = slots.get_mut(name) else {
                return;
            };
            change(&mut slot.state);
            slot.state.last_seen = clock::now_ns();
        }
        self.touch();
    }

    /// How many are connected.
    #[must_use]
    pub fn connected(&self) -> usize {
        self.slots()
            .values()
            .filter(|slot| slot.state.connected)
            .count()
    }
}
