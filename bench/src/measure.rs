//! Timing: bursts of runs at real-time priority, every program once in each round, the least of all rounds.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde::Serialize;

use crate::cases::{Case, Expect, Label, Runs};
use crate::frames::{Family, PEERS, SERVICE, Segment, frame};
use crate::programs::{self, DROPPED, HIT, PASSED, Program, Rewrite};
use crate::sys::{self, Burst};

/// How long and how often.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Effort {
    pub(crate) rounds: usize,
    pub(crate) burst_ms: u64,
}

/// Packets of a check.
const PROBE: u32 = 256;
/// How often a live reader looks at the ring.
const READ_EVERY: Duration = Duration::from_millis(1);
/// Real-time priority of measured threads.
const PRIORITY: i32 = 50;

/// Measures of one program.
#[derive(Clone, Debug, Default)]
pub(crate) struct Samples(Vec<f64>);

impl Samples {
    fn least(&self) -> f64 {
        self.0.iter().copied().fold(f64::INFINITY, f64::min)
    }
}

/// Nanoseconds a packet; `net`: less what the same run takes with an empty program.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Row {
    #[serde(flatten)]
    pub(crate) label: Label,
    /// Least of all rounds.
    pub(crate) gross_ns: f64,
    /// Least of all rounds less the least of the empty program.
    pub(crate) net_ns: f64,
    /// Median over the rounds of the difference within the round.
    pub(crate) net_median_ns: f64,
    /// `net_ns` in units of one hot look-up in a kernel hash.
    pub(crate) lookups: f64,
    /// Packets that were timed.
    pub(crate) packets: u64,
    /// Records lost meanwhile, by cause.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) lost: BTreeMap<String, u64>,
}

/// What the table is compared with.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Anchors {
    /// A run of the empty program, gross.
    pub(crate) empty_ns: f64,
    /// A look-up of one and the same key, net.
    pub(crate) hash_hot_ns: f64,
    /// A look-up of a pseudo-random key of 65,536, net; about 2 ns of it make the key.
    pub(crate) hash_random_ns: f64,
    /// Real-time priority was granted.
    pub(crate) real_time: bool,
}

/// A program that is timed.
struct Timed<'a> {
    fd: BorrowedFd<'a>,
    frame: &'a [u8],
    runs: u32,
    samples: Samples,
    packets: u64,
    lost: BTreeMap<String, u64>,
    case: Option<&'a Case<'a>>,
    /// Which one is subtracted.
    base: usize,
}

/// Checks one burst of a case against what its packets must do.
fn judge(
    case: &Case<'_>,
    runs: u32,
    burst: impl FnOnce() -> Result<(Burst, u64)>,
) -> Result<(Burst, BTreeMap<String, u64>)> {
    case.host.take_new();
    let before = case.host.seen()?;
    let (burst, read) = burst()?;
    let after = case.host.seen()?;
    let announced = read + case.host.take_new();
    let drops = after.drops_since(&before);
    let lost = after.losses_since(&before);
    let packets = u64::from(runs);
    let as_meant = match case.expect {
        Expect::Established => burst.retval == PASSED && drops.is_empty() && announced == 0,
        Expect::New => {
            let unannounced = lost.get("ring-full").copied().unwrap_or(0);
            burst.retval == PASSED && drops.is_empty() && announced + unannounced == packets
        }
        Expect::Denied(reason) => {
            burst.retval == DROPPED && drops == BTreeMap::from([(reason.name().into(), packets)])
        }
    };
    if !as_meant {
        bail!(
            "{:?}: {packets} packets should have been {:?}; the last returned {}, drops {drops:?}, {announced} flows announced, lost {lost:?}",
            case.label,
            case.expect,
            burst.retval.cast_signed()
        );
    }
    Ok((burst, lost))
}

