//! Selectors and peers.

use ipnet::IpNet;

use super::document::name;
use super::fields::{Fields, cidr, list, map_entries, text, word, wrong_kind};
use super::node::{Entry, Node, Value};
use crate::model::{Entity, Peer};
use crate::problems::{Problem, Problems};
use crate::selectors::{Expression, NAMESPACE_PREFIX, Operator, Selector};

/// The subject of an object: a selector that must say something, or the word `all`.
pub(super) fn subject(fields: &mut Fields<'_>, problems: &mut Problems) -> Option<Selector> {
    let place = fields.place().clone();
    let Some(entry) = fields.take_entry("subject") else {
        problems.push(Problem::at(&place, "there is no \"subject\"").suggest(
            "say which workloads are meant, for example subject: {app: db}, or subject: all",
        ));
        return None;
    };
    if matches!(&entry.node.value, Value::Text(text) if text == "all") {
        return Some(Selector::default());
    }
    let selector = match &entry.node.value {
        Value::Null => Some(Selector::default()),
        _ => selector(&entry.node, "subject", problems),
    }?;
    if selector.is_empty() {
        problems.push(
            Problem::at(&entry.node.place, "the subject's selector is empty")
                .suggest("to mean every workload, write subject: all"),
        );
        return None;
    }
    Some(selector)
}

/// A selector: `matchLabels` and `matchExpressions`, and every other key is a label.
pub(crate) fn selector(node: &Node, what: &str, problems: &mut Problems) -> Option<Selector> {
    let entries = map_entries(node, what, problems)?;
    let before = problems.0.len();
    let mut selector = Selector::default();
    for entry in entries {
        match entry.key.as_str() {
            "matchLabels" => {
                for pair in map_entries(&entry.node, "matchLabels", problems).unwrap_or_default() {
                    pair_of(pair, &mut selector, problems);
                }
            }
            "matchExpressions" => {
                for item in list(&entry.node, "matchExpressions", problems).unwrap_or_default() {
                    selector
                        .match_expressions
                        .extend(expression(item, problems));
                }
            }
            _ => pair_of(entry, &mut selector, problems),
        }
    }
    (problems.0.len() == before).then_some(selector)
}

fn pair_of(entry: &Entry, selector: &mut Selector, problems: &mut Problems) {
    key(&entry.key, &entry.place, problems);
    if let Value::Map(_) | Value::List(_) = entry.node.value {
        let suggestion =
            crate::problems::did_you_mean(&entry.key, ["matchLabels", "matchExpressions"])
                .unwrap_or_else(|| match entry.key.as_str() {
                    "selector" => {
                        "a subject is a selector itself: write the labels right below it".into()
                    }
                    _ => "write for example app: db, or use matchExpressions".into(),
                });
        problems.push(wrong_kind(&entry.node, &entry.key, "a label's value").suggest(suggestion));
        return;
    }
    let Some(value) = text(&entry.node, &entry.key, problems) else {
        return;
    };
    if let Some(other) = selector
        .match_labels
        .insert(entry.key.clone(), value.to_owned())
        && other != value
    {
        problems.push(Problem::at(
            &entry.place,
            format!(
                "the label \"{}\" cannot be both \"{other}\" and \"{value}\"",
                entry.key
            ),
        ));
    }
}

fn key(key: &str, place: &crate::source::Place, problems: &mut Problems) {
    if key.is_empty() || key == NAMESPACE_PREFIX {
        problems.push(Problem::at(place, "a label's key is empty"));
    }
}

