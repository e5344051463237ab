//! From a state to snapshots, without any connection.
#![allow(clippy::expect_used, reason = "a test says so by failing")]

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Instant;

use controller::config::Config;
use controller::planner::{self, Plan, Settings};
use controller::state::{IsolationRecord, State, WorkloadRecord};
use policy::compile::IdentityAllocator;
use policy::set::PolicySet;
use policy::snapshot::Mode;
use policy::source::Source;
use time::OffsetDateTime;

fn workload(n: u32, labels: &[(&str, &str)]) -> WorkloadRecord {
    let address = Ipv4Addr::from(0x0a01_0000 + n).into();
    WorkloadRecord {
        labels: labels
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        scope: vec![ipnet::IpNet::from(address)],
        addresses: vec![address],
        hostname: String::new(),
        enrolment: 1,
        revoked: false,
        enrolled_at: 0,
    }
}

fn state(workloads: impl IntoIterator<Item = (String, WorkloadRecord)>, policies: &str) -> State {
    State {
        revision: 7,
        workloads: Arc::new(workloads.into_iter().collect::<BTreeMap<_, _>>()),
        policies: Arc::new(policies_of(policies)),
        ..State::default()
    }
}

fn policies_of(text: &str) -> PolicySet {
    PolicySet::parse(&[Source::new("p.yaml", text)]).expect("policies")
}

fn settings() -> Settings {
    Settings::from(&Config::default())
}

fn plan(state: &State, policies: &PolicySet, identities: &mut IdentityAllocator) -> Plan {
    let at = OffsetDateTime::UNIX_EPOCH;
    let plans = planner::plan(state, policies, &settings(), identities, state.revision, at);
    assert_eq!(plans.unfit, BTreeMap::new());
    plans.fit
}

#[test]
fn the_world_is_made_of_agents_objects_and_isolations() {
    let object = "
apiVersion: cofferdam.dev/v1
kind: Workload
metadata: {name: web, labels: {app: shop}}
spec: {addresses: [192.0.2.1]}
---
apiVersion: cofferdam.dev/v1
kind: Workload
metadata: {name: printer, namespace: office, labels: {app: print}}
spec: {addresses: [192.0.2.9]}
";
    let mut state = state(
        [("web".into(), workload(1, &[("app", "web"), ("zone", "a")]))],
        object,
    );
    let record = IsolationRecord {
        until: None,
        reason: String::new(),
        actor: String::new(),
        at: 0,
    };
    Arc::make_mut(&mut state.isolations).insert("office/printer".into(), (record, 1));
    let world = planner::world(&state, &state.policies, &settings());
    let web = world.workload("web").expect("web");
    // The operator's label wins, the token's others stay, and the address is what the agent has.
    assert_eq!(
        (web.labels["app"].as_str(), web.labels["zone"].as_str()),
        ("shop", "a")
    );
    assert_eq!(web.addresses, [Ipv4Addr::new(10, 1, 0, 1)]);
    let printer = world.workload("office/printer").expect("the printer");
    assert_eq!(printer.mode, Some(Mode::Isolate));
    assert_eq!(world.default_mode, Mode::Observe);
    // Only who has an agent gets a snapshot, and only while it may speak.
    let mut identities = IdentityAllocator::default();
    assert_eq!(
        plan(&state, &state.policies, &mut identities)
            .into_keys()
            .collect::<Vec<_>>(),
        ["web"]
    );
    if let Some(web) = Arc::make_mut(&mut state.workloads).get_mut("web") {
        web.revoked = true;
    }
    assert!(plan(&state, &state.policies, &mut identities).is_empty());
}

#[test]
fn plans_repeat_and_tell_what_they_deny() {
    let enforce = "
apiVersion: cofferdam.dev/v1
kind: Mode
metadata: {name: all}
spec: {subject: all, mode: enforce}
";
    let state = state(
        [
            ("web".into(), workload(1, &[])),
            ("db".into(), workload(2, &[])),
        ],
        "",
    );
    let mut identities = IdentityAllocator::default();
    let observe = plan(&state, &state.policies, &mut identities);
    assert_eq!(observe, plan(&state, &state.policies, &mut identities));
    let enforced = plan(&state, &policies_of(enforce), &mut identities);
    assert!(planner::denies_more(&observe, &enforced));
    assert!(!planner::denies_more(&enforced, &observe));
    assert!(!planner::denies_more(&enforced, &enforced));
}

#[test]
fn two_hundred_agents_are_planned_in_reasonable_time() {
    let workloads = (0..200).map(|n| {
        let app = format!("app-{}", n % 20);
        (format!("w{n}"), workload(n, &[("app", &app)]))
    });
    let policies: String = (0..20)
        .map(|n| {
            format!(
                "---\napiVersion: cofferdam.dev/v1\nkind: Policy\nmetadata: {{name: p{n}}}\nspec:\n  state: enforced\n  \
                 subject: {{app: app-{n}}}\n  ingress:\n    - action: allow\n      peers: [{{selector: {{app: app-{}}}}}]\n      \
                 ports: [{{protocol: tcp, port: {}}}]\n",
                (n + 1) % 20,
                1_000 + n
            )
        })
        .collect();
    let state = state(workloads, &policies);
    let mut identities = IdentityAllocator::default();
    let begun = Instant::now();
    let plan = plan(&state, &state.policies, &mut identities);
    eprintln!("{} agents in {:?}", plan.len(), begun.elapsed());
    assert_eq!(plan.len(), 200);
    assert!(
        plan.values()
            .all(|snapshot| snapshot.addresses.len() >= 200)
    );
}
