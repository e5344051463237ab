//! The statements of one rule, in order: conditions, asides, verdicts.

use serde_json::Value;

use super::expression::Field;
use super::values::bare;
use super::{Reader, TableKey};
use crate::brownfield::firewall::{Clause, Match, SourceRule, Verdict};
use crate::brownfield::json;
use crate::brownfield::region::{all_services, protocol_services};
use crate::ports::PORTED;

/// Alternatives of one rule, because of sets and maps.
const MAX_ALTERNATIVES: usize = 10_000;

/// Conjunctions, any of which is meant.
type Alternatives = Vec<Vec<Match>>;

/// A rule while it is read.
pub(super) struct Reading<'r, 'a> {
    reader: &'r Reader<'a>,
    table: &'r TableKey,
    alternatives: Alternatives,
    clauses: Vec<Clause>,
    aside: Option<String>,
}

impl<'r, 'a> Reading<'r, 'a> {
    pub(super) fn new(reader: &'r Reader<'a>, table: &'r TableKey) -> Self {
        Self {
            reader,
            table,
            alternatives: vec![Vec::new()],
            clauses: Vec::new(),
            aside: None,
        }
    }

    /// Reads all statements.
    pub(super) fn rule(mut self, statements: &[Value]) -> SourceRule {
        for statement in statements {
            let Some((kind, body)) = statement
                .as_object()
                .and_then(|statement| statement.iter().next())
            else {
                self.unknown(statement);
                continue;
            };
            self.statement(kind, body, statement);
        }
        if self.clauses.is_empty() && self.aside.is_none() {
            self.aside = Some("it decides nothing".into());
        }
        SourceRule {
            clauses: self.clauses,
            aside: self.aside,
            ..SourceRule::default()
        }
    }

    fn statement(&mut self, kind: &str, body: &Value, statement: &Value) {
        match kind {
            "match" => self.compare(body),
            "vmap" => self.verdict_map(body),
            "accept" => self.verdict(Verdict::Accept),
            "drop" => self.verdict(Verdict::Drop),
            "return" => self.verdict(Verdict::Return),
            "jump" | "goto" => match self.target(kind, body) {
                Some(verdict) => self.verdict(verdict),
                None => self.verdict(Verdict::Elsewhere("its target is not listed".into())),
            },
            "reject" => {
                self.aside = Some("denied without an answer: policy does not reject".into());
                self.verdict(Verdict::Drop);
            }
            "continue" => self.note("it decides nothing"),
            "counter" => self.note("it only counts"),
            "log" => self.note("it only logs; every flow is recorded anyway"),
            "mangle" | "secmark" | "ct helper" | "ct timeout" | "ct expectation" | "flow"
            | "meter" | "dup" | "last" | "synproxy-timestamp" => {
                // A meter stops the rule when its limit is passed.
                if kind == "meter" {
                    self.unknown(statement);
                } else {
                    self.note("it changes packets or bookkeeping, it does not filter");
                }
            }
            "notrack" => self.note("connection tracking is always on"),
            // Adding to a set passes on, unless a limit stands in the element.
            "set" | "map" if body.get("stmt").is_none() => {
                self.note("policy has no sets that packets change");
            }
            "dnat" | "redirect" | "tproxy" => self.verdict(Verdict::Rewrite),
            "snat" | "masquerade" => {
                self.aside =
                    Some("it rewrites the source of packets, which policy does not do".into());
                self.verdict(Verdict::Accept);
            }
            "queue" | "synproxy" | "fwd" => self.verdict(Verdict::Elsewhere(format!(
                "{kind}: who receives the packet decides"
            ))),
            "xt" if json::text(body, "type") == Some("match") => self.unknown(statement),
            "xt" => {
                self.verdict(Verdict::Elsewhere(
                    "it was made by iptables and cannot be read here; import iptables-save".into(),
                ));
            }
            // limit, quota, ct count, …: conditions.
            _ => self.unknown(statement),
        }
    }

    fn note(&mut self, text: &str) {
        self.aside.get_or_insert_with(|| text.to_owned());
    }

    fn unknown(&mut self, statement: &Value) {
        let shown = super::show::rule(std::slice::from_ref(statement));
        let text = crate::brownfield::report::shown(&shown);
        self.condition(Match::Unknown(format!("policy has no word for {text}")));
    }

    fn condition(&mut self, condition: Match) {
        for alternative in &mut self.alternatives {
            alternative.push(condition.clone());
        }
    }

    fn verdict(&mut self, verdict: Verdict) {
        for matches in &self.alternatives {
            self.clauses.push(Clause {
                matches: matches.clone(),
                verdict: verdict.clone(),
            });
        }
        // A note about the verdict stays; that it counts too says nothing.
        if matches!(
            self.aside.as_deref(),
            Some("it only counts" | "it only logs; every flow is recorded anyway")
        ) {
            self.aside = None;
        }
    }

    fn target(&self, kind: &str, body: &Value) -> Option<Verdict> {
        let name = json::text(body, "target")?;
        let chain = self
            .reader
            .chains
            .get(&(self.table.clone(), name.to_owned()))?;
        Some(if kind == "goto" {
            Verdict::Goto(*chain)
        } else {
            Verdict::Jump(*chain)
        })
    }

    fn compare(&mut self, body: &Value) {
        let read = body
            .get("left")
            .zip(body.get("right"))
            .and_then(|(left, right)| {
                let operator = json::text(body, "op").unwrap_or("==");
                self.comparison(left, operator, right)
            });
        match read {
            Some(found) => self.multiply(&found, body),
            None => self.unknown(&serde_json::json!({"match": body})),
        }
    }

