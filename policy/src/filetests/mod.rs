//! The `tests` of policy files.
//!
//! A test asks for the *draft* verdict, unless it says otherwise: what would happen if everything in the
//! set were enforced. So a policy can be tested before anybody enforces it, and the modes of workloads do
//! not blur the answer.
//!
//! A test of selectors and port ranges means very many connections. Workloads that no policy can tell
//! apart are asked once, and of ports between which no policy draws a border, one stands for all: the
//! answer is that of trying every one.

mod alike;
mod points;

use std::fmt;

use time::OffsetDateTime;

use crate::evaluate::{ConnectionVerdict, EndVerdict, evaluate_end};
use crate::model::{PolicyTest, TestEnd, TestVerdict};
use crate::ports::{is_icmp, protocol_name};
use crate::probe::{Flow, Probe, ProbeEnd};
use crate::set::PolicySet;
use crate::snapshot::FlowDirection;
use crate::source::Place;
use crate::world::{Workload, World};
use alike::Alike;
use points::Points;

/// More different connections than this are not tried for one test: it fails, so that an apply takes
/// bounded time.
pub const MAX_CONNECTIONS: usize = 50_000;

/// How many failures a test names.
const NAMED_FAILURES: usize = 20;

/// How one test went.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TestResult {
    /// Policy that holds it.
    pub policy: String,
    /// Its name, or `tests[index]`.
    pub name: String,
    /// Where it stands.
    pub place: Place,
    /// How many connections were tried: selectors mean every workload that they select.
    pub connections: usize,
    /// What did not come out as expected.
    pub failures: Vec<String>,
    /// Whether a connection came out otherwise than expected. A test can also fail because it means no
    /// connection at all.
    pub wrong: bool,
}

impl TestResult {
    /// Whether everything came out as expected.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.failures.is_empty()
    }

    fn wrong(&mut self, failure: String) {
        self.wrong = true;
        self.failures.push(failure);
    }
}

impl fmt::Display for TestResult {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = if self.passed() { "ok" } else { "FAILED" };
        write!(f, "{}: {word}: {} ({})", self.place, self.name, self.policy)?;
        for failure in &self.failures {
            write!(f, "\n    {failure}")?;
        }
        Ok(())
    }
}

/// Runs every test of a set.
#[must_use]
pub fn run_tests(world: &World, set: &PolicySet, at: OffsetDateTime) -> Vec<TestResult> {
    let mut results = Vec::new();
    let tests = || set.policies().iter().flat_map(|policy| &policy.tests);
    if tests().next().is_none() {
        return results;
    }
    let points = Points::new(world, set);
    let mut alike = Alike::new(world, set, tests());
    for policy in set.policies() {
        for (index, test) in policy.tests.iter().enumerate() {
            let mut result = TestResult {
                policy: policy.metadata.name.clone(),
                name: test
                    .name
                    .clone()
                    .unwrap_or_else(|| format!("tests[{index}]")),
                place: test.place.clone(),
                connections: 0,
                failures: Vec::new(),
                wrong: false,
            };
            Run {
                world,
                set,
                test,
                at,
                points: &points,
            }
            .all(&mut alike, &mut result);
            results.push(result);
        }
    }
    results
}

/// One end of the connections of a test.
#[derive(Clone, Debug)]
enum End {
    /// As the test names it.
    One(ProbeEnd),
    /// Workloads that no policy tells apart, by index in the world; never empty.
    Alike(Vec<usize>),
}

/// One test in its surroundings.
struct Run<'a> {
    world: &'a World,
    set: &'a PolicySet,
    test: &'a PolicyTest,
    at: OffsetDateTime,
    points: &'a Points,
}

