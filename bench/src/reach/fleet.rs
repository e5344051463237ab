//! A fleet of the size that reachability is measured at: 10,000 workloads with 1,000 identities and
//! 2,000 policies, by arithmetic alone, so that it is the same everywhere.
//!
//! 40 apps in 5 environments, each with 5 roles that call one another, ten workloads a role. Every
//! role has one policy for what it accepts and one for what it opens; apps use each other's APIs, and
//! guardrails keep environments apart.

use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use policy::model::{
    Action, Entity, Metadata, NamedPort, Object, Peer, Policy, PolicyKind, Rule, State, Tier,
};
use policy::ports::{PortSpec, Ports, Protocol};
use policy::selectors::{Expression, Labels, Operator, Selector};
use policy::source::Place;
use policy::world::{Workload, World};

const APPS: u16 = 40;
const ENVS: [&str; 5] = ["dev", "test", "canary", "prod", "dr"];
const ROLES: [(&str, u16); 5] = [
    ("web", 443),
    ("api", 8080),
    ("worker", 9000),
    ("cache", 6379),
    ("db", 5432),
];
/// Workloads of one app, environment and role.
const REPLICAS: u16 = 10;
const TCP: u8 = 6;
const UDP: u8 = 17;

/// Everybody.
pub(crate) fn world() -> World {
    let mut workloads = Vec::new();
    for app in 0..APPS {
        for (env, env_name) in (0..).zip(ENVS) {
            for (role, (role_name, port)) in (0..).zip(ROLES) {
                for replica in 0..REPLICAS {
                    let number = ((app * 5 + env) * 5 + role) * REPLICAS + replica;
                    let mut workload = Workload::new(
                        format!("app{app}-{env_name}-{role_name}-{replica}"),
                        labels(app, env_name, role_name, number),
                        vec![address(number)],
                    );
                    workload.named_ports = vec![NamedPort {
                        name: "main".to_owned(),
                        protocol: TCP,
                        port,
                    }];
                    workloads.push(workload);
                }
            }
        }
    }
    World::new(vec![net(Ipv4Addr::new(10, 0, 0, 0), 8)], workloads)
}

fn labels(app: u16, env: &str, role: &str, number: u16) -> Labels {
    let mut labels: Labels = [
        ("app", format!("app{app}")),
        ("env", env.to_owned()),
        ("role", role.to_owned()),
        // Policy does not speak of it, so that it makes no identities.
        ("build", number.to_string()),
    ]
    .map(|(key, value)| (key.to_owned(), value))
    .into();
    if role == "db" && app.is_multiple_of(8) {
        labels.insert("data-class".to_owned(), "pci".to_owned());
    }
    labels
}

fn address(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, 0, high, low))
}

fn net(base: Ipv4Addr, length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new(base, length).unwrap_or_default())
}

/// Two thousand policies, guardrails and a baseline among them.
pub(crate) fn objects() -> Vec<Object> {
    let mut objects = common();
    for app in 0..APPS {
        for env in ENVS {
            for role in 0..ROLES.len() {
                objects.push(Object::Policy(accepts(app, env, role)));
                objects.push(Object::Policy(opens(app, env, role)));
            }
        }
    }
    // The last roles have to do with what everybody may do.
    objects.truncate(2_000);
    objects
}

fn policy(name: String, subject: Selector) -> Policy {
    Policy {
        metadata: Metadata {
            name,
            owner: Some("bench".to_owned()),
            ..Metadata::default()
        },
        subject,
        state: State::Enforced,
        priority: 1_000,
        ..Policy::default()
    }
}

fn common() -> Vec<Object> {
    let env = |operator, values: &[&str]| Selector {
        match_expressions: vec![Expression {
            key: "env".to_owned(),
            operator,
            values: values.iter().map(|value| (*value).to_owned()).collect(),
        }],
        ..Selector::default()
    };
    let mut common = Vec::new();
    for (name, from, to) in [
        ("no-dev-to-prod", vec!["dev", "test"], vec!["prod", "dr"]),
        ("no-prod-to-dev", vec!["prod", "dr"], vec!["dev", "test"]),
    ] {
        common.push(Object::Policy(Policy {
            kind: PolicyKind::Guardrail,
            tier: Tier::Guardrail,
            ingress: Some(vec![rule(
                Action::Deny,
                vec![peer(env(Operator::In, &from))],
                Vec::new(),
            )]),
            ..policy(name.to_owned(), env(Operator::In, &to))
        }));
    }
    common.push(Object::Policy(Policy {
        kind: PolicyKind::Guardrail,
        tier: Tier::Guardrail,
        ingress: Some(vec![rule(
            Action::Deny,
            vec![Peer::Entity {
                entity: Entity::World,
            }],
            vec![PortSpec::port(TCP, 22), PortSpec::port(TCP, 3389)],
        )]),
        ..policy("no-admin-from-outside".to_owned(), Selector::default())
    }));
    common.push(Object::Policy(Policy {
        tier: Tier::Baseline,
        egress: Some(vec![rule(
            Action::Allow,
            vec![cidr(Ipv4Addr::new(10, 255, 0, 53), 32)],
            vec![PortSpec::port(UDP, 53), PortSpec::port(TCP, 53)],
        )]),
        ..policy("dns".to_owned(), Selector::default())
    }));
    common
}

