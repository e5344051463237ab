//! `nft -j list ruleset`.
//!
//! Format: libnftables-json(5), nft(8). Rules stay in their order; sets, maps and verdict maps are read
//! with the content they have in the text.

mod expression;
mod show;
mod statement;
mod values;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::firewall::{self, Base, Chain, HostOptions, Ruleset, Way};
use super::intervals::Addresses;
use super::json;
use super::problem::ImportError;
use super::{Imported, report};
use crate::source::Source;
use values::Content;

/// Imports the rules of one host.
///
/// # Errors
/// Text that is not JSON, JSON that is not a rule set, or more than the bounds allow.
pub fn import(source: &Source, options: &HostOptions) -> Result<Imported, ImportError> {
    if is_text(&source.text) {
        return Err(ImportError::file(
            &source.name,
            "this is the text form of a rule set",
            "give the output of nft -j list ruleset",
        ));
    }
    let root = json::read(source)?;
    let Some(objects) = root.get("nftables").and_then(Value::as_array) else {
        return Err(ImportError::file(
            &source.name,
            "there is no \"nftables\" list",
            "give the output of nft -j list ruleset",
        ));
    };
    let mut reader = Reader::new(source);
    reader.collect(objects)?;
    for (index, object) in objects.iter().enumerate() {
        if let Some(rule) = object.get("rule") {
            reader.rule(rule, &format!("nftables[{index}].rule"))?;
        }
    }
    let mut imported = firewall::build::build(
        &reader.set,
        options,
        &format!("nft list ruleset {}", source.name),
    )?;
    for remark in reader.remarks {
        imported.report.remark(remark);
    }
    Ok(imported)
}

fn is_text(text: &str) -> bool {
    text.trim_start().starts_with("table ")
}

/// Family and table: chains and sets of different tables do not see each other.
type TableKey = (String, String);

struct Reader<'a> {
    file: String,
    set: Ruleset,
    chains: BTreeMap<(TableKey, String), usize>,
    sets: BTreeMap<(TableKey, String), Content<'a>>,
    /// Sets that rules change.
    moving: BTreeSet<(TableKey, String)>,
    remarks: Vec<String>,
}

impl<'a> Reader<'a> {
    fn new(source: &Source) -> Self {
        Self {
            file: source.name.to_string(),
            set: Ruleset {
                complete: Addresses::all(),
                ..Ruleset::default()
            },
            chains: BTreeMap::new(),
            sets: BTreeMap::new(),
            moving: BTreeSet::new(),
            remarks: Vec::new(),
        }
    }

    fn bad(&self, place: &str, message: &str) -> ImportError {
        ImportError::file(
            &self.file,
            format!("{place}: {message}"),
            "give the whole output of nft -j list ruleset",
        )
    }

    /// Chains and sets, which rules may name before they are listed.
    fn collect(&mut self, objects: &'a [Value]) -> Result<(), ImportError> {
        for (index, object) in objects.iter().enumerate() {
            let place = format!("nftables[{index}]");
            let Some((kind, body)) = object
                .as_object()
                .filter(|map| map.len() == 1)
                .and_then(|map| map.iter().next())
            else {
                return Err(self.bad(&place, "every entry is an object with one key"));
            };
            match kind.as_str() {
                "chain" => self.chain(body, &place)?,
                "set" | "map" => {
                    let key = (self.table(body, &place)?, self.name(body, &place)?);
                    self.sets.insert(key, Content::of(body));
                }
                "rule" => self.changed_sets(body, &place)?,
                "metainfo" | "table" => {}
                "element" => {
                    return Err(self.bad(&place, "elements apart from their set are not read"));
                }
                other => self.remarks.push(format!(
                    "the {other} {} was not carried over",
                    json::text(body, "name").unwrap_or("without a name")
                )),
            }
        }
        Ok(())
    }

    fn table(&self, body: &Value, place: &str) -> Result<TableKey, ImportError> {
        match (json::text(body, "family"), json::text(body, "table")) {
            (Some(family), Some(table)) => Ok((family.to_owned(), table.to_owned())),
            _ => Err(self.bad(place, "there is no family or no table")),
        }
    }

    fn name(&self, body: &Value, place: &str) -> Result<String, ImportError> {
        json::text(body, "name")
            .map(str::to_owned)
            .ok_or_else(|| self.bad(place, "there is no name"))
    }

