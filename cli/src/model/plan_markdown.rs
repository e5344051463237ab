//! A plan as a comment on a merge request: the answer first, what is dangerous in the open, the rest folded.

use std::fmt::Write as _;

use policy::plan::report::Class;

use super::plan::{
    PlanReport, edges, half_text, heading, last_seen, notes, objects, port, radius_text, rules,
    word,
};

/// GitHub and GitLab both take this subset: tables, `details`, code spans.
pub(super) fn page(report: &PlanReport) -> String {
    let mut page = String::new();
    head(report, &mut page);
    for class in Class::ALL {
        section(report, class, &mut page);
    }
    gone(report, &mut page);
    rule_table(report, &mut page);
    halves(report, &mut page);
    radius(report, &mut page);
    let mut bad = String::new();
    for record in &report.input.bad {
        let _ = writeln!(bad, "* {}: {}", code(&record.place), text(&record.message));
    }
    folded("Bad records that were left out", &bad, false, &mut page);
    page
}

fn head(report: &PlanReport, page: &mut String) {
    let plan = &report.plan;
    let verdict = if !report.forbidden.is_empty() {
        format!("❌ forbidden: {}", report.forbidden.join(", "))
    } else if plan.objects.is_empty() {
        "✅ no change".to_owned()
    } else if plan.edges.is_empty() {
        "✅ no effect on the traffic that was seen".to_owned()
    } else {
        "⚠️ it changes what happens to traffic that was seen".to_owned()
    };
    let _ = writeln!(page, "### Policy plan: {verdict}\n");
    let _ = writeln!(
        page,
        "| | edges | flows | recent | rare |\n|---|--:|--:|--:|--:|"
    );
    for class in Class::ALL {
        let count = plan.count(class);
        let name = class.name().replace('-', " ");
        let name = match (class, count.edges) {
            (Class::NewlyBlocked, 1..) => format!("**{name}**"),
            _ => name,
        };
        let _ = writeln!(
            page,
            "| {name} | {} | {} | {} | {} |",
            count.edges, count.flows, count.recent, count.rare
        );
    }
    let widening = &plan.widening;
    for (name, pairs, unseen) in [
        ("widened", widening.pairs, widening.never_seen),
        (
            "draft widened",
            widening.draft_pairs,
            widening.draft_never_seen,
        ),
    ] {
        if pairs > 0 {
            let _ = writeln!(
                page,
                "\n**{name}**: {pairs} pairs of workloads more could talk, {unseen} of them never seen to."
            );
        }
    }
    let counts = &plan.counts;
    let _ = writeln!(
        page,
        "\nHeld against {} ({} flows); on {} nothing changes ({} pass, {} dropped).\n",
        edges(report.input.edges as u64),
        report.input.flows,
        counts.unchanged_allowed + counts.unchanged_denied,
        counts.unchanged_allowed,
        counts.unchanged_denied
    );
    for warning in report.input.warnings().iter().chain(&report.remarks()) {
        let _ = writeln!(page, "> {}\n", text(warning));
    }
    let mut list = String::new();
    for line in objects(report) {
        let _ = writeln!(list, "* {}", code(&line));
    }
    folded("What is different", &list, plan.objects.len() <= 5, page);
}

fn section(report: &PlanReport, class: Class, page: &mut String) {
    let (rows, count) = report.rows(class);
    if count == 0 {
        return;
    }
    let mut table = String::from(
        "| from | to | port | flows | last seen | before | after | |\n|---|---|---|--:|---|---|---|---|\n",
    );
    for row in rows {
        let (before, after) = rules(row);
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} | {} | {} | {} |",
            code(&row.from.name()),
            code(&row.to.name()),
            port(&row.traffic),
            row.traffic.flows,
            last_seen(&row.traffic),
            code(&before),
            code(&after),
            notes(row)
        );
    }
    more(count, report.limit, &mut table);
    let title = format!("{} ({})", heading(class), edges(count as u64));
    if class == Class::NewlyBlocked {
        let _ = writeln!(page, "#### {title}\n\n{table}");
    } else {
        folded(&title, &table, false, page);
    }
}

