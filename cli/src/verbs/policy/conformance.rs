//! `policy conformance`: answers cases of the Kubernetes network-policy conformance format.

use std::path::PathBuf;

use clap::Args;
use policy::conformance::{Answer, Case, Examiner, Expected, Judge, Outline, answer_line};
use policy::evaluate::Verdict;
use time::OffsetDateTime;

use crate::Outcome;
use crate::error::complain;
use crate::output::{Format, Screen, counted};
use crate::sources;

/// How many wrong answers are told one by one.
const TOLD: usize = 50;

/// Answer Kubernetes conformance cases: one JSON line each, {"id", "results": [allow|deny]}
///
/// A case is a line with a cluster, its policies and probes (docs/policy.md says which). `results` are in the order
/// of the probes; what cannot be judged is null. The summary goes to stderr, and where cases say what they expect, so do
/// the answers that are wrong; what is expected has no influence on the answers. Exit code 1 if anything is null or wrong.
#[derive(Debug, Args)]
pub(super) struct Conformance {
    /// JSON lines, gzip or not; - for stdin
    #[arg(value_name = "FILE.jsonl[.gz]")]
    file: PathBuf,
    /// Judge by the compiled snapshot of each end's host, not by the reference evaluator
    #[arg(long)]
    compiled: bool,
}

/// What became of all cases.
#[derive(Debug, Default)]
struct Summary {
    cases: usize,
    probes: usize,
    unanswered: usize,
    unreadable: usize,
    compared: usize,
    wrong: usize,
}

impl Conformance {
    pub(super) fn run(self, screen: &mut Screen) -> anyhow::Result<Outcome> {
        if !matches!(screen.format(), Format::Table | Format::Json) {
            return Err(screen
                .unsupported("such", "-o json, which is the default")
                .into());
        }
        let source = sources::read_cases(&self.file)?;
        let mut examiner = Examiner::new(if self.compiled {
            Judge::Snapshot
        } else {
            Judge::Evaluator
        });
        let mut summary = Summary::default();
        let at = OffsetDateTime::now_utc();
        for (number, line) in (1..).zip(source.text.lines()) {
            if line.trim().is_empty() {
                continue;
            }
            let place = format!("{}:{number}", source.name);
            if let Some(answer) = summary.answer(line, &place, &mut examiner, at) {
                screen.raw(&answer)?;
                screen.raw("\n")?;
            }
        }
        screen.flush()?;
        summary.tell();
        Ok(if summary.is_perfect() {
            Outcome::Done
        } else {
            Outcome::Refused
        })
    }
}

impl Summary {
    /// The answer to one line; `None` where not even its id can be told.
    fn answer(
        &mut self,
        line: &str,
        place: &str,
        examiner: &mut Examiner,
        at: OffsetDateTime,
    ) -> Option<String> {
        let case: Case = match serde_json::from_str(line) {
            Ok(case) => case,
            Err(error) => {
                complain(&format!("{place}: not a case: {error}"));
                let Ok(outline) = serde_json::from_str::<Outline>(line) else {
                    self.unreadable += 1;
                    return None;
                };
                self.cases += 1;
                self.probes += outline.probes.len();
                self.unanswered += outline.probes.len().max(1);
                return Some(answer_line(&outline.id, &outline.nothing()));
            }
        };
        let answer = examiner.answer(&case, at);
        for error in &answer.errors {
            complain(&format!("{place}: {}: {error}", case.id));
        }
        self.cases += 1;
        self.probes += case.probes.len();
        let missing = answer.results.iter().filter(|result| result.is_none());
        // A case without probes can be wrong in itself.
        self.unanswered += missing.count().max(usize::from(!answer.errors.is_empty()));
        self.compare(line, &case, &answer);
        Some(answer_line(&case.id, &answer))
    }

    fn compare(&mut self, line: &str, case: &Case, answer: &Answer) {
        let Ok(expected) = serde_json::from_str::<Expected>(line) else {
            return;
        };
        let answers = case.probes.iter().zip(&answer.results);
        for ((probe, got), wanted) in answers.zip(expected.verdicts()) {
            let Some(wanted) = wanted else {
                continue;
            };
            self.compared += 1;
            if *got == Some(wanted) {
                continue;
            }
            self.wrong += 1;
            if self.wrong <= TOLD {
                complain(&format!(
                    "wrong: {}: {} → {} {}/{}: {}, expected {}",
                    case.id,
                    probe.from,
                    probe.to,
                    probe.port,
                    probe.proto,
                    got.map_or("null", Verdict::name),
                    wanted.name(),
                ));
            }
        }
    }

    fn tell(&self) {
        let more = self.wrong.saturating_sub(TOLD);
        if more > 0 {
            complain(&format!("… and {more} more"));
        }
        let mut text = format!(
            "{}, {}",
            counted(self.cases, "case"),
            counted(self.probes, "probe")
        );
        if self.unanswered > 0 {
            text += &format!(", {} without a verdict", self.unanswered);
        }
        if self.unreadable > 0 {
            text += &format!(", {} unreadable", counted(self.unreadable, "line"));
        }
        if self.compared > 0 {
            text += &format!(", {} of {} wrong", self.wrong, self.compared);
        }
        complain(&text);
    }

    const fn is_perfect(&self) -> bool {
        self.unanswered == 0 && self.unreadable == 0 && self.wrong == 0
    }
}
