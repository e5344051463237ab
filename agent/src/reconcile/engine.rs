//! Executes changes of policy, and knows what is active.
//!
//! Two slots, one word. A change fills the slot that no packet looks at, is read back, and becomes active by
//! one write of the word; whatever fails before that write leaves everything as it was. While a change waits
//! for its confirmation the kernel itself falls back at the deadline; [`Engine::tick`] notices and records it.

use std::collections::BTreeMap;
use std::sync::Arc;

use datapath::abi::ActiveWord;
use policy::snapshot::{Endpoint, Mode, Snapshot};
use tracing::{error, info, warn};

use super::change::{Active, Applied, ApplyError, Clock, Found, Notice, Push, Slots, SystemClock};
use super::failsafes::Failsafe;
use super::plan::{self, Limits, Timebase};
use super::store::{Clocks, Intent, Store, Stored};
use crate::kernel::content::Part;

/// See the module.
pub struct Engine<S, C = SystemClock> {
    slots: S,
    clock: C,
    store: Store,
    limits: Limits,
    boot_id: String,
    clocks: Clocks,
    behind: bool,
    /// The clocks moved and the expiries in the kernel are still computed by the old ones.
    stale: bool,
    failsafes: Vec<Failsafe>,
    good: Option<Stored>,
    intent: Option<Intent>,
    active: Option<Active>,
    fell_back_from: u64,
    names: BTreeMap<u32, Arc<Snapshot>>,
}

const NAMES_KEPT: usize = 16;
const NAMES_CARRIED: u32 = 8;

impl<S: Slots, C: Clock> Engine<S, C> {
    /// Takes over what is in the kernel and on disk. Activates nothing yet: see [`Self::start`].
    ///
    /// # Errors
    /// When the clocks cannot be remembered.
    pub fn new(
        slots: S,
        clock: C,
        store: Store,
        limits: Limits,
        boot_id: String,
    ) -> Result<Self, ApplyError> {
        let mut clocks = store.clocks();
        let (boot, utc) = (clock.boot_ns(), clock.utc_ns());
        let lead = utc.saturating_sub(i64::try_from(boot).unwrap_or(i64::MAX));
        let behind = utc < clocks.highest_utc_ns;
        if clocks.boot_id == boot_id {
            clocks.lead_ns = clocks.lead_ns.max(lead);
        } else {
            clocks.boot_id.clone_from(&boot_id);
            clocks.lead_ns = lead;
        }
        clocks.highest_utc_ns = clocks.highest_utc_ns.max(utc);
        store.set_clocks(&clocks)?;
        Ok(Self {
            slots,
            clock,
            limits,
            clocks,
            behind,
            stale: false,
            failsafes: Vec::new(),
            good: None,
            intent: store.intent(),
            active: None,
            fell_back_from: 0,
            names: store.recall_names(&boot_id),
            boot_id,
            store,
        })
    }

    /// Activates the last good content, learning, unless something is active already. `endpoints` are what
    /// this host protects while there is no snapshot yet; they are observed, or closed if a snapshot was lost.
    ///
    /// # Errors
    /// When the kernel refuses; nothing is active then.
    pub fn start(&mut self, endpoints: &[Endpoint]) -> Result<Found, ApplyError> {
        let good = self.store.good();
        let word = self.slots.word();
        if !word.is_empty() {
            self.good = good.unwrap_or_else(|error| {
                error!(%error, "the last good snapshot cannot be believed; what is in the kernel goes on");
                None
            });
            self.take_over(word)?;
            return Ok(Found::Adopted);
        }
        // Generations and deadlines of another boot mean nothing; an unconfirmed change is given up.
        if let Some(intent) = self.intent.take() {
            if intent.deadline.is_some() {
                // Nobody confirmed it, and a boot is no confirmation.
                self.store.set_rejected(Some(&intent.stored.digest))?;
            }
            self.store.clear_intent()?;
        }
        let (stored, found) = match good {
            Ok(Some(stored)) => (stored, Found::Fresh),
            Ok(None) => (
                Stored::new(Snapshot {
                    endpoints: endpoints.to_vec(),
                    ..Snapshot::default()
                }),
                Found::Fresh,
            ),
            Err(error) => {
                error!(%error, "the last good snapshot cannot be believed: CLOSED, only failsafes pass");
                (Stored::new(plan::closed(0, endpoints)), Found::Closed)
            }
        };
        let content = plan::content(&stored.snapshot, &self.timebase());
        self.slots.fill(0, &content)?;
        let word = ActiveWord::committed(2, 0).learning();
        self.slots.exchange(ActiveWord(0), word)?;
        self.set_active(&stored, word);
        self.good = Some(stored);
        Ok(found)
    }

