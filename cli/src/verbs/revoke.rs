//! `revoke`: an agent may not come back.

use std::time::Duration;

use clap::Args;
use proto::v1::{self, inventory_client::InventoryClient};

use super::session::{Session, mutation};
use crate::Outcome;
use crate::model;
use crate::options::MutationFlags;
use crate::output::Screen;

/// Revoke the certificate of a workload's agent
#[derive(Debug, Args)]
pub(crate) struct Revoke {
    /// Workload whose agent is no longer trusted
    workload: String,
    #[command(flatten)]
    mutation: MutationFlags,
}

impl Revoke {
    /// Runs the verb.
    pub(crate) async fn run(
        self,
        session: &Session,
        screen: &mut Screen,
    ) -> anyhow::Result<Outcome> {
        let options = mutation(&self.mutation, false)?;
        let key = options.idempotency_key.clone();
        let request = v1::RevokeAgentRequest {
            options: Some(options),
            workload: self.workload.clone(),
        };
        let remote = session.connect().await?;
        let mut client = InventoryClient::new(remote.channel());
        let response = remote
            .mutate(&key, Duration::ZERO, client.revoke_agent(request))
            .await?;
        screen.show(&model::Revoked {
            workload: self.workload,
            revision: response.revision,
        })?;
        Ok(Outcome::Done)
    }
}
