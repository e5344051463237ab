//! Protocols and ports that stand for all others.

use std::collections::BTreeSet;

use datapath::ids::protocol;

use crate::matching::blocks;
use crate::model::NamedPort;
use crate::ports::{PortBlock, PortSpec};
use crate::set::PolicySet;
use crate::world::World;

/// The borders that some policy or workload draws between ports. Between two borders every verdict is
/// the same.
#[derive(Debug)]
pub(super) struct Points {
    /// Protocols that something names, and one that nothing names, if there is one.
    protocols: BTreeSet<u8>,
    /// Ports at which something begins, whatever the protocol.
    starts: BTreeSet<u16>,
}

impl Points {
    pub(super) fn new(world: &World, set: &PolicySet) -> Self {
        let named: Vec<NamedPort> = (world.workloads().iter())
            .flat_map(|workload| workload.named_ports.iter().cloned())
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect();
        let mut points = Self {
            protocols: BTreeSet::new(),
            starts: [0].into(),
        };
        let mut add = |specs: &[PortSpec]| {
            if !specs.is_empty() {
                for block in blocks(set, specs, &named) {
                    points.add(block);
                }
            }
        };
        for policy in set.policies() {
            for rule in policy.ingress.iter().chain(&policy.egress).flatten() {
                add(&rule.ports);
            }
        }
        for grant in set.grants() {
            add(&grant.ports);
        }
        for entry in set.filters().iter().flat_map(|filter| &filter.entries) {
            add(entry.ports.as_slice());
        }
        let modes = set.modes().iter().flat_map(|mode| &mode.enforce);
        let listed = world.workloads().iter().flat_map(|own| &own.selective);
        for entry in modes.chain(listed) {
            add(std::slice::from_ref(&entry.ports));
        }
        let unnamed = (0..=u8::MAX)
            .rev()
            .find(|number| !points.protocols.contains(number));
        points.protocols.extend(unnamed);
        points
    }

    fn add(&mut self, block: PortBlock) {
        self.protocols.extend(block.protocol);
        self.starts.insert(block.low);
        self.starts.extend(block.high.checked_add(1));
    }

    /// One protocol and port for every kind that an item means at a workload with these named ports.
    pub(super) fn of(
        &self,
        set: &PolicySet,
        spec: &PortSpec,
        named: &[NamedPort],
    ) -> Vec<(u8, u16)> {
        let mut points = BTreeSet::new();
        for block in blocks(set, std::slice::from_ref(spec), named) {
            match block.protocol {
                Some(number) => self.ports(number, block, &mut points),
                None => {
                    for number in &self.protocols {
                        self.ports(*number, block, &mut points);
                    }
                }
            }
        }
        points.into_iter().collect()
    }

    fn ports(&self, number: u8, block: PortBlock, points: &mut BTreeSet<(u8, u16)>) {
        points.insert((number, block.low));
        let icmp = crate::ports::is_icmp(number);
        if protocol::has_ports(number) || icmp {
            let borders = self.starts.range(block.low..=block.high);
            points.extend(borders.map(|start| (number, *start)));
        }
    }
}
