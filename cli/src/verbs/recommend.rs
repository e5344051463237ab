//! `recommend`: staged policy for the traffic that was seen.

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use policy::api::Scenario;
use policy::plan::record::Record;
use policy::recommend::{
    MAX_EDGES, Observations, Options, Recommendation, Recorder, Window, recommend,
};
use policy::selectors::{Expression, Operator, Selector};
use policy::set::PolicySet;
use time::OffsetDateTime;

use super::current;
use super::plan::{recorded, since};
use super::session::Session;
use crate::Outcome;
use crate::change::Inventory;
use crate::client::Remote;
use crate::error::Failure;
use crate::model::{self, Recommended};
use crate::output::{Format, Screen};
use crate::records::{self, Skipped};
use crate::sources;

/// Recommend staged policy from the traffic that was seen, with what it covers and what it leaves out
///
/// Policies go to stdout as YAML, ready for `plan` and `apply`, or into the files of --out; the report goes to stderr.
/// With -o json or yaml both are one document, with -o markdown the report alone. Nothing is applied, and nothing is
/// asked of a controller with --inventory.
#[derive(Debug, Args)]
pub(crate) struct Recommend {
    /// Recorded traffic: what `flows -o json`, `flows -f -o json` or `edges -o json` printed, also gzipped; - for
    /// stdin [default: every edge that the controller has]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    flows: Vec<PathBuf>,
    /// Managed networks and workloads, instead of the controller's
    #[arg(long, value_name = "FILE", requires = "flows")]
    inventory: Option<PathBuf>,
    /// Existing policies, instead of the controller's: what their draft allows is not recommended again
    #[arg(long, value_name = "FILE|DIR", num_args = 1.., requires = "inventory")]
    policy: Vec<PathBuf>,
    #[command(flatten)]
    choice: Choice,
    /// Write every object into a file of this directory instead of stdout
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
}

/// What may be chosen.
#[derive(Debug, Args)]
struct Choice {
    /// Only policies for these workloads: KEY=VALUE, KEY or !KEY, with commas
    #[arg(long, value_name = "SELECTOR", value_parser = selector)]
    subject: Option<Selector>,
    /// What two groups of workloads did in fewer flows is rare: called out, and no rule
    #[arg(long, value_name = "N", default_value_t = 3)]
    min_seen: u64,
    /// The same for different hours in which it was seen
    #[arg(long, value_name = "N", default_value_t = 2)]
    min_hours: u32,
    /// What was last seen so many days before the end of the recording is stale: called out, and no rule; 0: never
    #[arg(long, value_name = "DAYS", default_value_t = 30)]
    stale_days: u32,
    /// Only traffic that was seen since then: a time, or so long ago
    #[arg(long, value_name = "TIME|DURATION")]
    since: Option<String>,
    /// Only traffic that was seen until then
    #[arg(long, value_name = "TIME|DURATION")]
    until: Option<String>,
    /// Lowest port that may be one of a service on changing ports
    #[arg(long, value_name = "PORT", default_value_t = 32_768)]
    dynamic_from: u16,
    /// What the names of all objects begin with
    #[arg(long, value_name = "NAME", default_value = "recommended", value_parser = prefix)]
    prefix: String,
    /// Owner of all objects
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// As if it were then, RFC 3339 [default: now]
    #[arg(long, value_name = "TIME", value_parser = super::policy::moment)]
    at: Option<OffsetDateTime>,
    /// Leave bad records out, and count them, instead of refusing the file
    #[arg(long)]
    skip_bad: bool,
    /// At most so many different edges: memory is bounded
    #[arg(long, value_name = "N", default_value_t = MAX_EDGES)]
    max_edges: usize,
    /// Entries of each list in the report
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

impl Recommend {
    /// Runs the verb.
    pub(crate) async fn run(
        self,
        session: &Session,
        screen: &mut Screen,
    ) -> anyhow::Result<Outcome> {
        let remote = match &self.inventory {
            Some(_) => None,
            None => Some(session.connect().await?),
        };
        let scenario = match self.scenario(remote.as_ref()).await? {
            Ok(scenario) => scenario,
            Err(problems) => {
                screen.show(&model::Problems::from(problems))?;
                return Ok(Outcome::Refused);
            }
        };
        let at = self.choice.at.unwrap_or_else(OffsetDateTime::now_utc);
        let observations = Observations::with_limit(&scenario.world, self.choice.max_edges);
        let mut recorder = Recorder::new(observations, self.window(at)?);
        let mut skipped = Skipped::default();
        let mut take = |record: Record| {
            recorder.add(record).map_err(|error| {
                Failure::new(
                    error.to_string(),
                    "give it more with --max-edges (some 150 bytes each), or less traffic with --since",
                )
                .into()
            })
        };
        for path in &self.flows {
            records::read(path, self.choice.skip_bad, &mut skipped, &mut take)?;
        }
        if let Some(remote) = remote.as_ref().filter(|_| self.flows.is_empty()) {
            for edge in recorded(remote).await? {
                take(Record::Edge(edge?))?;
            }
        }
        let (observations, count) = recorder.finish();
        let options = self.choice.options();
        let found = recommend(&scenario.world, observations, &scenario.set, &options, at);
        let shown = Recommended::new(&found, count, skipped);
        self.print(&found, &shown, screen)?;
        Ok(Outcome::Done)
    }

