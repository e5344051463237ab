//! Finding a recorded flow to explain: in the text that the user gives, or at the controller.

use std::io::Read as _;

use anyhow::Context as _;
use policy::plan::record::{FlowRecord, Record};
use proto::v1::{self, flows_client::FlowsClient, policies_client::PoliciesClient};

use super::session::pages;
use crate::client::{MAX_ANSWER, Remote};
use crate::error::Failure;
use crate::model;

/// Longest record.
const MAX_TEXT: u64 = 1 << 20;
/// Lines of the history that are told.
const CHANGES: usize = 5;

/// A record as `flows -o json` prints it; `-` is stdin.
pub(super) fn given(text: &str) -> anyhow::Result<FlowRecord> {
    let mut read = String::new();
    if text == "-" {
        std::io::stdin()
            .lock()
            .take(MAX_TEXT)
            .read_to_string(&mut read)
            .context("cannot read <stdin>")?;
    } else {
        read.push_str(text);
    }
    let wrong = |why: String| {
        Failure::new(
            format!("this is no recorded flow: {why}"),
            "give one flow as `cofferdam flows -f -o json` prints it, e.g. with `head -n 1 | cofferdam explain --flow -`",
        )
    };
    match Record::parse(read.trim()) {
        Ok(Record::Flow(flow)) => Ok(*flow),
        Ok(_) => Err(wrong("it is an edge or a gap".into()).into()),
        Err(error) => Err(wrong(error.to_string()).into()),
    }
}

/// A record that the controller has, by its id or the beginning of it.
pub(super) async fn stored(remote: &Remote, id: &str) -> anyhow::Result<FlowRecord> {
    let found = pages(usize::MAX, |page_size, page_token| {
        let remote = remote.clone();
        let request = v1::ListFlowsRequest {
            filter: None,
            page_size,
            page_token,
        };
        async move {
            let mut client =
                FlowsClient::new(remote.channel()).max_decoding_message_size(MAX_ANSWER);
            let page = remote.read(client.list(request)).await?;
            let mut flows = page.flows;
            flows.retain(|flow| flow.uid.starts_with(id));
            Ok((flows, page.next_page_token))
        }
    })
    .await?;
    let exact = found.rows.iter().position(|flow| flow.uid == id);
    let mut ids: Vec<&str> = found.rows.iter().map(|flow| flow.uid.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    let index = match (exact, ids.len()) {
        (Some(index), _) => index,
        (None, 1) => 0,
        (None, 0) => {
            return Err(Failure::new(
                format!("the controller has no flow with the id {id}"),
                "`cofferdam flows -o name` lists ids; old records are forgotten",
            )
            .into());
        }
        (None, count) => {
            return Err(Failure::new(
                format!("{count} flows have an id that begins with {id}"),
                "give more of it",
            )
            .into());
        }
    };
    let flow = found.rows.into_iter().nth(index).context("no flow")?;
    let text = serde_json::to_string(&model::Flow::from(flow))?;
    match Record::parse(&text)? {
        Record::Flow(flow) => Ok(*flow),
        Record::Edge(_) | Record::Missed(_) => anyhow::bail!("the controller sent no flow"),
    }
}

/// What was changed after a revision, newest first.
pub(super) async fn changes(remote: &Remote, revision: u64) -> anyhow::Result<Vec<String>> {
    let mut client = PoliciesClient::new(remote.channel());
    let request = v1::HistoryRequest {
        page_size: 100,
        page_token: String::new(),
    };
    let page = remote.read(client.history(request)).await?;
    Ok(page
        .entries
        .into_iter()
        .filter(|entry| entry.revision > revision)
        .take(CHANGES)
        .map(|entry| {
            format!(
                "revision {} by {}: {} ({})",
                entry.revision, entry.actor, entry.action, entry.summary
            )
        })
        .collect())
}

/// The ends of a record, as the questions of today take them: addresses where it has them.
pub(super) fn ends(record: &FlowRecord) -> (String, String) {
    let name = |end: &policy::plan::record::RecordedEnd| match (end.address, &end.workload) {
        (Some(address), _) => address.to_string(),
        (None, name) => name.clone().unwrap_or_default(),
    };
    (name(&record.source), name(&record.destination))
}
