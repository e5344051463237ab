//! Calls: mutual TLS, a limit on every wait, and errors that say what to do next.

use std::error::Error as _;
use std::fs;
use std::future::Future;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context as _;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity};
use tonic::{Code, Response, Status, Streaming};

use super::interrupt::Interrupt;
use super::resolve::Target;
use crate::error::{Failure, Interrupted};

/// Answers may be long lists; more than this in one page is a server gone wrong.
pub(crate) const MAX_ANSWER: usize = 64 << 20;

/// An open connection.
#[derive(Clone)]
pub(crate) struct Remote {
    channel: Channel,
    url: String,
    timeout: Duration,
    /// Something came back over this connection, so the certificate was accepted.
    answered: Arc<AtomicBool>,
    interrupt: Interrupt,
}

/// Whether repeating a call that got no answer can do harm.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Reads only.
    Read,
    /// Changes something; the idempotency key makes a repetition safe.
    Mutation(String),
}

impl Remote {
    /// Connects within `timeout`, but at most 10 s.
    pub(crate) async fn connect(target: &Target, timeout: Duration) -> anyhow::Result<Self> {
        let limit = timeout.min(Duration::from_secs(10));
        let pem = |path: &Path| {
            fs::read(path).map_err(|error| {
                Failure::new(
                    format!("cannot read {}: {error}", path.display()),
                    "name your certificates with --operator-dir DIR or --ca, --cert and --key",
                )
            })
        };
        let tls = ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(pem(&target.ca)?))
            .identity(Identity::from_pem(pem(&target.cert)?, pem(&target.key)?));
        let endpoint = Endpoint::from_shared(target.controller.clone())
            .and_then(|endpoint| endpoint.tls_config(tls))
            .with_context(|| {
                format!(
                    "cannot use {}, {} and {}",
                    target.ca.display(),
                    target.cert.display(),
                    target.key.display()
                )
            })?
            .connect_timeout(limit)
            // A controller that vanished without a word is noticed within 20 s.
            .http2_keep_alive_interval(Duration::from_secs(10))
            .keep_alive_timeout(Duration::from_secs(10))
            .keep_alive_while_idle(true)
            .user_agent(concat!("cofferdam/", env!("CARGO_PKG_VERSION")))
            .context("cannot prepare the connection")?;
        let interrupt = Interrupt::listen()?;
        let connected = tokio::select! {
            connected = tokio::time::timeout(limit, endpoint.connect()) => connected,
            () = interrupt.pressed() => return Err(Interrupted { note: None }.into()),
        };
        let channel = match connected {
            Ok(Ok(channel)) => channel,
            Ok(Err(error)) => return Err(unreachable(&target.controller, &chain(&error)).into()),
            Err(_) => {
                let why = format!("no answer within {}", humantime::format_duration(limit));
                return Err(unreachable(&target.controller, &why).into());
            }
        };
        Ok(Self {
            channel,
            url: target.controller.clone(),
            timeout,
            answered: Arc::default(),
            interrupt,
        })
    }

    /// For the generated clients.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// Waits for an answer, at most the request timeout.
    pub(crate) async fn read<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> anyhow::Result<T> {
        self.call(call, self.timeout, &Kind::Read).await
    }

    /// Waits for the answer to a mutation; `extra` is what the server itself is asked to wait.
    pub(crate) async fn mutate<T>(
        &self,
        key: &str,
        extra: Duration,
        call: impl Future<Output = Result<Response<T>, Status>>,
    ) -> anyhow::Result<T> {
        self.call(
            call,
            self.timeout.saturating_add(extra),
            &Kind::Mutation(key.to_owned()),
        )
        .await
    }

    /// Opens a stream; each message is awaited without limit.
    pub(crate) async fn stream<T>(
        &self,
        call: impl Future<Output = Result<Response<Streaming<T>>, Status>>,
    ) -> anyhow::Result<Stream<T>> {
        let inner = self.call(call, self.timeout, &Kind::Read).await?;
        Ok(Stream {
            inner,
            url: self.url.clone(),
            interrupt: self.interrupt.clone(),
        })
    }

    async fn call<T>(
        &self,
        call: impl Future<Output = Result<Response<T>, Status>>,
        limit: Duration,
        kind: &Kind,
    ) -> anyhow::Result<T> {
        let answer = tokio::select! {
            answer = tokio::time::timeout(limit, call) => answer,
            () = self.interrupt.pressed() => {
                let note = match kind {
                    Kind::Read => None,
                    Kind::Mutation(_) => Some(
                        "the controller may have done it all the same; see `cofferdam history`"
                            .to_owned(),
                    ),
                };
                return Err(Interrupted { note }.into());
            }
        };
        match answer {
            Ok(Ok(response)) => {
                self.answered.store(true, Ordering::Relaxed);
                Ok(response.into_inner())
            }
            Ok(Err(status)) if status.source().is_some() => {
                let fresh = !self.answered.load(Ordering::Relaxed);
                Err(broken(&self.url, &status, kind, fresh).into())
            }
            Ok(Err(status)) => Err(explain(&self.url, &status, kind).into()),
            Err(_) => {
                let status = Status::deadline_exceeded(format!(
                    "no answer within {}",
                    humantime::format_duration(limit)
                ));
                Err(explain(&self.url, &status, kind).into())
            }
        }
    }
}

