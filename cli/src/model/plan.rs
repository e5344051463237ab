//! What a change would do.

use std::io;

use policy::diff;
use policy::plan::Thresholds;
use policy::plan::edges::{Edge, Tally};
use policy::plan::report::{
    Class, ClassCount, EdgeRow, Judged, MissingHalf, Plan, Radius, Traffic,
};
use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::change::Change;
use super::plan_markdown;
use crate::output::{self, Document, Screen, Table, Tone};
use crate::records::Skipped;

/// The traffic that a change was held against.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PlanInput {
    /// Lines or edges that were taken.
    pub(crate) records: u64,
    /// Different edges.
    pub(crate) edges: usize,
    pub(crate) flows: u64,
    /// Of all edges.
    pub(crate) first_seen: Option<String>,
    pub(crate) last_seen: Option<String>,
    /// What was asked for.
    pub(crate) since: Option<String>,
    /// Records from before `since`.
    pub(crate) older: u64,
    /// Flows that the recorder itself missed.
    pub(crate) missed: u64,
    /// A list in the files was cut short when it was written.
    pub(crate) truncated: bool,
    /// Flows with several records may have been counted several times.
    pub(crate) inexact: bool,
    /// Bad records that were left out.
    pub(crate) skipped: u64,
    /// The first of them.
    pub(crate) bad: Vec<BadRecord>,
}

/// A record that was left out.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct BadRecord {
    /// File and line.
    pub(crate) place: String,
    pub(crate) message: String,
}

impl PlanInput {
    pub(crate) fn new(
        tally: Tally,
        skipped: Skipped,
        since: Option<OffsetDateTime>,
        edges: &[Edge],
    ) -> Self {
        Self {
            records: tally.records,
            edges: edges.len(),
            flows: edges
                .iter()
                .fold(0, |sum, edge| edge.flows.saturating_add(sum)),
            first_seen: edges
                .iter()
                .filter_map(|edge| edge.first_seen)
                .min()
                .and_then(rfc3339),
            last_seen: edges
                .iter()
                .filter_map(|edge| edge.last_seen)
                .max()
                .and_then(rfc3339),
            since: since.and_then(rfc3339),
            older: tally.older,
            missed: tally.missed,
            truncated: skipped.truncated,
            inexact: tally.inexact,
            skipped: skipped.count,
            bad: skipped
                .first
                .into_iter()
                .map(|bad| BadRecord {
                    place: bad.place,
                    message: bad.message,
                })
                .collect(),
        }
    }

    /// What a reader must know before they trust the rest, one sentence each.
    pub(crate) fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        if self.edges == 0 {
            warnings
                .push("there is no recorded traffic: nothing can be told of what is in use".into());
        }
        if self.truncated {
            warnings.push(
                "a list of records was cut short by its --limit: edges may be missing".into(),
            );
        }
        if self.missed > 0 {
            warnings.push(format!("the recorder missed {} flows", self.missed));
        }
        if self.skipped > 0 {
            warnings.push(format!("{} bad records were left out", self.skipped));
        }
        if self.inexact {
            warnings
                .push("more flows than could be remembered: their numbers are upper bounds".into());
        }
        warnings
    }
}

/// What a change would do to the traffic that was seen.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct PlanReport {
    /// Of `--fail-on`: what came true.
    pub(crate) forbidden: Vec<String>,
    pub(crate) changes: Vec<Change>,
    pub(crate) input: PlanInput,
    #[serde(flatten)]
    pub(crate) plan: Plan,
    #[serde(skip)]
    pub(crate) thresholds: Thresholds,
    /// Rows of each table.
    #[serde(skip)]
    pub(crate) limit: usize,
}

impl PlanReport {
    pub(crate) fn new(
        plan: Plan,
        input: PlanInput,
        forbidden: Vec<String>,
        thresholds: Thresholds,
        limit: usize,
    ) -> Self {
        Self {
            forbidden,
            changes: (plan.objects.iter())
                .map(|(id, change)| changed(id, change))
                .collect(),
            input,
            plan,
            thresholds,
            limit,
        }
    }

    /// `3 edges, 120 flows (2 seen in the last 7d, 1 rare)`.
    pub(crate) fn count_text(&self, count: ClassCount) -> String {
        let flows = usize::try_from(count.flows).unwrap_or(usize::MAX);
        let mut text = format!("{}, {}", edges(count.edges), output::counted(flows, "flow"));
        let mut notes = Vec::new();
        if count.recent > 0 {
            notes.push(format!(
                "{} seen in the last {}",
                count.recent,
                days(self.thresholds.recent)
            ));
        }
        if count.rare > 0 {
            notes.push(format!(
                "{} seen seldom, and not in the last {}",
                count.rare,
                days(self.thresholds.rare_age)
            ));
        }
        if !notes.is_empty() {
            text = format!("{text} ({})", notes.join(", "));
        }
        text
    }

