//! One life with the controller after another.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use proto::convert;
use proto::v1::agent_message::Message as Up;
use proto::v1::agent_sync_client::AgentSyncClient;
use proto::v1::controller_message::Message as Down;
use proto::v1::enrollment_client::EnrollmentClient;
use proto::v1::{self, AgentMessage};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tracing::{debug, info, warn};

use super::backoff::{Backoff, random};
use super::identity::{Identity, Request};
use super::{ControlError, export, tls};
use crate::daemon::Host;
use crate::daemon::status::Status;
use crate::kernel::clock;
use crate::kernel::features::Features;
use crate::reconcile::{Applied, Push};

const STATUS_INTERVAL: Duration = Duration::from_secs(10);
const MESSAGE_LIMIT: usize = 256 << 20;

/// Follows the controller for as long as the daemon lives.
pub async fn follow(host: Arc<Host>) {
    let mut backoff = Backoff::default();
    loop {
        let started = Instant::now();
        let error = match life(&host).await {
            Ok(()) => ControlError::Closed,
            Err(error) => error,
        };
        host.counters.connected.store(false, Ordering::Relaxed);
        if matches!(error, ControlError::Renewed | ControlError::Readdressed) {
            info!(why = %error, "connecting again");
            backoff.reset();
            continue;
        }
        if started.elapsed() > Duration::from_secs(60) {
            backoff.reset();
        }
        let wait = backoff.next(random());
        warn!(%error, wait_ms = wait.as_millis(), "not connected to the controller; what is enforced goes on");
        tokio::time::sleep(wait).await;
    }
}

fn now_seconds() -> i64 {
    clock::utc_ns() / 1_000_000_000
}

async fn life(host: &Arc<Host>) -> Result<(), ControlError> {
    let host_for_names = Arc::clone(host);
    // Names may resolve elsewhere by now: the failsafe follows.
    let refreshed = tokio::task::spawn_blocking(move || host_for_names.refresh_failsafes()).await;
    if let Ok(Err(error)) = refreshed {
        host.report_error(&error);
    }
    let mut endpoints = host.config.controller.endpoints.clone();
    let count = endpoints.len().max(1);
    endpoints.rotate_left(usize::try_from(random() % count as u64).unwrap_or(0));
    let mut last = ControlError::Closed;
    for endpoint in endpoints {
        match at(host, &endpoint).await {
            Err(error @ ControlError::Connect { .. }) => last = error,
            other => return other,
        }
    }
    Err(last)
}

async fn at(host: &Arc<Host>, endpoint: &str) -> Result<(), ControlError> {
    let identity = match Identity::load(&host.config.state_dir)? {
        Some(identity) if !identity.expired(now_seconds()) => identity,
        _ => enrol(host, endpoint).await?,
    };
    let controller = &host.config.controller;
    let channel = tls::connect(endpoint, controller, tls::mutual(&identity)?).await?;
    info!(endpoint, identity = %identity.spiffe_id, "connected to the controller");
    let renew = renew(host, channel.clone(), &identity);
    let flows = export::run(Arc::clone(host), channel.clone());
    let sync = sync(host, channel);
    tokio::select! {
        result = sync => result,
        result = flows => result,
        result = renew => result,
    }
}

async fn enrol(host: &Arc<Host>, endpoint: &str) -> Result<Identity, ControlError> {
    let controller = &host.config.controller;
    let token = controller
        .token()
        .map_err(|source| ControlError::File {
            path: controller.token_file.clone().unwrap_or_default(),
            source,
        })?
        .ok_or(ControlError::NoToken)?;
    let channel = tls::connect(endpoint, controller, tls::enrolment(controller)?).await?;
    let request = Request::new()?;
    let answer = EnrollmentClient::new(channel)
        .enroll(v1::EnrollRequest {
            token,
            csr_der: request.csr.clone(),
            hostname: crate::config::host_name(),
            addresses: addresses(host),
            agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        })
        .await
        .map_err(ControlError::call("enrolment"))?
        .into_inner();
    let identity = request.answered(answer)?;
    identity.save(&host.config.state_dir)?;
    info!(identity = %identity.spiffe_id, workload = %identity.workload, "enrolled");
    Ok(identity)
}

