//! Plans of Terraform.

use policy::brownfield::report::Outcome;
use policy::brownfield::{CloudOptions, Imported};
use policy::set::PolicySet;
use policy::source::Source;
use policy::world::{Workload, World};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::reference::groups_allow;
use super::samples::outcomes;
use super::{HOSTS, Judge, SERVICES, addresses, security_groups};

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
