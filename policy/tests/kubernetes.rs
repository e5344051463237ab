//! What Kubernetes objects become, and which are refused.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "tests"
)]

use policy::api::{Scenario, eval_probes};
use policy::evaluate::{Verdict, evaluate};
use policy::kubernetes::{MODE_NAME, remarks};
use policy::model::{Object, Tier};
use policy::parse::parse;
use policy::probe::{Probe, ProbeEnd};
use policy::set::PolicySet;
use policy::source::Source;
use policy::world::World;
use serde_json::{Value, json};
use time::OffsetDateTime;

fn import(text: &str) -> Vec<Object> {
    parse(&[Source::new("k.yaml", text)]).unwrap_or_else(|problems| panic!("{problems}"))
}

fn refused(text: &str) -> String {
    parse(&[Source::new("k.yaml", text)])
        .expect_err("the text should be refused")
        .to_string()
}

fn network_policy(spec: &str) -> String {
    format!(
        "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{name: p, namespace: shop}}\nspec: {spec}\n"
    )
}

fn admin(rule: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha1\nkind: AdminNetworkPolicy\nmetadata: {{name: p}}\nspec:\n  priority: 7\n  subject: {{namespaces: {{}}}}\n  egress:\n    - {rule}\n"
    )
}

fn cluster(rule: &str) -> String {
    format!(
        "apiVersion: policy.networking.k8s.io/v1alpha2\nkind: ClusterNetworkPolicy\nmetadata: {{name: p}}\nspec:\n  tier: Baseline\n  priority: 7\n  subject: {{namespaces: {{}}}}\n  egress:\n    - {rule}\n"
    )
}

/// The imported object as we would write it.
fn written(text: &str) -> Value {
    import(text)[0].to_json()
}

#[test]
fn a_network_policy_becomes_a_closed_standard_policy() {
    let text = "\
apiVersion: networking.k8s.io/v1
kind: NetworkPolicy
metadata:
  name: web
  namespace: shop
  uid: 0b0d
  creationTimestamp: \"2024-01-01T00:00:00Z\"
  managedFields: [{manager: kubectl}]
  labels: {owner: shop}
  annotations:
    kubectl.kubernetes.io/last-applied-configuration: '{}'
    note: kept
spec:
  podSelector: {matchLabels: {app: web}}
  policyTypes: [Ingress, Egress]
  ingress:
    - from:
        - podSelector: {matchLabels: {app: lb}}
        - namespaceSelector: {}
          podSelector: {matchExpressions: [{key: app, operator: NotIn, values: [x]}]}
        - ipBlock: {cidr: 10.1.2.3/16, except: [10.1.5.0/24]}
      ports:
        - {port: 80, endPort: 90}
        - {port: http, protocol: UDP}
        - {protocol: SCTP}
status: {}
";
    let key = "namespace:kubernetes.io/metadata.name";
    assert_eq!(
        written(text),
        json!({
            "apiVersion": "cofferdam.dev/v1",
            "kind": "Policy",
            "metadata": {
                "name": "NetworkPolicy/shop/web",
                "labels": {"owner": "shop"},
                "annotations": {"note": "kept"},
            },
            "spec": {
                "tier": "standard",
                "priority": 1000,
                "state": "enforced",
                "subject": {"matchLabels": {"app": "web", key: "shop"}},
                "ingress": [{
                    "action": "allow",
                    "peers": [
                        {"selector": {"matchLabels": {"app": "lb", key: "shop"}}},
                        {"selector": {"matchExpressions": [
                            {"key": "app", "operator": "NotIn", "values": ["x"]},
                            {"key": key, "operator": "Exists"},
                        ]}},
                        {"cidr": "10.1.0.0/16", "except": ["10.1.5.0/24"]},
                    ],
                    "ports": [
                        {"protocol": "tcp", "port": 80, "endPort": 90},
                        {"protocol": "udp", "port": "http"},
                        {"protocol": "sctp"},
                    ],
                }],
                "egress": [],
            },
        })
    );
}

