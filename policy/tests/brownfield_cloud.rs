//! Security groups and network ACLs: the imported policy against a small reading of AWS's rules of its own.
//!
//! The reference below knows nothing of regions, policies or selectors: it walks the JSON that a random
//! estate is written to, packet by packet, as the user guide says that AWS does.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "tests"
)]

use std::net::IpAddr;

use ipnet::IpNet;
use policy::brownfield::report::Outcome;
use policy::brownfield::{AclForm, CloudOptions, Imported, aws};
use policy::evaluate::evaluate;
use policy::model::Object;
use policy::probe::{Probe, ProbeEnd};
use policy::set::PolicySet;
use policy::source::Source;
use policy::world::{Workload, World};
use proptest::prelude::*;
use serde_json::{Value, json};
use time::OffsetDateTime;

/// Two subnets; every host is in some groups.
const HOSTS: [(&str, &str, &[&str]); 5] = [
    ("10.1.0.10", "subnet-a", &["sg-web"]),
    ("10.1.0.11", "subnet-a", &["sg-web", "sg-admin"]),
    ("10.2.0.20", "subnet-b", &["sg-db"]),
    ("10.2.0.21", "subnet-b", &["sg-db", "sg-admin"]),
    ("10.2.0.22", "subnet-b", &[]),
];
const STRANGERS: [&str; 3] = ["192.0.2.7", "10.1.0.200", "10.9.9.9"];
const NETS: [&str; 6] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.1.0.0/24",
    "10.2.0.20/32",
    "192.0.2.0/24",
    "::/0",
];
const GROUPS: [&str; 4] = ["sg-web", "sg-db", "sg-admin", "sg-elsewhere"];
const SERVICES: [(u8, u16); 9] = [
    (6, 22),
    (6, 443),
    (6, 5432),
    (17, 53),
    (17, 443),
    (1, 8 << 8),
    (1, 3 << 8 | 4),
    (47, 0),
    (132, 443),
];

fn protocol_and_ports() -> impl Strategy<Value = (String, Option<i64>, Option<i64>)> {
    prop_oneof![
        Just(("-1".to_owned(), None, None)),
        (prop_oneof![Just("tcp"), Just("udp"), Just("6")], 0_usize..4).prop_map(|(name, which)| {
            let (low, high) = [(0, 65_535), (22, 22), (400, 500), (1000, 9000)][which];
            (name.to_owned(), Some(low), Some(high))
        }),
        (-1_i64..9, -1_i64..5).prop_map(|(kind, code)| {
            let code = if kind == -1 { -1 } else { code };
            ("icmp".to_owned(), Some(kind), Some(code))
        }),
        Just(("47".to_owned(), None, None)),
        Just(("132".to_owned(), Some(80), Some(90))),
    ]
}

fn permission() -> impl Strategy<Value = Value> {
    (
        protocol_and_ports(),
        prop::collection::vec(0..NETS.len(), 0..3),
        prop::collection::vec(0..GROUPS.len(), 0..2),
        prop::option::of(prop_oneof![Just("pl-known"), Just("pl-lost")]),
    )
        .prop_map(|((protocol, from, to), nets, groups, list)| {
            let v4 = nets.iter().filter(|net| !NETS[**net].contains(':'));
            let v6 = nets.iter().filter(|net| NETS[**net].contains(':'));
            json!({
                "IpProtocol": protocol, "FromPort": from, "ToPort": to,
                "IpRanges": v4.map(|net| json!({"CidrIp": NETS[*net]})).collect::<Vec<_>>(),
                "Ipv6Ranges": v6.map(|net| json!({"CidrIpv6": NETS[*net]})).collect::<Vec<_>>(),
                "UserIdGroupPairs":
                    groups.iter().map(|group| json!({"GroupId": GROUPS[*group]})).collect::<Vec<_>>(),
                "PrefixListIds":
                    list.iter().map(|list| json!({"PrefixListId": list})).collect::<Vec<_>>(),
            })
        })
}

