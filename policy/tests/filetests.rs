//! Tests in policy files: what they can ask, and that asking groups means asking everyone.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use policy::api::Scenario;
use policy::evaluate::evaluate;
use policy::filetests::{TestResult, run_tests};
use policy::model::{Object, PolicyTest, TestEnd, TestVerdict};
use policy::ports::{PortSpec, Ports, Protocol};
use policy::probe::{Probe, ProbeEnd};
use policy::set::PolicySet;
use policy::source::{Place, Source};
use policy::testing::{self as generate, NOW, Random};
use policy::world::World;

const INVENTORY: &str = "
managedNetworks: [10.0.0.0/8]
workloads:
  - {name: web-1, labels: {app: web}, addresses: [10.0.0.1]}
  - {name: web-2, labels: {app: web}, addresses: [10.0.0.2]}
  - {name: db-1, labels: {app: db}, addresses: [10.0.0.9], mode: observe,
     namedPorts: [{name: pg, port: 5432}, {name: admin, port: 5433}]}
";

const SHOP: &str = "apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {name: db}
spec:
  state: enforced
  subject: {app: db}
  ingress:
    - {action: allow, peers: [{selector: {app: web}}], ports: [{port: pg}, {port: 8000, endPort: 8100}]}
tests:
  - TEST
---
apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {name: web}
spec: {subject: {app: web}, egress: [{action: allow}], state: enforced}
---
apiVersion: cofferdam.dev/v1
kind: Mode
metadata: {name: web}
spec: {subject: {app: web}, mode: enforce}
---
apiVersion: cofferdam.dev/v1
kind: Service
metadata: {name: dynamic}
spec: {ports: [{port: 8000, endPort: 8050}, {port: pg}]}
";

fn run(test: &str) -> TestResult {
    let inventory = Source::new("inv.yaml", INVENTORY);
    let policy = Source::new("p.yaml", SHOP.replace("TEST", test));
    let scenario = Scenario::parse(Some(&inventory), &[policy]).unwrap();
    let mut results = run_tests(&scenario.world, &scenario.set, NOW);
    assert_eq!(results.len(), 1);
    results.remove(0)
}

#[test]
fn what_a_test_can_ask() {
    for (test, failure) in [
        (
            "{from: {app: web}, to: {app: db}, port: 5432, expect: allow}",
            None,
        ),
        (
            "{from: {app: web}, to: {app: db}, port: pg, expect: allow}",
            None,
        ),
        (
            "{from: {app: web}, to: {app: db}, port: admin, expect: deny}",
            None,
        ),
        (
            "{from: {app: web}, to: {app: db}, service: dynamic, expect: allow}",
            None,
        ),
        (
            "{from: {app: web}, to: {app: db}, port: 8000, endPort: 8100, expect: allow}",
            None,
        ),
        (
            "{from: {app: web}, to: {app: db}, port: 8000, endPort: 8101, expect: allow}",
            Some(
                "web-1 → db-1 tcp/8101: expected allow, but it is deny by standard/db/ingress (default deny) (default-deny) (and 1 more alike)",
            ),
        ),
        (
            "{from: {app: web}, to: {app: db}, protocol: udp, expect: deny}",
            None,
        ),
        (
            "{from: 192.0.2.1, to: {app: db}, protocol: any, expect: deny, reason: default-deny}",
            None,
        ),
        // In observe mode nothing is dropped; the draft says what would be.
        ("{from: web-1, to: db-1, port: 22, expect: deny}", None),
        (
            "{from: web-1, to: db-1, port: 22, expect: allow, verdict: enforced, reason: mode-observe}",
            None,
        ),
        (
            "{from: web-1, to: db-1, port: metrics, expect: allow}",
            Some("db-1 has no port of this name: tcp/metrics"),
        ),
        (
            "{from: {app: nobody}, to: db-1, port: 22, expect: deny}",
            Some("\"from\" selects no workload: app=nobody"),
        ),
    ] {
        let result = run(test);
        assert_eq!(
            result.failures.first().map(String::as_str),
            failure,
            "{test}"
        );
        let wrong = failure.is_some_and(|failure| failure.contains("expected"));
        assert_eq!(result.wrong, wrong, "{test}");
    }
    assert_eq!(
        run("{from: {app: web}, to: {app: db}, port: 5432, expect: allow}").connections,
        2
    );
}

