//! One connected agent: hello, pushes, answers.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures_util::{Stream, StreamExt as _};
use proto::convert;
use proto::v1::controller_message::Message as Down;
use proto::v1::{self, agent_message::Message as Up};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::Desired;
use crate::auth::Caller;
use crate::clock;
use crate::config::Limits;
use crate::core::Core;
use crate::state::{self, key};

/// Messages on their way down; more wait.
const QUEUE: usize = 4;
/// The first message has to come so soon.
const HELLO: Duration = Duration::from_secs(10);
/// A push without an answer is given up, so that the next may go.
const ANSWER: Duration = Duration::from_secs(60);
/// Content that drifted is sent again, but not in a tight loop.
const RESEND: Duration = Duration::from_secs(10);

/// A message that nobody takes for so long ends the session.
const SEND: Duration = Duration::from_secs(30);

static SESSIONS: AtomicU64 = AtomicU64::new(1);

/// What goes down to an agent.
pub type Outbound = mpsc::Receiver<Result<v1::ControllerMessage, Status>>;

/// Opens a session on a stream of messages.
pub fn open<S>(
    core: Arc<Core>,
    caller: Caller,
    workload: String,
    inbound: S,
    stop: CancellationToken,
) -> Outbound
where
    S: Stream<Item = Result<v1::AgentMessage, Status>> + Send + Unpin + 'static,
{
    let (down, receiver) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        let id = SESSIONS.fetch_add(1, Ordering::Relaxed);
        let mut session = Session {
            core: core.clone(),
            caller,
            workload: workload.clone(),
            down: down.clone(),
            nonce: 0,
            sent: None,
            outstanding: None,
            resent: None,
        };
        let ended = session.run(id, inbound, stop).await;
        core.hub.disconnect(&workload, id);
        core.metrics
            .agents_connected
            .set(i64::try_from(core.hub.connected()).unwrap_or(i64::MAX));
        match ended {
            Ok(()) => tracing::info!(workload, "agent gone"),
            Err(status) => {
                tracing::info!(workload, %status, "agent let go");
                // Nobody may listen any more.
                let _gone = down.send(Err(status)).await;
            }
        }
    });
    receiver
}

struct Session {
    core: Arc<Core>,
    caller: Caller,
    workload: String,
    down: mpsc::Sender<Result<v1::ControllerMessage, Status>>,
    nonce: u64,
    /// What the agent was sent last in this session, or has from before.
    sent: Option<Arc<Desired>>,
    outstanding: Option<Instant>,
    resent: Option<Instant>,
}

