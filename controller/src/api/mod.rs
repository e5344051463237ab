//! The gRPC edge: wire in, domain out. Who may call what was decided by the gate before.

mod agents;
mod content;
mod detections;
mod enrollment;
mod expectations;
mod flows;
mod invariants;
mod inventory;
mod policies;
mod responses;
mod status;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::Stream;
use proto::v1;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;
use tonic::{Request, Status};

use crate::auth::{Caller, Identity};
use crate::core::Core;
use crate::flows::Ingest;

pub use content::fall_back;

/// Largest message that is taken: a snapshot or a set of policies, with room.
const MAX_MESSAGE: usize = 16 << 20;
/// Largest message that is sent: snapshots with their fallback.
const MAX_SENT: usize = 256 << 20;
/// Entries of a page when nobody says how many, and at most.
const PAGE: u32 = 100;
const MAX_PAGE: u32 = 1_000;

/// A stream of answers.
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// What every service has at hand.
#[derive(Clone, Debug)]
pub struct Api {
    /// The heart.
    pub core: Arc<Core>,
    /// Where flow batches go.
    pub ingest: Ingest,
    /// Ends streams.
    pub stop: CancellationToken,
}

impl Api {
    /// Every service, with health and reflection.
    ///
    /// # Errors
    /// When the descriptors are damaged, which would be a mistake in this program.
    pub fn routes(&self) -> Result<Routes, tonic_reflection::server::Error> {
        macro_rules! server {
            ($module:ident, $server:ident) => {
                v1::$module::$server::new(self.clone())
                    .max_decoding_message_size(MAX_MESSAGE)
                    .max_encoding_message_size(MAX_SENT)
                    .accept_compressed(tonic::codec::CompressionEncoding::Zstd)
                    .send_compressed(tonic::codec::CompressionEncoding::Zstd)
            };
        }
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let (_, health) = tonic_health::server::health_reporter();
        let mut routes = Routes::builder();
        routes
            // Strangers may call this one.
            .add_service(
                server!(enrollment_server, EnrollmentServer).max_decoding_message_size(64 << 10),
            )
            .add_service(server!(agent_sync_server, AgentSyncServer))
            .add_service(server!(flow_ingest_server, FlowIngestServer))
            .add_service(server!(policies_server, PoliciesServer))
            .add_service(server!(inventory_server, InventoryServer))
            .add_service(server!(flows_server, FlowsServer))
            .add_service(server!(detections_server, DetectionsServer))
            .add_service(server!(responses_server, ResponsesServer))
            .add_service(server!(status_server, StatusServer))
            .add_service(reflection)
            .add_service(health);
        Ok(routes.routes())
    }

    /// A stream that a task feeds until the caller hangs up or the controller stops.
    fn stream<T, F>(&self, feed: impl FnOnce(Feed<T>) -> F) -> Answers<T>
    where
        T: Send + 'static,
        F: Future<Output = ()> + Send + 'static,
    {
        let (sender, receiver) = tokio::sync::mpsc::channel(64);
        let task = feed(Feed(sender.clone()));
        let stop = self.stop.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = sender.closed() => {}
                () = stop.cancelled() => {}
                () = task => {}
            }
        });
        Box::pin(tokio_stream::wrappers::ReceiverStream::new(receiver))
    }
}

/// Where a task puts the answers of a stream.
struct Feed<T>(tokio::sync::mpsc::Sender<Result<T, Status>>);

impl<T> Feed<T> {
    /// `false` when the caller hung up.
    async fn send(&self, answer: Result<T, Status>) -> bool {
        self.0.send(answer).await.is_ok()
    }
}

/// Who makes the request.
fn caller<T>(request: &Request<T>) -> Result<Caller, Status> {
    request
        .extensions()
        .get::<Caller>()
        .cloned()
        .ok_or_else(|| Status::unauthenticated("a client certificate is needed"))
}

/// The workload whose agent makes the request.
fn agent<T>(request: &Request<T>) -> Result<(Caller, String), Status> {
    let caller = caller(request)?;
    match &caller.identity {
        Identity::Agent(workload) => {
            let workload = workload.clone();
            Ok((caller, workload))
        }
        Identity::User(_) => Err(Status::permission_denied("this service is for agents")),
    }
}

fn page_size(asked: u32) -> u32 {
    match asked {
        0 => PAGE,
        asked => asked.min(MAX_PAGE),
    }
}

/// A position in a list, as a token that callers need not understand.
fn page_position<T: std::str::FromStr + Default>(token: &str) -> Result<T, Status> {
    if token.is_empty() {
        return Ok(T::default());
    }
    token
        .parse()
        .map_err(|_| Status::invalid_argument("page_token: not a token of this list"))
}

/// A page of something that is in memory as a whole, and the token of the next.
fn page<T>(
    items: impl Iterator<Item = T>,
    size: u32,
    token: &str,
) -> Result<(Vec<T>, String), Status> {
    let offset: usize = page_position(token)?;
    let size = usize::try_from(page_size(size)).unwrap_or(1);
    let mut page: Vec<T> = items.skip(offset).take(size + 1).collect();
    let more = page.len() > size;
    page.truncate(size);
    let next = more.then(|| (offset + size).to_string());
    Ok((page, next.unwrap_or_default()))
}

/// Refuses a mutation whose author looked at an older state.
fn expect(
    options: Option<&v1::MutationOptions>,
    changed_at: u64,
    what: &str,
) -> Result<(), Status> {
    let expected = options.map_or(0, |options| options.expected_revision);
    if expected != 0 && changed_at > expected {
        return Err(Status::aborted(format!(
            "options.expected_revision: {what} changed at revision {changed_at}, after {expected}: look again"
        )));
    }
    Ok(())
}

/// The items of a page, and the token of the next one: the last position, or empty when the page is not full.
fn page_of<P: ToString, T>(listed: Vec<(P, T)>, size: impl TryInto<usize>) -> (Vec<T>, String) {
    let full = listed.len() >= size.try_into().unwrap_or(usize::MAX);
    let next = listed
        .last()
        .filter(|_| full)
        .map(|(position, _)| position.to_string());
    (
        listed.into_iter().map(|(_, item)| item).collect(),
        next.unwrap_or_default(),
    )
}
