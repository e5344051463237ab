//! `workloads`: what is protected.

use clap::Args;
use proto::v1::{self, inventory_client::InventoryClient};

use super::session::{Session, pages};
use crate::Outcome;
use crate::model::WorkloadList;
use crate::output::Screen;

/// Show the workloads, their labels, addresses and modes
#[derive(Debug, Args)]
pub(crate) struct Workloads {}

impl Workloads {
    /// Runs the verb.
    pub(crate) async fn run(
        self,
        session: &Session,
        screen: &mut Screen,
    ) -> anyhow::Result<Outcome> {
        let remote = session.connect().await?;
        let found = pages(usize::MAX, |page_size, page_token| {
            let remote = remote.clone();
            async move {
                let mut client = InventoryClient::new(remote.channel());
                let request = v1::ListWorkloadsRequest {
                    page_size,
                    page_token,
                };
                let page = remote.read(client.list_workloads(request)).await?;
                Ok((page.workloads, page.next_page_token))
            }
        })
        .await?;
        screen.show(&WorkloadList {
            workloads: found.rows.into_iter().map(Into::into).collect(),
        })?;
        Ok(Outcome::Done)
    }
}