    /// Every alternative so far with every new one.
    fn multiply(&mut self, found: &Alternatives, body: &Value) {
        if self.alternatives.len().saturating_mul(found.len()) > MAX_ALTERNATIVES {
            self.unknown(body);
            return;
        }
        let mut all = Vec::new();
        for own in &self.alternatives {
            for more in found {
                all.push([own.as_slice(), more.as_slice()].concat());
            }
        }
        self.alternatives = all;
    }

    /// Conjunctions that a comparison means, or `None` when policy has no word for it.
    fn comparison(&self, left: &Value, operator: &str, right: &Value) -> Option<Alternatives> {
        let elements = self.elements(right)?;
        if let Some(parts) = left.get("concat").and_then(Value::as_array) {
            if operator != "==" && operator != "in" {
                return None;
            }
            return elements
                .iter()
                .map(|element| self.concatenation(parts, element))
                .collect();
        }
        let field = Field::of(left)?;
        if field.is_one_by_one() && elements.len() > 1 {
            if operator == "!=" {
                // None of them: all conditions together.
                let parts = elements
                    .iter()
                    .map(|element| field.compare("!=", &[element]));
                return parts
                    .collect::<Option<Vec<_>>>()
                    .map(|parts| vec![parts.concat()]);
            }
            return elements
                .iter()
                .map(|element| field.compare("==", &[element]))
                .collect();
        }
        if elements.is_empty() {
            return Some(if operator == "!=" {
                vec![Vec::new()]
            } else {
                vec![vec![Match::Never("the set is empty".into())]]
            });
        }
        let mut found = field.compare(operator, &elements)?;
        found.extend(self.any_transport(field));
        Some(vec![found])
    }

    /// `th dport` reads ports of whatever protocol it is; policy knows those of three.
    fn any_transport(&self, field: Field) -> Option<Match> {
        let Field::Port { protocol: None, .. } = field else {
            return None;
        };
        let ported = PORTED.iter().fold(
            crate::brownfield::intervals::Intervals::EMPTY,
            |all, protocol| all.union(&protocol_services(*protocol)),
        );
        let certain = self.alternatives.iter().all(|alternative| {
            let named = alternative
                .iter()
                .filter_map(|condition| match condition {
                    Match::Protocols(set) => Some(set),
                    _ => None,
                })
                .fold(all_services(), |all, set| all.intersection(set));
            ported.covers(&named)
        });
        (!certain)
            .then(|| Match::Unknown("it looks at ports of protocols that have none here".into()))
    }

    fn concatenation(&self, parts: &[Value], element: &Value) -> Option<Vec<Match>> {
        let values = element.get("concat")?.as_array()?;
        if values.len() != parts.len() {
            return None;
        }
        let mut all = Vec::new();
        for (part, value) in parts.iter().zip(values) {
            let field = Field::of(part)?;
            all.extend(field.compare("==", &[value])?);
            if let Field::Port { protocol: None, .. } = field {
                return None;
            }
        }
        Some(all)
    }

    /// The values of a right side; `None` when they change by themselves.
    fn elements<'v>(&'v self, right: &'v Value) -> Option<Vec<&'v Value>> {
        let listed: &[Value] = match right {
            Value::String(name) if name.starts_with('@') => self.named(name)?,
            Value::Array(values) => values,
            _ => match right.get("set") {
                Some(Value::Array(values)) => values,
                Some(Value::String(name)) if name.starts_with('@') => self.named(name)?,
                Some(one) => std::slice::from_ref(one),
                None => std::slice::from_ref(right),
            },
        };
        listed.iter().map(bare).collect()
    }

    fn named(&self, name: &str) -> Option<&[Value]> {
        let key = (self.table.clone(), name.strip_prefix('@')?.to_owned());
        let content = self.reader.sets.get(&key)?;
        (!content.moving && !self.reader.moving.contains(&key)).then_some(content.elements)
    }

    /// `tcp dport vmap { 22 : accept, 80 : jump web }`
    fn verdict_map(&mut self, body: &Value) {
        let Some(clauses) = self.mapped(body) else {
            // Any element may match and have any verdict.
            let text = crate::brownfield::report::shown(&body.to_string());
            self.verdict(Verdict::Elsewhere(format!(
                "policy has no word for the map {text}"
            )));
            return;
        };
        let before = self.alternatives.clone();
        for (conditions, verdict) in clauses {
            let Some(verdict) = verdict else {
                continue;
            };
            self.alternatives.clone_from(&before);
            self.multiply(&conditions, body);
            self.verdict(verdict);
        }
        self.alternatives = before;
        if self.clauses.is_empty() {
            self.note("its map is empty");
        }
    }

    /// Keys and verdicts of a map; `None` for a verdict that goes on.
    fn mapped(&self, body: &Value) -> Option<Vec<(Alternatives, Option<Verdict>)>> {
        let key = body.get("key")?;
        let data = body.get("data")?;
        let pairs = match data {
            Value::String(name) => self.named(name)?,
            _ => data.get("set")?.as_array()?,
        };
        if pairs.len() > MAX_ALTERNATIVES {
            return None;
        }
        pairs
            .iter()
            .map(|pair| {
                let [value, verdict] = pair.as_array()?.as_slice() else {
                    return None;
                };
                let conditions = self.comparison(key, "==", bare(value)?)?;
                let (kind, body) = verdict.as_object()?.iter().next()?;
                let verdict = match kind.as_str() {
                    "accept" => Some(Verdict::Accept),
                    "drop" => Some(Verdict::Drop),
                    "return" => Some(Verdict::Return),
                    "continue" => None,
                    "jump" | "goto" => Some(self.target(kind, body)?),
                    _ => return None,
                };
                Some((conditions, verdict))
            })
            .collect()
    }
}
