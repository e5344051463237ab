//! Network ACLs: ordered, stateless, at the border of a subnet.
//!
//! As staged policy of the guardrail tier they are judged for connections: the first packet has to pass one
//! direction, the replies the other one. As filters they stay what they are, packet by packet.

use super::{AclForm, Cloud, CloudOptions, item, labelled, network, services, subnet_label};
use crate::brownfield::emit;
use crate::brownfield::firewall::condition::answers;
use crate::brownfield::firewall::walk::{Step, allowed};
use crate::brownfield::intervals::Addresses;
use crate::brownfield::problem::Limit;
use crate::brownfield::region::{Cell, Region, port_services, protocol_services};
use crate::brownfield::report::{Outcome, Report};
use crate::model::{Action, Filter, FilterEntry, Object, Peer, Policy, Rule, State, Tier};
use crate::snapshot::FlowDirection;
use crate::source::Place;
use datapath::ids::protocol;

/// One network ACL.
#[derive(Debug, Default)]
pub(crate) struct Acl {
    pub(crate) key: String,
    /// Keys of the subnets that it guards.
    pub(crate) subnets: Vec<String>,
    pub(crate) entries: Vec<Entry>,
}

/// One entry.
#[derive(Debug, Default)]
pub(crate) struct Entry {
    pub(crate) file: String,
    pub(crate) place: String,
    pub(crate) egress: bool,
    pub(crate) number: i64,
    pub(crate) allow: bool,
    pub(crate) protocol: String,
    /// First port, or ICMP type.
    pub(crate) from: Option<i64>,
    /// Last port, or ICMP code.
    pub(crate) to: Option<i64>,
    pub(crate) cidr: Option<String>,
    pub(crate) broken: Option<String>,
}

impl Entry {
    fn cell(&self) -> Result<Cell, String> {
        if let Some(reason) = &self.broken {
            return Err(reason.clone());
        }
        let cidr = self.cidr.as_deref().ok_or("there is no network")?;
        Ok(Cell {
            peers: Addresses::nets([network(cidr)?]),
            services: services(&self.protocol, self.from, self.to)?,
        })
    }

    fn shown(&self) -> String {
        let number = |value: Option<i64>| value.map_or("*".into(), |value| value.to_string());
        format!(
            "{} {} {} {} {}–{} {}",
            if self.egress { "egress" } else { "ingress" },
            self.number,
            if self.allow { "allow" } else { "deny" },
            self.protocol,
            number(self.from),
            number(self.to),
            self.cidr.as_deref().unwrap_or("?"),
        )
    }
}

/// The entries of one direction, in order, that can be read; a denial that cannot denies everything.
fn steps(entries: &[&Entry], egress: bool) -> Vec<(usize, Step)> {
    let own = entries
        .iter()
        .enumerate()
        .filter(|(_, entry)| entry.egress == egress);
    own.filter_map(|(index, entry)| {
        let region = match entry.cell() {
            Ok(cell) => Region::of(cell),
            Err(_) if entry.allow => return None,
            Err(_) => Region::all(),
        };
        let step = Step {
            region,
            allow: entry.allow,
            rule: Some(index),
        };
        Some((index, step))
    })
    .collect()
}

impl Cloud {
    pub(super) fn acl(
        &self,
        acl: &Acl,
        options: &CloudOptions,
        objects: &mut Vec<Object>,
        report: &mut Report,
    ) -> Result<(), Limit> {
        let mut entries: Vec<&Entry> = acl.entries.iter().collect();
        entries.sort_by_key(|entry| (entry.egress, entry.number));
        let mut carried = vec![Vec::new(); entries.len()];
        for subnet in &acl.subnets {
            let name = crate::brownfield::name(&["aws", &acl.key, subnet]);
            objects.push(match options.acls {
                AclForm::Guardrail => {
                    self.guardrail(acl, subnet, &name, &entries, options, &mut carried)?
                }
                AclForm::Filter => self.filter(acl, subnet, &name, &entries, options, &mut carried),
            });
            let known = self.subnets.contains_key(subnet);
            if options.acls == AclForm::Filter {
                report.remark(
                    "filters cannot be staged: they take effect when they are applied, unless the mode is observe",
                );
            }
            if !known {
                report.remark(format!(
                    "the network of {subnet} is not known, so what is inside it is told by labels only; add describe-subnets"
                ));
            }
        }
        for (entry, carried) in entries.iter().zip(carried) {
            let (outcome, reason) = match entry.cell() {
                _ if acl.subnets.is_empty() => (
                    Outcome::NotCarriedOver,
                    Some(format!("{} guards no subnet", acl.key)),
                ),
                Err(reason) if entry.allow => (Outcome::NotCarriedOver, Some(reason)),
                Err(reason) => (
                    Outcome::Narrower,
                    Some(format!("{reason}; so it denies everything")),
                ),
                Ok(_) if options.acls == AclForm::Guardrail => (
                    Outcome::Exact,
                    Some(format!(
                        "for connections whose client takes a port from {} to {}",
                        options.client_ports.0, options.client_ports.1
                    )),
                ),
                Ok(_) => (Outcome::Exact, None),
            };
            report.items.push(item(
                &entry.file,
                &entry.place,
                &entry.shown(),
                outcome,
                reason,
                carried,
            ));
        }
        Ok(())
    }

