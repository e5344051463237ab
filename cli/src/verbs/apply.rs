//! `apply`: change policy.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use clap::Args;
use proto::v1::{self, policies_client::PoliciesClient};

use super::session::{Session, mutation, whole_seconds};
use crate::Outcome;
use crate::error::Failure;
use crate::model;
use crate::options::{MutationFlags, duration};
use crate::output::Screen;
use crate::sources;

/// Apply policy documents, all or none
///
/// The files are checked here first, then by the controller. A change that denies more falls back by
/// itself unless it is confirmed in time.
#[derive(Debug, Args)]
pub(crate) struct Apply {
    /// File, directory (recursively: .yaml, .yml, .json) or - for stdin; may be repeated
    #[arg(short, long = "file", value_name = "FILE|DIR", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
    /// Check and show, change nothing
    #[arg(long)]
    dry_run: bool,
    /// Remove the objects that are not in the files
    #[arg(long)]
    prune: bool,
    /// Fall back unless confirmed within this long [default: 60s when the change denies more]
    #[arg(long, value_name = "DURATION", value_parser = duration, conflicts_with = "no_confirm")]
    confirm_within: Option<Duration>,
    /// Make the change final at once
    #[arg(long)]
    no_confirm: bool,
    #[command(flatten)]
    mutation: MutationFlags,
}

impl Apply {
    /// Runs the verb.
    pub(crate) async fn run(
        self,
        session: &Session,
        screen: &mut Screen,
    ) -> anyhow::Result<Outcome> {
        let confirm_within_seconds = match self.confirm_within {
            Some(within) => {
                i32::try_from(whole_seconds(within)?).context("--confirm-within is too long")?
            }
            None if self.no_confirm => -1,
            None => 0,
        };
        let request = v1::ApplyRequest {
            options: Some(mutation(&self.mutation, self.dry_run)?),
            files: Vec::new(),
            prune: self.prune,
            confirm_within_seconds,
        };
        let Some(document) = send(&self.files, request, session, screen).await? else {
            return Ok(Outcome::Refused);
        };
        screen.show(&document)?;
        Ok(Outcome::Done)
    }
}

/// Checks the files here, then lets the controller apply them. `None`: refused, and the reasons are printed.
pub(super) async fn send(
    paths: &[PathBuf],
    mut request: v1::ApplyRequest,
    session: &Session,
    screen: &mut Screen,
) -> anyhow::Result<Option<model::Apply>> {
    let sources = sources::read(paths)?;
    // Only what can be told of the files alone: what they refer to may be in the store.
    let objects = match policy::parse::parse(&sources) {
        Ok(objects) => objects,
        Err(problems) => {
            screen.show(&model::Problems::from(problems))?;
            screen.remark("nothing was applied")?;
            return Ok(None);
        }
    };
    if objects.is_empty() {
        return Err(Failure::new(
            "the files hold no object",
            "name the files that hold your policy",
        )
        .into());
    }
    request.files = sources
        .into_iter()
        .map(|source| v1::SourceFile {
            name: source.name.to_string(),
            text: source.text,
        })
        .collect();
    let options = request.options.clone().unwrap_or_default();
    let remote = session.connect().await?;
    let mut client = PoliciesClient::new(remote.channel());
    let response = remote
        .mutate(
            &options.idempotency_key,
            Duration::ZERO,
            client.apply(request),
        )
        .await?;
    let document = model::Apply::new(response, options.dry_run, &session.command("confirm"));
    if document.problems.is_empty() {
        return Ok(Some(document));
    }
    screen.show(&model::Problems {
        problems: document.problems,
    })?;
    screen.remark("nothing was applied")?;
    Ok(None)
}
