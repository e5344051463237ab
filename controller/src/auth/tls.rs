//! Accepting connections: handshakes apart from each other, client certificates optional.
//!
//! Whether a call needs a certificate is decided per service by the [`super::Gate`]: enrolment has to
//! work without one.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use arc_swap::ArcSwap;
use rustls::RootCertStore;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::{Authority, CaError, Certified, Peer};
use crate::config::Config;
use crate::metrics::Metrics;

/// A handshake that takes longer is given up: a silent client must not hold anything.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Handshakes at the same time.
const HANDSHAKES: usize = 512;

/// The certificate that is shown now.
#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// No certificate.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// The library refuses what it was given.
    #[error("TLS: {0}")]
    Tls(String),
}

fn certified_key(authority: &Authority, config: &Config) -> Result<Arc<CertifiedKey>, TlsError> {
    let (certificate, key, _) = authority.server(config)?;
    let key = rustls::crypto::ring::sign::any_supported_type(&key)
        .map_err(|error| TlsError::Tls(error.to_string()))?;
    // The authority's own certificate goes along: an agent that enrols has only its hash.
    let chain = vec![certificate, authority.certificate().clone()];
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}

/// The server's side of TLS. Its certificate renews itself at half of its life until `stop`.
///
/// # Errors
/// When no certificate can be made.
pub fn server_config(
    authority: &Arc<Authority>,
    config: &Config,
    stop: &CancellationToken,
) -> Result<Arc<rustls::ServerConfig>, TlsError> {
    let tls = |error: &dyn std::fmt::Display| TlsError::Tls(error.to_string());
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots
        .add(authority.certificate().clone())
        .map_err(|error| tls(&error))?;
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| tls(&error))?;
    let current = Arc::new(Current(ArcSwap::new(certified_key(authority, config)?)));
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(|error| tls(&error))?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(current.clone());
    server.alpn_protocols = vec![b"h2".to_vec()];
    // A resumed session would skip the look at the client's certificate and its expiry.
    server.session_storage = Arc::new(rustls::server::NoServerSessionStorage {});
    server.send_tls13_tickets = 0;

    let (authority, config, stop) = (authority.clone(), config.clone(), stop.clone());
    tokio::spawn(async move {
        let half = config.certificates.server / 2;
        while stop
            .run_until_cancelled(tokio::time::sleep(half))
            .await
            .is_some()
        {
            match certified_key(&authority, &config) {
                Ok(key) => current.0.store(key),
                Err(error) => tracing::error!(%error, "the server's certificate was not renewed"),
            }
        }
    });
    Ok(Arc::new(server))
}

/// A connection with its handshake done.
#[derive(Debug)]
pub struct PeerStream {
    stream: TlsStream<TcpStream>,
    peer: Peer,
}

/// Accepts until `stop`, and gives what has shaken hands.
pub fn incoming(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    trust_domain: &str,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) -> ReceiverStream<io::Result<PeerStream>> {
    let (ready, queue) = mpsc::channel(64);
    let trust_domain: Arc<str> = trust_domain.into();
    tokio::spawn(async move {
        let acceptor = TlsAcceptor::from(tls);
        let slots = Arc::new(Semaphore::new(HANDSHAKES));
        loop {
            let accepted = async {
                let slot = slots.clone().acquire_owned().await;
                (slot, listener.accept().await)
            };
            let Some((slot, accepted)) = stop.run_until_cancelled(accepted).await else {
                return;
            };
            let (tcp, remote) = match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors, mostly: give those who hold them time to go.
                    tracing::warn!(%error, "a connection was not accepted");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                    continue;
                }
            };
            let (acceptor, ready, metrics) = (acceptor.clone(), ready.clone(), metrics.clone());
            let trust_domain = trust_domain.clone();
            tokio::spawn(async move {
                let _slot = slot;
                match tokio::time::timeout(
                    HANDSHAKE,
                    handshake(&acceptor, tcp, remote, &trust_domain),
                )
                .await
                {
                    // Nobody listens any more during a stop.
                    Ok(Ok(stream)) => drop(ready.send(Ok(stream)).await),
                    Ok(Err(error)) => {
                        metrics.handshakes_failed.inc();
                        tracing::debug!(%remote, %error, "no handshake");
                    }
                    Err(_) => {
                        metrics.handshakes_failed.inc();
                        tracing::debug!(%remote, "the handshake took too long");
                    }
                }
            });
        }
    });
    ReceiverStream::new(queue)
}

async fn handshake(
    acceptor: &TlsAcceptor,
    tcp: TcpStream,
    remote: SocketAddr,
    trust_domain: &str,
) -> io::Result<PeerStream> {
    tcp.set_nodelay(true)?;
    let stream = acceptor.accept(tcp).await?;
    let certified = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|chain| chain.first())
        .and_then(|leaf| Certified::read(leaf, trust_domain))
        .map(Arc::new);
    Ok(PeerStream {
        stream,
        peer: Peer { remote, certified },
    })
}

impl Connected for PeerStream {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for PeerStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl AsyncWrite for PeerStream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