#[test]
fn tiers_priorities_and_actions() {
    for (text, name, tier, priority) in [
        (
            admin("{action: Pass, to: [{namespaces: {}}]}"),
            "AdminNetworkPolicy/p",
            Tier::Guardrail,
            7,
        ),
        (
            cluster("{action: Accept, to: [{namespaces: {}}]}"),
            "ClusterNetworkPolicy/p",
            Tier::Baseline,
            7,
        ),
        (
            cluster("{action: Deny, to: [{namespaces: {}}]}").replace("Baseline", "Admin"),
            "ClusterNetworkPolicy/p",
            Tier::Guardrail,
            7,
        ),
        (
            admin("{action: Deny, to: [{namespaces: {}}]}")
                .replace("AdminNetworkPolicy", "BaselineAdminNetworkPolicy")
                .replace("  priority: 7\n", "")
                .replace("name: p", "name: default"),
            "BaselineAdminNetworkPolicy/default",
            Tier::Baseline,
            1001,
        ),
    ] {
        let objects = import(&text);
        let [Object::Policy(policy), Object::Mode(mode)] = &objects[..] else {
            unreachable!("{objects:?}");
        };
        assert_eq!(policy.metadata.name, name);
        assert_eq!((policy.tier, policy.priority), (tier, priority), "{name}");
        assert!(policy.ingress.is_none() && policy.egress.is_some());
        assert_eq!(mode.metadata.name, MODE_NAME);
    }
}

#[test]
fn the_mode_comes_once_and_gives_way_to_a_written_one() {
    let two = [
        network_policy("{podSelector: {}}"),
        network_policy("{podSelector: {}}").replace("name: p", "name: q"),
    ];
    let sources: Vec<Source> = (0..)
        .zip(&two)
        .map(|(n, text)| Source::new(format!("{n}.yaml"), text.as_str()))
        .collect();
    let modes = |objects: &[Object]| {
        let modes = objects
            .iter()
            .filter(|object| matches!(object, Object::Mode(_)));
        modes.cloned().collect::<Vec<_>>()
    };
    let objects = parse(&sources).unwrap();
    assert_eq!((objects.len(), modes(&objects).len()), (3, 1));
    let own = format!(
        "apiVersion: cofferdam.dev/v1\nkind: Mode\nmetadata: {{name: {MODE_NAME}}}\nspec: {{subject: all, defaultAction: deny}}\n"
    );
    for order in [[&two[0], &own], [&own, &two[0]]] {
        let objects = import(&order.map(String::as_str).join("---\n"));
        let modes = modes(&objects);
        let [Object::Mode(mode)] = &modes[..] else {
            unreachable!("{modes:?}");
        };
        assert!(mode.subject.is_empty(), "the written one stays");
    }
}

#[test]
fn lists_and_json_are_the_same() {
    let item = network_policy("{podSelector: {}, ingress: [{}]}");
    let value: Value = json!({
        "apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": ""},
        "items": [{
            "apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "p", "namespace": "shop"},
            "spec": {"podSelector": {}, "ingress": [{}]},
        }],
    });
    assert_eq!(import(&item), import(&value.to_string()));
}

#[test]
fn what_is_printed_parses_to_the_same_objects() {
    let cases = include_str!("conformance/cases.jsonl");
    let mut seen = 0;
    for line in cases.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        for policy in case["policies"].as_array().unwrap() {
            let objects = import(&policy.to_string());
            for object in objects {
                let again = import(&object.to_json().to_string());
                assert_eq!(again, [object]);
                seen += 1;
            }
        }
    }
    assert!(seen > 60, "{seen}");
}

#[test]
fn names_of_full_length_are_read_again() {
    let text = network_policy("{podSelector: {}}")
        .replace("name: p", &format!("name: {}", "n".repeat(253)))
        .replace("namespace: shop", &format!("namespace: {}", "s".repeat(63)));
    let objects = import(&text);
    assert_eq!(import(&objects[0].to_json().to_string()), objects[..1]);
}