/// A short burst of every case, to see that its packets are judged as they must be.
pub(crate) fn probe(cases: &[Case<'_>]) -> Result<u64> {
    for case in cases {
        judge(case, PROBE, || {
            Ok((sys::test_run(case.runs.fd(), &case.frame, PROBE)?, 0))
        })?;
    }
    Ok(cases.len() as u64 * u64::from(PROBE))
}

/// One burst of a case while, if it wants one, a reader empties the ring on another CPU.
fn burst(case: &Case<'_>, runs: u32, other_cpu: Option<usize>) -> Result<(Burst, u64)> {
    let run = || sys::test_run(case.runs.fd(), &case.frame, runs).context("running a program");
    let (true, Some(cpu)) = (case.reader, other_cpu) else {
        return Ok((run()?, 0));
    };
    let (ready, done, read) = (
        AtomicBool::new(false),
        AtomicBool::new(false),
        AtomicU64::new(0),
    );
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| -> std::io::Result<()> {
            sys::run_alone(cpu, PRIORITY - 10)?;
            ready.store(true, Ordering::SeqCst);
            while !done.load(Ordering::SeqCst) {
                read.fetch_add(case.host.take_new(), Ordering::SeqCst);
                std::thread::sleep(READ_EVERY);
            }
            Ok(())
        });
        while !ready.load(Ordering::SeqCst) && !reader.is_finished() {
            std::thread::yield_now();
        }
        let burst = run();
        done.store(true, Ordering::SeqCst);
        match reader.join() {
            Ok(outcome) => outcome.context("the reader of the ring")?,
            Err(_) => bail!("the reader of the ring failed"),
        }
        Ok((burst?, read.load(Ordering::SeqCst)))
    })
}

/// Everything that is run in one measurement.
pub(crate) struct Bench<'a> {
    pub(crate) effort: Effort,
    pub(crate) cpu: usize,
    pub(crate) other_cpu: Option<usize>,
    pub(crate) cases: &'a [Case<'a>],
}

/// The empty programs behind the same rewriters as the cases.
struct Bases {
    empty: Program,
    hash_hot: Program,
    hash_random: Program,
    rewriters: BTreeMap<Rewrite, Program>,
    frames: BTreeMap<Family, Vec<u8>>,
}

