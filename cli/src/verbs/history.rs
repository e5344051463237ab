//! `history`: who changed what when.

use clap::Args;
use proto::v1::{self, policies_client::PoliciesClient};

use super::session::{Session, pages};
use crate::Outcome;
use crate::model;
use crate::output::Screen;

/// Show the changes of policy, newest first
#[derive(Debug, Args)]
pub(crate) struct History {
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 50)]
    limit: usize,
}

impl History {
    /// Runs the verb.
    pub(crate) async fn run(
        self,
        session: &Session,
        screen: &mut Screen,
    ) -> anyhow::Result<Outcome> {
        let remote = session.connect().await?;
        let found = pages(self.limit, |page_size, page_token| {
            let remote = remote.clone();
            async move {
                let mut client = PoliciesClient::new(remote.channel());
                let request = v1::HistoryRequest {
                    page_size,
                    page_token,
                };
                let page = remote.read(client.history(request)).await?;
                Ok((page.entries, page.next_page_token))
            }
        })
        .await?;
        screen.show(&model::History {
            entries: found.rows.into_iter().map(Into::into).collect(),
            truncated: found.truncated,
        })?;
        Ok(Outcome::Done)
    }
}
