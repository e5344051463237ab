//! `plan`: what a change would do to the traffic that was seen.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use policy::plan::edges::{EdgeLimits, Edges};
use policy::plan::record::{EdgeRecord, Record, RecordedEnd};
use policy::plan::report::{Class, Plan as Planned};
use policy::plan::{Thresholds, plan};
use policy::problems::Problems;
use policy::set::PolicySet;
use proto::v1::{self, flows_client::FlowsClient};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::current;
use super::session::{Session, pages};
use crate::Outcome;
use crate::change::{Change, Inventory};
use crate::client::{MAX_ANSWER, Remote};
use crate::error::Failure;
use crate::model::{self, PlanInput, PlanReport};
use crate::options::duration;
use crate::output::Screen;
use crate::records::{self, Skipped};
use crate::sources;

/// Show what a change would block and allow of the traffic that was seen; exit code 2 when that is forbidden
///
/// Compares the policy that is in force with the same policy after the change, on every edge ever seen. With
/// --inventory nothing is asked of a controller: then --base is the policy in force, and --flows the traffic.
#[derive(Debug, Args)]
pub(crate) struct Plan {
    /// New and changed objects: file, directory (recursively: .yaml, .yml, .json) or - for stdin
    #[arg(value_name = "FILE|DIR", required_unless_present = "delete")]
    files: Vec<PathBuf>,
    /// An object that goes; may be repeated
    #[arg(long, value_name = "KIND/NAME")]
    delete: Vec<String>,
    /// As if the objects that are not in the files were removed, too
    #[arg(long)]
    prune: bool,
    /// Recorded traffic: what `flows -o json`, `flows -f -o json` or `edges -o json` printed, also gzipped; - for
    /// stdin [default: every edge that the controller has]
    #[arg(long, value_name = "FILE", num_args = 1..)]
    flows: Vec<PathBuf>,
    /// Managed networks and workloads, instead of the controller's
    #[arg(long, value_name = "FILE")]
    inventory: Option<PathBuf>,
    /// The policy in force, instead of the controller's
    #[arg(long, value_name = "FILE|DIR", num_args = 1.., requires = "inventory")]
    base: Vec<PathBuf>,
    /// Only traffic that was seen since then: a time, or so long ago
    #[arg(long, value_name = "TIME|DURATION")]
    since: Option<String>,
    /// As if it were then, RFC 3339 [default: now]
    #[arg(long, value_name = "TIME", value_parser = super::policy::moment)]
    at: Option<OffsetDateTime>,
    /// What ends with exit code 2
    #[arg(
        long,
        value_enum,
        value_name = "WHAT",
        value_delimiter = ',',
        default_value = "newly-blocked"
    )]
    fail_on: Vec<FailOn>,
    /// Edges seen within this time are called recent
    #[arg(long, value_name = "DURATION", default_value = "7d", value_parser = duration)]
    recent: std::time::Duration,
    /// Edges of at most so many flows …
    #[arg(long, value_name = "N", default_value_t = 1)]
    rare_flows: u64,
    /// … that were not seen for this long are called rare
    #[arg(long, value_name = "DURATION", default_value = "30d", value_parser = duration)]
    rare_age: std::time::Duration,
    /// Leave bad records out, and count them, instead of refusing the file
    #[arg(long)]
    skip_bad: bool,
    /// At most so many different edges: memory is bounded
    #[arg(long, value_name = "N", default_value_t = EdgeLimits::default().edges)]
    max_edges: usize,
    /// Rows of each table for people; JSON and YAML have all
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

/// What a plan may forbid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum FailOn {
    /// Nothing
    None,
    /// An edge that passes today would be dropped
    NewlyBlocked,
    /// The same with everything staged enforced
    DraftBlocked,
    /// An edge that is dropped today would pass
    NewlyAllowed,
    /// The same with everything staged enforced
    DraftAllowed,
    /// A rule of the change decides no edge that was ever seen
    UnusedRule,
    /// A rule of the change allows what the other end denies
    MissingHalf,
    /// Workloads that no recorded traffic joins could talk at once
    Widened,
    /// The same with everything staged enforced
    DraftWidened,
    /// An edge whose workload is gone, so that nothing can be said of it
    Gone,
}

impl FailOn {
    fn is_met(self, plan: &Planned) -> bool {
        let has = |class| plan.count(class).edges > 0;
        match self {
            Self::None => false,
            Self::NewlyBlocked => has(Class::NewlyBlocked),
            Self::DraftBlocked => has(Class::DraftBlocked),
            Self::NewlyAllowed => has(Class::NewlyAllowed),
            Self::DraftAllowed => has(Class::DraftAllowed),
            Self::UnusedRule => plan.rules.iter().any(|rule| rule.edges == 0),
            Self::MissingHalf => !plan.missing_halves.is_empty(),
            Self::Widened => plan.widening.never_seen > 0,
            Self::DraftWidened => plan.widening.draft_never_seen > 0,
            Self::Gone => plan.counts.gone > 0,
        }
    }

    fn name(self) -> String {
        let value = self.to_possible_value();
        value.map_or_else(String::new, |value| value.get_name().to_owned())
    }
}