/// `(text, place and message)`: everything that must not pass.
fn refusals() -> Vec<(String, &'static str)> {
    let long = "x".repeat(101);
    let many = vec!["{namespaces: {}}"; 26].join(", ");
    vec![
        (
            network_policy("{podSelector: {}, ingres: []}"),
            "k.yaml:4:25: error: unknown field \"ingres\" in NetworkPolicy; did you mean \"ingress\"?",
        ),
        (
            network_policy("{podSelector: {app: web}}"),
            "unknown field \"app\" in podSelector",
        ),
        (
            network_policy("{ingress: [{ports: [{port: 0}]}]}"),
            "k.yaml:4:34: error: \"port\" is 0, outside 1–65535",
        ),
        (
            network_policy("{ingress: [{ports: [{port: 70000}]}]}"),
            "\"port\" is 70000, outside 1–65535",
        ),
        (
            network_policy("{ingress: [{ports: [{port: 9, endPort: 65537}]}]}"),
            "\"endPort\" is 65537, outside 1–65535",
        ),
        (
            network_policy("{ingress: [{ports: [{port: 9, endPort: 8}]}]}"),
            "the port range 9–8 runs backwards",
        ),
        (
            network_policy("{ingress: [{ports: [{endPort: 8}]}]}"),
            "\"endPort\" needs a \"port\"",
        ),
        (
            network_policy("{ingress: [{ports: [{port: http, endPort: 8}]}]}"),
            "a named port has no \"endPort\"",
        ),
        (
            network_policy("{ingress: [{ports: [{port: \"80\"}]}]}"),
            "\"80\" is no port name; for the port's number, write it without quotes: port: 80",
        ),
        (
            network_policy("{ingress: [{ports: [{protocol: ICMP}]}]}"),
            "unknown protocol \"ICMP\"",
        ),
        (
            network_policy("{ingress: [{from: [{}]}]}"),
            "this peer says nothing; write podSelector, namespaceSelector or ipBlock",
        ),
        (
            network_policy("{ingress: [{from: [{podSelector: {}, ipBlock: {cidr: 10.0.0.0/8}}]}]}"),
            "a peer has either an ipBlock or selectors",
        ),
        (
            network_policy(
                "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [11.0.0.0/16]}}]}]}",
            ),
            "11.0.0.0/16 is not a strict part of 10.0.0.0/8",
        ),
        (
            network_policy(
                "{ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/8, except: [10.0.0.0/8]}}]}]}",
            ),
            "10.0.0.0/8 is not a strict part of 10.0.0.0/8",
        ),
        (
            network_policy("{ingress: [{from: [{ipBlock: {cidr: \"::ffff:10.0.0.0/104\"}}]}]}"),
            "is an IPv4 network written as IPv6; write it as IPv4",
        ),
        (
            network_policy("{ingress: [{from: [{ipBlock: {cidr: 10.0.0.1}}]}]}"),
            "\"10.0.0.1\" is no CIDR in \"cidr\"",
        ),
        (
            network_policy("{ingress: [{to: [{podSelector: {}}]}]}"),
            "unknown field \"to\" in rule",
        ),
        (
            network_policy("{policyTypes: [ingress]}"),
            "unknown policyTypes \"ingress\"; did you mean \"Ingress\"?",
        ),
        (
            network_policy("{podSelector: {matchExpressions: [{key: a, operator: In}]}}"),
            "this operator needs \"values\"",
        ),
        (
            network_policy("{podSelector: {matchLabels: {\"namespace:team\": x}}}"),
            "\"namespace:team\" is no label key",
        ),
        (
            network_policy("{podSelector: {matchLabels: {app: 1}}}"),
            "\"app\" must be a text, but is a number; put it in quotes",
        ),
        (
            network_policy("{}").replace("networking.k8s.io/v1", "extensions/v1beta1"),
            "k.yaml:1:13: error: NetworkPolicy is imported from networking.k8s.io/v1, not from \"extensions/v1beta1\"; write apiVersion: networking.k8s.io/v1",
        ),
        (
            network_policy("{}").replace("kind: NetworkPolicy", "kind: Ingress"),
            "k.yaml:2:7: error: kind \"Ingress\" of networking.k8s.io/v1 is no policy that can be imported",
        ),
        (
            network_policy("{}").replace("name: p,", "name: P,"),
            "\"P\" is no name of Kubernetes",
        ),
        (
            admin("{action: Allow, to: [{domainNames: [example.com]}]}"),
            "k.yaml:8:42: error: \"domainNames\" cannot be carried over",
        ),
        (
            admin("{action: Allow, to: [{namespaces: {}, nodes: {}}]}"),
            "exactly one of namespaces, pods, nodes, networks, domainNames must be set, but 2 are",
        ),
        (
            admin("{action: Allow, to: [{}]}"),
            "exactly one of namespaces, pods, nodes, networks, domainNames must be set, but none are",
        ),
        (
            admin("{action: Allow, to: []}"),
            "\"to\" must hold at least one item",
        ),
        (admin("{action: Allow}"), "rule has no \"to\""),
        (
            admin("{action: Accept, to: [{namespaces: {}}]}"),
            "unknown action \"Accept\"",
        ),
        (
            admin("{action: Allow, to: [{pods: {podSelector: {}}}]}"),
            "pods has no \"namespaceSelector\"",
        ),
        (
            admin("{action: Allow, to: [{namespaces: {}}], ports: []}"),
            "\"ports\" must hold at least one item",
        ),
        (
            admin(
                "{action: Allow, to: [{namespaces: {}}], ports: [{portNumber: {port: 1}, namedPort: a}]}",
            ),
            "exactly one of portNumber, namedPort, portRange must be set, but 2 are",
        ),
        (
            admin(
                "{action: Allow, to: [{namespaces: {}}], ports: [{portRange: {start: 2, end: 1}}]}",
            ),
            "the port range 2–1 runs backwards",
        ),
        (
            admin("{action: Allow, to: [{nodes: {}}], ports: [{namedPort: kubelet}]}"),
            "nodes, networks and domain names have no named ports; write the port's number",
        ),
        (
            admin("{action: Allow, to: [{namespaces: {sameLabels: [a]}}]}"),
            "unknown field \"sameLabels\" in namespaces",
        ),
        (
            admin(&format!(
                "{{name: {long}, action: Allow, to: [{{namespaces: {{}}}}]}}"
            )),
            "the rule's name has 101 characters, more than 100",
        ),
        (
            admin("{action: Allow, to: [{namespaces: {}}]}")
                .replace("priority: 7", "priority: 1001"),
            "k.yaml:5:13: error: \"priority\" is 1001, outside 0–1000",
        ),
        (
            admin("{action: Allow, to: [{namespaces: {}}]}").replace("priority: 7", "priority: -1"),
            "\"priority\" is -1",
        ),
        (
            admin("{action: Allow, to: [{namespaces: {}}]}")
                .replace("{name: p}", "{name: p, namespace: x}"),
            "this kind belongs to the whole cluster",
        ),
        (
            admin("{action: Allow, to: [{namespaces: {}}]}")
                .replace("AdminNetworkPolicy", "BaselineAdminNetworkPolicy")
                .replace("  priority: 7\n", ""),
            "a BaselineAdminNetworkPolicy can only be called \"default\"",
        ),
        (
            cluster("{action: Allow, to: [{namespaces: {}}]}"),
            "unknown action \"Allow\"",
        ),
        (
            cluster(&format!("{{action: Accept, to: [{many}]}}")),
            "\"to\" has 26 items, more than the API's limit of 25",
        ),
        (
            cluster("{action: Accept, to: [{namespaces: {}}], ports: [{portNumber: {port: 1}}]}"),
            "unknown field \"ports\" in rule",
        ),
        (
            cluster("{action: Accept, to: [{namespaces: {}}], protocols: [{tcp: {}}]}"),
            "this protocol has no \"destinationPort\"",
        ),
        (
            cluster(
                "{action: Accept, to: [{namespaces: {}}], protocols: [{tcp: {destinationPort: {range: {start: 3, end: 3}}}}]}",
            ),
            "\"start\" (3) must be less than \"end\" (3); for one port, write \"number\"",
        ),
        (
            cluster("{action: Accept, to: [{namespaces: {}}]}")
                .replace("tier: Baseline", "tier: Standard"),
            "unknown tier \"Standard\"; use one of: Admin, Baseline",
        ),
        (
            cluster("{action: Accept, to: [{namespaces: {}}]}")
                .replace("egress:", "ingress:")
                .replace("to:", "from:")
                .replace("namespaces: {}}]", "nodes: {}}]"),
            "unknown field \"nodes\" in peer",
        ),
    ]
}

