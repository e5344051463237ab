//! `terraform show -json PLAN`: the security groups and network ACLs that a plan leads to.
//!
//! Format: Terraform's "JSON Output Format" (`format_version` 1); attributes: the AWS provider's pages of
//! `aws_security_group`, `aws_security_group_rule`, `aws_vpc_security_group_ingress_rule`,
//! `aws_network_acl`, `aws_network_acl_rule`. What is known only after apply is followed through the
//! expressions of the configuration; what cannot be followed is reported.

mod plan;
mod references;
mod resources;

use std::collections::BTreeSet;

use serde_json::Value;

use super::cloud::{Acl, Cloud, CloudOptions, Entry, Group, item};
use super::json::{self, integer, list, text};
use super::problem::ImportError;
use super::report::Outcome;
use super::{Imported, cloud};
use crate::source::Source;
use plan::{Plan, Resource};
use resources::Reader;

/// Imports one plan.
///
/// # Errors
/// Text that is not JSON, or JSON that is no plan of a known version.
pub fn import(source: &Source, options: &CloudOptions) -> Result<Imported, ImportError> {
    let root = json::read(source)?;
    let bad = |message: &str| {
        ImportError::file(
            &source.name,
            message,
            "give the output of terraform show -json PLAN",
        )
    };
    let version = text(&root, "format_version").ok_or_else(|| bad("there is no format_version"))?;
    if !matches!(version.split('.').next(), Some("0" | "1")) {
        return Err(bad(&format!("format_version {version} is not known")));
    }
    let planned = root
        .get("planned_values")
        .and_then(|values| values.get("root_module"))
        .ok_or_else(|| bad("there are no planned_values: this is a state or no plan"))?;
    let plan = Plan::read(&root, planned);
    let mut cloud = Cloud {
        source: format!("terraform {}", source.name),
        ..Cloud::default()
    };
    let reader = Reader {
        plan: &plan,
        file: source.name.to_string(),
    };
    groups(&reader, &mut cloud);
    rules(&reader, &mut cloud);
    acls(&reader, &mut cloud);
    cloud.remarks.push(
        "members of a group need its label (see the subject of its policy); a plan does not say which addresses they get"
            .into(),
    );
    Ok(cloud.build(options)?)
}

/// The groups themselves, with the rules written inside.
fn groups(reader: &Reader<'_>, cloud: &mut Cloud) {
    for resource in reader
        .plan
        .of(&["aws_security_group", "aws_default_security_group"])
    {
        let key = resource.key();
        let group = cloud.groups.entry(key.clone()).or_default();
        group.name = text(resource.values, "name").map(str::to_owned);
        group.description = text(resource.values, "description").map(str::to_owned);
        for (field, slot) in [
            ("ingress", &mut group.ingress),
            ("egress", &mut group.egress),
        ] {
            slot.get_or_insert_default()
                .extend(reader.inline_rules(resource, &key, field));
        }
    }
}

/// Rules that are resources of their own.
fn rules(reader: &Reader<'_>, cloud: &mut Cloud) {
    let kinds = [
        "aws_security_group_rule",
        "aws_vpc_security_group_ingress_rule",
        "aws_vpc_security_group_egress_rule",
    ];
    for resource in reader.plan.of(&kinds) {
        let egress = match resource.kind {
            "aws_security_group_rule" => text(resource.values, "type") == Some("egress"),
            kind => kind.contains("egress"),
        };
        match reader.one_of(resource, "security_group_id", reader.plan.group_types()) {
            Ok(key) => {
                let permission = reader.rule(resource, &key);
                let group: &mut Group = cloud.groups.entry(key).or_default();
                // Of a group that is not in the plan, only what is seen here is known.
                let slot = if egress {
                    &mut group.egress
                } else {
                    &mut group.ingress
                };
                slot.get_or_insert_default().push(permission);
            }
            Err(reason) => cloud.unread.push(item(
                &reader.file,
                &resource.address,
                resource.kind,
                Outcome::NotCarriedOver,
                Some(format!("its security group: {reason}")),
                Vec::new(),
            )),
        }
    }
}