impl Session {
    async fn run<S>(
        &mut self,
        id: u64,
        mut inbound: S,
        stop: CancellationToken,
    ) -> Result<(), Status>
    where
        S: Stream<Item = Result<v1::AgentMessage, Status>> + Send + Unpin,
    {
        let first = tokio::time::timeout(HELLO, inbound.next()).await;
        let Ok(Some(Ok(v1::AgentMessage {
            message: Some(Up::Hello(hello)),
        }))) = first
        else {
            return Err(Status::invalid_argument(
                "the first message must be a hello",
            ));
        };
        let addresses = convert::to_addresses("hello.addresses", &hello.addresses)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        if hello.hostname.len() > 253 {
            return Err(Status::invalid_argument(
                "hello.hostname: at most 253 bytes",
            ));
        }
        if let Err(reason) = self.claim(&addresses, &hello.hostname).await? {
            (self.core.hub).refuse(&self.workload, Some(format!("refused: {reason}")));
            (self.core)
                .audit_refusal(&self.caller.uri, "agent.hello", &self.workload, &reason)
                .await;
            self.send(Down::Refused(reason.clone())).await?;
            return Err(Status::permission_denied(reason));
        }
        self.core.hub.refuse(&self.workload, None);
        // The claim may have changed what the agent should have.
        let revision = self.core.state().revision;
        let planned =
            tokio::time::timeout(Duration::from_secs(30), self.core.hub.planned(revision));
        if planned.await.is_err() {
            tracing::warn!(workload = self.workload, "planning takes long");
        }
        let (mut desired, replaced) = self.core.hub.connect(&self.workload, id);
        self.core
            .metrics
            .agents_connected
            .set(i64::try_from(self.core.hub.connected()).unwrap_or(i64::MAX));
        tracing::info!(
            workload = self.workload,
            hostname = hello.hostname,
            version = hello.version,
            "agent connected"
        );
        self.greet(&hello, &desired);

        let mut states = self.core.follow();
        // A certificate ends while its connection lives on: the agent has to come again.
        let certificate_end = tokio::time::sleep(clock::until(self.caller.not_after));
        tokio::pin!(certificate_end);
        loop {
            self.offer(&desired).await?;
            let overdue = self
                .outstanding
                .map_or(ANSWER, |since| ANSWER.saturating_sub(since.elapsed()));
            tokio::select! {
                () = stop.cancelled() => return Err(Status::unavailable("the controller is stopping")),
                () = replaced.cancelled() => {
                    // Gone for good is more to the point than gone.
                    self.core.admit(&self.caller)?;
                    return Err(Status::aborted("a newer session of this agent has taken this one's place, or its workload is gone"));
                }
                () = &mut certificate_end => return Err(Status::unauthenticated("the certificate has ended")),
                () = tokio::time::sleep(overdue) => {
                    if self.outstanding.take().is_some() {
                        self.core.hub.update(&self.workload, |agent| agent.last_error = "no answer to the last push".to_owned());
                    }
                }
                changed = states.changed() => {
                    if changed.is_err() { return Ok(()) }
                    self.core.admit(&self.caller)?;
                }
                changed = desired.changed() => if changed.is_err() { return Ok(()) },
                message = inbound.next() => match message {
                    Some(Ok(v1::AgentMessage { message: Some(message) })) => self.hear(message).await?,
                    Some(Ok(_)) => return Err(Status::invalid_argument("a message without content")),
                    Some(Err(_)) | None => return Ok(()),
                },
            }
        }
    }

    async fn send(&self, message: Down) -> Result<(), Status> {
        let message = v1::ControllerMessage {
            message: Some(message),
        };
        // Who does not read must not keep this session from ending.
        tokio::time::timeout(SEND, self.down.send(Ok(message)))
            .await
            .map_err(|_| Status::deadline_exceeded("the agent does not read"))?
            .map_err(|_| Status::cancelled("the agent is gone"))
    }

    /// Notes the addresses that the agent claims, or says why it may not.
    async fn claim(
        &self,
        addresses: &[IpAddr],
        hostname: &str,
    ) -> Result<Result<(), String>, Status> {
        let mut change = self.core.change().await;
        let Some(known) = change.state.workloads.get(&self.workload) else {
            return Err(Status::unauthenticated("the workload is not known"));
        };
        let limits = &self.core.config.limits;
        if let Err(reason) = may_claim(
            &change.state,
            limits,
            &self.workload,
            &known.scope,
            addresses,
        ) {
            return Ok(Err(reason));
        }
        let mut sorted: Vec<IpAddr> = addresses.iter().map(IpAddr::to_canonical).collect();
        sorted.sort();
        sorted.dedup();
        if known.addresses != sorted || known.hostname != hostname {
            let mut record = known.clone();
            record.addresses = sorted;
            hostname.clone_into(&mut record.hostname);
            let text = format!("{:?}", record.addresses);
            change.op(state::put(
                format!("{}{}", key::WORKLOAD, self.workload),
                &record,
            ));
            change.audit(&self.caller.uri, "agent.addresses", &self.workload, &text);
            change.commit().await?;
        }
        Ok(Ok(()))
    }

    fn greet(&mut self, hello: &v1::Hello, desired: &watch::Receiver<Option<Arc<Desired>>>) {
        let now = desired.borrow().clone();
        let same =
            now.filter(|d| hello.applied_revision > 0 && d.digest == hello.applied_digest[..]);
        self.core.hub.update(&self.workload, |agent| {
            agent.hostname.clone_from(&hello.hostname);
            agent.version.clone_from(&hello.version);
            agent.kernel.clone_from(&hello.kernel);
            agent.applied = hello.applied_revision;
            agent.pending = false;
            agent.digest_matches = same.is_some();
            if same.is_some() {
                agent.verified = hello.applied_revision;
                agent.verified_at = Some(Instant::now());
                agent.last_error.clear();
            }
        });
        if let Some(same) = same {
            // The content is there, whatever its number: nothing to send.
            self.core
                .hub
                .resume(&self.workload, &same, hello.applied_revision);
            self.sent = self.core.hub.desired(&self.workload);
        }
    }

