//! One document: kind, metadata, and the kinds that are not policies.

use super::fields::{Fields, address, cidr, list, map_entries, text};
use super::node::{Node, Value};
use super::policy;
use super::ports;
use crate::model::{
    API_VERSION, AddressGroup, Metadata, NamedPort, Object, Service, WorkloadObject,
};
use crate::problems::{Problem, Problems, did_you_mean};
use crate::selectors::Labels;
use crate::source::Place;

pub(crate) const KINDS: [&str; 9] = [
    "Policy",
    "Guardrail",
    "Filter",
    "Mode",
    "Grant",
    "Workload",
    "AddressGroup",
    "Service",
    "Invariant",
];

/// Longest name, in bytes: room for `NetworkPolicy/namespace/name` of Kubernetes.
const MAX_NAME: usize = 350;

/// Reads one document; `kind: List` holds several.
pub(super) fn read(document: &Node, objects: &mut Vec<Object>, problems: &mut Problems) {
    if matches!(document.value, Value::Null) {
        return;
    }
    let Some(mut fields) = Fields::open(document, "document", problems) else {
        return;
    };
    let kind = fields
        .require("kind", problems)
        .and_then(|node| text(node, "kind", problems).map(|kind| (kind, node)));
    if let Some(("List", _)) = kind {
        let _version = fields.take("apiVersion");
        let _metadata = fields.take("metadata");
        for item in fields.list("items", problems).unwrap_or_default() {
            // A list inside a list would make nesting free; nobody writes it.
            let Some(mut fields) = Fields::open(item, "document", problems) else {
                continue;
            };
            let kind = fields
                .require("kind", problems)
                .and_then(|node| text(node, "kind", problems).map(|kind| (kind, node)));
            if let Some(kind) = kind {
                read_object(item, fields, kind, objects, problems);
            }
        }
        fields.finish(problems);
        return;
    }
    if let Some(kind) = kind {
        read_object(document, fields, kind, objects, problems);
    }
}

/// Reads one object whose kind was taken out of its fields already.
fn read_object(
    document: &Node,
    mut fields: Fields<'_>,
    (kind, kind_node): (&str, &Node),
    objects: &mut Vec<Object>,
    problems: &mut Problems,
) {
    if crate::kubernetes::owns(document) {
        crate::kubernetes::read(document, objects, problems);
        return;
    }
    if let Some(node) = fields.require("apiVersion", problems) {
        version(node, problems);
    }
    if !KINDS.contains(&kind) {
        let suggestion = did_you_mean(kind, KINDS)
            .unwrap_or_else(|| format!("known kinds: {}", KINDS.join(", ")));
        problems.push(
            Problem::at(&kind_node.place, format!("unknown kind \"{kind}\"")).suggest(suggestion),
        );
        return;
    }
    let place = document.place.clone();
    let metadata = fields
        .require("metadata", problems)
        .and_then(|node| metadata(node, kind == "Workload", problems))
        .unwrap_or_default();
    let tests = policy::tests(&mut fields, kind, problems);
    let spec = fields.require("spec", problems);
    fields.finish(problems);
    let Some(spec) = spec else {
        return;
    };
    let object = match kind {
        "Policy" => policy::policy(spec, metadata, tests, place, problems).map(Object::Policy),
        "Guardrail" => {
            policy::guardrail(spec, metadata, tests, place, problems).map(Object::Policy)
        }
        "Filter" => policy::filter(spec, metadata, place, problems).map(Object::Filter),
        "Mode" => policy::mode(spec, metadata, place, problems).map(Object::Mode),
        "Grant" => policy::grant(spec, metadata, place, problems).map(Object::Grant),
        "Workload" => workload(spec, metadata, place, problems).map(Object::Workload),
        "AddressGroup" => group(spec, metadata, place, problems).map(Object::AddressGroup),
        "Invariant" => {
            super::invariant::invariant(spec, metadata, place, problems).map(Object::Invariant)
        }
        _ => service(spec, metadata, place, problems).map(Object::Service),
    };
    objects.extend(object);
}

fn version(node: &Node, problems: &mut Problems) {
    let given = text(node, "apiVersion", problems);
    if given.is_some_and(|given| given != API_VERSION) {
        problems.push(
            Problem::at(
                &node.place,
                format!("unknown apiVersion \"{}\"", given.unwrap_or_default()),
            )
            .suggest(format!("write {API_VERSION}")),
        );
    }
}

