//! `rollback`: old content under a new revision.

use std::time::Duration;

use clap::Args;
use proto::v1::{self, policies_client::PoliciesClient};

use super::session::{Session, mutation};
use crate::Outcome;
use crate::model;
use crate::options::MutationFlags;
use crate::output::Screen;

/// Put the content of an earlier revision in force again, under a new revision
#[derive(Debug, Args)]
pub(crate) struct Rollback {
    /// Whose content to put in force; see `cofferdam history`
    #[arg(value_name = "REVISION")]
    revision: u64,
    /// Check and show, change nothing
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    mutation: MutationFlags,
}

impl Rollback {
    /// Runs the verb.
    pub(crate) async fn run(
        self,
        session: &Session,
        screen: &mut Screen,
    ) -> anyhow::Result<Outcome> {
        let options = mutation(&self.mutation, self.dry_run)?;
        let key = options.idempotency_key.clone();
        let request = v1::RollbackRequest {
            options: Some(options),
            to_revision: self.revision,
        };
        let remote = session.connect().await?;
        let mut client = PoliciesClient::new(remote.channel());
        let response = remote
            .mutate(&key, Duration::ZERO, client.rollback(request))
            .await?;
        let document = model::Apply::new(response, self.dry_run, &session.command("confirm"));
        if !document.problems.is_empty() {
            screen.show(&model::Problems {
                problems: document.problems,
            })?;
            screen.remark("nothing was rolled back")?;
            return Ok(Outcome::Refused);
        }
        screen.show(&document)?;
        Ok(Outcome::Done)
    }
}