/// The addresses that this agent claims. Link-local ones name nobody beyond their link.
fn addresses(host: &Host) -> Vec<v1::Address> {
    host.own_addresses()
        .unwrap_or_default()
        .into_iter()
        .filter(|address| match address {
            std::net::IpAddr::V4(address) => !address.is_link_local(),
            std::net::IpAddr::V6(address) => !address.is_unicast_link_local(),
        })
        .map(v1::Address::from)
        .collect()
}

async fn renew(
    host: &Arc<Host>,
    channel: Channel,
    identity: &Identity,
) -> Result<(), ControlError> {
    let mut backoff = Backoff::default();
    tokio::time::sleep(identity.renew_in(now_seconds(), random())).await;
    loop {
        let request = Request::new()?;
        let call = AgentSyncClient::new(channel.clone())
            .renew(v1::RenewRequest {
                csr_der: request.csr.clone(),
            })
            .await;
        match call {
            Ok(answer) => {
                request
                    .answered(answer.into_inner())?
                    .save(&host.config.state_dir)?;
                return Err(ControlError::Renewed);
            }
            Err(status) => {
                warn!(%status, "the certificate could not be renewed yet");
                tokio::time::sleep(backoff.next(random())).await;
            }
        }
    }
}

async fn sync(host: &Arc<Host>, channel: Channel) -> Result<(), ControlError> {
    let (up, queue) = mpsc::channel::<AgentMessage>(16);
    send(&up, Up::Hello(hello(host).await)).await?;
    let mut down = AgentSyncClient::new(channel)
        .max_decoding_message_size(MESSAGE_LIMIT)
        .sync(ReceiverStream::new(queue))
        .await
        .map_err(ControlError::call("policy stream"))?
        .into_inner();
    host.counters.connected.store(true, Ordering::Relaxed);
    let mut changed = host.changed.subscribe();
    let mut readdressed = host.readdressed.subscribe();
    let mut timer = tokio::time::interval(STATUS_INTERVAL);
    loop {
        tokio::select! {
            message = down.message() => {
                let message = message.map_err(ControlError::call("policy stream"))?.ok_or(ControlError::Closed)?;
                match message.message {
                    Some(Down::Snapshot(push)) => {
                        let answer = apply(host, push).await;
                        send(&up, answer).await?;
                    }
                    Some(Down::Confirm(confirm)) => {
                        let host_for_confirm = Arc::clone(host);
                        let done = tokio::task::spawn_blocking(move || host_for_confirm.confirm(confirm.revision)).await;
                        if let Ok(Err(error)) = done {
                            host.report_error(&error);
                        }
                    }
                    Some(Down::Refused(why)) => return Err(ControlError::Refused(why)),
                    None => debug!("a message of a newer controller was not understood"),
                }
            }
            _ = readdressed.changed() => return Err(ControlError::Readdressed),
            _ = changed.changed() => send(&up, Up::Status(status(host).await)).await?,
            _ = timer.tick() => send(&up, Up::Status(status(host).await)).await?,
        }
    }
}

async fn send(up: &mpsc::Sender<AgentMessage>, message: Up) -> Result<(), ControlError> {
    up.send(AgentMessage {
        message: Some(message),
    })
    .await
    .map_err(|_| ControlError::Closed)
}

