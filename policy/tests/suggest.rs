//! What an explanation suggests turns the verdict, also when its text is applied as a person would.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests"
)]

use std::collections::BTreeMap;

use policy::evaluate::{EndVerdict, evaluate_end};
use policy::explain::{EndExplanation, explain_flow};
use policy::model::Object;
use policy::probe::Flow;
use policy::set::PolicySet;
use policy::snapshot::FlowDirection;
use policy::source::Source;
use policy::suggest::{Suggestion, Turns};
use policy::testing::{self as generate, NOW, Random, STRANGERS};
use policy::world::World;

const WORLDS: u64 = 400;

/// The set after the suggestion's YAML was applied and its objects removed, as the CLI would.
fn applied(set: &PolicySet, suggestion: &Suggestion) -> PolicySet {
    let text = suggestion.yaml.clone().unwrap_or_default();
    let new = policy::parse::parse(&[Source::new("suggested.yaml", text.clone())])
        .unwrap_or_else(|problems| panic!("{problems}\n{text}"));
    let gone = |object: &Object| {
        suggestion.removes.contains(&object.id()) || new.iter().any(|new| new.id() == object.id())
    };
    let mut objects = set.objects();
    objects.retain(|object| !gone(object));
    objects.extend(new.clone());
    PolicySet::build(objects).unwrap()
}

fn check(
    world: &World,
    set: &PolicySet,
    flow: &Flow<'_>,
    end: &EndExplanation,
    verdict: &EndVerdict,
    seen: &mut BTreeMap<&'static str, usize>,
) {
    for suggestion in &end.suggestions {
        *seen.entry(suggestion.kind).or_default() += 1;
        let Some(turns) = suggestion.turns else {
            assert!(suggestion.yaml.is_none() && suggestion.removes.is_empty());
            continue;
        };
        let set = applied(set, suggestion);
        let after = evaluate_end(world, &set, flow, end.direction, NOW).unwrap();
        let turned = match (turns, suggestion.kind) {
            // The mode is turned, not what policy says.
            (Turns::Enforced, "set-mode") => after.enforced != verdict.enforced,
            (Turns::Enforced, _) => after.evaluated != verdict.evaluated,
            (Turns::Draft, _) => after.draft != verdict.draft,
        };
        assert!(turned, "{suggestion:#?}\n{verdict:#?}\n{after:#?}");
    }
}

#[test]
fn every_suggestion_turns_its_verdict() {
    let mut seen = BTreeMap::new();
    let (mut denied, mut helped) = (0, 0);
    for seed in 0..WORLDS {
        let random = &mut Random::new(seed);
        let world = generate::world(random);
        let set = PolicySet::build(generate::objects(random)).unwrap();
        let mut addresses: Vec<_> = (world.workloads().iter())
            .flat_map(|workload| workload.addresses.clone())
            .collect();
        addresses.extend(STRANGERS.iter().map(|text| generate::address(text)));
        for _ in 0..8 {
            let (source, destination) = (random.pick(&addresses), random.pick(&addresses));
            if source.is_ipv4() != destination.is_ipv4() {
                continue;
            }
            let (protocol, port) = generate::protocol_and_port(random);
            let flow = Flow::between(&world, source, destination, protocol, port);
            let walk = explain_flow(&world, &set, &flow, NOW);
            for (direction, end) in [
                (FlowDirection::Egress, &walk.egress),
                (FlowDirection::Ingress, &walk.ingress),
            ] {
                let Some(end) = end else { continue };
                let verdict = evaluate_end(&world, &set, &flow, direction, NOW).unwrap();
                check(&world, &set, &flow, end, &verdict, &mut seen);
                if !verdict.draft.is_allow() || !verdict.evaluated.is_allow() {
                    denied += 1;
                    helped += usize::from(!end.suggestions.is_empty());
                }
            }
        }
    }
    println!("{helped} of {denied} denied ends; {seen:?}");
    for kind in [
        "add-rule",
        "extend-rule",
        "enforce",
        "extend-expiry",
        "set-mode",
        "remove-grant",
        "note",
    ] {
        assert!(
            seen.get(kind).is_some_and(|count| *count >= 5),
            "{kind}: {seen:?}"
        );
    }
    assert!(helped * 100 >= denied * 98, "{helped} of {denied}");
}