    /// Sends what the agent should have, if it lacks it and nothing stands in the way.
    async fn offer(
        &mut self,
        receiver: &watch::Receiver<Option<Arc<Desired>>>,
    ) -> Result<(), Status> {
        let Some(desired) = receiver.borrow().clone() else {
            return Ok(());
        };
        if let Some(sent) = self.sent.clone()
            && sent.digest == desired.digest
            && sent.revision == desired.revision
        {
            if sent.deadline.is_some() && desired.deadline.is_none() {
                self.send(Down::Confirm(v1::ConfirmPush {
                    revision: sent.revision,
                }))
                .await?;
                self.core
                    .hub
                    .update(&self.workload, |agent| agent.pending = false);
            }
            self.sent = Some(desired);
            return Ok(());
        }
        let urgent = (self.sent.as_ref()).is_some_and(|sent| sent.isolations < desired.isolations);
        // One push at a time; an isolation waits for nobody.
        if self.outstanding.is_some() && !urgent {
            return Ok(());
        }
        let applied = self
            .core
            .hub
            .agent(&self.workload)
            .map_or(0, |agent| agent.applied);
        if applied > desired.revision {
            // It would refuse an older number: a database restored from an old copy.
            let text = format!(
                "the agent has revision {applied}, newer than the controller's {}",
                desired.revision
            );
            tracing::error!(workload = self.workload, "{text}");
            self.core
                .hub
                .update(&self.workload, |agent| agent.last_error = text);
            self.sent = Some(desired);
            return Ok(());
        }
        self.nonce += 1;
        let push = push(&desired, self.nonce, urgent);
        self.send(Down::Snapshot(push)).await?;
        self.core.metrics.pushes.inc();
        self.outstanding = Some(Instant::now());
        self.core.hub.update(&self.workload, |agent| {
            agent.sent = desired.revision;
            agent.sent_at = Some(Instant::now());
        });
        self.sent = Some(desired);
        Ok(())
    }

    async fn hear(&mut self, message: Up) -> Result<(), Status> {
        match message {
            Up::Hello(_) => return Err(Status::invalid_argument("a second hello")),
            Up::Ack(ack) => self.acknowledged(&ack),
            Up::Nack(nack) => self.refused(&nack),
            Up::Status(status) => self.reported(&status),
        }
        Ok(())
    }

    fn acknowledged(&mut self, ack: &v1::SnapshotAck) {
        // An answer to a push that another has overtaken.
        let current = ack.nonce == self.nonce;
        let Some(sent) = self.sent.clone().filter(|_| current) else {
            return;
        };
        self.outstanding = None;
        let matches = sent.digest == ack.digest[..] && sent.revision == ack.revision;
        self.core.hub.update(&self.workload, |agent| {
            agent.applied = ack.revision;
            agent.digest_matches = matches && agent.desired == ack.revision;
            agent.pending = ack.confirm_deadline.is_some();
            if matches {
                agent.verified = ack.revision;
                agent.verified_at = Some(Instant::now());
                agent.last_error.clear();
            } else {
                agent.last_error = "the kernel holds other content than was sent".to_owned();
            }
        });
        if !matches {
            self.drifted();
        }
    }

    fn refused(&mut self, nack: &v1::SnapshotNack) {
        if nack.nonce != self.nonce {
            return;
        }
        self.outstanding = None;
        self.core.metrics.nacks.inc();
        let reason: String = nack.reason.chars().take(1_024).collect();
        tracing::warn!(
            workload = self.workload,
            revision = nack.revision,
            reason,
            "the agent refuses a snapshot"
        );
        // The last good one stays; the next change is offered again.
        self.core
            .hub
            .update(&self.workload, |agent| agent.last_error = reason);
    }