    /// Workloads, and the policies that exist.
    async fn scenario(
        &self,
        remote: Option<&Remote>,
    ) -> anyhow::Result<Result<Scenario, policy::problems::Problems>> {
        if let Some(remote) = remote {
            let policies = current::policies(remote).await?;
            let inventory = current::inventory(remote).await?;
            return Ok(policies.and_then(|set| inventory.scenario(set)));
        }
        let source = self
            .inventory
            .as_deref()
            .map(sources::read_file)
            .transpose()?;
        let policies = match self.policy.is_empty() {
            true => Vec::new(),
            false => sources::read(&self.policy)?,
        };
        Ok(Inventory::file(source.as_ref())
            .and_then(|inventory| inventory.scenario(PolicySet::parse(&policies)?)))
    }

    fn window(&self, at: OffsetDateTime) -> anyhow::Result<Window> {
        let moment = |name: &str, text: &Option<String>| {
            text.as_deref()
                .map(|text| since(name, text, at))
                .transpose()
        };
        Ok(Window {
            since: moment("--since", &self.choice.since)?,
            until: moment("--until", &self.choice.until)?,
        })
    }

    fn print(
        &self,
        found: &Recommendation,
        shown: &Recommended,
        screen: &mut Screen,
    ) -> anyhow::Result<()> {
        if let Some(directory) = &self.out {
            write_files(directory, found)?;
        }
        if screen.format() != Format::Table {
            return screen.show(shown);
        }
        if self.out.is_none() {
            for object in &found.objects {
                screen.raw("---\n")?;
                screen.raw(&policy::yaml::to_string(&object.to_json()))?;
            }
        }
        for line in shown.text.lines() {
            screen.remark(line)?;
        }
        Ok(())
    }
}

impl Choice {
    fn options(&self) -> Options {
        Options {
            min_flows: self.min_seen,
            min_periods: self.min_hours,
            stale_days: self.stale_days,
            dynamic_from: self.dynamic_from,
            subject: self.subject.clone(),
            prefix: self.prefix.clone(),
            owner: self.owner.clone(),
            list: self.limit,
            ..Options::default()
        }
    }
}

/// Writes one file an object; a file that is there with another content is not overwritten.
fn write_files(directory: &Path, found: &Recommendation) -> anyhow::Result<()> {
    let mut files = Vec::new();
    for object in &found.objects {
        let name = format!("{}.yaml", object.metadata().name.replace(['/', ':'], "-"));
        let text = policy::yaml::to_string(&object.to_json());
        let path = directory.join(name);
        match fs::read_to_string(&path) {
            Ok(there) if there != text => {
                return Err(Failure::new(
                    format!("{} is there already", path.display()),
                    "name an empty directory, or use another --prefix",
                )
                .into());
            }
            _ => files.push((path, text)),
        }
    }
    let failed = |path: &Path, error: std::io::Error| {
        Failure::plain(format!("cannot write {}: {error}", path.display()))
    };
    fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
    for (path, text) in files {
        fs::write(&path, text).map_err(|error| failed(&path, error))?;
    }
    Ok(())
}

/// `app=web,env=prod,!legacy,tier`.
fn selector(text: &str) -> Result<Selector, String> {
    let mut selector = Selector::default();
    for part in text.split(',').map(str::trim) {
        let exists = |key: &str, operator| Expression {
            key: key.to_owned(),
            operator,
            values: Vec::new(),
        };
        match (part.split_once('='), part.strip_prefix('!')) {
            _ if part.is_empty() || part == "!" || part.starts_with('=') => {
                return Err("write it like app=web,env=prod,!legacy".to_owned());
            }
            (Some((key, value)), _) => {
                let old = selector.match_labels.insert(key.into(), value.into());
                if old.is_some() {
                    return Err(format!("\"{key}\" is there twice"));
                }
            }
            (None, Some(key)) => {
                let absent = exists(key, Operator::DoesNotExist);
                selector.match_expressions.push(absent);
            }
            (None, None) => {
                let present = exists(part, Operator::Exists);
                selector.match_expressions.push(present);
            }
        }
    }
    let keys: std::collections::BTreeSet<&str> = selector.keys().collect();
    if keys.len() > 4 {
        return Err("more than four keys: name fewer".to_owned());
    }
    Ok(selector)
}

/// The beginning of a name.
fn prefix(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if text.is_empty() || text.len() > 40 || !text.chars().all(fits) {
        return Err("use 1–40 letters, digits and - _ .".to_owned());
    }
    Ok(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn selectors_are_read() {
        assert_eq!(selector("app=web").unwrap(), Selector::label("app", "web"));
        let long = selector("app=web, env=prod,!legacy,tier").unwrap();
        assert_eq!(long.to_string(), "app=web,env=prod,!legacy,tier");
        for bad in ["", "app=web,", "=x", "!", "a=1,a=2", "a,b,c,d,e"] {
            assert!(selector(bad).is_err(), "{bad}");
        }
    }
}