fn security_groups() -> impl Strategy<Value = Value> {
    let list = || prop::collection::vec(permission(), 0..4);
    prop::collection::vec((list(), list()), 3).prop_map(|lists| {
        let groups = GROUPS.iter().zip(lists).map(|(id, (ingress, egress))| {
            json!({"GroupId": id, "GroupName": id, "IpPermissions": ingress, "IpPermissionsEgress": egress})
        });
        json!({"SecurityGroups": groups.collect::<Vec<_>>()})
    })
}

fn entry(egress: bool) -> impl Strategy<Value = Value> {
    (
        protocol_and_ports(),
        0..NETS.len(),
        any::<bool>(),
        1_u32..40,
    )
        .prop_map(move |((protocol, from, to), net, allow, number)| {
            let protocol = match protocol.as_str() {
                "tcp" => "6",
                "udp" => "17",
                "icmp" => "1",
                other => other,
            };
            let cidr = if NETS[net].contains(':') {
                "Ipv6CidrBlock"
            } else {
                "CidrBlock"
            };
            let mut entry = json!({
                "Egress": egress, "RuleNumber": number, "Protocol": protocol,
                "RuleAction": if allow { "allow" } else { "deny" }, cidr: NETS[net],
            });
            if protocol == "1" {
                entry["IcmpTypeCode"] = json!({"Type": from, "Code": to});
            } else if from.is_some() {
                entry["PortRange"] = json!({"From": from, "To": to});
            }
            entry
        })
}

fn network_acls() -> impl Strategy<Value = Value> {
    let entries = (
        prop::collection::vec(entry(false), 0..7),
        prop::collection::vec(entry(true), 0..7),
    );
    entries.prop_map(|(ingress, egress)| {
        let mut all: Vec<Value> = Vec::new();
        for (index, mut entry) in ingress.into_iter().chain(egress).enumerate() {
            // Numbers are unique within a direction.
            entry["RuleNumber"] = json!(entry["RuleNumber"].as_u64().unwrap() * 100 + index as u64);
            all.push(entry);
        }
        for egress in [false, true] {
            all.push(json!({
                "Egress": egress, "RuleNumber": 32767, "Protocol": "-1", "RuleAction": "deny",
                "CidrBlock": "0.0.0.0/0",
            }));
        }
        json!({"NetworkAcls": [{
            "NetworkAclId": "acl-1", "Associations": [{"SubnetId": "subnet-b"}], "Entries": all,
        }]})
    })
}

fn inventory() -> Source {
    let interfaces = HOSTS
        .iter()
        .enumerate()
        .map(|(index, (address, subnet, groups))| {
            json!({
                "NetworkInterfaceId": format!("eni-{index}"), "SubnetId": subnet,
                "PrivateIpAddress": address,
                "PrivateIpAddresses": [{"PrivateIpAddress": address}],
                "Groups": groups.iter().map(|id| json!({"GroupId": id})).collect::<Vec<_>>(),
            })
        });
    let all = json!({"NetworkInterfaces": interfaces.collect::<Vec<_>>()});
    Source::new("interfaces.json", all.to_string())
}

fn subnets() -> Source {
    let all = json!({"Subnets": [
        {"SubnetId": "subnet-a", "CidrBlock": "10.1.0.0/24"},
        {"SubnetId": "subnet-b", "CidrBlock": "10.2.0.0/24"},
    ]});
    Source::new("subnets.json", all.to_string())
}

fn prefix_list() -> Source {
    Source::new(
        "pl-known.json",
        json!({"Entries": [{"Cidr": "192.0.2.0/28"}]}).to_string(),
    )
}

// ---- the reference ----

fn has(net: &str, address: IpAddr) -> bool {
    net.parse::<IpNet>().unwrap().contains(&address)
}

