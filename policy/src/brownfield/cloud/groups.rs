//! Security groups as policies of the standard tier.

use std::collections::BTreeSet;

use super::{
    Cloud, CloudOptions, group_label, item, labelled, network, prefix_list_name, services,
};
use crate::brownfield::emit;
use crate::brownfield::intervals::Addresses;
use crate::brownfield::report::{Outcome, Report};
use crate::model::{Action, Object, Peer, Policy, Rule};

/// One security group.
#[derive(Debug, Default)]
pub(crate) struct Group {
    pub(crate) name: Option<String>,
    pub(crate) description: Option<String>,
    /// `None`: nothing is known of this direction, and the policy does not speak for it.
    pub(crate) ingress: Option<Vec<Permission>>,
    pub(crate) egress: Option<Vec<Permission>>,
}

/// Protocol and ports with some peers.
#[derive(Debug, Default)]
pub(crate) struct Permission {
    pub(crate) file: String,
    pub(crate) place: String,
    /// What the rule is called in the source, if it has a name.
    pub(crate) label: String,
    pub(crate) protocol: String,
    pub(crate) from: Option<i64>,
    pub(crate) to: Option<i64>,
    pub(crate) targets: Vec<Target>,
    /// Why it cannot be read.
    pub(crate) broken: Option<String>,
}

/// One peer of a permission: what AWS calls a rule.
#[derive(Debug)]
pub(crate) struct Target {
    pub(crate) place: String,
    pub(crate) description: Option<String>,
    pub(crate) kind: PeerKind,
}

/// Who is meant.
#[derive(Debug)]
pub(crate) enum PeerKind {
    /// A network.
    Cidr(String),
    /// A security group, by the key of its label.
    Group(String),
    /// A prefix list by id.
    PrefixList(String),
    /// Not to be known, and why.
    Unknown(String),
}

impl PeerKind {
    fn shown(&self) -> &str {
        match self {
            Self::Cidr(text) | Self::Group(text) | Self::PrefixList(text) => text,
            Self::Unknown(_) => "?",
        }
    }
}

impl Cloud {
    pub(super) fn group(
        &self,
        key: &str,
        group: &Group,
        options: &CloudOptions,
        used: &mut BTreeSet<String>,
        report: &mut Report,
    ) -> Object {
        let name = crate::brownfield::name(&["aws", key]);
        let title = group.name.as_deref().unwrap_or(key);
        let description = match &group.description {
            Some(description) => format!("security group {title}: {description}"),
            None => format!("security group {title}"),
        };
        let mut rules = |permissions: &Option<Vec<Permission>>, direction: &str| {
            permissions.as_ref().map(|permissions| {
                let mut rules = Vec::new();
                for permission in permissions {
                    let rule = format!("standard/{name}/{direction}[{}]", rules.len());
                    rules.extend(self.permission(permission, direction, &rule, used, report));
                }
                rules
            })
        };
        let ingress = rules(&group.ingress, "ingress");
        let mut egress = rules(&group.egress, "egress");
        if let Some(rules) = &mut egress {
            rules.push(emit::rule(
                Action::Allow,
                "services of the VPC that security groups do not filter",
                self.unfiltered().into_iter().map(emit::cidr).collect(),
                Vec::new(),
            ));
        }
        Object::Policy(Policy {
            metadata: self.metadata(&name, Some(description), options),
            priority: 1000,
            subject: labelled(&group_label(key)),
            ingress,
            egress,
            ..Policy::default()
        })
    }

    /// One rule for all peers that can be carried over, and one item a peer.
    fn permission(
        &self,
        permission: &Permission,
        direction: &str,
        rule: &str,
        used: &mut BTreeSet<String>,
        report: &mut Report,
    ) -> Option<Rule> {
        let services = match &permission.broken {
            Some(reason) => Err(reason.clone()),
            None => services(&permission.protocol, permission.from, permission.to),
        };
        let mut peers = Vec::new();
        let mut nets = Vec::new();
        let mut names = Vec::new();
        for target in &permission.targets {
            let (outcome, reason) = match &services {
                Err(reason) => (Outcome::NotCarriedOver, Some(reason.clone())),
                Ok(_) => match &target.kind {
                    PeerKind::Unknown(reason) => (Outcome::NotCarriedOver, Some(reason.clone())),
                    PeerKind::Cidr(text) => match network(text) {
                        Ok(net) => {
                            nets.push(net);
                            (Outcome::Exact, None)
                        }
                        Err(reason) => (Outcome::NotCarriedOver, Some(reason)),
                    },
                    PeerKind::Group(key) => {
                        let selector = labelled(&group_label(key));
                        peers.push(Peer::Selector { selector });
                        if self.groups.contains_key(key) {
                            (Outcome::Exact, None)
                        } else {
                            let reason = format!(
                                "the group {key} is not in the files: its members need the label {}=true",
                                group_label(key)
                            );
                            (Outcome::Narrower, Some(reason))
                        }
                    }
                    PeerKind::PrefixList(id) if self.prefix_lists.contains_key(id) => {
                        used.insert(id.clone());
                        peers.push(Peer::Group {
                            group: prefix_list_name(id),
                        });
                        (Outcome::Exact, None)
                    }
                    PeerKind::PrefixList(id) => (
                        Outcome::NotCarriedOver,
                        Some(format!(
                            "the entries of {id} are not in the files; add get-managed-prefix-list-entries as {id}.json"
                        )),
                    ),
                },
            };
            let carried = if outcome == Outcome::NotCarriedOver {
                Vec::new()
            } else {
                names.extend(target.description.clone());
                vec![rule.to_owned()]
            };
            report.items.push(item(
                &permission.file,
                &target.place,
                &format!(
                    "{direction} {} {}–{} {}",
                    permission.protocol,
                    permission.from.map_or("*".into(), |port| port.to_string()),
                    permission.to.map_or("*".into(), |port| port.to_string()),
                    target.kind.shown(),
                ),
                outcome,
                reason,
                carried,
            ));
        }
        if permission.targets.is_empty() {
            let reason = permission
                .broken
                .clone()
                .unwrap_or_else(|| "it has no peers, so it allows nothing".into());
            report.items.push(item(
                &permission.file,
                &permission.place,
                &format!("{direction} {}", permission.protocol),
                Outcome::NotCarriedOver,
                Some(reason),
                Vec::new(),
            ));
        }
        // Whole families stay apart from "everybody": the source says them apart.
        let nets = Addresses::nets(nets).to_nets();
        peers.splice(0..0, nets.into_iter().map(emit::cidr));
        names.dedup();
        let name = match names.is_empty() {
            true => permission.label.clone(),
            false => format!("{}: {}", permission.label, names.join("; ")),
        };
        (!peers.is_empty()).then(|| {
            let ports = services.map(|services| emit::ports(&services));
            emit::rule(Action::Allow, &name, peers, ports.unwrap_or_default())
        })
    }
}
