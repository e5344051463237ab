//! compile ∘ evaluate = evaluate: the compiled form, judged by the datapath's own code, says what the
//! reference evaluator says, for random worlds, policies, flows and moments.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use std::collections::BTreeMap;
use std::net::IpAddr;

use datapath::drop_reason::DropReason;
use datapath::ids::EndpointId;
use policy::compile::{CompileInput, HostWorkload, IdentityAllocator, Limits, compile};
use policy::evaluate::{EndVerdict, Verdict, evaluate_end};
use policy::judge::judge_snapshot;
use policy::probe::Flow;
use policy::set::PolicySet;
use policy::snapshot::{FlowDirection, Mode, Snapshot};
use policy::testing::{self as generate, NOW, Random};
use policy::world::{Who, World};
use time::{Duration, OffsetDateTime};

const WORLDS: u64 = 800;
const FLOWS: usize = 30;

/// How often something interesting happened.
#[derive(Default)]
struct Coverage(BTreeMap<&'static str, usize>);

impl Coverage {
    fn count(&mut self, what: &'static str, happened: bool) {
        *self.0.entry(what).or_default() += usize::from(happened);
    }

    fn end(&mut self, end: &EndVerdict, family_v6: bool, who: Who<'_>) {
        self.count("allow", end.evaluated == Verdict::Allow);
        self.count("deny", end.evaluated == Verdict::Deny);
        self.count("draft differs", end.draft != end.evaluated);
        self.count("draft rule differs", end.draft_rule != end.rule);
        self.count("mode observes", end.reason == DropReason::ModeObserve);
        self.count("isolated", end.reason == DropReason::Isolated);
        self.count("peer isolated", end.reason == DropReason::PeerIsolated);
        self.count("filter", end.reason == DropReason::Filter);
        self.count("rule denies", end.reason == DropReason::PolicyDeny);
        self.count("unknown", end.reason == DropReason::UnknownIdentity);
        self.count("hard", end.hard);
        self.count("keep", end.keep);
        self.count("audit", end.audit);
        self.count("closed", end.rule.ends_with("(default deny)"));
        self.count("closed by several", end.rule.contains(','));
        self.count("default deny", end.rule == "default-deny");
        self.count("default allow", end.rule == "default-allow");
        self.count("loopback", end.rule == "loopback");
        for (what, tier) in [
            ("guardrail", "guardrail/"),
            ("grant", "grants/"),
            ("standard", "standard/"),
            ("baseline", "baseline/"),
        ] {
            self.count(what, end.rule.starts_with(tier));
        }
        self.count("IPv6", family_v6);
        self.count("workload peer", matches!(who, Who::Workload(_)));
        self.count("unmanaged peer", who == Who::Unmanaged);
        self.count("world peer", who == Who::World);
    }
}

/// One end of one flow.
struct Question<'a> {
    world: &'a World,
    set: &'a PolicySet,
    flow: Flow<'a>,
    direction: FlowDirection,
    peer: IpAddr,
    endpoint: EndpointId,
}

impl Question<'_> {
    fn reference(&self, at: OffsetDateTime) -> EndVerdict {
        evaluate_end(self.world, self.set, &self.flow, self.direction, at).unwrap()
    }

    fn judged(&self, snapshot: &Snapshot, at: OffsetDateTime) -> EndVerdict {
        judge_snapshot(
            &snapshot.index(),
            self.endpoint,
            self.direction,
            self.peer,
            self.flow.protocol,
            self.flow.port,
            at,
        )
    }
}

#[test]
fn compiled_policy_says_what_the_evaluator_says() {
    let mut coverage = Coverage::default();
    let mut allocator = IdentityAllocator::default();
    for seed in 0..WORLDS {
        let random = &mut Random::new(seed);
        let world = generate::world(random);
        let set = PolicySet::build(generate::objects(random)).unwrap();
        let snapshot = snapshot(&world, &set, &mut allocator);
        coverage.count(
            "expiring cells",
            snapshot.rules.iter().any(|cell| cell.expires.is_some()),
        );
        for _ in 0..FLOWS {
            let Some(question) = question(&world, &set, random) else {
                continue;
            };
            now(&question, &snapshot, &mut coverage, seed);
            later(&question, &snapshot, &mut coverage, seed);
        }
    }
    println!("{:#?}", coverage.0);
    for (what, count) in &coverage.0 {
        assert!(*count >= 20, "\"{what}\" was seen only {count} times");
    }
}

fn snapshot(world: &World, set: &PolicySet, allocator: &mut IdentityAllocator) -> Snapshot {
    let host: Vec<HostWorkload> = world
        .workloads()
        .iter()
        .enumerate()
        .map(|(index, workload)| HostWorkload {
            name: workload.full_name(),
            endpoint: EndpointId(index as u32 + 1),
        })
        .collect();
    let input = CompileInput {
        world,
        set,
        host: &host,
        at: NOW,
        revision: 1,
        limits: Limits::default(),
        label_keys: &[],
    };
    compile(&input, allocator).unwrap()
}