#[test]
fn what_cannot_be_kept_is_refused_with_its_place() {
    let mut missed = Vec::new();
    for (text, wanted) in refusals() {
        let problems = refused(&text);
        if !problems.contains(wanted) || !problems.starts_with("k.yaml:") {
            missed.push(format!("{text}{problems}\nnot\n{wanted}\n"));
        }
    }
    assert!(missed.is_empty(), "{}", missed.join("\n"));
}

#[test]
fn equal_priorities_are_told_and_go_by_name() {
    let deny = admin("{action: Deny, to: [{networks: [0.0.0.0/0]}]}");
    let allow = deny.replace("name: p", "name: a").replace("Deny", "Allow");
    let objects = import(&format!("{deny}---\n{allow}"));
    assert_eq!(
        remarks(&objects),
        [
            "in tier guardrail, AdminNetworkPolicy/a, AdminNetworkPolicy/p have priority 7: Kubernetes promises no order between them; here it is this one"
        ]
    );
    let inventory = Source::new(
        "inv.yaml",
        "workloads: [{name: web, namespace: shop, addresses: [10.0.0.1]}]",
    );
    let world = World::parse(&inventory).unwrap();
    let set = PolicySet::build(objects).unwrap();
    let probe = Probe {
        id: String::new(),
        from: ProbeEnd::parse("shop/web"),
        to: ProbeEnd::parse("192.0.2.1"),
        protocol: 6,
        port: 443,
    };
    let verdict = evaluate(&world, &set, &probe, OffsetDateTime::UNIX_EPOCH).unwrap();
    assert_eq!(
        verdict.rule.as_deref(),
        Some("guardrail/AdminNetworkPolicy/a/egress[0]")
    );
}

