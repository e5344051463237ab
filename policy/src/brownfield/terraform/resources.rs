//! Rules as the AWS provider writes them.

use std::collections::BTreeSet;

use serde_json::Value;

use super::plan::{Plan, Resource};
use super::references::{Scope, follow};
use super::{is_unknown, port, texts};
use crate::brownfield::cloud::{Entry, PeerKind, Permission, Target};
use crate::brownfield::json::{integer, list, text};

const UNKNOWN: &str = "it is known only after apply";

/// Reads resources of one plan.
pub(super) struct Reader<'a> {
    pub(super) plan: &'a Plan<'a>,
    pub(super) file: String,
}

/// One rule, inline or a resource of its own: values, what is unknown of them, and its expressions.
struct Rule<'v> {
    place: String,
    values: &'v Value,
    unknown: &'v Value,
    expressions: &'v Value,
    scope: Scope<'v>,
}

impl Reader<'_> {
    /// The one resource of some types that an attribute names: its key or an id.
    pub(super) fn one_of(
        &self,
        resource: &Resource<'_>,
        field: &str,
        kinds: &[&str],
    ) -> Result<String, String> {
        if let Some(id) = text(resource.values, field) {
            return Ok(id.to_owned());
        }
        let found = self.followed(resource, field, kinds)?;
        let mut found = found.into_iter();
        match (found.next(), found.next()) {
            (Some(one), None) => Ok(one),
            _ => Err(format!("{field} refers to more than one resource")),
        }
    }

    /// All resources that an attribute names, and what of it cannot be known.
    pub(super) fn all_of(
        &self,
        resource: &Resource<'_>,
        field: &str,
        kinds: &[&str],
    ) -> (BTreeSet<String>, Option<String>) {
        let mut found: BTreeSet<String> = texts(resource.values, field).into_iter().collect();
        if !is_unknown(resource.unknown, field) {
            return (found, None);
        }
        match self.followed(resource, field, kinds) {
            Ok(more) => {
                found.extend(more);
                (found, None)
            }
            Err(reason) => (found, Some(reason)),
        }
    }

    fn followed(
        &self,
        resource: &Resource<'_>,
        field: &str,
        kinds: &[&str],
    ) -> Result<BTreeSet<String>, String> {
        let expression = self
            .plan
            .configured(resource)
            .and_then(|configured| configured.get("expressions")?.get(field))
            .unwrap_or(&Value::Null);
        follow(self.plan, expression, &scope(resource), kinds, 0)
    }

    /// `ingress` and `egress` of a security group.
    pub(super) fn inline_rules(
        &self,
        resource: &Resource<'_>,
        key: &str,
        field: &str,
    ) -> Vec<Permission> {
        let unknown = resource.unknown.get(field).unwrap_or(&Value::Null);
        let configured = self.blocks(resource, field);
        if *unknown == Value::Bool(true) {
            // Without a block in the configuration the provider only reports what others made.
            return if configured.is_empty() {
                Vec::new()
            } else {
                vec![self.unreadable(&resource.address, field)]
            };
        }
        let rules = list(resource.values, field).iter().enumerate();
        rules
            .map(|(index, values)| {
                let rule = Rule {
                    place: format!("{}.{field}[{index}]", resource.address),
                    values,
                    unknown: unknown.get(index).unwrap_or(&Value::Null),
                    expressions: configured_block(&configured, values),
                    scope: scope(resource),
                };
                let label = format!("{} {field}[{index}]", resource.address);
                self.permission(&rule, key, &label, "protocol")
            })
            .collect()
    }

    fn unreadable(&self, address: &str, field: &str) -> Permission {
        Permission {
            file: self.file.clone(),
            place: format!("{address}.{field}"),
            label: address.to_owned(),
            protocol: field.to_owned(),
            broken: Some(UNKNOWN.into()),
            ..Permission::default()
        }
    }

    /// The blocks of a field in the configuration.
    fn blocks(&self, resource: &Resource<'_>, field: &str) -> Vec<&Value> {
        let configured = self.plan.configured(resource);
        match configured.and_then(|configured| configured.get("expressions")?.get(field)) {
            Some(Value::Array(blocks)) => blocks.iter().collect(),
            // An attribute that is assigned as a whole.
            Some(whole) => vec![whole],
            None => Vec::new(),
        }
    }

    /// A rule that is a resource of its own.
    pub(super) fn rule(&self, resource: &Resource<'_>, key: &str) -> Permission {
        let configured = self.plan.configured(resource);
        let rule = Rule {
            place: resource.address.clone(),
            values: resource.values,
            unknown: resource.unknown,
            expressions: configured
                .and_then(|configured| configured.get("expressions"))
                .unwrap_or(&Value::Null),
            scope: scope(resource),
        };
        let field = if resource.kind == "aws_security_group_rule" {
            "protocol"
        } else {
            "ip_protocol"
        };
        self.permission(&rule, key, &resource.address, field)
    }

    fn permission(&self, rule: &Rule<'_>, own: &str, label: &str, protocol: &str) -> Permission {
        let mut targets = Vec::new();
        let mut add = |kind: PeerKind| {
            targets.push(Target {
                place: rule.place.clone(),
                description: text(rule.values, "description").map(str::to_owned),
                kind,
            });
        };
        for field in ["cidr_blocks", "ipv6_cidr_blocks", "cidr_ipv4", "cidr_ipv6"] {
            for net in known(rule.values, field) {
                add(PeerKind::Cidr(net));
            }
            if is_unknown(rule.unknown, field) {
                add(PeerKind::Unknown(format!("{field}: {UNKNOWN}")));
            }
        }
        for field in ["prefix_list_ids", "prefix_list_id"] {
            for id in known(rule.values, field) {
                add(PeerKind::PrefixList(id));
            }
            if is_unknown(rule.unknown, field) {
                add(PeerKind::Unknown(format!("{field}: {UNKNOWN}")));
            }
        }
        for field in [
            "security_groups",
            "source_security_group_id",
            "referenced_security_group_id",
        ] {
            for group in self.groups(rule, field) {
                add(group);
            }
        }
        if rule.values.get("self") == Some(&Value::Bool(true)) {
            add(PeerKind::Group(own.to_owned()));
        }
        let unknown = [protocol, "from_port", "to_port"];
        let unknown = unknown
            .into_iter()
            .find(|field| is_unknown(rule.unknown, field));
        Permission {
            file: self.file.clone(),
            place: rule.place.clone(),
            label: label.to_owned(),
            protocol: text(rule.values, protocol).unwrap_or("?").to_owned(),
            from: port(rule.values, "from_port"),
            to: port(rule.values, "to_port"),
            targets,
            broken: unknown.map(|field| format!("{field}: {UNKNOWN}")),
        }
    }

    /// Groups that a field names: by id, or by what the configuration refers to.
    fn groups(&self, rule: &Rule<'_>, field: &str) -> Vec<PeerKind> {
        let mut found: Vec<PeerKind> = known(rule.values, field)
            .into_iter()
            // `account/sg-…` names a group of another account.
            .map(|id| PeerKind::Group(id.rsplit('/').next().unwrap_or_default().to_owned()))
            .collect();
        if is_unknown(rule.unknown, field) {
            let expression = rule.expressions.get(field).unwrap_or(&Value::Null);
            match follow(
                self.plan,
                expression,
                &rule.scope,
                self.plan.group_types(),
                0,
            ) {
                Ok(keys) => found.extend(keys.into_iter().map(PeerKind::Group)),
                Err(reason) => found.push(PeerKind::Unknown(format!("{field}: {reason}"))),
            }
        }
        found
    }

    /// `ingress` and `egress` of a network ACL.
    pub(super) fn inline_entries(
        &self,
        resource: &Resource<'_>,
        field: &str,
        egress: bool,
    ) -> Vec<Entry> {
        let unknown = resource.unknown.get(field).unwrap_or(&Value::Null);
        if *unknown == Value::Bool(true) {
            return if self.blocks(resource, field).is_empty() {
                Vec::new()
            } else {
                vec![Entry {
                    file: self.file.clone(),
                    place: format!("{}.{field}", resource.address),
                    egress,
                    protocol: "?".into(),
                    broken: Some(UNKNOWN.into()),
                    ..Entry::default()
                }]
            };
        }
        let entries = list(resource.values, field).iter().enumerate();
        entries
            .map(|(index, values)| {
                let unknown = unknown.get(index).unwrap_or(&Value::Null);
                let place = format!("{}.{field}[{index}]", resource.address);
                self.entry_of(values, unknown, place, egress, ["rule_no", "action"])
            })
            .collect()
    }

    /// `aws_network_acl_rule`
    pub(super) fn entry(&self, resource: &Resource<'_>) -> Entry {
        let egress = resource.values.get("egress") == Some(&Value::Bool(true));
        let fields = ["rule_number", "rule_action"];
        self.entry_of(
            resource.values,
            resource.unknown,
            resource.address.clone(),
            egress,
            fields,
        )
    }

    fn entry_of(
        &self,
        values: &Value,
        unknown: &Value,
        place: String,
        egress: bool,
        [number, action]: [&str; 2],
    ) -> Entry {
        let protocol = text(values, "protocol").unwrap_or("?");
        let is_icmp = matches!(protocol, "1" | "58" | "icmp" | "icmpv6");
        let fields = if is_icmp {
            ["icmp_type", "icmp_code"]
        } else {
            ["from_port", "to_port"]
        };
        let all = [
            number,
            action,
            "protocol",
            "cidr_block",
            "ipv6_cidr_block",
            "egress",
        ];
        let lost = all
            .iter()
            .chain(&fields)
            .find(|field| is_unknown(unknown, field));
        let action = text(values, action);
        let broken = match (lost, action) {
            (Some(field), _) => Some(format!("{field}: {UNKNOWN}")),
            (None, Some("allow" | "deny")) => None,
            (None, _) => Some("it does not say allow or deny".into()),
        };
        Entry {
            file: self.file.clone(),
            place,
            egress,
            number: integer(values, number).unwrap_or_default(),
            allow: action == Some("allow"),
            protocol: protocol.to_owned(),
            // The provider takes a missing type or code for 0.
            from: port(values, fields[0]).or_else(|| is_icmp.then_some(0)),
            to: port(values, fields[1]).or_else(|| is_icmp.then_some(0)),
            cidr: text(values, "cidr_block")
                .or_else(|| text(values, "ipv6_cidr_block"))
                .map(str::to_owned),
            broken,
        }
    }
}

fn scope<'v>(resource: &Resource<'v>) -> Scope<'v> {
    Scope {
        modules: resource.modules.clone(),
        index: resource.index,
    }
}

/// The block of the configuration that an inline rule came from: sets have no order, so it is the one
/// with the same ports and protocol; if several have them, none is certain.
fn configured_block<'v>(blocks: &[&'v Value], values: &Value) -> &'v Value {
    let same = |block: &&&Value| {
        ["protocol", "from_port", "to_port"].iter().all(|field| {
            let constant = block
                .get(field)
                .and_then(|field| field.get("constant_value"));
            constant.is_none_or(|constant| {
                integer(block.get(field).unwrap_or(&Value::Null), "constant_value")
                    .zip(integer(values, field))
                    .map_or(Some(constant) == values.get(field), |(a, b)| a == b)
            })
        })
    };
    let mut found = blocks.iter().filter(same);
    match (found.next(), found.next()) {
        (Some(one), None) => one,
        _ => &Value::Null,
    }
}

/// Values of a field that is a text or a list of texts.
fn known(values: &Value, field: &str) -> Vec<String> {
    match text(values, field) {
        Some(one) => vec![one.to_owned()],
        None => texts(values, field),
    }
}