/// A random workload, and as its peer another one or a stranger.
fn question<'a>(world: &'a World, set: &'a PolicySet, random: &mut Random) -> Option<Question<'a>> {
    let index = random.below(world.workloads().len());
    let subject = &world.workloads()[index];
    let own = random.pick(&subject.addresses);
    let peer = if random.chance(65) {
        let other = random.below(world.workloads().len());
        random.pick(&world.workloads()[other].addresses)
    } else {
        generate::address(random.pick(&generate::STRANGERS))
    };
    if own.is_ipv4() != peer.is_ipv4() {
        return None;
    }
    let (protocol, port) = generate::protocol_and_port(random);
    let direction = random.pick(&[FlowDirection::Ingress, FlowDirection::Egress]);
    let other = world.who(peer).workload();
    let flow = match direction {
        FlowDirection::Egress => Flow {
            source: own,
            destination: peer,
            from: Some(subject),
            to: other,
            protocol,
            port,
        },
        FlowDirection::Ingress => Flow {
            source: peer,
            destination: own,
            from: other,
            to: Some(subject),
            protocol,
            port,
        },
    };
    Some(Question {
        world,
        set,
        flow,
        direction,
        peer,
        endpoint: EndpointId(index as u32 + 1),
    })
}

fn now(question: &Question<'_>, snapshot: &Snapshot, coverage: &mut Coverage, seed: u64) {
    let wanted = question.reference(NOW);
    let mut judged = question.judged(snapshot, NOW);
    // The datapath does not report why the draft denies.
    judged.draft_reason = wanted.draft_reason;
    if wanted.reason == DropReason::UnknownIdentity && judged.reason == DropReason::DefaultDeny {
        judged.reason = wanted.reason;
    }
    // Isolation and filters are harder than any rule in the datapath; the evaluator marks guardrails.
    if matches!(
        wanted.reason,
        DropReason::Isolated | DropReason::PeerIsolated | DropReason::Filter
    ) || judged.rule.starts_with("filter/")
    {
        judged.hard = wanted.hard;
        judged.keep = wanted.keep;
        judged.audit = wanted.audit;
    }
    coverage.end(
        &wanted,
        question.peer.is_ipv6(),
        question.world.who(question.peer),
    );
    assert_eq!(
        judged, wanted,
        "seed {seed}, {:?} {:?}",
        question.direction, question.flow
    );
}

/// Before and after every deadline: exact up to the first change of the verdict; from then on the
/// compiled form allows only if it will be allowed for ever.
fn later(question: &Question<'_>, snapshot: &Snapshot, coverage: &mut Coverage, seed: u64) {
    let hours = [1, 2, 3];
    let verdicts = hours.map(|hour| question.reference(NOW + Duration::hours(hour)).evaluated);
    let first = question.reference(NOW).evaluated;
    let change = verdicts.iter().position(|verdict| *verdict != first);
    coverage.count("a verdict changes", change.is_some());
    coverage.count(
        "a verdict changes twice",
        change.is_some_and(|change| verdicts[change..].contains(&first)),
    );
    for (index, hour) in hours.into_iter().enumerate() {
        for slack in [-Duration::NANOSECOND, Duration::ZERO] {
            let at = NOW + Duration::hours(hour) + slack;
            // One nanosecond before the deadline the segment before still holds.
            let reached = if slack.is_zero() { index + 1 } else { index };
            let wanted = match change {
                Some(change) if change < reached => {
                    Verdict::from_allow(verdicts[change..].iter().all(|verdict| verdict.is_allow()))
                }
                _ => first,
            };
            let judged = question.judged(snapshot, at);
            assert_eq!(
                judged.evaluated, wanted,
                "seed {seed}, {at}, {:?} {:?}",
                question.direction, question.flow
            );
            if first.is_allow() && !judged.evaluated.is_allow() {
                let expired = judged.reason == DropReason::Expired;
                assert!(
                    expired || judged.reason == DropReason::ModeObserve,
                    "seed {seed}"
                );
                coverage.count("expired", expired);
            }
        }
    }
}

#[test]
fn identities_are_stable_and_do_not_explode() {
    let mut allocator = IdentityAllocator::default();
    let random = &mut Random::new(7);
    let world = generate::world(random);
    let set = PolicySet::build(generate::objects(random)).unwrap();
    let first = snapshot(&world, &set, &mut allocator);
    let stored = serde_json::to_string(&allocator).unwrap();
    let mut restored: IdentityAllocator = serde_json::from_str(&stored).unwrap();
    // Other contents in between take other numbers.
    for seed in 100..110 {
        let random = &mut Random::new(seed);
        let world = generate::world(random);
        let set = PolicySet::build(generate::objects(random)).unwrap();
        snapshot(&world, &set, &mut restored);
    }
    let second = snapshot(&world, &set, &mut restored);
    assert_eq!(first, second);
    assert_eq!(first.digest(), second.digest());
    assert!(
        first
            .identities
            .iter()
            .all(|identity| !identity.labels.contains_key("build")),
        "a label that no policy names is not part of an identity"
    );
}

#[test]
fn what_does_not_fit_is_refused_whole() {
    let random = &mut Random::new(3);
    let world = generate::world(random);
    let set = PolicySet::build(generate::objects(random)).unwrap();
    let host = [HostWorkload {
        name: world.workloads()[0].full_name(),
        endpoint: EndpointId::HOST,
    }];
    let mut input = CompileInput {
        world: &world,
        set: &set,
        host: &host,
        at: NOW,
        revision: 1,
        limits: Limits {
            classes: 1,
            ..Limits::default()
        },
        label_keys: &[],
    };
    let error = compile(&input, &mut IdentityAllocator::default()).unwrap_err();
    assert!(error.to_string().contains("class bindings"), "{error}");
    input.limits = Limits::default();
    let snapshot = compile(&input, &mut IdentityAllocator::default()).unwrap();
    assert!(snapshot.endpoints[0].mode <= Mode::Isolate);
}