async fn hello(host: &Arc<Host>) -> v1::Hello {
    let host = Arc::clone(host);
    tokio::task::spawn_blocking(move || {
        let features = Features::probe();
        let engine = host.engine();
        let (revision, digest) = engine
            .active()
            .map(|active| {
                (
                    active.revision(),
                    hex::decode(&active.digest).unwrap_or_default(),
                )
            })
            .unwrap_or_default();
        drop(engine);
        v1::Hello {
            hostname: crate::config::host_name(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            abi_version: datapath::abi::ABI_VERSION,
            addresses: addresses(&host),
            applied_revision: revision,
            applied_digest: digest,
            features: features.present(),
            kernel: features.kernel,
        }
    })
    .await
    .unwrap_or_default()
}

async fn status(host: &Arc<Host>) -> v1::AgentStatus {
    let host = Arc::clone(host);
    tokio::task::spawn_blocking(move || {
        let status = Status::of(&host).unwrap_or_default();
        let drops = host
            .kernel
            .totals()
            .map(|totals| totals.drops())
            .unwrap_or(0);
        v1::AgentStatus {
            applied_revision: status.revision,
            digest: hex::decode(&status.digest).unwrap_or_default(),
            generation: status.generation,
            pending: status.pending,
            fell_back_from: status.fell_back_from,
            flows: status.flows,
            drops,
            losses: status.losses.into_iter().collect(),
            panic: if status.panic == "off" {
                String::new()
            } else {
                status.panic.to_owned()
            },
            spooled_batches: status.spooled_batches,
        }
    })
    .await
    .unwrap_or_default()
}

/// Applies what was pushed; the answer is an acknowledgement or says why not.
async fn apply(host: &Arc<Host>, push: v1::SnapshotPush) -> Up {
    let received = Instant::now();
    let nonce = push.nonce;
    let revision = push
        .snapshot
        .as_ref()
        .map_or(0, |snapshot| snapshot.revision);
    let host = Arc::clone(host);
    let result = tokio::task::spawn_blocking(move || {
        let push = read(push)?;
        host.apply(push).map_err(|error| error.to_string())
    })
    .await
    .unwrap_or_else(|error| Err(error.to_string()));
    match result {
        Ok(applied) => Up::Ack(ack(&applied, nonce, received)),
        Err(reason) => {
            warn!(revision, %reason, "a snapshot was refused; the old content stays");
            Up::Nack(v1::SnapshotNack {
                revision,
                nonce,
                reason,
            })
        }
    }
}

fn ack(applied: &Applied, nonce: u64, received: Instant) -> v1::SnapshotAck {
    let boot = i64::try_from(clock::boot_ns()).unwrap_or(i64::MAX);
    v1::SnapshotAck {
        revision: applied.revision,
        nonce,
        digest: applied.digest.to_vec(),
        generation: applied.generation,
        apply_ns: u64::try_from(received.elapsed().as_nanos()).unwrap_or(u64::MAX),
        confirm_deadline: applied.deadline.map(|deadline| {
            let deadline =
                i64::try_from(deadline.saturating_mul(1_000_000_000)).unwrap_or(i64::MAX);
            convert::from_unix_ns(clock::utc_ns().saturating_add(deadline.saturating_sub(boot)))
        }),
    }
}

fn read(push: v1::SnapshotPush) -> Result<Push, String> {
    let v1::SnapshotPush {
        snapshot,
        nonce: _,
        digest,
        confirm_within_seconds,
        urgent,
        fallback,
    } = push;
    let snapshot: policy::snapshot::Snapshot = snapshot
        .ok_or("the push holds no snapshot")?
        .try_into()
        .map_err(|error: convert::ConvertError| error.to_string())?;
    if snapshot.digest() != digest.as_slice() {
        return Err("the snapshot does not have the digest that was sent with it".to_owned());
    }
    let fallback = fallback
        .map(policy::snapshot::Snapshot::try_from)
        .transpose()
        .map_err(|error| error.to_string())?;
    Ok(Push {
        snapshot,
        confirm_within: (confirm_within_seconds > 0)
            .then(|| Duration::from_secs(u64::from(confirm_within_seconds))),
        urgent,
        fallback,
    })
}