    /// Numbers that a reader should look at besides the classes.
    pub(crate) fn remarks(&self) -> Vec<String> {
        let counts = &self.plan.counts;
        let mut remarks = Vec::new();
        let mut remark = |count: u64, text: &str| {
            if count > 0 {
                remarks.push(format!("{}: {text}", edges(count)));
            }
        };
        remark(
            counts.moved,
            "a workload has another address today; that one was asked about",
        );
        remark(
            counts.now_managed,
            "an address was nobody's then and is a workload's today",
        );
        remark(counts.doubtful, "who opened some of the flows is doubtful");
        remark(
            counts.recorded_otherwise,
            "recorded as the opposite of what policy says today: it was another one then",
        );
        let left_out = self.plan.widening.left_out;
        if left_out > 0 {
            remarks.push(format!(
                "{left_out} workloads were not asked how far they come: there are too many"
            ));
        }
        remarks
    }

    /// The rows of one class, as far as they are shown, and how many there are.
    pub(crate) fn rows(&self, class: Class) -> (Vec<&EdgeRow>, usize) {
        // An edge is shown once, under the most dangerous of its classes.
        let rows = || {
            self.plan
                .edges
                .iter()
                .filter(|row| row.classes.first() == Some(&class))
        };
        (rows().take(self.limit).collect(), rows().count())
    }
}

/// What a class means, for people.
pub(crate) const fn heading(class: Class) -> &'static str {
    match class {
        Class::NewlyBlocked => "newly blocked: pass today, would be dropped at once",
        Class::DraftBlocked => "draft blocked: would be dropped once everything staged is enforced",
        Class::NewlyAllowed => "newly allowed: dropped today, would pass at once",
        Class::DraftAllowed => "draft allowed: would pass once everything staged is enforced",
    }
}

/// The rules that tell the difference, before and after: those of the draft where it is the draft that differs.
pub(crate) fn rules(row: &EdgeRow) -> (String, String) {
    let draft = matches!(
        row.classes.first(),
        Some(Class::DraftBlocked | Class::DraftAllowed)
    );
    let rule = |judged: &Judged| {
        let (rule, end) = match draft {
            true => (&judged.draft_rule, judged.draft_end),
            false => (&judged.rule, judged.end),
        };
        match (rule, end) {
            (Some(rule), Some(end)) if rule.contains('/') || rule.contains(end) => rule.clone(),
            (Some(rule), Some(end)) => format!("{rule} ({end})"),
            _ => "no policy".to_owned(),
        }
    };
    (rule(&row.before), rule(&row.after))
}

/// Flags of a row.
pub(crate) fn notes(row: &EdgeRow) -> String {
    let mut notes = Vec::new();
    let traffic = &row.traffic;
    if traffic.recent {
        notes.push("recent");
    }
    if traffic.rare {
        notes.push("rare");
    }
    if traffic.denied > 0 && traffic.allowed == 0 {
        notes.push("was denied");
    }
    if traffic.doubtful > 0 {
        notes.push("opener doubtful");
    }
    notes.join(", ")
}

pub(crate) fn port(traffic: &Traffic) -> String {
    output::port(traffic.protocol.into(), traffic.port.into())
}

pub(crate) fn last_seen(traffic: &Traffic) -> String {
    output::moment_or_empty(traffic.last_seen.and_then(rfc3339).as_ref())
}

pub(crate) fn edges(count: u64) -> String {
    output::counted(usize::try_from(count).unwrap_or(usize::MAX), "edge")
}

fn days(duration: time::Duration) -> String {
    let days = duration.whole_days();
    if duration == time::Duration::days(days) {
        return match days {
            1 => "day".to_owned(),
            _ => format!("{days} days"),
        };
    }
    let duration = std::time::Duration::try_from(duration).unwrap_or_default();
    humantime::format_duration(duration).to_string()
}

fn rfc3339(at: OffsetDateTime) -> Option<String> {
    at.format(&Rfc3339).ok()
}

