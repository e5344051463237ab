//! The resources of a plan: planned values, what of them is unknown, and where each is configured.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::brownfield::json::{list, text};

/// Types of network ACLs.
pub(super) const ACLS: &[&str] = &["aws_network_acl", "aws_default_network_acl"];

const GROUPS: &[&str] = &["aws_security_group", "aws_default_security_group"];

/// Deepest nesting of modules.
const MAX_DEPTH: usize = 32;

/// Everything of a plan that rules need.
pub(super) struct Plan<'a> {
    resources: Vec<Resource<'a>>,
    /// `configuration.root_module`.
    pub(super) configuration: &'a Value,
}

/// One instance of a resource.
pub(super) struct Resource<'a> {
    pub(super) address: String,
    /// Type, such as `aws_security_group`.
    pub(super) kind: &'a str,
    pub(super) name: &'a str,
    /// Its `count` or `for_each` key, as JSON.
    pub(super) index: Option<&'a Value>,
    /// Names and keys of the modules that it is in, outermost first: `net`, `net["a"]`.
    pub(super) modules: Vec<String>,
    pub(super) values: &'a Value,
    /// Which values are known only after apply.
    pub(super) unknown: &'a Value,
}

impl<'a> Plan<'a> {
    pub(super) fn read(root: &'a Value, planned: &'a Value) -> Self {
        let changes: BTreeMap<&str, &Value> = list(root, "resource_changes")
            .iter()
            .filter_map(|change| {
                let unknown = change.get("change")?.get("after_unknown")?;
                Some((text(change, "address")?, unknown))
            })
            .collect();
        let mut plan = Self {
            resources: Vec::new(),
            configuration: root
                .get("configuration")
                .and_then(|configuration| configuration.get("root_module"))
                .unwrap_or(&Value::Null),
        };
        plan.module(planned, &[], &changes);
        plan.resources.sort_by(|a, b| a.address.cmp(&b.address));
        plan
    }

    fn module(&mut self, module: &'a Value, path: &[String], changes: &BTreeMap<&str, &'a Value>) {
        for resource in list(module, "resources") {
            let (Some(address), Some(kind), Some(name), Some(values)) = (
                text(resource, "address"),
                text(resource, "type"),
                text(resource, "name"),
                resource.get("values"),
            ) else {
                continue;
            };
            if text(resource, "mode") == Some("data") {
                continue;
            }
            self.resources.push(Resource {
                address: address.to_owned(),
                kind,
                name,
                index: resource.get("index"),
                modules: path.to_vec(),
                values,
                unknown: changes.get(address).copied().unwrap_or(&Value::Null),
            });
        }
        if path.len() >= MAX_DEPTH {
            return;
        }
        for child in list(module, "child_modules") {
            // `module.a["x"].module.b`: the last one is its own name.
            let own = text(child, "address").and_then(|address| steps(address).pop());
            let mut inner = path.to_vec();
            inner.extend(own);
            self.module(child, &inner, changes);
        }
    }

    /// Resources of some types, by address.
    pub(super) fn of(&self, kinds: &[&str]) -> impl Iterator<Item = &Resource<'a>> {
        self.resources
            .iter()
            .filter(move |resource| kinds.contains(&resource.kind))
    }

    pub(super) const fn group_types(&self) -> &'static [&'static str] {
        GROUPS
    }

    /// The configuration of a resource.
    pub(super) fn configured(&self, resource: &Resource<'_>) -> Option<&'a Value> {
        let module = self.configured_module(&resource.modules)?;
        list(module, "resources").iter().find(|one| {
            text(one, "type") == Some(resource.kind) && text(one, "name") == Some(resource.name)
        })
    }

    /// The configuration of a module.
    pub(super) fn configured_module(&self, path: &[String]) -> Option<&'a Value> {
        path.iter().try_fold(self.configuration, |module, step| {
            module
                .get("module_calls")?
                .get(without_key(step))?
                .get("module")
        })
    }
}

/// A module's name without its `count` or `for_each` key.
pub(super) fn without_key(step: &str) -> &str {
    step.split('[').next().unwrap_or(step)
}

/// The names of the modules in an address, with their keys.
fn steps(address: &str) -> Vec<String> {
    let mut steps = Vec::new();
    for part in parts(address) {
        if part != "module" {
            steps.push(part);
        }
    }
    steps
}

/// An address or reference at its dots, those inside of brackets left alone.
pub(super) fn parts(address: &str) -> Vec<String> {
    let mut parts = vec![String::new()];
    let mut depth = 0_usize;
    for character in address.chars() {
        match character {
            '[' => depth += 1,
            ']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        match (character, parts.last_mut()) {
            ('.', _) if depth == 0 => parts.push(String::new()),
            (_, Some(part)) => part.push(character),
            _ => {}
        }
    }
    parts
}