const INVENTORY: &str = "
managedNetworks: [10.0.0.0/16]
workloads:
  - {name: web-1, labels: {app: web, build: '7'}, addresses: [10.0.0.5]}
  - {name: web-2, labels: {app: web, build: '8'}, addresses: [10.0.0.6]}
  - {name: db-1, labels: {app: db}, addresses: [10.0.1.9]}
";

fn suggestions(policies: &str, from: &str, direction: FlowDirection) -> Vec<Suggestion> {
    let world = World::parse(&Source::new("inv.yaml", INVENTORY)).unwrap();
    let set = PolicySet::parse(&[Source::new("p.yaml", policies)]).unwrap();
    let flow = Flow::between(
        &world,
        from.parse().unwrap(),
        "10.0.1.9".parse().unwrap(),
        6,
        22,
    );
    let walk = explain_flow(&world, &set, &flow, NOW);
    let end = match direction {
        FlowDirection::Egress => walk.egress,
        FlowDirection::Ingress => walk.ingress,
    };
    end.unwrap().suggestions
}

const HEAD: &str = "apiVersion: cofferdam.dev/v1\n";

#[test]
fn a_closed_direction_gets_one_rule_by_the_labels_that_policies_use() {
    let text = format!(
        "{HEAD}kind: Policy\nmetadata: {{name: db}}\nspec: {{state: enforced, subject: {{app: db}}, ingress: []}}\n"
    );
    let found = suggestions(&text, "10.0.0.5", FlowDirection::Ingress);
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(
        (found[0].kind, found[0].turns),
        ("add-rule", Some(Turns::Draft))
    );
    assert!(
        found[0]
            .text
            .contains("(subject app=db: this workload only)"),
        "{found:#?}"
    );
    let expected = "\
apiVersion: cofferdam.dev/v1
kind: Policy
metadata:
  name: allow-web-1-to-db-1-tcp-22-ingress
spec:
  ingress:
    - action: allow
      peers:
        - selector:
            matchLabels:
              app: web
      ports:
        - port: 22
          protocol: tcp
  priority: 1000
  state: staged
  subject:
    matchLabels:
      app: db
  tier: standard
";
    assert_eq!(found[0].yaml.as_deref(), Some(expected));
}

#[test]
fn a_guardrail_is_named_with_its_owner() {
    let text = format!(
        "{HEAD}kind: Guardrail\nmetadata: {{name: no-ssh, owner: security}}\nspec: {{subject: all, ingress: [{{action: deny, ports: [{{port: 22}}]}}]}}\n"
    );
    let found = suggestions(&text, "10.0.0.5", FlowDirection::Ingress);
    assert!(
        found[0].text.contains(
            "guardrail no-ssh of security denies it before: no rule of the standard tier can allow it"
        ),
        "{found:#?}"
    );
    // Both the exception and the rule that then allows it.
    assert_eq!(found[0].edits.len(), 2);
}

#[test]
fn staged_and_unmanaged_are_told() {
    let text = format!(
        "{HEAD}kind: Policy\nmetadata: {{name: db}}\nspec: {{subject: {{app: db}}, ingress: [{{action: allow, ports: [{{port: 22}}]}}]}}\n"
    );
    let found = suggestions(&text, "10.0.0.99", FlowDirection::Ingress);
    assert_eq!(found[0].kind, "enforce");
    assert!(
        found[0].text.contains("enforce db (state: enforced)"),
        "{found:#?}"
    );
    let note = found.last().unwrap();
    assert!(
        note.text.starts_with("10.0.0.99 is unmanaged"),
        "{found:#?}"
    );
}

#[test]
fn where_the_baseline_speaks_a_new_rule_does_not_close_the_direction() {
    let text = format!(
        "{HEAD}kind: Policy\nmetadata: {{name: dns}}\nspec: {{tier: baseline, state: enforced, subject: all, egress: [{{action: allow, ports: [{{protocol: udp, port: 53}}]}}]}}\n"
    );
    let found = suggestions(&text, "10.0.0.5", FlowDirection::Egress);
    let add = found.iter().find(|one| one.kind == "add-rule").unwrap();
    assert!(
        add.yaml.as_ref().unwrap().contains("tier: baseline"),
        "{add:#?}"
    );
}
