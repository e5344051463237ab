//! Two CPUs at once: what sharing a flow, a table or the ring costs.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Barrier;

use anyhow::{Context, Result, bail};
use datapath::drop_reason::DropReason;
use serde::Serialize;

use crate::frames::{Family, PEERS, SERVICE, Segment, frame};
use crate::host::{Host, RING_ROOM};
use crate::measure::Effort;
use crate::programs::{self, End, Order, PASSED, Program, Rewrite};
use crate::sys::{self, Burst};

const PRIORITY: i32 = 50;

/// Nanoseconds a packet and CPU, the empty program included.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Shared {
    pub(crate) case: String,
    pub(crate) family: Family,
    /// One CPU alone; the dearer of the two when they do different things.
    pub(crate) one_ns: f64,
    /// Both at once, mean of the two.
    pub(crate) two_ns: f64,
    /// `two_ns / one_ns`.
    pub(crate) ratio: f64,
    /// Rounds in which both ran at the same time for nearly all of it; others do not count.
    pub(crate) rounds: usize,
    /// Records lost with both at work, by cause.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) lost: BTreeMap<String, u64>,
}

/// What one CPU does.
struct Work<'a> {
    fd: BorrowedFd<'a>,
    frame: Vec<u8>,
}

/// A program on two CPUs.
struct Pair<'a> {
    name: &'a str,
    host: &'a Host,
    family: Family,
    work: [Work<'a>; 2],
    runs: u32,
}

/// Measures every pair. `flows` holds established flows 0 and 1, `fresh` has room for new ones.
pub(crate) fn run(
    flows: &Host,
    fresh: &Host,
    effort: Effort,
    cpus: [usize; 2],
) -> Result<Vec<Shared>> {
    let mut rows = Vec::new();
    let empty = programs::empty()?;
    for family in Family::BOTH {
        let ack = frame(family, PEERS, 1024, SERVICE, Segment::Ack);
        let other = frame(family, PEERS + 1, 1024, SERVICE, Segment::Ack);
        let answer = frame(family, PEERS, 1024, SERVICE, Segment::Answer);
        let pair = |name, one: (BorrowedFd<'_>, &Vec<u8>), two: (BorrowedFd<'_>, &Vec<u8>)| {
            let work = |(fd, frame): (BorrowedFd<'_>, &Vec<u8>)| {
                Ok::<_, anyhow::Error>((fd.try_clone_to_owned()?, frame.clone()))
            };
            let (one, two) = (work(one)?, work(two)?);
            let pair = Pair {
                name,
                host: flows,
                family,
                work: [&one, &two].map(|(fd, frame)| Work {
                    fd: fd.as_fd(),
                    frame: frame.clone(),
                }),
                runs: 100_000,
            };
            pair.measure(effort, cpus)
        };
        let (ingress, egress) = (flows.ingress.as_fd(), flows.egress.as_fd());
        rows.push(pair(
            "empty program",
            (empty.as_fd(), &ack),
            (empty.as_fd(), &ack),
        )?);
        rows.push(pair(
            "same flow, same direction",
            (ingress, &ack),
            (ingress, &ack),
        )?);
        rows.push(pair(
            "same flow, one direction each",
            (ingress, &ack),
            (egress, &answer),
        )?);
        rows.push(pair("different flows", (ingress, &ack), (ingress, &other))?);
        rows.push(new_flows(fresh, family, effort, cpus)?);
    }
    Ok(rows)
}

/// Both CPUs open flows, each its own.
fn new_flows(host: &Host, family: Family, effort: Effort, cpus: [usize; 2]) -> Result<Shared> {
    let rewriter = |first| -> Result<Program> {
        let what = Rewrite {
            family,
            end: End::Source,
            base: PEERS,
            peers: host.rules,
            order: Order::Sequence,
            first,
        };
        Ok(programs::rewriter(&what, host.ingress.as_fd())?)
    };
    // Flow numbers that no other case uses; alone and together are flows of their own, too.
    let ports = host.rules.saturating_mul(1_000);
    let programs = [rewriter(ports * 40)?, rewriter(ports * 50)?];
    let frame = frame(family, PEERS, 0, SERVICE, Segment::Syn);
    let pair = Pair {
        name: "new flows",
        host,
        family,
        work: [0, 1].map(|index: usize| Work {
            fd: programs[index].as_fd(),
            frame: frame.clone(),
        }),
        runs: RING_ROOM / 4,
    };
    pair.measure(effort, cpus)
}