fn acls(reader: &Reader<'_>, cloud: &mut Cloud) {
    for subnet in reader.plan.of(&["aws_subnet"]) {
        let nets = ["cidr_block", "ipv6_cidr_block"];
        let nets = nets.iter().filter_map(|field| text(subnet.values, field));
        let nets: Vec<_> = nets.filter_map(|net| cloud::network(net).ok()).collect();
        if !nets.is_empty() {
            cloud.subnets.insert(subnet.key(), nets);
        }
    }
    let mut acls: Vec<Acl> = Vec::new();
    for resource in reader
        .plan
        .of(&["aws_network_acl", "aws_default_network_acl"])
    {
        let mut entries = Vec::new();
        for (field, egress) in [("ingress", false), ("egress", true)] {
            entries.extend(reader.inline_entries(resource, field, egress));
        }
        let (subnets, unknown) = reader.all_of(resource, "subnet_ids", &["aws_subnet"]);
        if let Some(reason) = unknown {
            cloud
                .remarks
                .push(format!("subnets of {}: {reason}", resource.address));
        }
        acls.push(Acl {
            key: resource.key(),
            subnets: subnets.into_iter().collect(),
            entries,
        });
    }
    for resource in reader.plan.of(&["aws_network_acl_association"]) {
        let acl = reader.one_of(resource, "network_acl_id", plan::ACLS);
        let subnet = reader.one_of(resource, "subnet_id", &["aws_subnet"]);
        match (acl, subnet) {
            (Ok(acl), Ok(subnet)) => {
                if let Some(acl) = acls.iter_mut().find(|one| one.key == acl) {
                    let mut all: BTreeSet<String> = acl.subnets.drain(..).collect();
                    all.insert(subnet);
                    acl.subnets = all.into_iter().collect();
                }
            }
            (Err(reason), _) | (_, Err(reason)) => {
                cloud
                    .remarks
                    .push(format!("{}: {reason}", resource.address));
            }
        }
    }
    for resource in reader.plan.of(&["aws_network_acl_rule"]) {
        let entry = reader.entry(resource);
        match reader.one_of(resource, "network_acl_id", plan::ACLS) {
            Ok(key) => match acls.iter_mut().find(|acl| acl.key == key) {
                Some(acl) => acl.entries.push(entry),
                None => acls.push(Acl {
                    key,
                    entries: vec![entry],
                    ..Acl::default()
                }),
            },
            Err(reason) => cloud.unread.push(unread_entry(&entry, &reason)),
        }
    }
    // Every network ACL ends with a denial that the provider does not show.
    cloud.acls = acls;
}

fn unread_entry(entry: &Entry, reason: &str) -> super::report::Item {
    item(
        &entry.file,
        &entry.place,
        "aws_network_acl_rule",
        Outcome::NotCarriedOver,
        Some(format!("its network ACL: {reason}")),
        Vec::new(),
    )
}

/// Fields of rules that are known and say something: for the readers.
fn texts(value: &Value, key: &str) -> Vec<String> {
    list(value, key)
        .iter()
        .filter_map(Value::as_str)
        .map(str::to_owned)
        .collect()
}

/// Whether an attribute is known only after apply; `unknown` mirrors the shape of the values.
fn is_unknown(unknown: &Value, key: &str) -> bool {
    match unknown.get(key) {
        Some(Value::Bool(unknown)) => *unknown,
        Some(Value::Array(items)) => items.contains(&Value::Bool(true)),
        _ => false,
    }
}

fn port(value: &Value, key: &str) -> Option<i64> {
    integer(value, key)
}

impl Resource<'_> {
    /// The key of its label: the id where there is one already, otherwise its address.
    fn key(&self) -> String {
        text(self.values, "id").unwrap_or(&self.address).to_owned()
    }
}
