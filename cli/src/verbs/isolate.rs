//! `isolate` and `restore`: cut a workload off, and take it back.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use clap::Args;
use proto::v1::{self, responses_client::ResponsesClient};

use super::session::{Session, mutation, whole_seconds};
use crate::Outcome;
use crate::model::Isolation;
use crate::options::{MutationFlags, duration};
use crate::output::Screen;

/// Cut a workload off: live sessions end, and its peers deny it too
///
/// Exit code 0 only when every agent concerned has read it back from its kernel.
#[derive(Debug, Args)]
pub(crate) struct Isolate {
    /// Workload to cut off
    workload: String,
    /// Restore it by itself after this long [default: never]
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    ttl: Option<Duration>,
    /// For the audit log
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true
    )]
    reason: String,
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    mutation: MutationFlags,
}

/// Take a workload back that was cut off
///
/// Exit code 0 only when every agent concerned has read it back from its kernel.
#[derive(Debug, Args)]
pub(crate) struct Restore {
    /// Workload to take back
    workload: String,
    #[command(flatten)]
    wait: Wait,
    #[command(flatten)]
    mutation: MutationFlags,
}

#[derive(Debug, Args)]
struct Wait {
    /// Wait so long for the agents to prove it
    #[arg(long = "wait", value_name = "DURATION", default_value = "5s", value_parser = duration)]
    limit: Duration,
}

impl Wait {
    fn milliseconds(&self) -> anyhow::Result<u32> {
        u32::try_from(self.limit.as_millis().max(1)).context("--wait is too long")
    }
}

impl Isolate {
    /// Runs the verb.
    pub(crate) async fn run(
        self,
        session: &Session,
        screen: &mut Screen,
    ) -> anyhow::Result<Outcome> {
        let options = mutation(&self.mutation, false)?;
        let key = options.idempotency_key.clone();
        let request = v1::IsolateRequest {
            options: Some(options),
            workload: self.workload.clone(),
            ttl_seconds: self.ttl.map(whole_seconds).transpose()?.unwrap_or(0),
            reason: self.reason,
            wait_milliseconds: self.wait.milliseconds()?,
        };
        let remote = session.connect().await?;
        let mut client = ResponsesClient::new(remote.channel());
        let start = Instant::now();
        let response = remote
            .mutate(&key, self.wait.limit, client.isolate(request))
            .await?;
        report("isolate", self.workload, response, start, screen)
    }
}

impl Restore {
    /// Runs the verb.
    pub(crate) async fn run(
        self,
        session: &Session,
        screen: &mut Screen,
    ) -> anyhow::Result<Outcome> {
        let options = mutation(&self.mutation, false)?;
        let key = options.idempotency_key.clone();
        let request = v1::RestoreRequest {
            options: Some(options),
            workload: self.workload.clone(),
            wait_milliseconds: self.wait.milliseconds()?,
        };
        let remote = session.connect().await?;
        let mut client = ResponsesClient::new(remote.channel());
        let start = Instant::now();
        let response = remote
            .mutate(&key, self.wait.limit, client.restore(request))
            .await?;
        report("restore", self.workload, response, start, screen)
    }
}

fn report(
    action: &'static str,
    workload: String,
    response: v1::IsolateResponse,
    start: Instant,
    screen: &mut Screen,
) -> anyhow::Result<Outcome> {
    let answered_ms = start.elapsed().as_secs_f64() * 1000.0;
    let document = Isolation::new(action, workload, response, answered_ms);
    screen.show(&document)?;
    Ok(if document.complete {
        Outcome::Done
    } else {
        Outcome::Refused
    })
}