fn protocol_matches(item: &Value, key: &str, protocol: u8, port: u16) -> bool {
    let number = match item[key].as_str().unwrap() {
        "-1" => return true,
        "tcp" => 6,
        "udp" => 17,
        "icmp" => 1,
        other => other.parse::<u8>().unwrap(),
    };
    let field = |own: &str, range: &str, icmp: &str| {
        let inner = if protocol == 1 {
            &item["IcmpTypeCode"][icmp]
        } else {
            &item["PortRange"][range]
        };
        item[own].as_i64().or_else(|| inner.as_i64())
    };
    let (from, to) = (
        field("FromPort", "From", "Type"),
        field("ToPort", "To", "Code"),
    );
    number == protocol
        && match protocol {
            6 | 17 => (from.unwrap()..=to.unwrap()).contains(&i64::from(port)),
            1 => {
                let [kind, code] = port.to_be_bytes().map(i64::from);
                (from == Some(-1) || from == Some(kind)) && (to == Some(-1) || to == Some(code))
            }
            _ => true,
        }
}

fn groups_of(address: IpAddr) -> &'static [&'static str] {
    let host = HOSTS
        .iter()
        .find(|(own, ..)| own.parse::<IpAddr>().unwrap() == address);
    host.map_or(&[], |(_, _, groups)| groups)
}

/// What the groups of one end say about its peer.
fn groups_allow(listing: &Value, own: IpAddr, peer: IpAddr, key: &str, service: (u8, u16)) -> bool {
    let attached = |group: &&Value| groups_of(own).iter().any(|id| group["GroupId"] == *id);
    let groups = listing["SecurityGroups"].as_array().unwrap();
    groups.iter().filter(attached).any(|group| {
        group[key].as_array().unwrap().iter().any(|permission| {
            let list = |key: &str| permission[key].as_array().unwrap().clone();
            let by_net = list("IpRanges")
                .iter()
                .any(|range| has(range["CidrIp"].as_str().unwrap(), peer));
            let by_group = list("UserIdGroupPairs")
                .iter()
                .any(|pair| groups_of(peer).iter().any(|id| pair["GroupId"] == *id));
            let by_list = list("PrefixListIds")
                .iter()
                .any(|one| one["PrefixListId"] == "pl-known" && has("192.0.2.0/28", peer));
            protocol_matches(permission, "IpProtocol", service.0, service.1)
                && (by_net || by_group || by_list)
        })
    })
}

/// What an ACL says about one packet.
fn acl_passes(listing: &Value, egress: bool, peer: IpAddr, service: (u8, u16)) -> bool {
    let entries = listing["NetworkAcls"][0]["Entries"].as_array().unwrap();
    let mut own: Vec<&Value> = entries
        .iter()
        .filter(|entry| entry["Egress"] == egress)
        .collect();
    own.sort_by_key(|entry| entry["RuleNumber"].as_u64().unwrap());
    let first = own.into_iter().find(|entry| {
        entry["CidrBlock"]
            .as_str()
            .is_some_and(|net| has(net, peer))
            && protocol_matches(entry, "Protocol", service.0, service.1)
    });
    first.is_some_and(|entry| entry["RuleAction"] == "allow")
}

/// The packets that answer, if there are any: to every port that the client may have taken.
fn replies((protocol, port): (u8, u16)) -> Vec<(u8, u16)> {
    match (protocol, port >> 8) {
        (6 | 17, _) => (32_768..=60_999)
            .step_by(7)
            .chain([60_999])
            .map(|port| (protocol, port))
            .collect(),
        (1, 8) => vec![(1, 0)],
        (1, _) => Vec::new(),
        _ => vec![(protocol, 0)],
    }
}

// ---- the import ----

fn import(sources: &[Source], options: &CloudOptions) -> Imported {
    let imported = aws::import(sources, options).unwrap();
    let counts = imported.report.counts();
    assert_eq!(
        counts.exact + counts.narrower + counts.wider + counts.not_carried_over,
        counts.total
    );
    // It is what a policy file may hold: it survives being written and read.
    let documents: Vec<String> = imported
        .objects
        .iter()
        .map(|object| object.to_json().to_string())
        .collect();
    let text = format!("---\n{}\n", documents.join("\n---\n"));
    let read = policy::parse::parse(&[Source::new("imported.yaml", text)]).unwrap();
    assert_eq!(read, imported.objects);
    imported
}