fn metadata(node: &Node, workload: bool, problems: &mut Problems) -> Option<Metadata> {
    let mut fields = Fields::open(node, "metadata", problems)?;
    let name = fields
        .require("name", problems)
        .and_then(|node| name(node, "name", problems));
    let namespace = if workload {
        fields
            .take("namespace")
            .and_then(|node| self::name(node, "namespace", problems))
    } else {
        None
    };
    let metadata = Metadata {
        name: name.unwrap_or_default(),
        owner: fields.text("owner", problems),
        namespace,
        labels: labels(fields.take("labels"), "labels", problems),
        annotations: labels(fields.take("annotations"), "annotations", problems),
        description: fields.text("description", problems),
    };
    fields.finish(problems);
    Some(metadata)
}

/// A name: it appears in rule names and records, so it must not break them.
pub(super) fn name(node: &Node, what: &str, problems: &mut Problems) -> Option<String> {
    let given = text(node, what, problems)?;
    let fits =
        |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '/' | ':' | '@');
    if given.is_empty() || given.len() > MAX_NAME || !given.chars().all(fits) {
        problems.push(
            Problem::at(&node.place, format!("\"{given}\" is no {what}"))
                .suggest("use 1–350 letters, digits and - _ . / : @"),
        );
        return None;
    }
    Some(given.to_owned())
}

/// Pairs of texts.
pub(super) fn labels(node: Option<&Node>, what: &str, problems: &mut Problems) -> Labels {
    let Some(node) = node else {
        return Labels::new();
    };
    let mut labels = Labels::new();
    for entry in map_entries(node, what, problems).unwrap_or_default() {
        if let Some(value) = text(&entry.node, &entry.key, problems) {
            labels.insert(entry.key.clone(), value.to_owned());
        }
    }
    labels
}

fn workload(
    spec: &Node,
    metadata: Metadata,
    place: Place,
    problems: &mut Problems,
) -> Option<WorkloadObject> {
    let mut fields = Fields::open(spec, "workload", problems)?;
    let workload = WorkloadObject {
        metadata,
        addresses: addresses(&mut fields, problems),
        named_ports: named_ports(&mut fields, problems),
        namespace_labels: labels(fields.take("namespaceLabels"), "namespaceLabels", problems),
        place,
    };
    fields.finish(problems);
    Some(workload)
}

/// `addresses: [ip]`.
pub(super) fn addresses(fields: &mut Fields<'_>, problems: &mut Problems) -> Vec<std::net::IpAddr> {
    let Some(node) = fields.require("addresses", problems) else {
        return Vec::new();
    };
    list(node, "addresses", problems)
        .unwrap_or_default()
        .iter()
        .filter_map(|node| address(node, "addresses", problems))
        .collect()
}

/// `namedPorts: [{name, protocol, port}]`.
pub(super) fn named_ports(fields: &mut Fields<'_>, problems: &mut Problems) -> Vec<NamedPort> {
    fields
        .list("namedPorts", problems)
        .unwrap_or_default()
        .iter()
        .filter_map(|node| ports::named_port(node, problems))
        .collect()
}

fn group(
    spec: &Node,
    metadata: Metadata,
    place: Place,
    problems: &mut Problems,
) -> Option<AddressGroup> {
    let mut fields = Fields::open(spec, "address group", problems)?;
    let cidrs = fields
        .require("cidrs", problems)
        .and_then(|node| list(node, "cidrs", problems))
        .unwrap_or_default()
        .iter()
        .filter_map(|node| cidr(node, "cidrs", problems))
        .collect();
    fields.finish(problems);
    Some(AddressGroup {
        metadata,
        cidrs,
        place,
    })
}

fn service(
    spec: &Node,
    metadata: Metadata,
    place: Place,
    problems: &mut Problems,
) -> Option<Service> {
    let mut fields = Fields::open(spec, "service", problems)?;
    let node = fields.require("ports", problems);
    let before = problems.0.len();
    let ports = node
        .map(|node| ports::ports(node, ports::Allow::NO_SERVICE, problems))
        .unwrap_or_default();
    if let Some(node) = node
        && ports.is_empty()
        && problems.0.len() == before
    {
        problems.push(Problem::at(
            &node.place,
            "a service needs at least one port",
        ));
    }
    fields.finish(problems);
    Some(Service {
        metadata,
        ports,
        place,
    })
}
