//! What the objects mean for a packet: the reference evaluator, and the failsafes that come before it.

use agent::reconcile::failsafes::{self, Failsafe, Needs, name_of};
use datapath::drop_reason::DropReason;
use ipnet::IpNet;
use policy::compile::{CompileInput, HostWorkload, IdentityAllocator, Limits, compile};
use policy::evaluate::{EndVerdict, Verdict, evaluate_end};
use policy::posture::{Posture, is_isolated};
use policy::probe::Flow;
use policy::set::PolicySet;
use policy::snapshot::{FlowDirection, Snapshot};
use policy::testing::{self, NOW, Random};
use policy::walk::names;
use policy::world::{Workload, World};
use time::{Duration, OffsetDateTime};

use crate::ask::Ask;
use crate::host::Seen;

/// A workload in its world, with everything that decides on its packets.
pub(crate) struct Scene<'a> {
    pub(crate) world: &'a World,
    pub(crate) set: &'a PolicySet,
    pub(crate) subject: &'a Workload,
    pub(crate) posture: Posture,
    /// Configured on the host.
    pub(crate) failsafes: Vec<Failsafe>,
    /// Compiled before a deadline that has passed when the packets come.
    pub(crate) late: bool,
}

/// When the packets come: after the first of the deadlines that the generator gives. The test takes less than an hour.
pub(crate) fn packets_come() -> OffsetDateTime {
    NOW + Duration::hours(1) + Duration::minutes(1)
}

impl<'a> Scene<'a> {
    pub(crate) fn new(
        random: &mut Random,
        world: &'a World,
        set: &'a PolicySet,
        subject: &'a Workload,
    ) -> Self {
        Self {
            world,
            set,
            subject,
            posture: Posture::of(world, set, subject),
            failsafes: failsafes::list(&needs(random, world)),
            late: random.chance(25),
        }
    }

    /// The content of the workload's host.
    pub(crate) fn compile(&self, revision: u64) -> Snapshot {
        let host = [HostWorkload {
            name: self.subject.full_name(),
            endpoint: datapath::ids::EndpointId::HOST,
        }];
        let input = CompileInput {
            world: self.world,
            set: self.set,
            host: &host,
            at: if self.late { NOW } else { packets_come() },
            revision,
            limits: Limits::default(),
            label_keys: &[],
        };
        compile(&input, &mut IdentityAllocator::default()).expect("small worlds fit")
    }

    fn evaluate(&self, ask: &Ask, at: OffsetDateTime) -> EndVerdict {
        let other = self.world.who(ask.peer).workload();
        let subject = Some(self.subject);
        let (source, destination, from, to) = match ask.direction {
            FlowDirection::Egress => (ask.own, ask.peer, subject, other),
            FlowDirection::Ingress => (ask.peer, ask.own, other, subject),
        };
        let flow = Flow {
            source,
            destination,
            from,
            to,
            protocol: ask.protocol,
            port: ask.port,
        };
        evaluate_end(self.world, self.set, &flow, ask.direction, at).expect("a managed end")
    }

    pub(crate) fn is_enforced(&self, ask: &Ask) -> bool {
        self.posture.enforces(ask.direction, ask.protocol, ask.port)
    }

    /// Names of the failsafes that let the packet through, by docs/policy.md: all of them, but in isolation only the
    /// controller's and the forensic ones, and to an isolated peer only the latter.
    fn failsafes_for(&self, ask: &Ask) -> Vec<String> {
        let isolated = is_isolated(self.world, self.set, self.subject);
        let mut claimants = self.world.claimants(ask.peer);
        let peer_isolated = claimants.any(|peer| is_isolated(self.world, self.set, peer));
        let dhcp = matches!(
            (ask.direction, ask.source_port, ask.port),
            (FlowDirection::Egress, 68, 67)
                | (FlowDirection::Egress, 546, 547)
                | (FlowDirection::Ingress, 67, 68)
                | (FlowDirection::Ingress, 547, 546)
        );
        if dhcp && ask.protocol == 17 {
            let name = name_of(&self.failsafes, datapath::failsafe::DHCP_RULE);
            return name
                .filter(|_| !isolated && !peer_isolated)
                .into_iter()
                .collect();
        }
        let matching: Vec<&Failsafe> = (self.failsafes.iter())
            .filter(|failsafe| {
                failsafe.direction == datapath::ids::Direction::from(ask.direction).name()
                    && failsafe.protocol == ask.protocol
                    && failsafe.port == ask.port
                    && failsafe.peer.contains(&ask.peer)
            })
            .collect();
        let holds = |failsafe: &&Failsafe| {
            let forensic = failsafe.name.starts_with("failsafe/forensic/");
            match (isolated, peer_isolated) {
                (true, _) => failsafe.survives_isolation,
                (false, true) => forensic,
                (false, false) => true,
            }
        };
        if !matching.iter().any(holds) {
            return Vec::new();
        }
        // Where several cover a packet, any of them may be named.
        matching
            .iter()
            .map(|failsafe| failsafe.name.clone())
            .collect()
    }
}

/// A few failsafes about addresses that occur.
fn needs(random: &mut Random, world: &World) -> Needs {
    let mut needs = Needs::default();
    if random.chance(50) {
        return needs;
    }
    let somebody = |random: &mut Random| {
        let workload = &world.workloads()[random.below(world.workloads().len())];
        if random.chance(60) {
            random.pick(&workload.addresses)
        } else {
            testing::address(random.pick(&testing::STRANGERS))
        }
    };
    let some_net = |random: &mut Random| -> IpNet {
        let address = somebody(random);
        let bits = if address.is_ipv4() {
            [32, 28, 16]
        } else {
            [128, 125, 16]
        };
        IpNet::new(address, random.pick(&bits))
            .expect("a prefix length that fits")
            .trunc()
    };
    for _ in 0..random.below(3) {
        needs.controllers.push((somebody(random), 443).into());
        needs.resolvers.push(somebody(random));
    }
    for _ in 0..random.below(3) {
        needs.management.push((some_net(random), vec![22, 9000]));
        needs
            .forensic
            .push((some_net(random), random.pick(&[22, 8080])));
    }
    needs
}