#[test]
fn machines_beside_the_cluster_are_never_meant() {
    let inventory = Source::new(
        "inv.yaml",
        "workloads:\n- {name: vm, labels: {app: web, \"cofferdam.dev/entity\": vm}, addresses: [10.0.0.9], mode: observe}\n- {name: web, namespace: shop, labels: {app: web}, addresses: [10.0.0.1]}\n",
    );
    let policies = format!(
        "{}---\n{}",
        network_policy("{podSelector: {}, ingress: [{from: [{namespaceSelector: {}}]}]}"),
        admin("{action: Deny, to: [{nodes: {}}, {namespaces: {matchLabels: {team: ops}}}]}"),
    );
    let scenario = Scenario::parse(
        Some(&inventory),
        &[Source::new("k.yaml", policies.as_str())],
    )
    .unwrap();
    let ask = |from: &str, to: &str| {
        let probe = Probe {
            id: String::new(),
            from: ProbeEnd::parse(from),
            to: ProbeEnd::parse(to),
            protocol: 6,
            port: 443,
        };
        evaluate(
            &scenario.world,
            &scenario.set,
            &probe,
            OffsetDateTime::UNIX_EPOCH,
        )
        .unwrap()
    };
    // The machine is no pod of any namespace, and no node either.
    assert_eq!(ask("vm", "shop/web").enforced, Verdict::Deny);
    assert_eq!(ask("shop/web", "vm").enforced, Verdict::Allow);
    // No policy of the cluster opens the machine: it stays at its own default.
    let end = ask("shop/web", "vm").ingress.unwrap();
    assert_eq!(end.rule, "default-deny");
}

