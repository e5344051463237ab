//! What a change of policy changes.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

use std::net::IpAddr;

use datapath::ids::EndpointId;
use policy::compile::{CompileInput, HostWorkload, IdentityAllocator, Limits, compile};
use policy::diff::{ObjectChange, diff_sets};
use policy::judge::judge_snapshot;
use policy::set::PolicySet;
use policy::snapshot::{FlowDirection, Snapshot};
use policy::snapshot_diff::diff_snapshots;
use policy::source::Source;
use policy::testing::{self as generate, NOW, Random};
use policy::world::World;

fn snapshot(world: &World, set: &PolicySet, allocator: &mut IdentityAllocator) -> Snapshot {
    let host = [HostWorkload {
        name: world.workloads()[0].full_name(),
        endpoint: EndpointId::HOST,
    }];
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

fn policy(text: &str) -> PolicySet {
    let head = "apiVersion: cofferdam.dev/v1\nkind: Policy\nmetadata: {name: p}\nspec:\n";
    PolicySet::parse(&[Source::new("p.yaml", format!("{head}{text}"))]).unwrap()
}

#[test]
fn sets_differ_by_field() {
    let before =
        policy("  subject: {app: db}\n  ingress: [{action: allow, ports: [{port: 80}]}]\n");
    let after = policy("  subject: {app: db}\n  ingress: [{action: deny, ports: [{port: 80}]}]\n");
    let diff = diff_sets(&before, &after);
    assert_eq!(
        diff.to_string(),
        "~ Policy/p\n    spec.ingress[0].action: \"allow\" → \"deny\"\n"
    );
    assert!(diff_sets(&before, &before).is_empty());
    let added = diff_sets(&PolicySet::default(), &before);
    assert_eq!(added.objects["Policy/p"], ObjectChange::Added);
}

#[test]
fn an_allow_for_a_new_network_denies_nothing_more() {
    let world = World::parse(&Source::new(
        "inv.yaml",
        "workloads: [{name: db, labels: {app: db}, addresses: [10.0.0.1]}]",
    ))
    .unwrap();
    let closed = policy("  state: enforced\n  subject: {app: db}\n  ingress: []\n");
    let opened = policy(
        "  state: enforced\n  subject: {app: db}\n  ingress: [{action: allow, peers: [{cidr: 10.9.0.0/16}], ports: [{port: 80}]}]\n",
    );
    let allocator = &mut IdentityAllocator::default();
    let (closed, opened) = (
        snapshot(&world, &closed, allocator),
        snapshot(&world, &opened, allocator),
    );
    let wider = diff_snapshots(&closed, &opened);
    assert!(!wider.denies_more);
    assert_eq!(wider.changes.len(), 1, "{wider:#?}");
    assert_eq!(wider.changes[0].peer.to_string(), "10.9.0.0/16");
    assert_eq!(
        (wider.changes[0].first_port, wider.changes[0].last_port),
        (80, 80)
    );
    assert!(diff_snapshots(&opened, &closed).denies_more);
    assert_eq!(diff_snapshots(&opened, &opened).changes, []);
}

/// The diff finds a change exactly where judging every flow finds one.
#[test]
fn the_diff_is_what_judging_says() {
    let mut changed = 0;
    for seed in 0..150 {
        let random = &mut Random::new(seed);
        let world = generate::world(random);
        let (first, second) = (generate::objects(random), generate::objects(random));
        let allocator = &mut IdentityAllocator::default();
        let before = snapshot(&world, &PolicySet::build(first).unwrap(), allocator);
        let after = snapshot(&world, &PolicySet::build(second).unwrap(), allocator);
        let diff = diff_snapshots(&before, &after);
        let mut peers: Vec<IpAddr> = generate::STRANGERS
            .iter()
            .map(|text| generate::address(text))
            .collect();
        peers.extend(
            world.workloads()[1..]
                .iter()
                .flat_map(|workload| workload.addresses.clone()),
        );
        peers.retain(|peer| !world.workloads()[0].addresses.contains(peer));
        for _ in 0..60 {
            let peer = random.pick(&peers);
            let direction = random.pick(&[FlowDirection::Ingress, FlowDirection::Egress]);
            let (protocol, port) = generate::protocol_and_port(random);
            let passes = |snapshot: &Snapshot| {
                let index = snapshot.index();
                judge_snapshot(
                    &index,
                    EndpointId::HOST,
                    direction,
                    peer,
                    protocol,
                    port,
                    NOW,
                )
                .enforced
                .is_allow()
            };
            let (was, is) = (passes(&before), passes(&after));
            if was == is {
                continue;
            }
            changed += 1;
            assert!(was <= diff.denies_more, "seed {seed}");
            let identity = after.index().identity(peer).0;
            let found = diff.changes.iter().any(|change| {
                change.identity == identity
                    && change.direction == direction
                    && change.protocol.is_none_or(|own| own == protocol)
                    && (change.first_port..=change.last_port).contains(&port)
                    && change.allowed == is
            });
            assert!(found, "seed {seed}: {peer} {direction:?} {protocol}/{port}");
        }
    }
    assert!(changed > 200, "only {changed} flows changed");
}
