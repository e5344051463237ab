//! TLS to the controller: before enrolment by a pinned CA, afterwards by the roots that came with the identity.

use std::sync::Arc;

use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use sha2::{Digest, Sha256};
use tonic::transport::{Channel, Endpoint};

use super::ControlError;
use super::identity::Identity;
use crate::config::Controller;

/// Name that the controller's certificate always has, whatever address it is reached at.
const SERVER_NAME: &str = "cofferdam-controller";

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn roots(certificates: Vec<CertificateDer<'static>>) -> Result<RootCertStore, ControlError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates {
        roots.add(certificate)?;
    }
    Ok(roots)
}

/// TLS with this agent's identity.
pub(super) fn mutual(identity: &Identity) -> Result<ClientConfig, ControlError> {
    let mut config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()?
        .with_root_certificates(roots(identity.roots())?)
        .with_client_auth_cert(identity.chain(), identity.key())?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// TLS for enrolment: no identity yet, one CA believed by its hash or from a file.
pub(super) fn enrolment(controller: &Controller) -> Result<ClientConfig, ControlError> {
    let builder =
        ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions()?;
    let mut config = if let Some(pin) = &controller.ca_sha256 {
        let pin: [u8; 32] = hex::decode(pin)
            .ok()
            .and_then(|bytes| bytes.try_into().ok())
            .ok_or(ControlError::NoPin)?;
        builder
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Pinned {
                pin,
                provider: provider(),
            }))
            .with_no_client_auth()
    } else if let Some(path) = &controller.ca_file {
        let file = |error: rustls::pki_types::pem::Error| ControlError::File {
            path: path.clone(),
            source: std::io::Error::other(error.to_string()),
        };
        let certificates = CertificateDer::pem_file_iter(path)
            .map_err(file)?
            .collect::<Result<Vec<_>, _>>()
            .map_err(file)?;
        builder
            .with_root_certificates(roots(certificates)?)
            .with_no_client_auth()
    } else {
        return Err(ControlError::NoPin);
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Believes a chain only if it holds the CA whose hash was given, and that CA vouches for the leaf.
#[derive(Debug)]
struct Pinned {
    pin: [u8; 32],
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let pinned = intermediates
            .iter()
            .find(|certificate| <[u8; 32]>::from(Sha256::digest(certificate)) == self.pin)
            .ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(pinned.clone().into_owned())?;
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&self.provider))
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))?
            .verify_server_cert(leaf, intermediates, name, ocsp, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// Connects to one endpoint (`host:port`).
pub(super) async fn connect(
    endpoint: &str,
    controller: &Controller,
    tls: ClientConfig,
) -> Result<Channel, ControlError> {
    let failed = |source| ControlError::Connect {
        endpoint: endpoint.to_owned(),
        source,
    };
    let name = controller
        .server_name
        .clone()
        .unwrap_or_else(|| SERVER_NAME.to_owned());
    let name = ServerName::try_from(name)
        .map_err(|error| ControlError::Certificate(format!("controller.server_name: {error}")))?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(tls));
    let address = endpoint.to_owned();
    // "http" because TLS is made below, with a verifier that tonic's own settings do not offer.
    Endpoint::from_shared(format!("http://{endpoint}"))
        .map_err(failed)?
        .connect_timeout(std::time::Duration::from_secs(10))
        .http2_keep_alive_interval(std::time::Duration::from_secs(10))
        .keep_alive_timeout(std::time::Duration::from_secs(10))
        .keep_alive_while_idle(true)
        .connect_with_connector(tower::service_fn(move |_| {
            let (connector, name, address) = (connector.clone(), name.clone(), address.clone());
            async move {
                let stream = tokio::net::TcpStream::connect(&address).await?;
                stream.set_nodelay(true)?;
                let stream = connector.connect(name, stream).await?;
                Ok::<_, std::io::Error>(hyper_util::rt::TokioIo::new(stream))
            }
        }))
        .await
        .map_err(failed)
}