    fn guardrail(
        &self,
        acl: &Acl,
        subnet: &str,
        name: &str,
        entries: &[&Entry],
        options: &CloudOptions,
        carried: &mut [Vec<String>],
    ) -> Result<Object, Limit> {
        let mut direction = |egress: bool| -> Result<Vec<Rule>, Limit> {
            let mut rules = vec![self.inside(subnet)];
            if egress {
                rules.push(emit::rule(
                    Action::Pass,
                    "services of the VPC that network ACLs do not filter",
                    self.unfiltered().into_iter().map(emit::cidr).collect(),
                    Vec::new(),
                ));
            }
            let back: Vec<Step> = steps(entries, !egress)
                .into_iter()
                .map(|(_, step)| step)
                .collect();
            let cut = without_replies(&back, options.client_ports)?;
            rules.extend(emit::rules(
                &cut,
                Action::Deny,
                "replies do not pass the network ACL",
            ));
            for (index, step) in steps(entries, egress) {
                let action = if step.allow {
                    Action::Pass
                } else {
                    Action::Deny
                };
                let number = entries.get(index).map_or(0, |entry| entry.number);
                for rule in emit::rules(&step.region, action, &format!("{} rule {number}", acl.key))
                {
                    if let Some(carried) = carried.get_mut(index) {
                        let word = if egress { "egress" } else { "ingress" };
                        carried.push(format!("guardrail/{name}/{word}[{}]", rules.len()));
                    }
                    rules.push(rule);
                }
            }
            rules.push(emit::rule(
                Action::Deny,
                "what no rule of the network ACL allows",
                Vec::new(),
                Vec::new(),
            ));
            Ok(rules)
        };
        let ingress = direction(false)?;
        let egress = direction(true)?;
        Ok(Object::Policy(Policy {
            metadata: self.metadata(
                name,
                Some(format!("network ACL {} at {subnet}", acl.key)),
                options,
            ),
            tier: Tier::Guardrail,
            priority: 1000,
            subject: labelled(&subnet_label(subnet)),
            state: State::Staged,
            ingress: Some(ingress),
            egress: Some(egress),
            ..Policy::default()
        }))
    }

    /// What stays inside the subnet never meets the network ACL.
    fn inside(&self, subnet: &str) -> Rule {
        let mut peers = vec![Peer::Selector {
            selector: labelled(&subnet_label(subnet)),
        }];
        let nets = self.subnets.get(subnet).into_iter().flatten();
        peers.extend(nets.copied().map(emit::cidr));
        emit::rule(Action::Pass, "inside the subnet", peers, Vec::new())
    }

    fn filter(
        &self,
        acl: &Acl,
        subnet: &str,
        name: &str,
        entries: &[&Entry],
        options: &CloudOptions,
        carried: &mut [Vec<String>],
    ) -> Object {
        let entry = |egress: bool, cidr, ports, allow| FilterEntry {
            direction: if egress {
                FlowDirection::Egress
            } else {
                FlowDirection::Ingress
            },
            cidr,
            ports,
            allow,
            place: Place::default(),
        };
        let mut list = Vec::new();
        for egress in [false, true] {
            let mut at = 0;
            let mut add = |new: FilterEntry| {
                list.push(new);
                at += 1;
                at - 1
            };
            let own = self.subnets.get(subnet).into_iter().flatten().copied();
            // The services of the VPC answer, too: both directions.
            for net in own.chain(self.unfiltered()) {
                add(entry(egress, Some(net), None, true));
            }
            for (index, step) in steps(entries, egress) {
                let word = if egress { "egress" } else { "ingress" };
                for cell in step.region.cells() {
                    let ports = emit::ports(&cell.services);
                    let ports: Vec<_> = match ports.is_empty() {
                        true => vec![None],
                        false => ports.into_iter().map(Some).collect(),
                    };
                    for net in cell.peers.to_nets() {
                        for ports in &ports {
                            let place = add(entry(egress, Some(net), ports.clone(), step.allow));
                            if let Some(carried) = carried.get_mut(index) {
                                carried.push(format!("filter/{name}/{word}[{place}]"));
                            }
                        }
                    }
                }
            }
            add(entry(egress, None, None, false));
        }
        Object::Filter(Filter {
            metadata: self.metadata(
                name,
                Some(format!("network ACL {} at {subnet}", acl.key)),
                options,
            ),
            subject: labelled(&subnet_label(subnet)),
            priority: 1000,
            entries: list,
            place: Place::default(),
        })
    }
}

/// Connections whose replies the entries of the other direction do not let pass.
fn without_replies(back: &[Step], client_ports: (u16, u16)) -> Result<Region, Limit> {
    let passing = allowed(back, &Cell::all())?;
    let mut cut = Region::default();
    for number in 0..=u8::MAX {
        let needed = match number {
            protocol::TCP | protocol::UDP => vec![(
                protocol_services(number),
                port_services(number, client_ports.0, client_ports.1),
            )],
            protocol::ICMP | protocol::ICMPV6 => answers(number),
            _ => vec![(protocol_services(number), protocol_services(number))],
        };
        for (services, replies) in needed {
            let missing = Region::of(Cell {
                peers: Addresses::all(),
                services: replies,
            })
            .without(&passing)?;
            let peers = missing
                .cells()
                .iter()
                .fold(Addresses::default(), |all, cell| all.union(&cell.peers));
            cut = cut.union(&Region::of(Cell { peers, services }))?;
        }
    }
    Ok(cut)
}
