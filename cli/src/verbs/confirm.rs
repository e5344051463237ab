//! `confirm`: make a change final.

use std::time::Duration;

use clap::Args;
use proto::v1::{self, policies_client::PoliciesClient};

use super::session::{Session, mutation};
use crate::Outcome;
use crate::model;
use crate::options::MutationFlags;
use crate::output::Screen;

/// Make a commit-confirmed change final
#[derive(Debug, Args)]
pub(crate) struct Confirm {
    /// The change [default: the newest unconfirmed one]
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    revision: u64,
    #[command(flatten)]
    mutation: MutationFlags,
}

impl Confirm {
    /// Runs the verb.
    pub(crate) async fn run(
        self,
        session: &Session,
        screen: &mut Screen,
    ) -> anyhow::Result<Outcome> {
        let options = mutation(&self.mutation, false)?;
        let key = options.idempotency_key.clone();
        let request = v1::ConfirmRequest {
            options: Some(options),
            revision: self.revision,
        };
        let remote = session.connect().await?;
        let mut client = PoliciesClient::new(remote.channel());
        let response = remote
            .mutate(&key, Duration::ZERO, client.confirm(request))
            .await?;
        screen.show(&model::Confirmed {
            revision: response.revision,
        })?;
        Ok(Outcome::Done)
    }
}