pub(crate) fn expression(node: &Node, problems: &mut Problems) -> Option<Expression> {
    let mut fields = Fields::open(node, "expression", problems)?;
    let key_node = fields.require("key", problems);
    let key = key_node.and_then(|node| {
        let given = text(node, "key", problems)?;
        self::key(given, &node.place, problems);
        Some(given.to_owned())
    });
    let operator_node = fields.require("operator", problems);
    let operator = operator_node.and_then(|node| word(node, "operator", Operator::WORDS, problems));
    let values_node = fields.take("values");
    let values: Vec<String> = values_node
        .and_then(|node| list(node, "values", problems))
        .unwrap_or_default()
        .iter()
        .filter_map(|node| text(node, "values", problems).map(str::to_owned))
        .collect();
    let place = values_node.map_or_else(|| fields.place().clone(), |node| node.place.clone());
    fields.finish(problems);
    match operator? {
        Operator::In | Operator::NotIn if values.is_empty() => problems.push(
            Problem::at(&place, "this operator needs \"values\"").suggest("list at least one"),
        ),
        Operator::Exists | Operator::DoesNotExist if !values.is_empty() => problems.push(
            Problem::at(&place, "this operator takes no \"values\"")
                .suggest("leave them out, or use In or NotIn"),
        ),
        _ => {}
    }
    Some(Expression {
        key: key?,
        operator: operator?,
        values,
    })
}

/// A list of peers.
pub(super) fn peers(node: &Node, problems: &mut Problems) -> Vec<Peer> {
    list(node, "peers", problems)
        .unwrap_or_default()
        .iter()
        .filter_map(|node| peer(node, problems))
        .collect()
}

fn peer(node: &Node, problems: &mut Problems) -> Option<Peer> {
    let mut fields = Fields::open(node, "peer", problems)?;
    let place = fields.place().clone();
    let selector_node = fields.take_entry("selector").map(|entry| &entry.node);
    let cidr_node = fields.take("cidr");
    let except_node = fields.take("except");
    let group_node = fields.take("addressGroup");
    let entity_node = fields.take("entity");
    fields.finish(problems);
    let kinds = [selector_node, cidr_node, group_node, entity_node];
    match kinds.iter().flatten().count() {
        1 => {}
        0 => {
            problems.push(Problem::at(&place, "this peer says nothing").suggest(
                "write selector, cidr, addressGroup or entity; for everybody, entity: any",
            ));
            return None;
        }
        _ => {
            problems.push(
                Problem::at(&place, "this peer says two things")
                    .suggest("write one list item for each: a rule matches any of its peers"),
            );
            return None;
        }
    }
    if let (Some(except), None) = (except_node, cidr_node) {
        problems.push(Problem::at(
            &except.place,
            "\"except\" needs a \"cidr\" beside it",
        ));
    }
    if let Some(node) = selector_node {
        return selector(node, "selector", problems).map(|selector| Peer::Selector { selector });
    }
    if let Some(node) = group_node {
        return name(node, "addressGroup", problems).map(|group| Peer::Group { group });
    }
    if let Some(node) = entity_node {
        return word(node, "entity", Entity::WORDS, problems).map(|entity| Peer::Entity { entity });
    }
    let net = cidr(cidr_node?, "cidr", problems);
    let except = excepts(except_node, net, problems);
    let net = net?;
    if covers(&except, &net) {
        let place = except_node.map_or(&place, |node| &node.place);
        problems.push(
            Problem::at(
                place,
                format!("\"except\" covers all of {net}: the peer matches nobody"),
            )
            .suggest("make \"except\" smaller, or remove the peer"),
        );
        return None;
    }
    Some(Peer::Cidr { cidr: net, except })
}

fn excepts(node: Option<&Node>, net: Option<IpNet>, problems: &mut Problems) -> Vec<IpNet> {
    let mut except = Vec::new();
    for node in node
        .and_then(|node| list(node, "except", problems))
        .unwrap_or_default()
    {
        let Some(hole) = cidr(node, "except", problems) else {
            continue;
        };
        if let Some(net) = net
            && !net.contains(&hole)
            && !hole.contains(&net)
        {
            problems.push(
                Problem::at(&node.place, format!("{hole} is not inside {net}"))
                    .suggest("remove it: it takes nothing away"),
            );
        }
        except.push(hole);
    }
    except
}

/// Whether the networks together cover all of `net`.
pub(crate) fn covers(parts: &[IpNet], net: &IpNet) -> bool {
    // Aggregation joins neighbours, so that a full cover becomes one network that contains `net`.
    IpNet::aggregate(&parts.to_vec())
        .iter()
        .any(|part| part.contains(net))
}