/// Packets that may be dropped because somebody held the lock of their set for too long, of some millions.
const MOST_CONTENDED: u64 = 16;

impl Pair<'_> {
    fn measure(&self, effort: Effort, cpus: [usize; 2]) -> Result<Shared> {
        let (mut one, mut two) = ([f64::INFINITY; 2], f64::INFINITY);
        let mut counted = 0;
        let before = self.host.seen()?;
        for _ in 0..effort.rounds {
            for (index, least) in one.iter_mut().enumerate() {
                let [burst] = self.together([(cpus[index], &self.work[index])])?;
                *least = least.min(burst.ns());
                self.host.take_new();
            }
            let [a, b] = self.together([(cpus[0], &self.work[0]), (cpus[1], &self.work[1])])?;
            self.host.take_new();
            if overlap(&a, &b) >= 0.9 {
                counted += 1;
                two = two.min(f64::midpoint(a.ns(), b.ns()));
            }
        }
        let after = self.host.seen()?;
        let mut drops = after.drops_since(&before);
        // A virtual CPU that is taken away while it holds a set's lock: reported beside what was lost.
        let contended = drops.remove(DropReason::Contended.name());
        if !drops.is_empty() || contended > Some(MOST_CONTENDED) {
            bail!(
                "{}: packets that should have passed were dropped: {drops:?}",
                self.name
            );
        }
        let one_ns = one[0].max(one[1]);
        let mut lost = after.losses_since(&before);
        lost.extend(contended.map(|packets| (DropReason::Contended.name().to_owned(), packets)));
        Ok(Shared {
            case: self.name.to_owned(),
            family: self.family,
            one_ns,
            two_ns: two,
            ratio: two / one_ns,
            rounds: counted,
            lost,
        })
    }

    fn together<const N: usize>(&self, work: [(usize, &Work<'_>); N]) -> Result<[Burst; N]> {
        let barrier = Barrier::new(N);
        std::thread::scope(|scope| {
            let threads = work.map(|(cpu, work)| {
                let barrier = &barrier;
                scope.spawn(move || -> Result<Burst> {
                    let ready = sys::run_alone(cpu, PRIORITY);
                    barrier.wait();
                    ready.context("pinning a thread")?;
                    // Both have been woken before either begins to count: a short burst first.
                    sys::test_run(work.fd, &work.frame, 1)?;
                    Ok(sys::test_run(work.fd, &work.frame, self.runs)?)
                })
            });
            let mut bursts = Vec::with_capacity(N);
            for thread in threads {
                match thread.join() {
                    Ok(burst) => bursts.push(burst?),
                    Err(_) => bail!("a measuring thread failed"),
                }
            }
            if let Some(burst) = bursts.iter().find(|burst| burst.retval != PASSED) {
                bail!(
                    "{}: a packet that should have passed got {}",
                    self.name,
                    burst.retval
                );
            }
            bursts.try_into().ok().context("a burst of every thread")
        })
    }
}

/// Which part of the longer burst both ran.
fn overlap(a: &Burst, b: &Burst) -> f64 {
    let start = a.start.max(b.start);
    let end = (a.start + a.took).min(b.start + b.took);
    let both = end.saturating_duration_since(start).as_secs_f64();
    both / a.took.max(b.took).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, Instant};

    #[test]
    fn overlap_is_the_part_that_both_ran() {
        let start = Instant::now();
        let burst = |after, took| Burst {
            retval: 0,
            start: start + Duration::from_millis(after),
            took: Duration::from_millis(took),
            runs: 1,
        };
        assert!((overlap(&burst(0, 10), &burst(1, 10)) - 0.9).abs() < 1e-6);
        assert_eq!(overlap(&burst(0, 10), &burst(20, 10)), 0.0);
    }
}