/// What is to come out.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) pass: bool,
    /// Policy, the mode left out.
    pub(crate) evaluated: bool,
    pub(crate) draft: bool,
    pub(crate) draft_rule: Names,
    pub(crate) rule: Names,
    /// `None` where the evaluator names none.
    pub(crate) reason: Option<DropReason>,
    pub(crate) keep: Option<bool>,
}

/// Names that are right.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Names {
    One(String),
    Any(Vec<String>),
    /// After a deadline: the evaluator at that moment and the compiled verdict for ever after name different ones.
    Unsaid,
}

impl Names {
    fn allows(&self, name: &str) -> bool {
        match self {
            Self::One(one) => one == name,
            Self::Any(names) => names.iter().any(|one| one == name),
            Self::Unsaid => true,
        }
    }

    /// The first of them.
    pub(crate) fn first(&self) -> Option<&str> {
        match self {
            Self::One(one) => Some(one),
            Self::Any(names) => names.first().map(String::as_str),
            Self::Unsaid => None,
        }
    }
}

impl Wanted {
    pub(crate) fn of(scene: &Scene<'_>, ask: &Ask) -> Self {
        let failsafes = scene.failsafes_for(ask);
        if !failsafes.is_empty() {
            return Self {
                pass: true,
                evaluated: true,
                draft: true,
                draft_rule: Names::Any(failsafes.clone()),
                rule: Names::Any(failsafes),
                reason: Some(DropReason::None),
                keep: Some(false),
            };
        }
        if !scene.late {
            return Self::from(scene.evaluate(ask, packets_come()));
        }
        let before = scene.evaluate(ask, NOW);
        let after =
            [1, 2, 3].map(|hour| scene.evaluate(ask, NOW + Duration::hours(hour)).evaluated);
        if after[0] == before.evaluated {
            // Policy is compiled by verdicts: another rule that says the same changes nothing.
            return Self::from(before);
        }
        // From the first change on the compiled form allows only what will be allowed for ever.
        let evaluated = after.iter().all(|verdict| *verdict == Verdict::Allow);
        let enforced = scene.is_enforced(ask);
        Self {
            pass: evaluated || !enforced,
            evaluated,
            draft: before.draft == Verdict::Allow,
            draft_rule: Names::One(before.draft_rule),
            rule: Names::Unsaid,
            reason: match (evaluated, enforced, before.evaluated) {
                (true, ..) => Some(DropReason::None),
                (false, false, _) => Some(DropReason::ModeObserve),
                (false, true, Verdict::Allow) => Some(DropReason::Expired),
                (false, true, Verdict::Deny) => None,
            },
            keep: None,
        }
    }

    /// What the kernel says otherwise.
    pub(crate) fn difference(&self, seen: &Seen) -> Option<String> {
        let differ = |what: &str, wanted: &dyn std::fmt::Debug, seen: &dyn std::fmt::Debug| {
            Some(format!("{what}: evaluator {wanted:?}, kernel {seen:?}"))
        };
        if self.pass != seen.pass {
            return differ("enforced", &self.pass, &seen.pass);
        }
        let Some(notice) = &seen.notice else {
            return Some("the kernel gave no notice of the flow".into());
        };
        if self.evaluated != notice.evaluated {
            return differ("evaluated", &self.evaluated, &notice.evaluated);
        }
        if self.draft != notice.draft {
            return differ("draft", &self.draft, &notice.draft);
        }
        if !self.rule.allows(&notice.rule) {
            return differ("rule", &self.rule, &notice.rule);
        }
        if !self.draft_rule.allows(&notice.draft_rule) {
            return differ("draft's rule", &self.draft_rule, &notice.draft_rule);
        }
        if let Some(reason) = self.reason
            && reason != notice.reason
        {
            return differ("reason", &reason, &notice.reason);
        }
        if let Some(keep) = self.keep
            && self.evaluated
            && keep != notice.keep
        {
            return differ("keep", &keep, &notice.keep);
        }
        None
    }

    /// The tier that decides, by the name of its rule.
    pub(crate) fn tier(&self) -> Option<&'static str> {
        let rule = self.rule.first()?;
        if rule.starts_with("standard/") && rule.ends_with("(default deny)") {
            return Some("standard, closed");
        }
        [
            (names::ISOLATION, "isolation"),
            ("failsafe/", "failsafe"),
            ("filter/", "filter"),
            ("guardrail/", "guardrail"),
            ("grants/", "grants"),
            ("standard/", "standard"),
            ("baseline/", "baseline"),
            (names::DEFAULT_DENY, "default deny"),
            (names::DEFAULT_ALLOW, "default allow"),
        ]
        .into_iter()
        .find(|(start, _)| rule.starts_with(start))
        .map(|(_, tier)| tier)
    }
}

impl From<EndVerdict> for Wanted {
    fn from(end: EndVerdict) -> Self {
        Self {
            pass: end.enforced == Verdict::Allow,
            evaluated: end.evaluated == Verdict::Allow,
            draft: end.draft == Verdict::Allow,
            draft_rule: Names::One(end.draft_rule),
            rule: Names::One(end.rule),
            reason: Some(end.reason),
            keep: Some(end.keep),
        }
    }
}