struct Judge {
    world: World,
    set: PolicySet,
}

impl Judge {
    fn new(imported: &Imported, only: impl Fn(&Object) -> bool) -> Self {
        let objects: Vec<Object> = imported
            .objects
            .iter()
            .filter(|one| only(one))
            .cloned()
            .collect();
        let set = PolicySet::build(objects).unwrap();
        let workloads = imported.objects.iter().filter_map(|object| match object {
            Object::Workload(workload) => Some(Workload::from(workload)),
            _ => None,
        });
        let world = World::new(vec!["10.0.0.0/8".parse().unwrap()], workloads.collect());
        Self { world, set }
    }

    /// The draft at the egress end of `from` and the ingress end of `to`.
    fn ends(&self, from: IpAddr, to: IpAddr, (protocol, port): (u8, u16)) -> [Option<bool>; 2] {
        let probe = Probe {
            id: String::new(),
            from: ProbeEnd::Address(from),
            to: ProbeEnd::Address(to),
            protocol,
            port,
        };
        let verdict = evaluate(&self.world, &self.set, &probe, OffsetDateTime::UNIX_EPOCH).unwrap();
        [verdict.egress, verdict.ingress].map(|end| end.map(|end| end.draft.is_allow()))
    }
}

fn addresses() -> Vec<IpAddr> {
    let hosts = HOSTS.iter().map(|(address, ..)| *address);
    hosts
        .chain(STRANGERS)
        .map(|text| text.parse().unwrap())
        .collect()
}

