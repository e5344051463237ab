//! `xtask/vm/expected.list`: which kernels are refused, and which tests do not run on which kernel, and why.
//!
//! Every line must be earned: what it excuses is run all the same, alone, and a test that passes is an error.

use anyhow::{Context, Result, bail};

/// What is expected of a test that does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum How {
    /// The test itself says that it cannot run.
    Skips,
    /// It fails.
    Fails,
}

/// One test on one kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Excuse {
    pub(super) series: String,
    pub(super) suite: String,
    pub(super) test: String,
    pub(super) how: How,
    pub(super) reason: String,
}

/// The whole list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Expected {
    /// Series and what the agent must say it lacks.
    pub(super) refused: Vec<(String, Vec<String>)>,
    pub(super) excuses: Vec<Excuse>,
}

impl Expected {
    /// Reads the list: `refused SERIES FEATURE...` and `skips|fails SERIES SUITE TEST REASON...`.
    pub(super) fn parse(text: &str) -> Result<Self> {
        let mut list = Self::default();
        for line in text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty() && !line.starts_with('#'))
        {
            let mut words = line.split_whitespace().map(str::to_owned);
            let mut word = |what: &str| {
                words
                    .next()
                    .with_context(|| format!("{what} is missing: {line:?}"))
            };
            let kind = word("the kind")?;
            let series = word("the series")?;
            let how = match kind.as_str() {
                "refused" => {
                    let features: Vec<String> = words.collect();
                    if features.is_empty() {
                        bail!("refused for want of what? {line:?}");
                    }
                    list.refused.push((series, features));
                    continue;
                }
                "skips" => How::Skips,
                "fails" => How::Fails,
                other => bail!("neither refused, skips nor fails: {other:?}"),
            };
            let (suite, test) = (word("the suite")?, word("the test")?);
            let reason = words.collect::<Vec<_>>().join(" ");
            if reason.is_empty() {
                bail!("without a reason: {line:?}");
            }
            list.excuses.push(Excuse {
                series,
                suite,
                test,
                how,
                reason,
            });
        }
        Ok(list)
    }

    /// What a refused kernel lacks.
    pub(super) fn refusal(&self, series: &str) -> Option<&[String]> {
        self.refused
            .iter()
            .find(|(name, _)| name == series)
            .map(|(_, features)| features.as_slice())
    }

    /// The excuses of a suite on a kernel.
    pub(super) fn of<'a>(
        &'a self,
        series: &'a str,
        suite: &'a str,
    ) -> impl Iterator<Item = &'a Excuse> {
        self.excuses
            .iter()
            .filter(move |excuse| excuse.series == series && excuse.suite == suite)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read() {
        let list = Expected::parse("# x\nrefused 5.10 a b\nskips 6.1 clsact t needs a kernel with TCX\nfails 6.1 kernel m::u x\n").unwrap();
        assert_eq!(list.refusal("5.10").unwrap(), ["a", "b"]);
        assert_eq!(list.refusal("6.1"), None);
        let found: Vec<&Excuse> = list.of("6.1", "clsact").collect();
        assert_eq!(
            (found.len(), found[0].how, found[0].reason.as_str()),
            (1, How::Skips, "needs a kernel with TCX")
        );
    }

    #[test]
    fn a_line_without_a_reason_is_refused() {
        for line in [
            "fails 6.1 kernel t",
            "skips 6.1 kernel",
            "refused 5.10",
            "maybe 6.1 a b c",
        ] {
            assert!(Expected::parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn the_list_of_this_tree_names_what_there_is() {
        let project = crate::project::Project::find().unwrap();
        let read = |name: &str| std::fs::read_to_string(project.path(name)).unwrap();
        let list = Expected::parse(&read(super::super::EXPECTED)).unwrap();
        let series = super::super::lock::series(
            &super::super::lock::parse(&read(super::super::LOCK)).unwrap(),
        );
        assert!(list.refused.iter().all(|(name, _)| series.contains(name)));
        let suites = super::super::suites::all(&project).unwrap();
        for excuse in &list.excuses {
            assert!(series.contains(&excuse.series), "{excuse:?}");
            assert!(suites.contains(&excuse.suite), "{excuse:?}");
        }
    }
}