    /// Ends the learning that [`Self::start`] began: from now on policy is enforced.
    ///
    /// # Errors
    /// When the word changed meanwhile.
    pub fn arm(&mut self) -> Result<(), ApplyError> {
        let word = self.slots.word();
        if !word.is_learning() {
            return Ok(());
        }
        let armed = ActiveWord::committed(word.generation() + 2, word.slot());
        self.slots.exchange(word, armed)?;
        if let Some(active) = &mut self.active {
            active.generation = armed.generation();
        }
        self.remember_names();
        Ok(())
    }

    fn take_over(&mut self, word: ActiveWord) -> Result<(), ApplyError> {
        let intent = self
            .intent
            .take()
            .filter(|intent| intent.boot_id == self.boot_id)
            .and_then(|intent| intent.selected_by(word));
        let Some(mut intent) = intent else {
            self.store.clear_intent()?;
            let digest = self.good.as_ref().map(|good| good.digest.clone());
            self.active = Some(Active {
                snapshot: self
                    .good
                    .as_ref()
                    .map(|good| Arc::new(good.snapshot.clone())),
                digest: digest.unwrap_or_default(),
                generation: word.generation(),
                slot: word.slot(),
                deadline: word.is_pending().then(|| word.deadline()),
            });
            self.remember_names();
            self.distrust_if_different(word)?;
            return self.settle().map(drop);
        };
        let mut word = word;
        if intent.held
            && let Some(deadline) = intent.deadline
        {
            // The process died while the fall-back slot was being refilled.
            if let Some(good) = self.good.clone() {
                let content = plan::content(&good.snapshot, &self.timebase());
                self.slots.fill(word.slot() ^ 1, &content)?;
                let pending = ActiveWord::pending(word.generation(), word.slot(), deadline);
                self.slots.exchange(word, pending)?;
                word = pending;
            }
        }
        let activated = intent.generation;
        self.set_active(&intent.stored, word);
        self.carry_names(activated);
        if word.is_pending() {
            intent.held = false;
            intent.generation = word.generation();
            self.store.set_intent(&intent)?;
            self.intent = Some(intent);
            self.settle()?;
        } else {
            // The write that activates happened, the one that remembers did not.
            self.make_good(intent.stored)?;
        }
        Ok(())
    }

