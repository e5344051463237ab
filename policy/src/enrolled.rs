//! Workloads that joined by themselves, put together with those that were written down.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::selectors::Labels;
use crate::set::PolicySet;
use crate::snapshot::Mode;
use crate::world::{Workload, World};

/// A workload whose agent has joined.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Enrolled {
    /// `namespace/name`, or the name where there is no namespace.
    pub full_name: String,
    /// From the token that it joined with.
    pub labels: Labels,
    /// That the agent has and may have.
    pub addresses: Vec<IpAddr>,
}

/// The world of a controller. Where an agent and a Workload object speak of one workload, the object's
/// labels win, and the addresses are the agent's.
#[must_use]
pub fn join(
    managed_networks: Vec<IpNet>,
    default_mode: Mode,
    enrolled: &[Enrolled],
    isolated: &BTreeSet<String>,
    set: &PolicySet,
) -> World {
    let mut workloads: BTreeMap<String, Workload> = BTreeMap::new();
    for object in set.workloads() {
        let workload = Workload::from(object);
        workloads.insert(workload.full_name(), workload);
    }
    for agent in enrolled {
        let workload = workloads
            .entry(agent.full_name.clone())
            .or_insert_with(|| named(&agent.full_name));
        for (label, value) in &agent.labels {
            if !workload.labels.contains_key(label) {
                workload.labels.insert(label.clone(), value.clone());
            }
        }
        workload.addresses.clone_from(&agent.addresses);
    }
    for name in isolated {
        if let Some(workload) = workloads.get_mut(name) {
            workload.mode = Some(Mode::Isolate);
        }
    }
    let mut world = World::new(managed_networks, workloads.into_values().collect());
    world.default_mode = default_mode;
    world
}

fn named(full_name: &str) -> Workload {
    let (namespace, name) = match full_name.split_once('/') {
        Some((namespace, name)) => (Some(namespace.to_owned()), name),
        None => (None, full_name),
    };
    Workload {
        name: name.to_owned(),
        namespace,
        ..Workload::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::Source;

    #[test]
    fn objects_win_labels_and_agents_win_addresses() {
        let text = "\
apiVersion: cofferdam.dev/v1
kind: Workload
metadata: {name: db-1, namespace: shop, labels: {app: db}}
spec: {addresses: [10.0.0.1], namedPorts: [{name: pg, port: 5432}]}
---
apiVersion: cofferdam.dev/v1
kind: Workload
metadata: {name: printer}
spec: {addresses: [10.0.0.2]}
";
        let set = PolicySet::parse(&[Source::new("w.yaml", text)]).unwrap();
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let agents = [
            Enrolled {
                full_name: "shop/db-1".into(),
                labels: [label("app", "old"), label("env", "prod")].into(),
                addresses: vec!["10.0.0.9".parse().unwrap()],
            },
            Enrolled {
                full_name: "web-1".into(),
                ..Enrolled::default()
            },
        ];
        let isolated = ["printer".to_owned(), "nobody".to_owned()].into();
        let world = join(Vec::new(), Mode::Observe, &agents, &isolated, &set);
        let db = world.workload("shop/db-1").unwrap();
        assert_eq!(db.labels, [label("app", "db"), label("env", "prod")].into());
        assert_eq!(db.addresses, ["10.0.0.9".parse::<IpAddr>().unwrap()]);
        assert_eq!(db.named_ports.len(), 1);
        assert_eq!(world.workload("printer").unwrap().mode, Some(Mode::Isolate));
        assert_eq!(world.workloads().len(), 3);
        assert_eq!(world.default_mode, Mode::Observe);
    }
}