    fn reported(&mut self, status: &v1::AgentStatus) {
        let holds = self
            .sent
            .as_ref()
            .is_none_or(|sent| sent.digest == status.digest[..]);
        self.core.hub.update(&self.workload, |agent| {
            agent.applied = agent.applied.max(status.applied_revision);
            agent.pending = status.pending;
            agent.losses = status.losses.clone().into_iter().take(256).collect();
            if !status.panic.is_empty() {
                agent.last_error = format!("panic: {}", status.panic);
            } else if status.fell_back_from > 0 && !holds {
                agent.last_error = format!("fell back from revision {}", status.fell_back_from);
            }
            agent.digest_matches &= holds;
        });
        // After a fall-back the controller goes back too, at the same deadline: not against each other.
        let fell_back = (self.sent.as_ref())
            .is_some_and(|sent| sent.deadline.is_some() && status.fell_back_from >= sent.revision);
        if !holds && !fell_back && self.outstanding.is_none() {
            self.drifted();
        }
    }

    /// The kernel does not hold what it should: send it again.
    fn drifted(&mut self) {
        if self.resent.is_none_or(|last| last.elapsed() > RESEND) {
            self.resent = Some(Instant::now());
            self.sent = None;
        }
    }
}

fn push(desired: &Desired, nonce: u64, urgent: bool) -> v1::SnapshotPush {
    // Rounded up: the controller goes back first, and the kernel only where that does not arrive.
    let within = desired.deadline.map_or(0, |deadline| {
        let seconds = clock::until(deadline).as_millis().div_ceil(1_000);
        u32::try_from(seconds).unwrap_or(u32::MAX).max(1)
    });
    // What the agent would fall back to by itself may not know of an isolation: a push that was
    // given up, a reconnection or a drift lies between. So whoever can fall back is told to what.
    let fallback = (urgent || within > 0).then(|| {
        let mut fallback = (**desired.fallback.as_ref().unwrap_or(&desired.snapshot)).clone();
        fallback.revision = desired.revision;
        v1::Snapshot::from(&fallback)
    });
    let mut snapshot = v1::Snapshot::from(&*desired.snapshot);
    snapshot.revision = desired.revision;
    v1::SnapshotPush {
        snapshot: Some(snapshot),
        nonce,
        digest: desired.digest.to_vec(),
        confirm_within_seconds: within,
        urgent,
        fallback,
    }
}

/// Whether an agent may claim addresses: all of its token's, none of another workload, and no more
/// than the tables of everybody hold.
///
/// # Errors
/// The reason why not.
pub fn may_claim(
    state: &state::State,
    limits: &Limits,
    workload: &str,
    scope: &[ipnet::IpNet],
    addresses: &[IpAddr],
) -> Result<(), String> {
    let claimed: BTreeSet<IpAddr> = addresses.iter().map(IpAddr::to_canonical).collect();
    let most = limits.workload_addresses;
    if claimed.len() > most {
        return Err(format!(
            "{workload} claims {} addresses, one workload may have {most} (limits.workload_addresses)",
            claimed.len()
        ));
    }
    let own = (state.owners.values())
        .filter(|owner| *owner == workload)
        .count();
    let all = state.owners.len() - own + claimed.len();
    // Every agent knows every address: one claim too many would be too much for all of them.
    if claimed.len() > own && all > limits.addresses {
        return Err(format!(
            "with the {} addresses of {workload} there would be {all}, every host's tables hold {} (limits.addresses)",
            claimed.len(),
            limits.addresses
        ));
    }
    for address in addresses {
        let address = address.to_canonical();
        if address.is_unspecified() || address.is_loopback() || address.is_multicast() {
            return Err(format!("{address} cannot be a workload's address"));
        }
        if !scope.iter().any(|net| net.contains(&address)) {
            return Err(format!(
                "the token of {workload} does not cover the address {address}"
            ));
        }
        if let Some(owner) = state.owner(address).filter(|owner| *owner != workload) {
            return Err(format!("the address {address} belongs to {owner}"));
        }
    }
    Ok(())
}