    /// A content in the kernel that is not what the files say is kept, but nobody pretends to know its names.
    fn distrust_if_different(&mut self, word: ActiveWord) -> Result<(), ApplyError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        let Some(snapshot) = &active.snapshot else {
            return Ok(());
        };
        let (_, slot, _) = word.effective(self.clock.boot_ns() / 1_000_000_000);
        let held = self.slots.read(slot)?;
        // Expiries depend on the clocks; addresses, classes and endpoints do not.
        let planned = plan::content(
            snapshot,
            &Timebase {
                boot_ns: 0,
                utc_ns: 0,
                lead_ns: self.clocks.lead_ns,
                behind: false,
            },
        );
        let same = held.is_some_and(|held| {
            Part::ALL.iter().all(|part| match part {
                Part::Rules => held.part(*part).keys() == planned.part(*part).keys(),
                _ => held.part(*part) == planned.part(*part),
            })
        });
        if !same {
            warn!(
                "the content in the kernel is not the last good snapshot on disk; it goes on until the next change"
            );
            active.snapshot = None;
            active.digest.clear();
        }
        Ok(())
    }

    /// Makes a change.
    ///
    /// # Errors
    /// When it is refused or fails; the old content stays.
    pub fn apply(&mut self, push: Push) -> Result<Applied, ApplyError> {
        self.settle()?;
        let Push {
            snapshot,
            confirm_within,
            urgent,
            fallback,
        } = push;
        let mut word = self.slots.word();
        let active = self.active.as_ref().ok_or(ApplyError::NotArmed)?;
        if snapshot.revision < active.revision() {
            return Err(ApplyError::Stale {
                offered: snapshot.revision,
                applied: active.revision(),
            });
        }
        plan::check_size(&snapshot, &self.limits)?;
        if let Some(fallback) = &fallback {
            plan::check_size(fallback, &self.limits)?;
        }
        let stored = Stored::new(snapshot);
        if stored.digest == active.digest
            && stored.snapshot.revision == active.revision()
            && confirm_within.is_none()
        {
            return Ok(self.already(&stored, word));
        }
        let now = self.clock.boot_ns() / 1_000_000_000;
        let asked = confirm_within.map(|within| now + within.as_secs().max(1));
        // An urgent change in the middle of an unconfirmed one leaves that one's deadline as it is,
        // provided that the fall-back is told to hold the urgent part too; otherwise it is final.
        let deadline = match asked {
            Some(deadline) => Some(deadline),
            None if urgent && word.is_pending() && fallback.is_some() => Some(word.deadline()),
            None => None,
        };
        if word.is_pending() {
            let intent = self.intent_over(word, stored, deadline);
            return self.replace_pending(word, intent, fallback);
        }
        if deadline.is_some()
            && let Some(fallback) = fallback.map(Stored::new)
            && fallback.digest != active.digest
        {
            // What the kernel falls back to may know more than what is active (an isolation): it is made final
            // first, whatever its revision.
            let intent = self.intent_over(word, fallback, None);
            self.replace_final(word, intent)?;
            word = self.slots.word();
        }
        let intent = self.intent_over(word, stored, deadline);
        self.replace_final(word, intent)
    }

    /// A change that is to follow what the word says.
    fn intent_over(&self, word: ActiveWord, stored: Stored, deadline: Option<u64>) -> Intent {
        Intent {
            generation: word.generation() + 2,
            slot: word.slot() ^ 1,
            deadline,
            boot_id: self.boot_id.clone(),
            held: false,
            replaces: None,
            stored,
        }
    }

    fn already(&self, stored: &Stored, word: ActiveWord) -> Applied {
        Applied {
            revision: stored.snapshot.revision,
            digest: stored.snapshot.digest(),
            generation: word.generation(),
            deadline: word.is_pending().then(|| word.deadline()),
        }
    }

    fn replace_final(&mut self, word: ActiveWord, intent: Intent) -> Result<Applied, ApplyError> {
        let content = plan::content(&intent.stored.snapshot, &self.timebase());
        self.slots.fill(intent.slot, &content)?;
        self.store.set_intent(&intent)?;
        let mut next = word_of(&intent, intent.deadline);
        if word.is_learning() {
            next = next.learning();
        }
        if let Err(error) = self.slots.exchange(word, next) {
            self.store.clear_intent()?;
            return Err(error.into());
        }
        self.finish(intent, next)
    }

    /// A change while another one waits: the slot to be filled is the fall-back of the waiting one, so the
    /// word says "final" until the new fall-back is in place. A crash in between is put right by [`Self::start`].
    fn replace_pending(
        &mut self,
        word: ActiveWord,
        intent: Intent,
        fallback: Option<Snapshot>,
    ) -> Result<Applied, ApplyError> {
        let waiting = self.intent.clone();
        let held = ActiveWord::committed(word.generation(), word.slot());
        let replaced = waiting.clone().map(|waiting| Intent {
            held: true,
            ..waiting
        });
        if let Some(replaced) = &replaced {
            self.store.set_intent(replaced)?;
        }
        self.slots.exchange(word, held)?;
        let time = self.timebase();
        let content = plan::content(&intent.stored.snapshot, &time);
        let good = fallback.map(Stored::new).or_else(|| self.good.clone());
        if let Err(error) = self.slots.fill(intent.slot, &content) {
            // Back to the state before: the old fall-back in its slot, the old deadline in the word.
            if let Some(good) = &self.good {
                self.slots
                    .fill(intent.slot, &plan::content(&good.snapshot, &time))?;
                self.slots.exchange(held, word)?;
            }
            if let Some(waiting) = &waiting {
                self.store.set_intent(waiting)?;
            }
            return Err(error.into());
        }
        let first = word_of(&intent, None);
        // Before the change is remembered: whoever finds it after a crash refills the fall-back slot from this.
        if intent.deadline.is_some()
            && let Some(good) = &good
        {
            self.store.set_good(good)?;
            self.good = Some(good.clone());
        }
        self.store.set_intent(&Intent {
            held: intent.deadline.is_some(),
            replaces: replaced.map(Box::new),
            ..intent.clone()
        })?;
        self.slots.exchange(held, first)?;
        let mut next = first;
        if intent.deadline.is_some()
            && let Some(good) = &good
        {
            self.slots
                .fill(intent.slot ^ 1, &plan::content(&good.snapshot, &time))?;
            next = word_of(&intent, intent.deadline);
            self.slots.exchange(first, next)?;
        }
        self.finish(intent, next)
    }

    fn finish(&mut self, intent: Intent, word: ActiveWord) -> Result<Applied, ApplyError> {
        let applied = Applied {
            revision: intent.stored.snapshot.revision,
            digest: intent.stored.snapshot.digest(),
            generation: word.generation(),
            deadline: word.is_pending().then(|| word.deadline()),
        };
        info!(
            revision = applied.revision,
            generation = applied.generation,
            pending = word.is_pending(),
            "policy content activated"
        );
        self.set_active(&intent.stored, word);
        self.fell_back_from = 0;
        if self.store.rejected().as_ref() == Some(&intent.stored.digest) {
            self.store.set_rejected(None)?;
        }
        if word.is_pending() {
            self.store.set_intent(&intent)?;
            self.intent = Some(intent);
        } else {
            self.make_good(intent.stored)?;
        }
        Ok(applied)
    }

    fn make_good(&mut self, stored: Stored) -> Result<(), ApplyError> {
        self.store.set_good(&stored)?;
        self.store.clear_intent()?;
        self.good = Some(stored);
        self.intent = None;
        Ok(())
    }

    /// Makes the waiting change final. `revision` 0 = whichever waits.
    ///
    /// # Errors
    /// When nothing, or another revision, waits.
    pub fn confirm(&mut self, revision: u64) -> Result<u64, ApplyError> {
        self.settle()?;
        let word = self.slots.word();
        let applied = self.active.as_ref().map_or(0, Active::revision);
        if !word.is_pending() {
            return Err(ApplyError::NothingPending { applied });
        }
        if revision != 0 && revision != applied {
            return Err(ApplyError::OtherPending {
                pending: applied,
                asked: revision,
            });
        }
        self.slots
            .exchange(word, ActiveWord::committed(word.generation(), word.slot()))?;
        if let Some(active) = &mut self.active {
            active.deadline = None;
        }
        if let Some(intent) = self.intent.take() {
            self.make_good(intent.stored)?;
        }
        info!(revision = applied, "change confirmed");
        Ok(applied)
    }

    /// Takes the waiting change back before its deadline: what went before is enforced again, as if nobody had
    /// confirmed.
    ///
    /// # Errors
    /// When nothing, or another revision, waits.
    pub fn fall_back(&mut self, revision: u64) -> Result<(), ApplyError> {
        self.settle()?;
        let word = self.slots.word();
        let applied = self.active.as_ref().map_or(0, Active::revision);
        if !word.is_pending() {
            return Err(ApplyError::NothingPending { applied });
        }
        if revision != applied {
            return Err(ApplyError::OtherPending {
                pending: applied,
                asked: revision,
            });
        }
        // The kernel falls back by itself at a deadline that has passed; a crash after this write changes nothing.
        let now = self.clock.boot_ns() / 1_000_000_000;
        let over = ActiveWord::pending(word.generation(), word.slot(), now.min(word.deadline()));
        self.slots.exchange(word, over)?;
        self.settle().map(drop)
    }

    /// Notices what the kernel did by itself, and clocks that moved. Call it every second or so.
    ///
    /// # Errors
    /// When the kernel or the state directory refuses.
    pub fn tick(&mut self) -> Result<Vec<Notice>, ApplyError> {
        let mut notices: Vec<Notice> = self.settle()?.into_iter().collect();
        self.stale |= self.read_clocks()?;
        // Not while a change waits: the other slot is its fall-back. Afterwards, whichever of them counts then.
        if self.stale && !self.slots.word().is_pending() {
            if self.reload()? {
                notices.push(Notice::ClockMoved);
            }
            self.stale = false;
        }
        Ok(notices)
    }

    /// Writes down a fall-back that the kernel has made.
    fn settle(&mut self) -> Result<Option<Notice>, ApplyError> {
        let word = self.slots.word();
        let (generation, slot, fell) = word.effective(self.clock.boot_ns() / 1_000_000_000);
        if !fell {
            self.follow_generation(word)?;
            return Ok(None);
        }
        let settled = ActiveWord::committed(generation, slot);
        // First: a crash after the word says "final" must not forget that nobody confirmed.
        if let Some(intent) = &self.intent {
            self.store.set_rejected(Some(&intent.stored.digest))?;
        }
        self.slots.exchange(word, settled)?;
        let from = self.active.as_ref().map_or(0, Active::revision);
        self.intent = None;
        self.store.clear_intent()?;
        match self.good.clone() {
            Some(good) => self.set_active(&good, settled),
            None => {
                self.active = Some(Active {
                    snapshot: None,
                    digest: String::new(),
                    generation,
                    slot,
                    deadline: None,
                });
            }
        }
        self.fell_back_from = from;
        let to = self.active.as_ref().map_or(0, Active::revision);
        warn!(
            from,
            to, generation, "nobody confirmed: the kernel fell back"
        );
        Ok(Some(Notice::FellBack { from, to }))
    }

    /// The operator's panic switch moves the generation on, under the same content.
    fn follow_generation(&mut self, word: ActiveWord) -> Result<(), ApplyError> {
        let Some(active) = &mut self.active else {
            return Ok(());
        };
        if active.generation == word.generation() {
            return Ok(());
        }
        let known = std::mem::replace(&mut active.generation, word.generation());
        self.carry_names(known);
        if let Some(intent) = &mut self.intent {
            intent.generation = word.generation();
            self.store.set_intent(intent)?;
        }
        Ok(())
    }

    /// Gives the generations since `known` the names of the active content: the panic switch may have been thrown
    /// more than once since somebody looked, and flows were judged under each.
    fn carry_names(&mut self, known: u32) {
        let Some(active) = &self.active else {
            return;
        };
        if let Some(snapshot) = active.snapshot.clone() {
            let newest = active.generation;
            let moves = newest.wrapping_sub(known) / 2;
            for back in (1..moves.min(NAMES_CARRIED)).rev() {
                self.names
                    .insert(newest.wrapping_sub(2 * back), Arc::clone(&snapshot));
            }
        }
        self.remember_names();
    }

    /// Names for what the word says now, without waiting for the next [`Self::tick`].
    pub fn refresh_names(&mut self) {
        let word = self.slots.word();
        let (_, _, fell) = word.effective(self.clock.boot_ns() / 1_000_000_000);
        if !fell && let Err(error) = self.follow_generation(word) {
            warn!(%error, "the generation is not remembered");
        }
    }

    /// True when expiries must be computed again.
    fn read_clocks(&mut self) -> Result<bool, ApplyError> {
        const STEP: i64 = 1_000_000_000;
        let (boot, utc) = (self.clock.boot_ns(), self.clock.utc_ns());
        let lead = utc.saturating_sub(i64::try_from(boot).unwrap_or(i64::MAX));
        let recovered = self.behind && utc >= self.clocks.highest_utc_ns;
        let moved = lead > self.clocks.lead_ns.saturating_add(STEP) || recovered;
        let persist = moved || utc > self.clocks.highest_utc_ns.saturating_add(60 * STEP);
        if moved {
            self.clocks.lead_ns = self.clocks.lead_ns.max(lead);
            self.behind &= !recovered;
        }
        if persist {
            self.clocks.highest_utc_ns = self.clocks.highest_utc_ns.max(utc);
            self.store.set_clocks(&self.clocks)?;
        }
        Ok(moved)
    }

    fn reload(&mut self) -> Result<bool, ApplyError> {
        let word = self.slots.word();
        let Some(snapshot) = self
            .active
            .as_ref()
            .and_then(|active| active.snapshot.clone())
        else {
            return Ok(false);
        };
        if snapshot.rules.iter().all(|rule| rule.expires.is_none()) {
            return Ok(false);
        }
        let content = plan::content(&snapshot, &self.timebase());
        self.slots.fill(word.slot() ^ 1, &content)?;
        let mut next = ActiveWord::committed(word.generation() + 2, word.slot() ^ 1);
        if word.is_learning() {
            next = next.learning();
        }
        self.slots.exchange(word, next)?;
        self.set_active(&Stored::new((*snapshot).clone()), next);
        Ok(true)
    }

    /// Makes the failsafe map hold exactly these.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn set_failsafes(&mut self, failsafes: Vec<Failsafe>) -> Result<(), ApplyError> {
        self.slots.set_failsafes(&failsafes)?;
        self.failsafes = failsafes;
        Ok(())
    }

    /// What is listed beside the policy.
    #[must_use]
    pub fn failsafes(&self) -> &[Failsafe] {
        &self.failsafes
    }

    /// What is active.
    #[must_use]
    pub const fn active(&self) -> Option<&Active> {
        self.active.as_ref()
    }

    /// The revision that the kernel gave up last; 0 after the next change.
    #[must_use]
    pub const fn fell_back_from(&self) -> u64 {
        self.fell_back_from
    }

    /// Whether the wall clock is behind what was seen before, so that grants are off.
    #[must_use]
    pub const fn clock_behind(&self) -> bool {
        self.behind
    }

    /// Snapshots by the generation that activated them, the last few.
    #[must_use]
    pub const fn generations(&self) -> &BTreeMap<u32, Arc<Snapshot>> {
        &self.names
    }

    /// Mode of this host.
    #[must_use]
    pub fn mode(&self) -> Option<Mode> {
        self.active
            .as_ref()?
            .snapshot
            .as_ref()?
            .endpoints
            .first()
            .map(|endpoint| endpoint.mode)
    }

    /// The clocks as the plan wants them.
    #[must_use]
    pub fn timebase(&self) -> Timebase {
        Timebase {
            boot_ns: self.clock.boot_ns(),
            utc_ns: self.clock.utc_ns(),
            lead_ns: self.clocks.lead_ns,
            behind: self.behind,
        }
    }

    /// The state directory.
    #[must_use]
    pub const fn store(&self) -> &Store {
        &self.store
    }

    fn set_active(&mut self, stored: &Stored, word: ActiveWord) {
        self.active = Some(Active {
            snapshot: Some(Arc::new(stored.snapshot.clone())),
            digest: stored.digest.clone(),
            generation: word.generation(),
            slot: word.slot(),
            deadline: word.is_pending().then(|| word.deadline()),
        });
        self.remember_names();
    }

    fn remember_names(&mut self) {
        if let Some(active) = &self.active
            && let Some(snapshot) = &active.snapshot
        {
            self.names.insert(active.generation, Arc::clone(snapshot));
            if active.deadline.is_some()
                && let Some(good) = &self.good
            {
                // What the kernel will act by if nobody confirms, before anybody here has noticed.
                let fallback = Arc::new(good.snapshot.clone());
                self.names
                    .insert(active.generation.wrapping_add(1), fallback);
            }
            while self.names.len() > NAMES_KEPT {
                self.names.pop_first();
            }
            // Only comfort: without it a record says a number.
            if let Err(error) = self.store.remember_names(&self.boot_id, &self.names) {
                warn!(%error, "names of rules are not remembered");
            }
        }
    }
}

fn word_of(intent: &Intent, deadline: Option<u64>) -> ActiveWord {
    match deadline {
        Some(deadline) => ActiveWord::pending(intent.generation, intent.slot, deadline),
        None => ActiveWord::committed(intent.generation, intent.slot),
    }
}