/// Rules as AWS counts them: one a peer, or one a permission without any.
fn rules_in(listing: &Value) -> usize {
    let lists = [
        "IpRanges",
        "Ipv6Ranges",
        "UserIdGroupPairs",
        "PrefixListIds",
    ];
    let groups = listing["SecurityGroups"].as_array().unwrap().iter();
    groups
        .flat_map(|group| {
            ["IpPermissions", "IpPermissionsEgress"]
                .map(|key| group[key].as_array().unwrap().clone())
        })
        .flatten()
        .map(|permission| {
            let peers: usize = lists
                .iter()
                .map(|key| permission[*key].as_array().unwrap().len())
                .sum();
            peers.max(1)
        })
        .sum()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn security_groups_mean_what_aws_means(listing in security_groups()) {
        let source = Source::new("groups.json", listing.to_string());
        let imported = import(&[source, inventory(), prefix_list()], &CloudOptions::default());
        prop_assert_eq!(imported.report.counts().total, rules_in(&listing));
        let judge = Judge::new(&imported, |_| true);
        for from in addresses() {
            for to in addresses() {
                if from == to {
                    continue;
                }
                for service in SERVICES {
                    let [egress, ingress] = judge.ends(from, to, service);
                    if let Some(egress) = egress {
                        let expected = groups_allow(&listing, from, to, "IpPermissionsEgress", service);
                        prop_assert_eq!(egress, expected, "egress {} {} {:?}", from, to, service);
                    }
                    if let Some(ingress) = ingress {
                        let expected = groups_allow(&listing, to, from, "IpPermissions", service);
                        prop_assert_eq!(ingress, expected, "ingress {} {} {:?}", from, to, service);
                    }
                }
            }
        }
    }

    #[test]
    fn network_acls_mean_what_aws_means(listing in network_acls()) {
        let source = Source::new("acls.json", listing.to_string());
        let sources = [source, inventory(), subnets()];
        let guardrail = import(&sources, &CloudOptions::default());
        let filter = import(&sources, &CloudOptions { acls: AclForm::Filter, ..CloudOptions::default() });
        let entries = listing["NetworkAcls"][0]["Entries"].as_array().unwrap().len();
        prop_assert_eq!(guardrail.report.counts().total, entries);
        prop_assert_eq!(filter.report.counts().total, entries);
        // Behind the guardrail or filter everything is allowed, so that only it denies.
        let open: Object = policy::parse::parse(&[Source::new("open.yaml", "\
apiVersion: cofferdam.dev/v1
kind: Policy
metadata: {name: open}
spec: {subject: all, ingress: [{action: allow}], egress: [{action: allow}]}
")]).unwrap().remove(0);
        let with_open = |imported: &Imported| {
            let mut imported = imported.clone();
            imported.objects.push(open.clone());
            Judge::new(&imported, |_| true)
        };
        let (guardrail, filter) = (with_open(&guardrail), with_open(&filter));
        let inside: IpNet = "10.2.0.0/24".parse().unwrap();
        for own in ["10.2.0.20", "10.2.0.22"].map(|text| text.parse::<IpAddr>().unwrap()) {
            for peer in addresses() {
                if own == peer {
                    continue;
                }
                for service in SERVICES {
                    for egress in [false, true] {
                        let (from, to) = if egress { (own, peer) } else { (peer, own) };
                        let end = usize::from(!egress);
                        let first = inside.contains(&peer) || acl_passes(&listing, egress, peer, service);
                        let works = inside.contains(&peer) || first && replies(service)
                            .into_iter()
                            .all(|reply| acl_passes(&listing, !egress, peer, reply));
                        // Only the end in the subnet is looked at.
                        prop_assert_eq!(guardrail.ends(from, to, service)[end], Some(works),
                            "guardrail {} {} {:?} egress {}", from, to, service, egress);
                        prop_assert_eq!(filter.ends(from, to, service)[end], Some(first),
                            "filter {} {} {:?} egress {}", from, to, service, egress);
                    }
                }
            }
        }
    }
}

/// What became of every rule of a sample, as `place outcome`.
fn outcomes(imported: &Imported) -> Vec<String> {
    let items = imported.report.items.iter();
    items
        .map(|item| format!("{} {}", item.place, item.outcome.name()))
        .collect()
}

#[test]
fn an_estate_as_the_cli_prints_it() {
    let sample = |name: &str| {
        let path = format!("{}/tests/brownfield/{name}", env!("CARGO_MANIFEST_DIR"));
        Source::new(name, std::fs::read_to_string(path).unwrap())
    };
    let sources = [
        "groups.json",
        "rules.json",
        "acls.json",
        "pl-0a1b2c3d.json",
        "instances.json",
        "vpcs.json",
    ]
    .map(sample);
    let imported = import(
        &sources,
        &CloudOptions {
            owner: Some("net-team".into()),
            ..CloudOptions::default()
        },
    );
    let outcomes = outcomes(&imported);
    for expected in [
        "SecurityGroups[0].IpPermissions[0].IpRanges[0] exact",
        "SecurityGroups[0].IpPermissions[1].UserIdGroupPairs[0] exact",
        "SecurityGroups[1].IpPermissions[0].UserIdGroupPairs[1] narrower",
        "SecurityGroups[1].IpPermissions[0].UserIdGroupPairs[2] not carried over",
        "SecurityGroups[1].IpPermissionsEgress[0].PrefixListIds[0] exact",
        "SecurityGroups[1].IpPermissionsEgress[0].PrefixListIds[1] not carried over",
        "SecurityGroupRules[0] exact",
        "NetworkAcls[0].Entries[0] exact",
        "NetworkAcls[1].Entries[0] not carried over",
    ] {
        assert!(
            outcomes.iter().any(|one| one == expected),
            "{expected} is not in {outcomes:#?}"
        );
    }
    let judge = Judge::new(&imported, |_| true);
    let ends = |from: &str, to: &str, service| {
        judge.ends(from.parse().unwrap(), to.parse().unwrap(), service)
    };
    // The load balancer's group reaches the web servers, nobody else does.
    assert_eq!(
        ends("203.0.113.9", "10.20.1.10", (6, 443)),
        [None, Some(true)]
    );
    assert_eq!(
        ends("10.20.1.10", "10.20.2.20", (6, 5432)),
        [Some(true), Some(true)]
    );
    assert_eq!(
        ends("10.20.1.99", "10.20.2.20", (6, 5432)),
        [None, Some(false)]
    );
    // Security groups do not filter the VPC's own services: its resolver and the instance metadata.
    assert_eq!(
        ends("10.20.2.20", "10.20.0.2", (17, 53)),
        [Some(true), None]
    );
    assert_eq!(
        ends("10.20.2.20", "169.254.169.254", (6, 80)),
        [Some(true), None]
    );
    assert_eq!(
        ends("10.20.2.20", "198.51.100.9", (6, 443)),
        [Some(false), None]
    );
    // Interfaces with other groups are workloads of their own.
    let names: Vec<String> = imported.objects.iter().map(Object::id).collect();
    assert!(
        names.contains(&"Workload/i-0aa/eni-0a2".to_owned()),
        "{names:?}"
    );
    assert!(names.contains(&"Workload/i-0bb".to_owned()), "{names:?}");
    assert!(
        !names.contains(&"Workload/i-0cc".to_owned()),
        "it is terminated"
    );
    let wider = imported
        .report
        .items
        .iter()
        .any(|item| item.outcome == Outcome::Wider);
    assert!(!wider);
}

#[test]
fn what_is_no_listing_is_refused() {
    for (name, text, says) in [
        ("x.json", "{}", "none of the known listings"),
        (
            "x.json",
            "{\"SecurityGroups\": [{}]}",
            "SecurityGroups[0]: there is no GroupId",
        ),
        ("x.json", "{\"SecurityGroups\": 1}", "is no list"),
        ("x.json", "{\"Entries\": []}{", "x.json:1:16"),
        (
            "entries.json",
            "{\"Entries\": [{\"Cidr\": \"10.0.0.0/8\"}]}",
            "pl-….json",
        ),
        (
            "x.json",
            "{\"Subnets\": [{\"SubnetId\": \"s\", \"CidrBlock\": \"10\"}]}",
            "Subnets[0]",
        ),
    ] {
        let error = aws::import(&[Source::new(name, text)], &CloudOptions::default()).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}

// ---- Terraform ----

/// The listing as a plan: every second permission inline, the others resources of their own; ids are not
/// known yet, and groups are referred to by the configuration.
fn plan(listing: &Value) -> Value {
    let address = |id: &str| format!("aws_security_group.{id}");
    let reference = |id: &str| json!([format!("{}.id", address(id)), address(id)]);
    let (mut resources, mut changes, mut configured) = (Vec::new(), Vec::new(), Vec::new());
    let mut add = |kind: &str, name: &str, values: Value, unknown: Value, expressions: Value| {
        let address = format!("{kind}.{name}");
        resources.push(json!({"address": address, "mode": "managed", "type": kind, "name": name, "values": values}));
        changes.push(json!({"address": address, "change": {"actions": ["create"], "after_unknown": unknown}}));
        configured.push(
            json!({"address": address, "type": kind, "name": name, "expressions": expressions}),
        );
    };
    for group in listing["SecurityGroups"].as_array().unwrap() {
        let id = group["GroupId"].as_str().unwrap();
        let (mut values, mut unknown, mut blocks) =
            (json!({"name": id}), json!({"id": true}), json!({}));
        for (key, field) in [
            ("IpPermissions", "ingress"),
            ("IpPermissionsEgress", "egress"),
        ] {
            let (mut inline, mut inline_unknown, mut inline_blocks) =
                (Vec::new(), Vec::new(), Vec::new());
            for (index, permission) in group[key].as_array().unwrap().iter().enumerate() {
                let texts = |key: &str, field: &str| -> Vec<Value> {
                    permission[key]
                        .as_array()
                        .unwrap()
                        .iter()
                        .map(|one| one[field].clone())
                        .collect()
                };
                let (v4, v6) = (texts("IpRanges", "CidrIp"), texts("Ipv6Ranges", "CidrIpv6"));
                let (groups, lists) = (
                    texts("UserIdGroupPairs", "GroupId"),
                    texts("PrefixListIds", "PrefixListId"),
                );
                // -1 has no ports; the provider writes 0.
                let port = |field: &str| permission[field].as_i64().unwrap_or(0);
                let (from, to) = (port("FromPort"), port("ToPort"));
                let protocol = permission["IpProtocol"].clone();
                let mut rule = json!({
                    "protocol": protocol, "from_port": from, "to_port": to, "cidr_blocks": v4,
                    "ipv6_cidr_blocks": v6, "prefix_list_ids": lists, "self": false,
                });
                let other = groups.first().and_then(Value::as_str);
                if index % 2 == 0 {
                    // Blocks are told apart by their ports; two with the same ones could not be.
                    let mut block = json!({
                        "protocol": {"constant_value": protocol},
                        "from_port": {"constant_value": from}, "to_port": {"constant_value": to},
                    });
                    let mut open = json!({});
                    if let Some(other) = other {
                        open["security_groups"] = json!(true);
                        block["security_groups"] = json!({"references": reference(other)});
                    }
                    inline.push(rule);
                    inline_unknown.push(open);
                    inline_blocks.push(block);
                } else {
                    rule["type"] = json!(field);
                    let mut open = json!({"id": true, "security_group_id": true});
                    let mut expressions =
                        json!({"security_group_id": {"references": reference(id)}});
                    if let Some(other) = other {
                        open["source_security_group_id"] = json!(true);
                        expressions["source_security_group_id"] =
                            json!({"references": reference(other)});
                    }
                    add(
                        "aws_security_group_rule",
                        &format!("{id}-{field}-{index}"),
                        rule,
                        open,
                        expressions,
                    );
                }
            }
            if inline.is_empty() {
                unknown[field] = json!(true);
            } else {
                values[field] = json!(inline);
                unknown[field] = json!(inline_unknown);
                blocks[field] = json!(inline_blocks);
            }
        }
        add("aws_security_group", id, values, unknown, blocks);
    }
    json!({
        "format_version": "1.2",
        "planned_values": {"root_module": {"resources": resources}},
        "resource_changes": changes,
        "configuration": {"root_module": {"resources": configured}},
    })
}

fn terraform(text: String) -> Imported {
    let source = Source::new("plan.json", text);
    policy::brownfield::terraform::import(&source, &CloudOptions::default()).unwrap()
}

/// Leaves out what a plan cannot say: prefix lists, and groups that are not in it.
fn only_known(listing: &mut Value) {
    for group in listing["SecurityGroups"].as_array_mut().unwrap() {
        for key in ["IpPermissions", "IpPermissionsEgress"] {
            for permission in group[key].as_array_mut().unwrap() {
                permission["PrefixListIds"] = json!([]);
                let pairs = permission["UserIdGroupPairs"].as_array_mut().unwrap();
                pairs.retain(|pair| pair["GroupId"] != "sg-elsewhere");
            }
        }
    }
}

/// The hosts with the labels that the plan's groups have.
fn labelled_hosts() -> World {
    let hosts = HOSTS.iter().map(|(address, _, groups)| {
        let label = |id: &&str| (format!("aws.sg/aws_security_group.{id}"), "true".to_owned());
        let labels = groups.iter().map(label).collect();
        Workload::new(*address, labels, vec![address.parse().unwrap()])
    });
    World::new(vec!["10.0.0.0/8".parse().unwrap()], hosts.collect())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn plans_never_allow_more_than_aws_and_say_where_they_allow_less(listing in security_groups(), known: bool) {
        let mut listing = listing;
        if known {
            only_known(&mut listing);
        }
        let imported = terraform(plan(&listing).to_string());
        let counts = imported.report.counts();
        prop_assert_eq!(counts.exact + counts.narrower + counts.not_carried_over, counts.total);
        // A reference to a group that is not planned, and one of two blocks with the same ports, cannot be
        // followed; prefix lists are not in a plan.
        let followed = imported.report.items.iter().all(|item| item.outcome == Outcome::Exact
            || item.reason.as_deref().is_some_and(|reason| reason.contains("has no peers")));
        let judge = Judge {
            world: labelled_hosts(),
            set: PolicySet::build(imported.objects.clone()).unwrap(),
        };
        for from in addresses() {
            for to in addresses() {
                if from == to {
                    continue;
                }
                for service in SERVICES {
                    let [egress, ingress] = judge.ends(from, to, service);
                    for (allowed, own, peer, key) in [
                        (egress, from, to, "IpPermissionsEgress"),
                        (ingress, to, from, "IpPermissions"),
                    ] {
                        let Some(allowed) = allowed else {
                            continue;
                        };
                        let expected = groups_allow(&listing, own, peer, key, service);
                        prop_assert!(!allowed || expected, "{key} {own} {peer} {service:?}: wider");
                        prop_assert!(!followed || allowed == expected, "{key} {own} {peer} {service:?}");
                    }
                }
            }
        }
    }
}

#[test]
fn a_plan_with_modules_and_unknown_ids() {
    let path = format!("{}/tests/brownfield/plan.json", env!("CARGO_MANIFEST_DIR"));
    let imported = terraform(std::fs::read_to_string(path).unwrap());
    let outcomes = outcomes(&imported);
    for expected in [
        "aws_security_group.db.ingress[0] exact",
        "aws_security_group.db.ingress[1] exact",
        "aws_security_group_rule.db_ssh exact",
        "aws_vpc_security_group_egress_rule.db_out[\"dns\"] exact",
        "aws_vpc_security_group_egress_rule.db_out[\"web\"] not carried over",
        "aws_vpc_security_group_ingress_rule.lookup not carried over",
        "module.web[\"eu\"].aws_security_group_rule.https exact",
        "module.web[\"eu\"].aws_security_group_rule.to_db exact",
        "aws_network_acl.db.ingress[0] exact",
        "aws_network_acl_rule.out exact",
    ] {
        assert!(
            outcomes.iter().any(|one| one == expected),
            "{expected} is not in {outcomes:#?}"
        );
    }
    let document = |name: &str| {
        let found = imported
            .objects
            .iter()
            .find(|object| object.metadata().name == name);
        found
            .unwrap_or_else(|| panic!("{name} of {:?}", imported.objects))
            .to_json()
    };
    // The reference through the module's output, its own group, and the variable of the module.
    let web = "aws.sg/module.web[\"eu\"].aws_security_group.this[0]";
    let db = document("aws/aws_security_group.db");
    let peers = &db["spec"]["ingress"][1]["peers"];
    assert_eq!(peers[0]["selector"]["matchLabels"][web], "true", "{db:#}");
    assert_eq!(
        peers[1]["selector"]["matchLabels"]["aws.sg/aws_security_group.db"], "true",
        "{db:#}"
    );
    let front = document("aws/module.web--eu--.aws_security_group.this-0-");
    let to = &front["spec"]["egress"][0]["peers"][0]["selector"]["matchLabels"];
    assert_eq!(to["aws.sg/aws_security_group.db"], "true", "{front:#}");
    assert_eq!(
        document("aws/aws_network_acl.db/aws_subnet.db")["spec"]["tier"],
        "guardrail"
    );
}

#[test]
fn what_is_no_plan_is_refused() {
    for (text, says) in [
        ("{}", "format_version"),
        (
            "{\"format_version\": \"2.0\"}",
            "format_version 2.0 is not known",
        ),
        (
            "{\"format_version\": \"1.0\", \"values\": {}}",
            "planned_values",
        ),
        ("{\"format_version\":\n \"1.0\",, }", "plan.json:2:8"),
    ] {
        let source = Source::new("plan.json", text);
        let error =
            policy::brownfield::terraform::import(&source, &CloudOptions::default()).unwrap_err();
        assert!(error.to_string().contains(says), "{error}");
    }
}