    fn chain(&mut self, body: &Value, place: &str) -> Result<(), ImportError> {
        let table = self.table(body, place)?;
        let name = self.name(body, place)?;
        let index = self.set.chains.len();
        let hook = json::text(body, "hook");
        let way = match (table.0.as_str(), hook) {
            ("ip" | "ip6" | "inet", Some("prerouting")) => Some((Way::In, 1)),
            ("ip" | "ip6" | "inet", Some("input")) => Some((Way::In, 2)),
            ("ip" | "ip6" | "inet", Some("output")) => Some((Way::Out, 0)),
            ("ip" | "ip6" | "inet", Some("postrouting")) => Some((Way::Out, 1)),
            ("netdev" | "inet", Some("ingress")) => Some((Way::In, 0)),
            ("netdev", Some("egress")) => Some((Way::Out, 2)),
            _ => None,
        };
        let elsewhere = match (table.0.as_str(), hook) {
            ("bridge" | "arp", _) => Some(format!("the family {} is below IP", table.0)),
            (_, Some("forward")) => {
                Some("it is about forwarded traffic, which is not the workload's own".to_owned())
            }
            _ => None,
        };
        if let Some((way, order)) = way {
            let families = match table.0.as_str() {
                "ip" => Addresses::all_v4(),
                "ip6" => Addresses::all_v6(),
                _ => Addresses::all(),
            };
            let accept = match json::text(body, "policy") {
                None | Some("accept") => true,
                Some("drop") => false,
                Some(other) => {
                    return Err(self.bad(place, &format!("unknown policy {other:?}")));
                }
            };
            let priority = json::integer(body, "prio").unwrap_or(0);
            self.set.bases.push(Base {
                chain: index,
                way,
                order: (order, priority),
                families,
                accept,
                opening_only: json::text(body, "type") == Some("nat"),
                devices: devices(body),
                // Connection tracking has priority -200 at the hooks prerouting and output.
                before_tracking: matches!(hook, Some("ingress"))
                    || matches!(hook, Some("prerouting" | "output")) && priority < -200,
            });
        }
        self.set.chains.push(Chain {
            name: format!("{} {} {name}", table.0, table.1),
            rules: Vec::new(),
            elsewhere,
        });
        if self.chains.insert((table, name), index).is_some() {
            return Err(self.bad(place, "this chain is listed twice"));
        }
        Ok(())
    }

    /// Sets that the rule changes, and packets that it exempts from tracking.
    fn changed_sets(&mut self, body: &Value, place: &str) -> Result<(), ImportError> {
        let table = self.table(body, place)?;
        for statement in json::list(body, "expr") {
            for key in ["set", "map"] {
                let named = statement.get(key).and_then(|set| json::text(set, key));
                if let Some(name) = named.and_then(|name| name.strip_prefix('@')) {
                    self.moving.insert((table.clone(), name.to_owned()));
                }
            }
            self.set.untracked |= statement.get("notrack").is_some();
        }
        Ok(())
    }

    fn rule(&mut self, body: &Value, place: &str) -> Result<(), ImportError> {
        let table = self.table(body, place)?;
        let chain = json::text(body, "chain").unwrap_or_default().to_owned();
        let Some(chain_index) = self.chains.get(&(table.clone(), chain.clone())).copied() else {
            return Err(self.bad(place, "its chain is not listed"));
        };
        let Some(statements) = body.get("expr").and_then(Value::as_array) else {
            return Err(self.bad(place, "a rule needs \"expr\""));
        };
        let handle = json::integer(body, "handle")
            .map_or_else(String::new, |handle| format!(" (handle {handle})"));
        let mut rule = statement::Reading::new(self, &table).rule(statements);
        rule.file.clone_from(&self.file);
        rule.place = format!("{place}{handle}");
        rule.label = format!("{chain}{handle}");
        rule.comment = json::text(body, "comment").map(report::shown);
        rule.text = format!(
            "{} {}",
            self.set
                .chains
                .get(chain_index)
                .map_or("", |chain| &chain.name),
            show::rule(statements)
        );
        let index = self.set.rules.len();
        self.set.rules.push(rule);
        if let Some(chain) = self.set.chains.get_mut(chain_index) {
            chain.rules.push(index);
        }
        Ok(())
    }
}

/// `dev`: one name or several.
fn devices(body: &Value) -> Vec<String> {
    match body.get("dev").or_else(|| body.get("devices")) {
        Some(Value::String(name)) => vec![name.clone()],
        Some(Value::Array(names)) => names
            .iter()
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect(),
        _ => Vec::new(),
    }
}
