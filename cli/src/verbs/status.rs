//! `status`: is it enforced everywhere?

use std::time::Duration;

use clap::Args;
use proto::v1::{self, status_client::StatusClient};
use tokio::time::Instant;

use super::session::Session;
use crate::Outcome;
use crate::client::{MAX_ANSWER, Remote};
use crate::error::{Failure, Interrupted};
use crate::model::FleetStatus;
use crate::options::duration;
use crate::output::Screen;

/// Show what every agent should have, has applied, and was seen to hold in its kernel
#[derive(Debug, Args)]
pub(crate) struct Status {
    /// Wait until enough agents have verified a revision; exit code 1 if they do not in time
    #[arg(long)]
    wait: bool,
    /// With --wait: this revision [default: the newest]
    #[arg(long, value_name = "N", requires = "wait")]
    revision: Option<u64>,
    /// With --wait: so many of the agents, in percent
    #[arg(long, value_name = "PERCENT", requires = "wait", default_value_t = 100.0, value_parser = percent)]
    percent: f64,
    /// With --wait: at most so long
    #[arg(long, value_name = "DURATION", requires = "wait", default_value = "60s", value_parser = duration)]
    timeout: Duration,
}

impl Status {
    /// Runs the verb.
    pub(crate) async fn run(
        self,
        session: &Session,
        screen: &mut Screen,
    ) -> anyhow::Result<Outcome> {
        let remote = session.connect().await?;
        if self.wait {
            return self.wait(&remote, screen).await;
        }
        let mut client = client(&remote);
        let status = remote.read(client.get(v1::GetStatusRequest {})).await?;
        screen.show(&FleetStatus::from(status))?;
        Ok(Outcome::Done)
    }

    /// Watches until the revision has got far enough or time is up; the last state is printed either way.
    async fn wait(&self, remote: &Remote, screen: &mut Screen) -> anyhow::Result<Outcome> {
        let start = Instant::now();
        let deadline = start
            .checked_add(self.timeout)
            .ok_or_else(|| Failure::plain("--timeout is too long"))?;
        let mut client = client(remote);
        let mut stream = remote.stream(client.watch(v1::GetStatusRequest {})).await?;
        let mut wanted = self.revision;
        let mut last: Option<FleetStatus> = None;
        loop {
            let Ok(message) = tokio::time::timeout_at(deadline, stream.next()).await else {
                break;
            };
            let Some(message) = message? else {
                let note = None;
                return Err(Interrupted { note }.into());
            };
            let mut status = FleetStatus::from(message);
            let revision = *wanted.get_or_insert(status.revision);
            let waited = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
            let wait = status.convergence(revision, self.percent, waited);
            let reached = wait.reached;
            status.wait = Some(wait);
            if reached {
                screen.show(&status)?;
                return Ok(Outcome::Done);
            }
            last = Some(status);
        }
        let Some(mut last) = last else {
            return Err(Failure::new(
                "the controller told no status in time",
                "try a longer --timeout",
            )
            .into());
        };
        if let Some(wait) = &mut last.wait {
            wait.waited_ms = u64::try_from(start.elapsed().as_millis()).unwrap_or(u64::MAX);
        }
        screen.show(&last)?;
        screen.remark(if last.agents.is_empty() {
            "no agent has joined: nothing is enforced anywhere"
        } else {
            "not reached in time"
        })?;
        Ok(Outcome::Refused)
    }
}

fn client(remote: &Remote) -> StatusClient<tonic::transport::Channel> {
    StatusClient::new(remote.channel()).max_decoding_message_size(MAX_ANSWER)
}

fn percent(text: &str) -> Result<f64, String> {
    text.trim_end_matches('%')
        .parse::<f64>()
        .ok()
        .filter(|percent| (0.0..=100.0).contains(percent))
        .ok_or_else(|| "must be between 0 and 100".into())
}