/// One object that is different, as `apply` tells it.
fn changed(id: &str, change: &diff::ObjectChange) -> Change {
    let (kind, name) = id.split_once('/').unwrap_or((id, ""));
    let (change, fields) = match change {
        diff::ObjectChange::Added => ("added", Vec::new()),
        diff::ObjectChange::Removed => ("removed", Vec::new()),
        diff::ObjectChange::Changed { fields } => {
            let paths = fields.iter().map(|field| field.path.clone());
            ("changed", paths.collect())
        }
    };
    Change {
        kind: kind.to_owned(),
        name: name.to_owned(),
        change: change.to_owned(),
        fields,
    }
}

/// One line for each object that is different.
pub(crate) fn objects(report: &PlanReport) -> Vec<String> {
    (report.changes.iter())
        .map(|object| {
            let sign = match object.change.as_str() {
                "added" => '+',
                "removed" => '-',
                _ => '~',
            };
            let line = format!("{sign} {}/{}", object.kind, object.name);
            match object.fields.is_empty() {
                true => line,
                false => format!("{line}: {}", object.fields.join(", ")),
            }
        })
        .collect()
}

impl PlanReport {
    fn edge_table(&self, rows: &[&EdgeRow], screen: &mut Screen) -> io::Result<()> {
        let heads = [
            "FROM",
            "TO",
            "PORT",
            "FLOWS",
            "LAST-SEEN",
            "BEFORE",
            "AFTER",
            "NOTE",
        ];
        let mut table = Table::new(&heads.map(|head| (head, 0)));
        for row in rows {
            let (before, after) = rules(row);
            let tone = match row.classes.first() {
                Some(Class::NewlyBlocked) if row.traffic.recent => Tone::Bad,
                Some(Class::NewlyBlocked | Class::DraftBlocked) => Tone::Warn,
                _ => Tone::Plain,
            };
            table.row([
                (row.from.name(), tone),
                (row.to.name(), tone),
                (port(&row.traffic), tone),
                (row.traffic.flows.to_string(), Tone::Plain),
                (last_seen(&row.traffic), Tone::Plain),
                (before, Tone::Plain),
                (after, Tone::Plain),
                (notes(row), Tone::Plain),
            ]);
        }
        table.print(screen)
    }

    fn summary(&self, screen: &mut Screen) -> io::Result<()> {
        for line in objects(self) {
            screen.line(&line)?;
        }
        let counts = &self.plan.counts;
        let period = match (&self.input.first_seen, &self.input.last_seen) {
            (Some(first), Some(last)) => format!(
                ", seen from {} to {}",
                output::moment(first),
                output::moment(last)
            ),
            _ => String::new(),
        };
        screen.line(&format!(
            "held against {}, {} flows{period}",
            edges(self.input.edges as u64),
            self.input.flows
        ))?;
        for class in Class::ALL {
            let count = self.plan.count(class);
            if count.edges > 0 {
                screen.line(&format!(
                    "  {:<14} {}",
                    class.name(),
                    self.count_text(count)
                ))?;
            }
        }
        self.widening(screen)?;
        screen.line(&format!(
            "  {:<14} {} pass, {} dropped",
            "unchanged", counts.unchanged_allowed, counts.unchanged_denied
        ))
    }

    fn gone(&self, screen: &mut Screen) -> io::Result<()> {
        if self.plan.gone.is_empty() {
            return Ok(());
        }
        screen.line("\ncannot be told: a workload of these edges is gone")?;
        let mut table =
            Table::new(&["FROM", "TO", "PORT", "FLOWS", "LAST-SEEN", "WHY"].map(|head| (head, 0)));
        for row in self.plan.gone.iter().take(self.limit) {
            table.row([
                row.from.clone(),
                row.to.clone(),
                port(&row.traffic),
                row.traffic.flows.to_string(),
                last_seen(&row.traffic),
                format!("{}: {}", row.end, word(&row.reason)),
            ]);
        }
        table.print(screen)?;
        self.cut(self.plan.gone.len(), screen)
    }

    fn rule_table(&self, screen: &mut Screen) -> io::Result<()> {
        if self.plan.rules.is_empty() {
            return Ok(());
        }
        screen.line("\nrules of the change")?;
        let mut table =
            Table::new(&["RULE", "ACTION", "EDGES", "FLOWS", "PLACE"].map(|head| (head, 0)));
        for rule in self.plan.rules.iter().take(self.limit) {
            let tone = if rule.edges == 0 {
                Tone::Warn
            } else {
                Tone::Plain
            };
            let edges = match rule.edges {
                0 => "none seen".to_owned(),
                count => count.to_string(),
            };
            table.row([
                (rule.rule.clone(), Tone::Plain),
                (rule.action.to_owned(), Tone::Plain),
                (edges, tone),
                (rule.flows.to_string(), Tone::Plain),
                (rule.place.clone().unwrap_or_default(), Tone::Plain),
            ]);
        }
        table.print(screen)?;
        self.cut(self.plan.rules.len(), screen)
    }

