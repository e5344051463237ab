//! A recorded flow beside what policy says of it now.

use policy::plan::record::{FlowRecord, RecordedEnd};
use policy::snapshot::FlowDirection;
use serde::Serialize;
use serde_json::Value;

use super::verdict;

/// What a record says, and why it is not what policy says now.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Past {
    pub(crate) uid: Option<String>,
    /// That saw it.
    pub(crate) host: Option<String>,
    /// `ingress` or `egress`, as the host saw it.
    pub(crate) direction: Option<&'static str>,
    pub(crate) last_seen: Option<String>,
    /// Of the policy that judged it.
    pub(crate) revision: u64,
    /// What happened to the packets.
    pub(crate) verdict: &'static str,
    pub(crate) enforced: &'static str,
    pub(crate) draft: &'static str,
    pub(crate) rule: Option<String>,
    pub(crate) reason: Option<String>,
    /// What is different now, one sentence each; empty where the host's end says the same as then.
    pub(crate) differences: Vec<String>,
}

impl Past {
    /// Compares with the walk of today. `changes` are lines of the history since then; `exists` knows
    /// the rules that there are, `None` where that cannot be told.
    pub(crate) fn new(
        record: &FlowRecord,
        walk: &Value,
        changes: &[String],
        exists: impl Fn(&str) -> bool,
    ) -> Self {
        let direction = record.side.map(|side| match side {
            FlowDirection::Ingress => "ingress",
            FlowDirection::Egress => "egress",
        });
        let mut past = Self {
            uid: Some(record.uid.clone()).filter(|uid| !uid.is_empty()),
            host: Some(record.host.clone()).filter(|host| !host.is_empty()),
            direction,
            last_seen: record.last_seen.and_then(|at| {
                at.format(&time::format_description::well_known::Rfc3339)
                    .ok()
            }),
            revision: record.revision,
            verdict: verdict(record.allowed),
            enforced: verdict(record.evaluated_allow),
            draft: verdict(record.draft_allow),
            rule: record.rule.clone(),
            reason: record.reason.clone(),
            differences: Vec::new(),
        };
        past.compare(record, walk, changes, exists);
        past
    }

    fn compare(
        &mut self,
        record: &FlowRecord,
        walk: &Value,
        changes: &[String],
        exists: impl Fn(&str) -> bool,
    ) {
        let Some(direction) = self.direction else {
            self.differences
                .push("the record does not say which end it is of: it cannot be compared".into());
            return;
        };
        let end = &walk[direction];
        let Some(subject) = end["subject"].as_str() else {
            self.differences.push(format!(
                "the {direction} end is managed no more: nothing is asked there"
            ));
            return;
        };
        let (own, peer) = match direction {
            "egress" => (&record.source, &record.destination),
            _ => (&record.destination, &record.source),
        };
        let mut differences = Vec::new();
        let owner = |what: &str, then: &RecordedEnd, now: Option<&str>| match (&then.workload, now)
        {
            (Some(then), Some(now)) if then == now => None,
            (Some(then), Some(now)) => Some(format!(
                "the {what} was {then} then; its address is {now}'s now"
            )),
            (Some(then), None) => Some(format!(
                "the {what} was {then} then; its address is nobody's now"
            )),
            (None, Some(now)) => Some(format!(
                "the {what} was no workload then; its address is {now}'s now"
            )),
            (None, None) => None,
        };
        differences.extend(owner("subject", own, Some(subject)));
        // `name (address)` is a workload, `address (class)` is none.
        let now = end["peer"].as_str().and_then(|text| {
            let (name, rest) = text.split_once(" (")?;
            let address = rest.strip_suffix(')')?;
            address.parse::<std::net::IpAddr>().ok().map(|_| name)
        });
        differences.extend(owner("peer", peer, now));
        for (what, then, now) in [
            ("verdict", self.verdict, &end["enforced"]),
            ("enforced policy", self.enforced, &end["evaluated"]),
            ("draft", self.draft, &end["draft"]),
        ] {
            if let Some(now) = now.as_str().filter(|now| *now != then) {
                differences.push(format!("{what}: {then} then, {now} now"));
            }
        }
        if let (Some(then), Some(now)) = (self.rule.as_deref(), end["rule"].as_str())
            && then != now
        {
            let gone = match then.contains('/') && !exists(then) {
                true => ", which is there no more",
                false => "",
            };
            differences.push(format!("rule: {then} then{gone}; {now} now"));
        }
        if !differences.is_empty() {
            differences.extend(changes.iter().map(|change| format!("since then: {change}")));
        }
        self.differences = differences;
    }

    /// For people.
    pub(crate) fn lines(&self) -> Vec<String> {
        let text = |value: &Option<String>| value.clone().unwrap_or_else(|| "?".to_owned());
        let mut lines = vec![format!(
            "then, {} of {} (revision {}, {}): {} by {} (reason {})",
            self.direction.unwrap_or("an end"),
            text(&self.host),
            self.revision,
            self.last_seen
                .as_ref()
                .map_or_else(|| "?".to_owned(), |at| crate::output::moment(at)),
            self.verdict,
            text(&self.rule),
            self.reason.as_deref().unwrap_or("none"),
        )];
        if self.differences.is_empty() {
            lines.push("now: the same".to_owned());
        }
        lines.extend(self.differences.iter().map(|line| format!("  {line}")));
        lines.push(String::new());
        lines
    }
}