#[test]
fn a_test_needs_something_to_try_and_services_that_exist() {
    for (test, wanted) in [
        (
            "{from: a, to: b, expect: deny}",
            "a test needs a protocol, a port or a service",
        ),
        (
            "{from: a, to: b, service: dynamc, expect: deny}",
            "did you mean \"dynamic\"?",
        ),
        (
            "{from: a, to: b, port: 1, expect: deny, verdict: draught}",
            "did you mean \"draft\"?",
        ),
    ] {
        let source = Source::new("p.yaml", SHOP.replace("TEST", test));
        let problems = PolicySet::parse(&[source]).unwrap_err().to_string();
        assert!(problems.contains("p.yaml:10:"), "{problems}");
        assert!(problems.contains(wanted), "{problems}");
    }
}

/// Every pair and every port one by one.
fn brute_force(world: &World, set: &PolicySet, test: &PolicyTest) -> bool {
    let (TestEnd::Selected(from), TestEnd::Selected(to)) = (&test.from, &test.to) else {
        panic!("the generator makes selectors");
    };
    let PortSpec::Direct {
        protocol: Protocol::Number(protocol),
        ports: Ports::Range(low, high),
    } = test.ports
    else {
        panic!("the generator makes ranges");
    };
    let name = |workload: &policy::world::Workload| ProbeEnd::Name(workload.full_name());
    for source in world.workloads().iter().filter(|own| from.matches(*own)) {
        for destination in world.workloads().iter().filter(|own| to.matches(*own)) {
            if source.full_name() == destination.full_name() {
                continue;
            }
            for port in low..=high {
                let probe = Probe {
                    id: String::new(),
                    from: name(source),
                    to: name(destination),
                    protocol,
                    port,
                };
                let verdict = evaluate(world, set, &probe, NOW).unwrap();
                let allow = match test.verdict {
                    TestVerdict::Draft => verdict.draft.is_allow(),
                    TestVerdict::Enforced => verdict.enforced.is_allow(),
                };
                if allow != test.expect_allow {
                    return false;
                }
            }
        }
    }
    true
}

#[test]
fn groups_answer_as_everyone_does() {
    let (mut passed, mut failed) = (0, 0);
    for seed in 0..300 {
        let random = &mut Random::new(seed);
        let world = generate::world(random);
        let mut objects = generate::objects(random);
        let low = random.pick(&[0, 75, 440, 5430, 7995]);
        let test = PolicyTest {
            name: None,
            from: TestEnd::Selected(generate::selector(random, true)),
            to: TestEnd::Selected(generate::selector(random, true)),
            ports: PortSpec::Direct {
                protocol: Protocol::Number(random.pick(&[6, 17])),
                ports: Ports::Range(low, low + random.below(12) as u16),
            },
            expect_allow: random.chance(30),
            verdict: random.pick(&[TestVerdict::Draft, TestVerdict::Enforced]),
            reason: None,
            rule: None,
            place: Place::default(),
        };
        let Some(Object::Policy(policy)) = objects
            .iter_mut()
            .find(|object| matches!(object, Object::Policy(_)))
        else {
            continue;
        };
        policy.tests = vec![test.clone()];
        let set = PolicySet::build(objects).unwrap();
        let results = run_tests(&world, &set, NOW);
        let wanted = brute_force(&world, &set, &test);
        assert_eq!(
            !results[0].wrong, wanted,
            "seed {seed}: {:?}",
            results[0].failures
        );
        *(if wanted { &mut passed } else { &mut failed }) += 1;
    }
    assert!(passed > 40 && failed > 40, "{passed} {failed}");
}