fn rule(action: Action, peers: Vec<Peer>, ports: Vec<PortSpec>) -> Rule {
    Rule {
        name: None,
        action,
        peers,
        ports,
        keep: false,
        audit: false,
        place: Place::default(),
    }
}

fn peer(selector: Selector) -> Peer {
    Peer::Selector { selector }
}

fn cidr(base: Ipv4Addr, length: u8) -> Peer {
    Peer::Cidr {
        cidr: net(base, length),
        except: Vec::new(),
    }
}

fn who(app: u16, env: &str, role: &str) -> Selector {
    Selector {
        match_labels: [
            ("app", format!("app{app}")),
            ("env", env.to_owned()),
            ("role", role.to_owned()),
        ]
        .map(|(key, value)| (key.to_owned(), value))
        .into(),
        match_expressions: Vec::new(),
    }
}

fn main_port() -> Vec<PortSpec> {
    vec![PortSpec::Direct {
        protocol: Protocol::Number(TCP),
        ports: Ports::Named("main".to_owned()),
    }]
}

/// Apps whose API an app uses, and those that use its own.
fn uses(app: u16) -> [u16; 2] {
    [(app + 1) % APPS, (app * 7 + 3) % APPS]
}

fn accepts(app: u16, env: &str, role: usize) -> Policy {
    let (name, port) = ROLES[role];
    let mut rules = vec![
        rule(
            Action::Allow,
            vec![cidr(Ipv4Addr::new(10, 254, 0, 0), 24)],
            vec![PortSpec::port(TCP, 22)],
        ),
        rule(
            Action::Allow,
            vec![peer(who(0, env, "worker"))],
            vec![PortSpec::port(TCP, 9_100)],
        ),
    ];
    if role == 0 {
        let world = Peer::Entity {
            entity: Entity::World,
        };
        rules.push(rule(
            Action::Allow,
            vec![world],
            vec![PortSpec::port(TCP, port)],
        ));
    } else {
        let before = peer(who(app, env, ROLES[role - 1].0));
        rules.push(rule(
            Action::Allow,
            vec![before],
            vec![PortSpec::port(TCP, port)],
        ));
    }
    if name == "api" {
        let users = (0..APPS).filter(|user| uses(*user).contains(&app));
        let peers: Vec<Peer> = users.map(|user| peer(who(user, env, "worker"))).collect();
        if !peers.is_empty() {
            rules.push(rule(Action::Allow, peers, main_port()));
        }
        // Partners have a network each.
        let [_, partner] = app.to_be_bytes();
        rules.push(rule(
            Action::Allow,
            vec![cidr(Ipv4Addr::new(198, 51, 100, partner * 4), 30)],
            vec![PortSpec::port(TCP, port)],
        ));
    }
    Policy {
        ingress: Some(rules),
        ..policy(format!("app{app}-{env}-{name}-in"), who(app, env, name))
    }
}

fn opens(app: u16, env: &str, role: usize) -> Policy {
    let (name, _) = ROLES[role];
    let mut rules = vec![rule(
        Action::Allow,
        vec![cidr(Ipv4Addr::new(10, 255, 0, 0), 24)],
        vec![PortSpec::Direct {
            protocol: Protocol::Any,
            ports: Ports::Range(53, 53),
        }],
    )];
    if let Some((next, _)) = ROLES.get(role + 1) {
        rules.push(rule(
            Action::Allow,
            vec![peer(who(app, env, next))],
            main_port(),
        ));
    }
    if name == "worker" {
        let peers = uses(app).map(|used| peer(who(used, env, "api"))).to_vec();
        rules.push(rule(Action::Allow, peers, main_port()));
        let everybody = peer(Selector::label("env", env));
        rules.push(rule(
            Action::Allow,
            vec![everybody],
            vec![PortSpec::port(TCP, 9_100)],
        ));
    }
    Policy {
        egress: Some(rules),
        ..policy(format!("app{app}-{env}-{name}-out"), who(app, env, name))
    }
}
