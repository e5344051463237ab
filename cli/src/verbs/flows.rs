//! `flows`: what is on the wire.

use clap::Args;
use proto::v1::{self, flows_client::FlowsClient};

use super::explain::{PortSpec, protocol};
use super::session::{Session, pages};
use crate::Outcome;
use crate::client::{MAX_ANSWER, Remote};
use crate::model::{Flow, FlowList, Missed};
use crate::output::{Screen, Table};

/// Show flows, newest first, or follow them live
#[derive(Debug, Args)]
pub(crate) struct Flows {
    /// Print flows as they arrive, until Ctrl-C
    #[arg(short, long)]
    follow: bool,
    #[command(flatten)]
    filter: FilterFlags,
    /// At most so many (without --follow)
    #[arg(long, value_name = "N", default_value_t = 100)]
    limit: usize,
}

/// Which flows or edges.
#[derive(Debug, Args)]
pub(super) struct FilterFlags {
    /// One end is this workload or address
    #[arg(long, value_name = "NAME|ADDRESS")]
    workload: Option<String>,
    /// The other end is this workload or address
    #[arg(long, value_name = "NAME|ADDRESS")]
    peer: Option<String>,
    /// The responder's port; the protocol may be given too, as in 53/udp
    #[arg(long, value_name = "PORT[/PROTOCOL]")]
    port: Option<String>,
    /// Only this protocol: tcp, udp, sctp, icmp, icmpv6 or a number
    #[arg(long, value_name = "PROTOCOL", value_parser = protocol)]
    protocol: Option<u32>,
    /// Only what is denied
    #[arg(long)]
    denied: bool,
}

impl FilterFlags {
    /// For the wire.
    pub(super) fn to_filter(&self) -> anyhow::Result<v1::FlowFilter> {
        let mut filter = v1::FlowFilter {
            workload: self.workload.clone().unwrap_or_default(),
            peer: self.peer.clone().unwrap_or_default(),
            port: 0,
            denied_only: self.denied,
            protocol: self.protocol.unwrap_or_default(),
        };
        if let Some(port) = &self.port {
            let spec: PortSpec = port.parse()?;
            filter.port = spec.port;
            if port.contains('/') {
                filter.protocol = spec.protocol;
            }
        }
        Ok(filter)
    }
}

impl Flows {
    /// Runs the verb.
    pub(crate) async fn run(
        self,
        session: &Session,
        screen: &mut Screen,
    ) -> anyhow::Result<Outcome> {
        let filter = self.filter.to_filter()?;
        let remote = session.connect().await?;
        if self.follow {
            return follow(&remote, filter, screen).await;
        }
        let found = pages(self.limit, |page_size, page_token| {
            let remote = remote.clone();
            let request = v1::ListFlowsRequest {
                filter: Some(filter.clone()),
                page_size,
                page_token,
            };
            async move {
                let mut client =
                    FlowsClient::new(remote.channel()).max_decoding_message_size(MAX_ANSWER);
                let page = remote.read(client.list(request)).await?;
                Ok((page.flows, page.next_page_token))
            }
        })
        .await?;
        screen.show(&FlowList {
            flows: found.rows.into_iter().map(Into::into).collect(),
            truncated: found.truncated,
        })?;
        Ok(Outcome::Done)
    }
}

async fn follow(
    remote: &Remote,
    filter: v1::FlowFilter,
    screen: &mut Screen,
) -> anyhow::Result<Outcome> {
    let mut client = FlowsClient::new(remote.channel());
    let request = v1::FollowFlowsRequest {
        filter: Some(filter),
    };
    let mut stream = remote.stream(client.follow(request)).await?;
    if screen.is_table() {
        Table::print_head(Flow::HEADS, screen)?;
        screen.flush()?;
    }
    while let Some(flow) = stream.next().await? {
        match Missed::told_by(&flow) {
            Some(missed) => screen.show_streamed(&missed)?,
            None => screen.show_streamed(&Flow::from(flow))?,
        }
    }
    Ok(Outcome::Done)
}
