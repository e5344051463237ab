//! The inventory file of evaluation without a server.

use super::document::{addresses, labels, name, named_ports};
use super::fields::{Fields, cidr};
use super::node::{Node, documents};
use super::policy::{DEFAULT_ACTIONS, MODES, selective};
use crate::kubernetes::inventory::Cluster;
use crate::problems::{Problem, Problems};
use crate::snapshot::Mode;
use crate::source::Source;
use crate::world::{Workload, World};

/// Reads an inventory.
pub(crate) fn inventory(source: &Source) -> Result<World, Problems> {
    let mut problems = Problems::default();
    let documents = documents(source)?;
    let mut managed = Vec::new();
    let mut workloads = Vec::new();
    let mut cluster = Cluster::default();
    for document in &documents {
        if crate::kubernetes::inventory::owns(document) {
            cluster.read(document, &mut problems);
            continue;
        }
        let Some(mut fields) = Fields::open(document, "inventory", &mut problems) else {
            continue;
        };
        for node in fields
            .list("managedNetworks", &mut problems)
            .unwrap_or_default()
        {
            managed.extend(cidr(node, "managedNetworks", &mut problems));
        }
        for node in fields.list("workloads", &mut problems).unwrap_or_default() {
            let workload = workload(node, &mut problems);
            workloads.extend(workload.map(|workload| (workload, node)));
        }
        fields.finish(&mut problems);
    }
    let mut world = World::new(managed, Vec::new());
    let workloads = workloads
        .into_iter()
        .map(|(workload, node): (Workload, &Node)| (workload, node.place.clone()))
        .chain(cluster.workloads());
    for (workload, place) in workloads {
        let name = workload.full_name();
        if world.add(workload).is_err() {
            problems.push(Problem::at(
                &place,
                format!("there are two workloads called \"{name}\""),
            ));
        }
    }
    problems.into_result(world)
}

fn workload(node: &Node, problems: &mut Problems) -> Option<Workload> {
    let mut fields = Fields::open(node, "workload", problems)?;
    let given = fields
        .require("name", problems)
        .and_then(|node| name(node, "name", problems));
    let namespace = fields
        .take("namespace")
        .and_then(|node| name(node, "namespace", problems));
    let labels_of = labels(fields.take("labels"), "labels", problems);
    let namespace_labels = labels(fields.take("namespaceLabels"), "namespaceLabels", problems);
    let addresses = addresses(&mut fields, problems);
    let named_ports = named_ports(&mut fields, problems);
    let mode = fields.word("mode", MODES, problems);
    let default_action = fields.word("defaultAction", DEFAULT_ACTIONS, problems);
    let selective_list = fields.list("selective", problems);
    let selective: Vec<_> = selective_list
        .unwrap_or_default()
        .iter()
        .filter_map(|node| selective(node, problems))
        .collect();
    if !selective.is_empty() && mode.is_some_and(|mode| mode != Mode::Selective) {
        problems.push(
            Problem::at(
                fields.place(),
                "\"selective\" has a meaning in mode selective only",
            )
            .suggest("write mode: selective, or remove the list"),
        );
    }
    fields.finish(problems);
    let mut workload = Workload::new(given?, labels_of, addresses);
    workload.namespace = namespace;
    workload.namespace_labels = namespace_labels;
    workload.named_ports = named_ports;
    // A list without a mode can only mean the mode that uses it.
    workload.mode = mode.or((!selective.is_empty()).then_some(Mode::Selective));
    workload.selective = selective;
    workload.default_action = default_action;
    Some(workload)
}
