//! Which resources an expression of the configuration means, before their ids are known.

use std::collections::BTreeSet;

use serde_json::Value;

use super::plan::{Plan, parts, without_key};
use crate::brownfield::json::list;

/// Variables and outputs lead from one to the next no further than this.
const MAX_STEPS: usize = 32;

/// Where an expression stands.
#[derive(Clone)]
pub(super) struct Scope<'a> {
    /// Modules, outermost first.
    pub(super) modules: Vec<String>,
    /// `count` or `for_each` key of the resource that the expression is of.
    pub(super) index: Option<&'a Value>,
}

/// Keys of the resources of some types that an expression refers to.
///
/// The error says what in it cannot be followed.
pub(super) fn follow(
    plan: &Plan<'_>,
    expression: &Value,
    scope: &Scope<'_>,
    kinds: &[&str],
    depth: usize,
) -> Result<BTreeSet<String>, String> {
    if depth > MAX_STEPS {
        return Err("its references go in a circle".into());
    }
    let references: Vec<Vec<String>> = list(expression, "references")
        .iter()
        .filter_map(Value::as_str)
        .map(parts)
        .collect();
    // The list names a resource again without the key that was written: that adds nothing.
    let keyed: BTreeSet<(&str, &str)> = references
        .iter()
        .filter_map(|parts| match parts.as_slice() {
            [kind, name, ..] if name.contains('[') => Some((kind.as_str(), without_key(name))),
            _ => None,
        })
        .collect();
    let by_key = references
        .iter()
        .any(|parts| matches!(parts.first().map(String::as_str), Some("each" | "count")));
    let mut found = BTreeSet::new();
    let mut direct = false;
    let mut others = BTreeSet::new();
    for reference in &references {
        let names: Vec<&str> = reference.iter().map(String::as_str).collect();
        match names.as_slice() {
            ["each" | "count", ..] => {}
            ["var", name, ..] => {
                others.insert(format!("var.{name}"));
                found.extend(variable(plan, without_key(name), scope, kinds, depth)?);
            }
            // `module.net` follows `module.net.sg_id` in the list and adds nothing.
            ["module", _] => {}
            ["module", call, output, ..] => {
                others.insert(format!("module.{call}.{output}"));
                found.extend(self::output(
                    plan,
                    call,
                    without_key(output),
                    scope,
                    kinds,
                    depth,
                )?);
            }
            ["local", ..] => {
                return Err(format!(
                    "{}: a plan does not show locals",
                    reference.join(".")
                ));
            }
            ["data", ..] => {
                return Err(format!(
                    "{}: it is looked up, not planned",
                    reference.join(".")
                ));
            }
            [kind, _, attribute, ..] if kinds.contains(kind) && *attribute != "id" => {
                return Err(format!("{}: that is no id", reference.join(".")));
            }
            [kind, name, ..] if kinds.contains(kind) => {
                direct = true;
                if name.contains('[') || !keyed.contains(&(*kind, *name)) {
                    found.extend(instances(plan, kind, name, scope, by_key, &names)?);
                }
            }
            _ => {
                others.insert(reference.join("."));
            }
        }
    }
    if found.len() > 1 && (others.len() > 1 || (direct && !others.is_empty())) {
        // References do not say how they are put together: one may be the condition of another.
        return Err("it is put together of several things, and which count is not known".into());
    }
    if found.is_empty() {
        return Err(match (references.is_empty(), by_key) {
            (true, _) => "it is known after apply, and the configuration does not say more".into(),
            (_, true) => "it depends on the key of for_each".into(),
            _ => "it is known after apply, and refers to nothing of a known type".into(),
        });
    }
    Ok(found)
}

/// Instances of a resource in the same module: the one with the key that is written, the only one, or the
/// one with the key of the resource that refers to it.
fn instances(
    plan: &Plan<'_>,
    kind: &str,
    name: &str,
    scope: &Scope<'_>,
    by_key: bool,
    reference: &[&str],
) -> Result<Option<String>, String> {
    let bare = without_key(name);
    let all: Vec<_> = plan
        .of(&[kind])
        .filter(|one| one.name == bare && one.modules == scope.modules)
        .collect();
    let written = name.strip_prefix(bare).filter(|key| !key.is_empty());
    if let Some(key) = written {
        let fits = |index: &Value| format!("[{index}]") == key;
        let exact = all.iter().find(|one| one.index.is_some_and(fits));
        return exact
            .map(|one| Some(one.key()))
            .ok_or_else(|| format!("{} is not planned", reference.join(".")));
    }
    match all.as_slice() {
        [] => Err(format!("{} is not planned", reference.join("."))),
        [one] => Ok(Some(one.key())),
        many => {
            let same = many
                .iter()
                .find(|one| by_key && one.index == scope.index && one.index.is_some());
            match same {
                Some(one) => Ok(Some(one.key())),
                None => Err(format!("{} has several instances", reference.join("."))),
            }
        }
    }
}

/// A variable is what the call of the module gives it.
fn variable(
    plan: &Plan<'_>,
    name: &str,
    scope: &Scope<'_>,
    kinds: &[&str],
    depth: usize,
) -> Result<BTreeSet<String>, String> {
    let Some((own, outer)) = scope.modules.split_last() else {
        return Err(format!("var.{name} is not known"));
    };
    let expression = plan
        .configured_module(outer)
        .and_then(|module| {
            module
                .get("module_calls")?
                .get(without_key(own))?
                .get("expressions")?
                .get(name)
        })
        .ok_or_else(|| format!("var.{name} is not given where the module is called"))?;
    let outer = Scope {
        modules: outer.to_vec(),
        index: None,
    };
    follow(plan, expression, &outer, kinds, depth + 1)
}

/// An output is what the module's configuration says.
fn output(
    plan: &Plan<'_>,
    call: &str,
    name: &str,
    scope: &Scope<'_>,
    kinds: &[&str],
    depth: usize,
) -> Result<BTreeSet<String>, String> {
    let mut modules = scope.modules.clone();
    modules.push(call.to_owned());
    let expression = plan
        .configured_module(&modules)
        .and_then(|module| module.get("outputs")?.get(name)?.get("expression"))
        .ok_or_else(|| format!("module.{call}.{name} is not configured"))?;
    let inner = Scope {
        modules,
        index: None,
    };
    follow(plan, expression, &inner, kinds, depth + 1)
}