    fn widening(&self, screen: &mut Screen) -> io::Result<()> {
        let widening = &self.plan.widening;
        for (name, pairs, unseen) in [
            ("widened", widening.pairs, widening.never_seen),
            (
                "draft widened",
                widening.draft_pairs,
                widening.draft_never_seen,
            ),
        ] {
            if pairs > 0 {
                screen.line(&format!(
                    "  {name:<14} {} of workloads more could talk, {unseen} of them never seen to",
                    output::counted(usize::try_from(pairs).unwrap_or(usize::MAX), "pair")
                ))?;
            }
        }
        Ok(())
    }

    fn halves(&self, screen: &mut Screen) -> io::Result<()> {
        for half in self.plan.missing_halves.iter().take(self.limit) {
            screen.line(&format!("\n{}", half_text(half)))?;
            for line in half.yaml.iter().flat_map(|yaml| yaml.lines()) {
                screen.line(&format!("    {line}"))?;
            }
        }
        self.cut(self.plan.missing_halves.len(), screen)
    }

    fn radius_table(&self, screen: &mut Screen) -> io::Result<()> {
        if self.plan.radius.is_empty() {
            return Ok(());
        }
        screen.line("\nblast radius: workloads reached at once/over others, before → after")?;
        let mut table = Table::new(&["WORKLOAD", "ENFORCED", "DRAFT"].map(|head| (head, 0)));
        for row in self.plan.radius.iter().take(self.limit) {
            table.row([
                row.workload.clone(),
                radius_text(row.before, row.after),
                radius_text(row.draft_before, row.draft_after),
            ]);
        }
        table.print(screen)?;
        self.cut(self.plan.radius.len(), screen)
    }

    fn cut(&self, count: usize, screen: &mut Screen) -> io::Result<()> {
        match count.saturating_sub(self.limit) {
            0 => Ok(()),
            more => screen.line(&format!("… and {more} more (--limit, or -o json)")),
        }
    }
}

/// What is missing, in a sentence.
pub(crate) fn half_text(half: &MissingHalf) -> String {
    let pairs = output::counted(usize::try_from(half.pairs).unwrap_or(usize::MAX), "pair");
    let what = match half.yaml {
        Some(_) => "the missing half, staged:",
        None => "no rule is proposed",
    };
    format!(
        "missing half: {} allows what the {} of the other end denies ({}), as from {} to {}, {pairs}; {what}",
        half.rule, half.end, half.denied_by, half.example.from, half.example.to
    )
}

/// `1/3 → 2/5`; one number where nothing is different.
pub(crate) fn radius_text(before: Radius, after: Radius) -> String {
    let text = |radius: Radius| format!("{}/{}", radius.direct, radius.all);
    if before == after {
        text(after)
    } else {
        format!("{} → {}", text(before), text(after))
    }
}

/// The word that JSON has.
pub(crate) fn word(value: &impl Serialize) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

impl Document for PlanReport {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        if self.plan.objects.is_empty() {
            screen.line("no change")?;
        }
        self.summary(screen)?;
        for class in Class::ALL {
            let (rows, count) = self.rows(class);
            if count > 0 {
                screen.line(&format!("\n{}", heading(class)))?;
                self.edge_table(&rows, screen)?;
                self.cut(count, screen)?;
            }
        }
        self.gone(screen)?;
        self.rule_table(screen)?;
        self.halves(screen)?;
        self.radius_table(screen)?;
        let remarks = [self.input.warnings(), self.remarks()].concat();
        if !remarks.is_empty() {
            screen.line("")?;
        }
        for remark in remarks {
            screen.line(&format!("note: {remark}"))?;
        }
        for bad in &self.input.bad {
            screen.line(&format!("  left out: {}: {}", bad.place, bad.message))?;
        }
        if !self.forbidden.is_empty() {
            screen.toned("forbidden", Tone::Bad)?;
            screen.line(&format!(" by --fail-on: {}", self.forbidden.join(", ")))?;
        }
        Ok(())
    }

    fn markdown(&self) -> Option<String> {
        Some(plan_markdown::page(self))
    }
}