impl Bases {
    fn new(cases: &[Case<'_>]) -> Result<Self> {
        let empty = programs::empty()?;
        let mut rewriters = BTreeMap::new();
        let needed = cases.iter().filter_map(|case| match &case.runs {
            Runs::Rewritten(_, rewrite) => Some(*rewrite),
            Runs::Bare(_) => None,
        });
        for rewrite in needed {
            if let std::collections::btree_map::Entry::Vacant(place) = rewriters.entry(rewrite) {
                place.insert(programs::rewriter(&rewrite, empty.as_fd())?);
            }
        }
        Ok(Self {
            hash_hot: programs::hash_lookup(false)?,
            hash_random: programs::hash_lookup(true)?,
            empty,
            rewriters,
            frames: Family::BOTH
                .map(|family| (family, frame(family, PEERS, 1024, SERVICE, Segment::Ack)))
                .into(),
        })
    }
}

impl Bench<'_> {
    /// Runs all rounds.
    pub(crate) fn run(&self) -> Result<(Anchors, Vec<Row>)> {
        let bases = Bases::new(self.cases)?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let real_time = sys::run_alone(self.cpu, PRIORITY)?;
                let mut timed = self.list(&bases)?;
                self.calibrate(&mut timed)?;
                for _ in 0..self.effort.rounds {
                    self.round(&mut timed)?;
                }
                Ok(self.rows(&timed, real_time))
            });
            match thread.join() {
                Ok(outcome) => outcome,
                Err(_) => bail!("the measuring thread failed"),
            }
        })
    }

    /// Empty, hash look-ups, rewriters before the empty program, cases: in this order.
    fn list<'a>(&'a self, bases: &'a Bases) -> Result<Vec<Timed<'a>>> {
        let mut timed = Vec::new();
        let mut add = |fd, frame, case, base| {
            timed.push(Timed {
                fd,
                frame,
                runs: 0,
                samples: Samples::default(),
                packets: 0,
                lost: BTreeMap::new(),
                case,
                base,
            });
            timed.len() - 1
        };
        let base_frame = |family| -> Result<&[u8]> {
            Ok(bases
                .frames
                .get(&family)
                .context("a frame of each family")?)
        };
        let plain = base_frame(Family::V4)?;
        add(bases.empty.as_fd(), plain, None, EMPTY);
        add(bases.hash_hot.as_fd(), plain, None, EMPTY);
        let mut places = BTreeMap::new();
        add(bases.hash_random.as_fd(), plain, None, EMPTY);
        for (rewrite, program) in &bases.rewriters {
            let place = add(program.as_fd(), base_frame(rewrite.family)?, None, EMPTY);
            places.insert(*rewrite, place);
        }
        for case in self.cases {
            let base = match &case.runs {
                Runs::Bare(_) => EMPTY,
                Runs::Rewritten(_, rewrite) => *places.get(rewrite).context("its rewriter")?,
            };
            add(case.runs.fd(), &case.frame, Some(case), base);
        }
        Ok(timed)
    }

    /// Finds how many runs make a burst of the wanted length; this also warms everything up.
    fn calibrate(&self, timed: &mut [Timed<'_>]) -> Result<()> {
        const TRIAL: u32 = 2_048;
        for program in timed {
            let burst = self.burst(program, TRIAL)?;
            let wanted = self.effort.burst_ms as f64 * 1e6 / burst.ns().max(1.0);
            let most = program.case.and_then(|case| case.most).unwrap_or(1_000_000);
            program.runs = (wanted as u32).clamp(1_000, most);
            program.lost.clear();
        }
        Ok(())
    }

    fn burst(&self, program: &mut Timed<'_>, runs: u32) -> Result<Burst> {
        let Some(case) = program.case else {
            let burst = sys::test_run(program.fd, program.frame, runs)?;
            if burst.retval != PASSED && burst.retval != HIT {
                bail!("a base program returned {}", burst.retval);
            }
            return Ok(burst);
        };
        let (burst, lost) = judge(case, runs, || burst(case, runs, self.other_cpu))?;
        for (cause, count) in lost {
            *program.lost.entry(cause).or_default() += count;
        }
        Ok(burst)
    }

    fn round(&self, timed: &mut [Timed<'_>]) -> Result<()> {
        for program in timed {
            if let Some(case) = program.case {
                sys::test_run(program.fd, program.frame, case.warm)?;
            }
            let burst = self.burst(program, program.runs)?;
            program.samples.0.push(burst.ns());
            program.packets += u64::from(burst.runs);
            // Others want this CPU as well, and a real-time thread that never sleeps is throttled.
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }

    fn rows(&self, timed: &[Timed<'_>], real_time: bool) -> (Anchors, Vec<Row>) {
        let least = |place: usize| {
            timed
                .get(place)
                .map_or(f64::NAN, |timed| timed.samples.least())
        };
        let hash_hot_ns = least(HASH_HOT_AT) - least(EMPTY);
        let anchors = Anchors {
            empty_ns: least(EMPTY),
            hash_hot_ns,
            hash_random_ns: least(HASH_RANDOM_AT) - least(EMPTY),
            real_time,
        };
        let rows = timed.iter().filter_map(|program| {
            let case = program.case?;
            let base = timed.get(program.base)?;
            let net_ns = program.samples.least() - base.samples.least();
            Some(Row {
                label: case.label.clone(),
                gross_ns: program.samples.least(),
                net_ns,
                net_median_ns: median_difference(&program.samples, &base.samples),
                lookups: net_ns / hash_hot_ns,
                packets: program.packets,
                lost: program.lost.clone(),
            })
        });
        (anchors, rows.collect())
    }
}

/// Places in the list of programs.
const EMPTY: usize = 0;
const HASH_HOT_AT: usize = 1;
const HASH_RANDOM_AT: usize = 2;

fn median_difference(of: &Samples, base: &Samples) -> f64 {
    let mut differences: Vec<f64> = of.0.iter().zip(&base.0).map(|(a, b)| a - b).collect();
    differences.sort_by(f64::total_cmp);
    differences
        .get(differences.len() / 2)
        .copied()
        .unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_and_the_median_of_differences() {
        let of = Samples(vec![50.0, 40.0, 90.0]);
        let base = Samples(vec![30.0, 31.0, 33.0]);
        assert_eq!(of.least(), 40.0);
        assert_eq!(median_difference(&of, &base), 20.0);
    }
}