const KUBECTL: &str = r#"
apiVersion: v1
kind: List
items:
  - apiVersion: v1
    kind: Namespace
    metadata: {name: shop, labels: {team: shop, "kubernetes.io/metadata.name": shop}, uid: x}
  - apiVersion: v1
    kind: Node
    metadata: {name: n1, labels: {zone: a}}
    status: {addresses: [{type: InternalIP, address: 172.16.0.1}, {type: Hostname, address: n1}]}
  - apiVersion: v1
    kind: Pod
    metadata: {name: web, namespace: shop, labels: {app: web}}
    spec:
      containers: [{name: c, image: i, ports: [{containerPort: 8080, name: http}, {containerPort: 9}]}]
      initContainers:
        - {name: once, ports: [{containerPort: 1, name: once}]}
        - {name: side, restartPolicy: Always, ports: [{containerPort: 53, name: dns, protocol: UDP}]}
    status: {phase: Running, podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: "fd00::1"}]}
  - apiVersion: v1
    kind: Pod
    metadata: {name: done, namespace: shop}
    spec: {containers: []}
    status: {phase: Succeeded, podIP: 10.0.0.1}
  - apiVersion: v1
    kind: Pod
    metadata: {name: proxy, namespace: shop, labels: {app: web}}
    spec: {hostNetwork: true, containers: []}
    status: {phase: Running, podIP: 172.16.0.1}
  - apiVersion: v1
    kind: Pod
    metadata: {name: new, namespace: shop}
    spec: {containers: []}
    status: {phase: Pending}
"#;

#[test]
fn a_cluster_is_an_inventory() {
    let inventory = Source::new("inv.yaml", KUBECTL);
    let world = World::parse(&inventory).unwrap_or_else(|problems| panic!("{problems}"));
    let names: Vec<String> = world
        .workloads()
        .iter()
        .map(|workload| workload.full_name())
        .collect();
    assert_eq!(names, ["shop/web", "shop/new", "n1"]);
    let web = world.workload("shop/web").unwrap();
    assert_eq!(web.addresses.len(), 2);
    assert_eq!(web.namespace_labels["team"], "shop");
    let ports: Vec<(&str, u8, u16)> = web
        .named_ports
        .iter()
        .map(|port| (port.name.as_str(), port.protocol, port.port))
        .collect();
    assert_eq!(ports, [("http", 6, 8080), ("dns", 17, 53)]);
    let policies = format!(
        "{}---\n{}",
        network_policy("{podSelector: {}, ingress: [{ports: [{port: http}]}]}"),
        admin("{action: Deny, to: [{nodes: {matchLabels: {zone: a}}}]}"),
    );
    let probes = Source::new(
        "p.jsonl",
        r#"{"id": "1", "from": "n1", "to": "shop/web", "port": 8080}
{"id": "2", "from": "n1", "to": "shop/web", "port": 22}
{"id": "3", "from": "shop/web", "to": "n1", "port": 22}
"#,
    );
    let lines = eval_probes(
        &inventory,
        &[Source::new("k.yaml", policies)],
        &probes,
        OffsetDateTime::UNIX_EPOCH,
    )
    .unwrap();
    let verdicts: Vec<&str> = lines
        .iter()
        .map(|line| {
            if line.contains("\"enforced\": \"allow\", \"draft\": \"allow\", \"rule\": \"standard")
            {
                "allow"
            } else {
                line.split("\"rule\": \"")
                    .nth(1)
                    .unwrap()
                    .split('"')
                    .next()
                    .unwrap()
            }
        })
        .collect();
    assert_eq!(
        verdicts,
        [
            "allow",
            "standard/NetworkPolicy/shop/p/ingress (default deny)",
            "guardrail/AdminNetworkPolicy/p/egress[0]"
        ]
    );
    let bad = KUBECTL.replace("kind: Node", "kind: Deployment");
    let problems = World::parse(&Source::new("inv.yaml", bad)).unwrap_err();
    assert_eq!(
        problems.to_string(),
        "inv.yaml:8:5: error: an inventory has no use for kind \"Deployment\"; known kinds: List, Pod, Namespace, Node"
    );
}
