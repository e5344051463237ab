//! Security groups and network ACLs: the imported policy against a small reading of AWS's rules of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "tests"
)]

mod reference;
mod samples;
mod terraform;

use std::net::IpAddr;

use ipnet::IpNet;
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

use reference::{acl_passes, groups_allow, replies};

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
