//! The same packets through the loaded object and through the simulated host.

use agent::kernel::clock;
use agent::kernel::loader::TableSizes;
use datapath::abi::{ActiveWord, Config, Event, FailsafeKey, FailsafeValue};
use datapath::conntrack::State as Conn;
use datapath::ids::Direction;
use datapath::pipeline::Action;
use datapath::sim::{Content, Sim};

use super::convert;
use super::rig::{Merged, Rig};
use super::state::State;

/// Bytes that one notice takes in the ring: an 8-byte header (kernel/bpf/ringbuf.c) and the event.
const NOTICE: u32 = 8 + size_of::<Event>() as u32;

/// Tables that hold whatever a test sends.
pub const ROOMY: TableSizes = TableSizes {
    flows4: 4_096,
    flows6: 4_096,
    denies: 4_096,
    ring: 1 << 20,
    share: 0,
};

/// Both hosts.
pub struct Twin {
    /// The kernel.
    pub rig: Rig,
    /// The simulated host.
    pub sim: Sim,
    sizes: TableSizes,
    before: State,
    events: Vec<Event>,
}

impl Twin {
    /// Loads the object and makes a simulated host with the same tables; `None`, loudly, where that cannot be.
    pub fn open(sizes: TableSizes) -> Option<Self> {
        let mut rig = Rig::open(sizes)?;
        let before = State::of_rig(&mut rig, &mut Vec::new());
        let mut twin = Self {
            rig,
            sim: Sim::new(),
            sizes,
            before,
            events: Vec::new(),
        };
        twin.reset();
        Some(twin)
    }

    /// Empty tables, counters at zero, default settings; contents and failsafes stay.
    pub fn reset(&mut self) {
        self.rig.clear();
        self.before = State::of_rig(&mut self.rig, &mut Vec::new());
        self.events.clear();
        let slots = std::mem::take(&mut self.sim.slots);
        let failsafes = std::mem::take(&mut self.sim.failsafes);
        let now = self.rig.kernel.clock().expect("the clock program runs");
        let mut sim = Sim::new();
        sim.slots = slots;
        sim.failsafes = failsafes;
        sim.tables = self.rig.kernel.tables().expect("tables");
        sim.resize(self.sizes.flows4, self.sizes.flows6);
        sim.deny_capacity = self.sizes.denies as usize;
        sim.ring_capacity = self.ring_capacity();
        sim.jiffies.set(now.jiffies as u32);
        sim.boot_ns.set(now.boot_ns);
        self.sim = sim;
        self.set_config(default_config());
        self.set_word(ActiveWord(0));
    }

    fn ring_capacity(&self) -> usize {
        ((self.sizes.ring - 1) / NOTICE) as usize
    }

    /// Fills both slots.
    pub fn fill(&mut self, slots: [Content; 2]) {
        self.rig.fill(0, &convert::content(&slots[0]));
        self.rig.fill(1, &convert::content(&slots[1]));
        self.sim.slots = slots;
    }

    /// Replaces the failsafes.
    pub fn set_failsafes(&mut self, failsafes: Vec<(FailsafeKey, FailsafeValue)>) {
        self.rig
            .kernel
            .set_failsafes(&convert::failsafes(&failsafes))
            .expect("failsafes");
        self.sim.failsafes = failsafes;
        self.sim.config.epoch += 1;
    }

    /// Writes the settings.
    pub fn set_config(&mut self, config: Config) {
        self.rig.set_config(&config);
        self.sim.config = Config {
            epoch: self.sim.config.epoch,
            ..config
        };
    }

    /// Makes a word the active one.
    pub fn set_word(&mut self, word: ActiveWord) {
        self.rig.set_word(word);
        self.sim.word.set(word);
    }

    /// Sends a frame through a hook of both and gives both answers: kernel, simulated host. `None` where the
    /// kernel runs no program over such a frame; then neither has seen it.
    pub fn send(
        &self,
        frame: &[u8],
        direction: Direction,
        merged: Option<Merged>,
    ) -> Option<(Action, Action)> {
        let kernel = self.rig.send(frame, direction, merged)?;
        let (segments, size) = merged.map_or((0, 0), |merged| (merged.segments, merged.size));
        let host = self.sim.send_sized(frame, direction, segments, size);
        Some((kernel, host))
    }

    /// Both states since the reset: kernel, simulated host.
    pub fn states(&mut self) -> (State, State) {
        let kernel = State::of_rig(&mut self.rig, &mut self.events).since(&self.before);
        // Both rings are empty now.
        self.sim.ring_capacity = self.ring_capacity() + self.events.len();
        (kernel, State::of_sim(&self.sim))
    }

    /// Makes every entry, denial and fragment look `ticks` older.
    pub fn age(&mut self, ticks: u32) {
        self.rewrite(&mut |last, _| *last = last.wrapping_sub(ticks));
        // Their clocks are not turned back: they are made anew.
        self.rig.kernel.fold_negatives().expect("negative entries");
        self.rig.kernel.clear_negatives();
        self.sim.fold();
        self.sim.clear_negatives();
        for (key, mut value) in self.rig.kernel.denial_entries().expect("denials") {
            value.announced = value.announced.wrapping_sub(ticks);
            self.rig
                .kernel
                .put_denial(&key, Some(&value))
                .expect("denials");
        }
        for value in self.sim.denies.borrow_mut().values_mut() {
            value.announced = value.announced.wrapping_sub(ticks);
        }
        for (key, mut value) in self.rig.kernel.fragment_entries().expect("fragments") {
            value.born = value.born.wrapping_sub(ticks);
            self.rig
                .kernel
                .put_fragment(&key, Some(&value))
                .expect("fragments");
        }
        for value in self.sim.fragments.borrow_mut().values_mut() {
            value.born = value.born.wrapping_sub(ticks);
        }
    }

    /// Makes the expiry of every entry that has one lie in the past.
    pub fn expire(&mut self) {
        self.rewrite(&mut |_, expiry| *expiry = (*expiry).min(1));
    }

    /// Rewrites `last` and `expiry` of every line, in both.
    fn rewrite(&mut self, each: &mut dyn FnMut(&mut u32, &mut u32)) {
        let kernel = &self.rig.kernel;
        for (key, mut flow) in kernel.entries4().expect("flows") {
            for line in &mut flow.lines {
                each(&mut line.body.last, &mut line.body.expiry);
            }
            kernel.put4(&key, &flow).expect("flows");
        }
        for (key, mut flow) in kernel.entries6().expect("flows") {
            for line in &mut flow.lines {
                each(&mut line.body.last, &mut line.body.expiry);
            }
            kernel.put6(&key, &flow).expect("flows");
        }
        self.sim.rewrite4(|flow| {
            for line in &mut flow.lines {
                each(&mut line.body.last, &mut line.body.expiry);
            }
        });
        self.sim.rewrite6(|flow| {
            for line in &mut flow.lines {
                each(&mut line.body.last, &mut line.body.expiry);
            }
        });
    }

    /// Ticks of so many seconds on this kernel.
    pub fn ticks(&self, seconds: u32) -> u32 {
        seconds * self.sim.config.hz
    }
}

/// Timeouts end on 5 seconds, so that ageing by tens of seconds never comes close to one.
pub fn default_config() -> Config {
    let hz = clock::ticks_per_second();
    let mut config = Config {
        endpoint: 1,
        hz,
        ..Config::default()
    };
    for (number, timeout) in config.timeouts.iter_mut().enumerate() {
        let seconds = Conn(number as u8).default_timeout();
        *timeout = if seconds == 0 { 0 } else { (seconds + 5) * hz };
    }
    config
}