impl Run<'_> {
    fn all(&self, alike: &mut Alike<'_>, result: &mut TestResult) {
        let test = self.test;
        let (sources, destinations) = (ends(alike, &test.from), ends(alike, &test.to));
        for (what, end, ends) in [
            ("from", &test.from, &sources),
            ("to", &test.to, &destinations),
        ] {
            if let (TestEnd::Selected(selector), true) = (end, ends.is_empty()) {
                // A test of nothing would pass for ever.
                let failure = format!("\"{what}\" selects no workload: {selector}");
                result.failures.push(failure);
            }
        }
        let mut tried = 0;
        let mut hidden = 0;
        for from in &sources {
            for to in &destinations {
                let Some((from, to, times)) = self.pair(from, to) else {
                    continue;
                };
                let points = match self.points_of(&to) {
                    Ok(points) => points,
                    Err(_) if result.failures.len() >= NAMED_FAILURES => {
                        hidden += times;
                        continue;
                    }
                    Err(failure) => {
                        result.failures.push(failure);
                        continue;
                    }
                };
                for (protocol, port) in points {
                    if tried >= MAX_CONNECTIONS {
                        result.wrong(format!(
                            "the test means more than {MAX_CONNECTIONS} different connections: narrow its ends or its ports"
                        ));
                        return;
                    }
                    tried += 1;
                    result.connections = result.connections.saturating_add(times);
                    let probe = Probe {
                        id: String::new(),
                        from: from.clone(),
                        to: to.clone(),
                        protocol,
                        port,
                    };
                    match self.one(alike, &probe) {
                        Ok(None) => {}
                        answer if result.failures.len() >= NAMED_FAILURES => {
                            result.wrong |= answer.is_ok();
                            hidden += times;
                        }
                        Err(untried) => result.failures.push(untried),
                        Ok(Some(difference)) => {
                            let others = match times {
                                1 => String::new(),
                                _ => format!(" (and {} more alike)", times - 1),
                            };
                            result.wrong(format!("{}: {difference}{others}", title(&probe)));
                        }
                    }
                }
            }
        }
        if hidden > 0 {
            result
                .failures
                .push(format!("and {hidden} connections more"));
        }
    }

    /// One connection that stands for those between two ends, and how many those are.
    fn pair(&self, from: &End, to: &End) -> Option<(ProbeEnd, ProbeEnd, usize)> {
        let name = |index: usize| {
            let workload = self.world.workloads().get(index)?;
            Some(ProbeEnd::Name(workload.full_name()))
        };
        match (from, to) {
            (End::One(from), End::One(to)) => (from != to).then(|| (from.clone(), to.clone(), 1)),
            (End::One(from), End::Alike(all)) => {
                let others: Vec<_> = all
                    .iter()
                    .filter_map(|to| name(*to))
                    .filter(|to| to != from)
                    .collect();
                let times = others.len();
                others
                    .into_iter()
                    .next()
                    .map(|to| (from.clone(), to, times))
            }
            (End::Alike(all), End::One(to)) => {
                let others: Vec<_> = all
                    .iter()
                    .filter_map(|from| name(*from))
                    .filter(|from| from != to)
                    .collect();
                let times = others.len();
                others
                    .into_iter()
                    .next()
                    .map(|from| (from, to.clone(), times))
            }
            (End::Alike(from), End::Alike(to)) if from == to => {
                let (first, second) = (from.first()?, from.get(1)?);
                Some((name(*first)?, name(*second)?, from.len() * (from.len() - 1)))
            }
            (End::Alike(from), End::Alike(to)) => Some((
                name(*from.first()?)?,
                name(*to.first()?)?,
                from.len() * to.len(),
            )),
        }
    }

    fn points_of(&self, to: &ProbeEnd) -> Result<Vec<(u8, u16)>, String> {
        let receiver = match to {
            ProbeEnd::Name(name) => self.world.workload(name),
            ProbeEnd::Address(address) => self.world.who(*address).workload(),
        };
        let named = receiver.map_or(&[][..], |workload| &workload.named_ports);
        let points = self.points.of(self.set, &self.test.ports, named);
        if points.is_empty() {
            let end = match to {
                ProbeEnd::Name(name) => name.clone(),
                ProbeEnd::Address(address) => address.to_string(),
            };
            return Err(format!(
                "{end} has no port of this name: {}",
                self.test.ports
            ));
        }
        Ok(points)
    }

    /// What is different from what the test expects; an error when there is no such connection.
    fn one(&self, alike: &mut Alike<'_>, probe: &Probe) -> Result<Option<String>, String> {
        let flow = Flow::resolve(self.world, probe).map_err(|error| error.to_string())?;
        let mut end = |workload: Option<&Workload>, direction| {
            let set = alike.policies_of(workload?);
            evaluate_end(self.world, set, &flow, direction, self.at)
        };
        let egress = end(flow.from, FlowDirection::Egress);
        let ingress = end(flow.to, FlowDirection::Ingress);
        Ok(difference(
            self.test,
            &ConnectionVerdict::new(egress, ingress),
        ))
    }
}

fn ends(alike: &Alike<'_>, end: &TestEnd) -> Vec<End> {
    match end {
        TestEnd::Named(name) => vec![End::One(ProbeEnd::parse(name))],
        TestEnd::Selected(selector) => alike.selected(selector).map(End::Alike).collect(),
    }
}

/// What a test sees of one end.
struct Seen<'a> {
    allow: bool,
    rule: &'a str,
    reason: &'static str,
}

fn seen(end: &EndVerdict, verdict: TestVerdict) -> Seen<'_> {
    match verdict {
        TestVerdict::Draft => Seen {
            allow: end.draft.is_allow(),
            rule: &end.draft_rule,
            reason: end.draft_reason.name(),
        },
        TestVerdict::Enforced => Seen {
            allow: end.enforced.is_allow(),
            rule: &end.rule,
            reason: end.reason.name(),
        },
    }
}

fn difference(test: &PolicyTest, verdict: &ConnectionVerdict) -> Option<String> {
    let ends =
        || (verdict.egress.iter().chain(&verdict.ingress)).map(|end| seen(end, test.verdict));
    let allow = ends().all(|end| end.allow);
    // The first end that denies, or else the destination's.
    let deciding = ends().find(|end| !end.allow).or_else(|| ends().next_back());
    let rule = deciding.as_ref().map_or("no rule", |end| end.rule);
    let reason = deciding.as_ref().map_or("none", |end| end.reason);
    if allow != test.expect_allow {
        let word = |allow: bool| if allow { "allow" } else { "deny" };
        return Some(format!(
            "expected {}, but it is {} by {rule} ({reason})",
            word(test.expect_allow),
            word(allow)
        ));
    }
    if let Some(expected) = &test.reason
        && expected != reason
    {
        return Some(format!(
            "expected reason {expected}, but it is {reason} by {rule}"
        ));
    }
    if let Some(expected) = &test.rule
        && expected != rule
    {
        return Some(format!("expected rule {expected}, but {rule} decided"));
    }
    None
}

fn title(probe: &Probe) -> String {
    let end = |end: &ProbeEnd| match end {
        ProbeEnd::Name(name) => name.clone(),
        ProbeEnd::Address(address) => address.to_string(),
    };
    let [kind, code] = probe.port.to_be_bytes();
    let flow = if is_icmp(probe.protocol) {
        format!("{} type {kind} code {code}", protocol_name(probe.protocol))
    } else {
        format!("{}/{}", protocol_name(probe.protocol), probe.port)
    };
    format!("{} → {} {flow}", end(&probe.from), end(&probe.to))
}
