//! `edges`: who talked to whom, ever.

use clap::Args;
use proto::v1::{self, flows_client::FlowsClient};

use super::flows::FilterFlags;
use super::session::{Session, pages};
use crate::Outcome;
use crate::client::MAX_ANSWER;
use crate::model::{Edge, EdgeList};
use crate::output::Screen;

/// Show who talked to whom on which port, ever
#[derive(Debug, Args)]
pub(crate) struct Edges {
    #[command(flatten)]
    filter: FilterFlags,
    /// At most so many
    #[arg(long, value_name = "N", default_value_t = 1000)]
    limit: usize,
}

impl Edges {
    /// Runs the verb.
    pub(crate) async fn run(
        self,
        session: &Session,
        screen: &mut Screen,
    ) -> anyhow::Result<Outcome> {
        let filter = self.filter.to_filter()?;
        let remote = session.connect().await?;
        let found = pages(self.limit, |page_size, page_token| {
            let remote = remote.clone();
            let request = v1::ListEdgesRequest {
                filter: Some(filter.clone()),
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
        screen.show(&EdgeList {
            edges: found.rows.into_iter().map(Edge::from).collect(),
            truncated: found.truncated,
        })?;
        Ok(Outcome::Done)
    }
}