fn gone(report: &PlanReport, page: &mut String) {
    let rows = &report.plan.gone;
    if rows.is_empty() {
        return;
    }
    let mut table =
        String::from("| from | to | port | flows | last seen | why |\n|---|---|---|--:|---|---|\n");
    for row in rows.iter().take(report.limit) {
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} | {}: {} |",
            code(&row.from),
            code(&row.to),
            port(&row.traffic),
            row.traffic.flows,
            last_seen(&row.traffic),
            row.end,
            word(&row.reason)
        );
    }
    more(rows.len(), report.limit, &mut table);
    let title = format!(
        "cannot be told: a workload is gone ({})",
        edges(rows.len() as u64)
    );
    folded(&title, &table, false, page);
}

fn rule_table(report: &PlanReport, page: &mut String) {
    let rules = &report.plan.rules;
    if rules.is_empty() {
        return;
    }
    let unused = rules.iter().filter(|rule| rule.edges == 0).count();
    let mut table =
        String::from("| rule | action | edges | flows | place |\n|---|---|--:|--:|---|\n");
    for rule in rules.iter().take(report.limit) {
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {} |",
            code(&rule.rule),
            rule.action,
            if rule.edges == 0 {
                "none seen".to_owned()
            } else {
                rule.edges.to_string()
            },
            rule.flows,
            code(rule.place.as_deref().unwrap_or_default())
        );
    }
    more(rules.len(), report.limit, &mut table);
    let title = format!(
        "Rules of the change: {}, {unused} without any traffic ever seen",
        rules.len()
    );
    folded(&title, &table, false, page);
}

fn halves(report: &PlanReport, page: &mut String) {
    let halves = &report.plan.missing_halves;
    if halves.is_empty() {
        return;
    }
    let mut body = String::new();
    for half in halves.iter().take(report.limit) {
        let _ = writeln!(body, "{}\n", text(&half_text(half)));
        if let Some(yaml) = &half.yaml {
            let _ = writeln!(body, "```yaml\n{}\n```\n", yaml.trim_end());
        }
    }
    more(halves.len(), report.limit, &mut body);
    let title = format!("Missing halves: {}", halves.len());
    folded(&title, &body, true, page);
}

fn radius(report: &PlanReport, page: &mut String) {
    let rows = &report.plan.radius;
    if rows.is_empty() {
        return;
    }
    let mut table = String::from("| workload | enforced | draft |\n|---|---|---|\n");
    for row in rows.iter().take(report.limit) {
        let _ = writeln!(
            table,
            "| {} | {} | {} |",
            code(&row.workload),
            radius_text(row.before, row.after),
            radius_text(row.draft_before, row.draft_after)
        );
    }
    more(rows.len(), report.limit, &mut table);
    let title = format!(
        "Blast radius of {} workloads (reached at once/over others)",
        rows.len()
    );
    folded(&title, &table, false, page);
}

fn more(count: usize, limit: usize, table: &mut String) {
    if let more @ 1.. = count.saturating_sub(limit) {
        let _ = writeln!(table, "\n… and {more} more");
    }
}

fn folded(title: &str, body: &str, open: bool, page: &mut String) {
    if body.is_empty() {
        return;
    }
    let open = if open { " open" } else { "" };
    let _ = writeln!(
        page,
        "<details{open}><summary>{}</summary>\n\n{body}\n</details>\n",
        text(title)
    );
}

/// A code span that nothing in the text can leave: names come from hosts and may be hostile.
fn code(content: &str) -> String {
    if content.is_empty() {
        return String::new();
    }
    let clean: String = content
        .chars()
        .map(|c| match c {
            '`' => '\'',
            '\n' | '\r' => ' ',
            other => other,
        })
        .collect();
    format!("`{}`", clean.replace('|', "\\|"))
}

/// Plain text in which nothing is markup.
fn text(content: &str) -> String {
    let mut clean = String::with_capacity(content.len());
    for c in content.chars() {
        match c {
            '\n' | '\r' => clean.push(' '),
            '<' => clean.push_str("&lt;"),
            '&' => clean.push_str("&amp;"),
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '#' | '@' => {
                clean.push('\\');
                clean.push(c);
            }
            other => clean.push(other),
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_become_markup() {
        assert_eq!(code("a`|b\nc"), "`a'\\|b c`");
        assert_eq!(text("<b>*x* @all"), "&lt;b>\\*x\\* \\@all");
    }
}