/// A stream of answers.
pub(crate) struct Stream<T> {
    inner: Streaming<T>,
    url: String,
    interrupt: Interrupt,
}

impl<T> Stream<T> {
    /// The next message; `None` when the user pressed Ctrl-C. That the server ends the stream is an error.
    pub(crate) async fn next(&mut self) -> anyhow::Result<Option<T>> {
        let message = tokio::select! {
            message = self.inner.message() => message,
            () = self.interrupt.pressed() => return Ok(None),
        };
        match message {
            Ok(Some(message)) => Ok(Some(message)),
            Ok(None) => Err(Failure::new(
                format!("{} ended the stream", self.url),
                "the controller is stopping or restarting; run the command again",
            )
            .into()),
            Err(status)
                if matches!(
                    status.code(),
                    Code::Unavailable | Code::Unknown | Code::Internal | Code::Cancelled
                ) =>
            {
                Err(Failure::new(
                    format!("the stream from {} broke: {}", self.url, text(&status)),
                    "run the command again; `cofferdam status` shows whether the controller answers",
                )
                .into())
            }
            Err(status) => Err(explain(&self.url, &status, &Kind::Read).into()),
        }
    }
}

fn unreachable(url: &str, why: &str) -> Failure {
    let next = if why.contains("certificate") || why.contains("alert") {
        "check that --ca is the CA of this controller, and that the address is one that its \
         certificate names"
    } else if why.contains("dns") || why.contains("lookup") {
        "check the host name in the controller's address"
    } else {
        "check the address, that the controller runs, and that no firewall is in the way"
    };
    Failure::new(format!("cannot reach {url}: {why}"), next)
}

/// The connection broke during a call. With TLS 1.3 a server that refuses a certificate says so only
/// after the handshake, and what it says is lost if the request is still being written.
fn broken(url: &str, status: &Status, kind: &Kind, fresh: bool) -> Failure {
    let said = text(status);
    if is_tls(&said) {
        return Failure::new(
            format!("{url} refused the connection: {said}"),
            "your certificate is expired, revoked or of another CA; ask for a new one",
        );
    }
    let mut next = match kind {
        Kind::Read => "run the command again".to_owned(),
        Kind::Mutation(key) => repeat(key),
    };
    if fresh {
        next.push_str(
            "; if it happens again, your certificate is expired, revoked or of another CA",
        );
    }
    Failure::new(format!("{url} broke the connection: {said}"), next)
}

fn repeat(key: &str) -> String {
    format!(
        "the controller may have done it all the same: see `cofferdam history`, or repeat safely \
         with --idempotency-key {key}"
    )
}

/// An error from the server in our words.
fn explain(url: &str, status: &Status, kind: &Kind) -> Failure {
    let said = text(status);
    let unsure = |failure: String| match kind {
        Kind::Read => Failure::new(failure, "run the command again"),
        Kind::Mutation(key) => Failure::new(failure, repeat(key)),
    };
    match status.code() {
        Code::Unavailable => unsure(format!("{url} is not available: {said}")),
        Code::DeadlineExceeded | Code::Cancelled => unsure(said),
        Code::Unauthenticated => Failure::new(
            format!("not authenticated: {said}"),
            "use an operator's certificate: --operator-dir DIR, or --cert and --key",
        ),
        Code::PermissionDenied => Failure::new(
            format!("not allowed: {said}"),
            "ask somebody whose role covers it, or use another context",
        ),
        Code::FailedPrecondition | Code::Aborted => Failure::new(
            format!("refused: {said}"),
            "look at what changed with `cofferdam history`, then decide again",
        ),
        Code::Unimplemented => Failure::new(
            format!("{url} does not know this call: {said}"),
            "the controller is older than this program; upgrade it",
        ),
        Code::ResourceExhausted | Code::OutOfRange => Failure::new(
            format!("too much: {said}"),
            "apply fewer documents at once, or ask for less",
        ),
        Code::NotFound | Code::InvalidArgument | Code::AlreadyExists => Failure::plain(said),
        code => Failure::plain(format!("{}: {said}", code.description())),
    }
}

fn is_tls(said: &str) -> bool {
    said.contains("certificate") || said.contains("alert")
}

/// Message of a status with what lies behind it, or the code's description when it is empty.
fn text(status: &Status) -> String {
    let mut said = status.message().to_owned();
    if said.is_empty() {
        status.code().description().clone_into(&mut said);
    }
    if let Some(source) = status.source() {
        let behind = chain(source);
        if !said.contains(&behind) {
            said = format!("{said}: {behind}");
        }
    }
    said
}

/// An error and its causes, without repetitions.
fn chain(error: &dyn std::error::Error) -> String {
    let mut parts: Vec<String> = Vec::new();
    let mut next = Some(error);
    while let Some(error) = next {
        let part = error.to_string();
        if !parts.iter().any(|earlier| earlier.contains(&part)) {
            parts.push(part);
        }
        next = error.source();
    }
    parts.join(": ")
}
