//! `findings`: what looks like an attack.

use clap::Args;
use proto::v1::{self, detections_client::DetectionsClient};

use super::session::{Session, pages};
use crate::Outcome;
use crate::client::{MAX_ANSWER, Remote};
use crate::model::{Finding, FindingList};
use crate::output::{Screen, Table};

/// Show findings with their evidence, or follow them live
#[derive(Debug, Args)]
pub(crate) struct Findings {
    /// Print findings as they are made, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    /// At most so many (without --follow)
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
}

impl Findings {
    /// Runs the verb.
    pub(crate) async fn run(
        self,
        session: &Session,
        screen: &mut Screen,
    ) -> anyhow::Result<Outcome> {
        let remote = session.connect().await?;
        if self.follow {
            return follow(&remote, screen).await;
        }
        let found = pages(self.limit, |page_size, page_token| {
            let remote = remote.clone();
            async move {
                let mut client =
                    DetectionsClient::new(remote.channel()).max_decoding_message_size(MAX_ANSWER);
                let request = v1::ListFindingsRequest {
                    page_size,
                    page_token,
                };
                let page = remote.read(client.list(request)).await?;
                Ok((page.findings, page.next_page_token))
            }
        })
        .await?;
        screen.show(&FindingList {
            findings: found.rows.into_iter().map(Into::into).collect(),
            truncated: found.truncated,
        })?;
        Ok(Outcome::Done)
    }
}

async fn follow(remote: &Remote, screen: &mut Screen) -> anyhow::Result<Outcome> {
    let mut client = DetectionsClient::new(remote.channel());
    let mut stream = remote
        .stream(client.follow(v1::FollowFindingsRequest {}))
        .await?;
    if screen.is_table() {
        Table::print_head(Finding::HEADS, screen)?;
        screen.flush()?;
    }
    while let Some(finding) = stream.next().await? {
        screen.show_streamed(&Finding::from(finding))?;
    }
    Ok(Outcome::Done)
}