impl Plan {
    /// Runs the verb.
    pub(crate) async fn run(
        self,
        session: &Session,
        screen: &mut Screen,
    ) -> anyhow::Result<Outcome> {
        let at = self.at.unwrap_or_else(OffsetDateTime::now_utc);
        let since = self
            .since
            .as_deref()
            .map(|text| since("--since", text, at))
            .transpose()?;
        let sources = match self.files.is_empty() {
            true => Vec::new(),
            false => sources::read(&self.files)?,
        };
        let objects = match policy::parse::parse(&sources) {
            Ok(objects) => objects,
            Err(problems) => return refuse(problems, screen),
        };
        let remote = match &self.inventory {
            Some(_) => None,
            None => Some(session.connect().await?),
        };
        let (inventory, base) = match self.in_force(remote.as_ref()).await? {
            Ok(in_force) => in_force,
            Err(problems) => return refuse(problems, screen),
        };
        let change = Change {
            objects,
            deleted: self.delete.clone(),
            prune: self.prune,
        };
        let (before, after) = match change.sides(&inventory, base)? {
            Ok(sides) => sides,
            Err(problems) => return refuse(problems, screen),
        };
        let (edges, input) = self.traffic(remote.as_ref(), since).await?;
        let thresholds = Thresholds {
            recent: self.recent.try_into()?,
            rare_flows: self.rare_flows,
            rare_age: self.rare_age.try_into()?,
        };
        let plan = plan(&before, &after, &edges, at, thresholds);
        let forbidden: Vec<String> = (self.fail_on.iter())
            .filter(|what| what.is_met(&plan))
            .map(|what| what.name())
            .collect();
        let outcome = match forbidden.is_empty() {
            true => Outcome::Done,
            false => Outcome::Changes,
        };
        screen.show(&PlanReport::new(
            plan, input, forbidden, thresholds, self.limit,
        ))?;
        Ok(outcome)
    }

    /// The policy in force, and what it speaks about.
    async fn in_force(
        &self,
        remote: Option<&Remote>,
    ) -> anyhow::Result<Result<(Inventory, PolicySet), Problems>> {
        if let Some(remote) = remote {
            let policies = current::policies(remote).await?;
            let inventory = current::inventory(remote).await?;
            return Ok(policies.map(|policies| (inventory, policies)));
        }
        let source = self
            .inventory
            .as_deref()
            .map(sources::read_file)
            .transpose()?;
        let base = match self.base.is_empty() {
            true => Vec::new(),
            false => sources::read(&self.base)?,
        };
        let inventory = Inventory::file(source.as_ref());
        Ok(inventory.and_then(|inventory| Ok((inventory, PolicySet::parse(&base)?))))
    }

    /// Edges from the files, or else from the controller.
    async fn traffic(
        &self,
        remote: Option<&Remote>,
        since: Option<OffsetDateTime>,
    ) -> anyhow::Result<(Vec<policy::plan::edges::Edge>, PlanInput)> {
        let limits = EdgeLimits {
            edges: self.max_edges,
            ..EdgeLimits::default()
        };
        let mut edges = Edges::new(limits, since);
        let mut skipped = Skipped::default();
        let mut take = |record: Record| {
            edges.add(record).map_err(|error| {
                anyhow::Error::from(Failure::new(
                    error.to_string(),
                    "give it more with --max-edges (some 500 bytes each), or less traffic with --since",
                ))
            })
        };
        for path in &self.flows {
            records::read(path, self.skip_bad, &mut skipped, &mut take)?;
        }
        if let Some(remote) = remote.filter(|_| self.flows.is_empty()) {
            for edge in recorded(remote).await? {
                take(Record::Edge(edge?))?;
            }
        }
        let (edges, tally) = edges.finish();
        let input = PlanInput::new(tally, skipped, since, &edges);
        Ok((edges, input))
    }
}

/// Every edge that the controller has.
pub(super) async fn recorded(
    remote: &Remote,
) -> anyhow::Result<impl Iterator<Item = anyhow::Result<EdgeRecord>>> {
    let found = pages(usize::MAX, |page_size, page_token| {
        let remote = remote.clone();
        let request = v1::ListEdgesRequest {
            filter: None,
            page_size,
            page_token,
        };
        async move {
            let mut client =
                FlowsClient::new(remote.channel()).max_decoding_message_size(MAX_ANSWER);
            let page = remote.read(client.edges(request)).await?;
            Ok((page.edges, page.next_page_token))
        }
    })
    .await?;
    Ok(found.rows.into_iter().map(|edge| {
        let moment = |at: Option<prost_types::Timestamp>| {
            let at = at?;
            OffsetDateTime::from_unix_timestamp(at.seconds)
                .ok()?
                .checked_add(time::Duration::nanoseconds(at.nanos.into()))
        };
        Ok(EdgeRecord {
            source: RecordedEnd::named("from", edge.from)?,
            destination: RecordedEnd::named("to", edge.to)?,
            protocol: u8::try_from(edge.protocol)?,
            port: u16::try_from(edge.port)?,
            first_seen: moment(edge.first_seen),
            last_seen: moment(edge.last_seen),
            flows: edge.flows,
            packets: edge.packets,
            bytes: edge.bytes,
            allowed: edge.allowed,
            denied: edge.denied,
        })
    }))
}

/// A moment, or a time before `at`.
pub(super) fn since(flag: &str, text: &str, at: OffsetDateTime) -> Result<OffsetDateTime, Failure> {
    if let Ok(moment) = OffsetDateTime::parse(text, &Rfc3339) {
        return Ok(moment);
    }
    let ago = duration(text)
        .ok()
        .and_then(|ago| at.checked_sub(ago.try_into().ok()?));
    ago.ok_or_else(|| {
        Failure::new(
            format!("{flag} {text:?} is neither a time nor a duration"),
            "write it like 2026-11-23T10:00:00Z or 30d",
        )
    })
}

fn refuse(problems: Problems, screen: &mut Screen) -> anyhow::Result<Outcome> {
    screen.show(&model::Problems::from(problems))?;
    Ok(Outcome::Refused)
}
