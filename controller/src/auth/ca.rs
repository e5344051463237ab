//! The controller's own certificate authority.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use ring::rand::{SecureRandom as _, SystemRandom};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{
    CertificateDer, CertificateSigningRequestDer, PrivateKeyDer, PrivatePkcs8KeyDer,
};
use sha2::{Digest as _, Sha256};
use time::OffsetDateTime;

use super::{Certified, Identity};
use crate::clock;
use crate::config::{Config, SERVER_NAME};

const CA_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Certificates are valid from a little before now, for clocks that lag.
const BACKDATE: Duration = Duration::from_secs(300);
const SERIAL_BYTES: usize = 16;

/// Why a certificate was not made.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file of the authority cannot be read or written.
    #[error("{path}: {source}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file of the authority holds something else.
    #[error("{path}: {message}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        message: String,
    },
    /// The request is no request, or not signed by its own key.
    #[error("certificate request: {0}")]
    Request(String),
    /// Making the certificate failed.
    #[error("certificate: {0}")]
    Make(#[from] rcgen::Error),
    /// No random numbers.
    #[error("the system gives no random numbers")]
    Random,
}

/// A certificate that was just made.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate, DER.
    pub certificate: CertificateDer<'static>,
    /// When it ends.
    pub not_after: OffsetDateTime,
}

/// The authority: its key and its certificate.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    trust_domain: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("trust_domain", &self.trust_domain)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Reads the authority from `<data_dir>/ca`, or makes it at the first start.
    ///
    /// # Errors
    /// When the files cannot be read or written.
    pub fn open(data_dir: &Path, trust_domain: &str) -> Result<Self, CaError> {
        let dir = data_dir.join("ca");
        let (key_path, cert_path) = (dir.join("key.pem"), dir.join("ca.pem"));
        // The certificate is written last: without it the key is of a start that was cut short.
        if !cert_path.exists() {
            make_dir(&dir)?;
            let key = KeyPair::generate()?;
            let certificate = ca_params(trust_domain)?.self_signed(&key)?;
            write_file(&key_path, 0o600, key.serialize_pem().as_bytes())?;
            write_file(&cert_path, 0o644, certificate.pem().as_bytes())?;
        }
        let content = |path: &Path, message: String| CaError::Content {
            path: path.to_owned(),
            message,
        };
        let key = KeyPair::from_pem(&read_file(&key_path)?)
            .map_err(|error| content(&key_path, error.to_string()))?;
        let certificate = CertificateDer::from_pem_slice(read_file(&cert_path)?.as_bytes())
            .map_err(|error| content(&cert_path, error.to_string()))?;
        let issuer = Issuer::from_ca_cert_der(&certificate, key)
            .map_err(|error| content(&cert_path, error.to_string()))?;
        Ok(Self {
            issuer,
            certificate,
            trust_domain: trust_domain.to_owned(),
        })
    }

    /// The authority's certificate.
    #[must_use]
    pub const fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// SHA-256 of the authority's certificate, hex: what an agent pins.
    #[must_use]
    pub fn fingerprint(&self) -> String {
        hex::encode(Sha256::digest(&self.certificate))
    }

    /// Of this trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// A client certificate for an identity. Of the request only the public key counts, and that it
    /// was signed with the private one.
    ///
    /// # Errors
    /// When the request is malformed.
    pub fn sign(
        &self,
        csr_der: &[u8],
        identity: &Identity,
        enrolment: u32,
        lifetime: Duration,
    ) -> Result<Issued, CaError> {
        let csr = CertificateSigningRequestDer::from(csr_der.to_vec());
        let mut request = CertificateSigningRequestParams::from_der(&csr)
            .map_err(|error| CaError::Request(error.to_string()))?;
        request.params = self.client_params(identity, enrolment, lifetime)?;
        let not_after = request.params.not_after;
        let certificate = request.signed_by(&self.issuer)?;
        Ok(Issued {
            certificate: certificate.der().clone(),
            not_after,
        })
    }

    /// A key and certificate for the controller itself.
    ///
    /// # Errors
    /// When a name does not fit into a certificate.
    pub fn server(
        &self,
        config: &Config,
    ) -> Result<
        (
            CertificateDer<'static>,
            PrivateKeyDer<'static>,
            OffsetDateTime,
        ),
        CaError,
    > {
        let mut params = leaf(config.certificates.server);
        params.serial_number = Some(serial(0)?);
        params.distinguished_name = common_name(SERVER_NAME);
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let mut names = vec![SERVER_NAME.to_owned(), "localhost".to_owned()];
        names.extend(config.server_names.iter().cloned());
        let mut addresses: Vec<IpAddr> =
            vec![[127, 0, 0, 1].into(), std::net::Ipv6Addr::LOCALHOST.into()];
        if !config.listen.ip().is_unspecified() {
            addresses.push(config.listen.ip());
        }
        for name in names {
            params.subject_alt_names.push(match name.parse() {
                Ok(address) => SanType::IpAddress(address),
                Err(_) => SanType::DnsName(name.try_into()?),
            });
        }
        params
            .subject_alt_names
            .extend(addresses.into_iter().map(SanType::IpAddress));
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &self.issuer)?;
        let private = PrivatePkcs8KeyDer::from(key.serialize_der());
        Ok((certificate.der().clone(), private.into(), params.not_after))
    }

    /// Writes `<data_dir>/operator/{ca,cert,key}.pem` at the first start, and again when less than
    /// half of its life is left.
    ///
    /// # Errors
    /// When the files cannot be written.
    pub fn ensure_operator(&self, data_dir: &Path, lifetime: Duration) -> Result<PathBuf, CaError> {
        let dir = data_dir.join("operator");
        let path = dir.join("cert.pem");
        let fresh = CertificateDer::from_pem_file(&path)
            .ok()
            .and_then(|der| Certified::read(&der, &self.trust_domain))
            .is_some_and(|certified| clock::until(certified.not_after) > lifetime / 2);
        if !fresh {
            make_dir(&dir)?;
            let key = KeyPair::generate()?;
            let identity = Identity::User("admin".to_owned());
            let certificate = self
                .client_params(&identity, 0, lifetime)?
                .signed_by(&key, &self.issuer)?;
            let ca = pem("CERTIFICATE", &self.certificate);
            write_file(&dir.join("ca.pem"), 0o644, ca.as_bytes())?;
            write_file(&dir.join("key.pem"), 0o600, key.serialize_pem().as_bytes())?;
            write_file(&path, 0o644, certificate.pem().as_bytes())?;
        }
        Ok(dir)
    }

    fn client_params(
        &self,
        identity: &Identity,
        enrolment: u32,
        lifetime: Duration,
    ) -> Result<CertificateParams, CaError> {
        let mut params = leaf(lifetime);
        params.serial_number = Some(serial(enrolment)?);
        params.distinguished_name = common_name(&identity.to_string());
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.subject_alt_names = vec![SanType::URI(identity.uri(&self.trust_domain).try_into()?)];
        Ok(params)
    }
}

fn ca_params(trust_domain: &str) -> Result<CertificateParams, CaError> {
    let mut params = leaf(CA_LIFETIME);
    params.serial_number = Some(serial(0)?);
    params.distinguished_name = common_name(&format!("Cofferdam {trust_domain}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = false;
    Ok(params)
}

fn leaf(lifetime: Duration) -> CertificateParams {
    let now = OffsetDateTime::now_utc();
    let mut params = CertificateParams::default();
    params.not_before = now - BACKDATE;
    params.not_after = now + lifetime;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    params
}

fn common_name(name: &str) -> DistinguishedName {
    let mut distinguished = DistinguishedName::new();
    // A common name has at most 64 characters; the identity is in the URI anyway.
    let short: String = name.chars().take(64).collect();
    distinguished.push(DnType::CommonName, short);
    distinguished
}

/// A serial number that carries the enrolment: 1 byte 0x40 (positive, full length), 4 bytes
/// enrolment, 11 bytes random.
fn serial(enrolment: u32) -> Result<SerialNumber, CaError> {
    let mut bytes = [0; SERIAL_BYTES];
    SystemRandom::new()
        .fill(&mut bytes)
        .map_err(|_| CaError::Random)?;
    bytes[0] = 0x40;
    bytes[1..5].copy_from_slice(&enrolment.to_be_bytes());
    Ok(SerialNumber::from_slice(&bytes))
}

/// The enrolment in a serial number of ours.
pub(super) fn enrolment_of(serial: &[u8]) -> u32 {
    match serial {
        [0x40, a, b, c, d, rest @ ..] if rest.len() + 5 == SERIAL_BYTES => {
            u32::from_be_bytes([*a, *b, *c, *d])
        }
        _ => 0,
    }
}

fn pem(label: &str, der: &[u8]) -> String {
    use base64::Engine as _;
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let mut pem = format!("-----BEGIN {label}-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem.push_str(&format!("-----END {label}-----\n"));
    pem
}

fn make_dir(dir: &Path) -> Result<(), CaError> {
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .map_err(|source| CaError::File {
            path: dir.to_owned(),
            source,
        })
}

fn read_file(path: &Path) -> Result<String, CaError> {
    fs::read_to_string(path).map_err(|source| CaError::File {
        path: path.to_owned(),
        source,
    })
}

/// Whole or not at all, also over a power cut.
fn write_file(path: &Path, mode: u32, content: &[u8]) -> Result<(), CaError> {
    let write = || {
        let temporary = path.with_extension("new");
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(content)?;
        file.sync_all()?;
        fs::rename(&temporary, path)?;
        if let Some(dir) = path.parent() {
            File::open(dir)?.sync_all()?;
        }
        Ok(())
    };
    write().map_err(|source| CaError::File {
        path: path.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn a_certificate_says_what_the_controller_says() {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::open(dir.path(), "td").expect("made");
        let again = Authority::open(dir.path(), "td").expect("read");
        assert_eq!(authority.fingerprint(), again.fingerprint());
        let mode = fs::metadata(dir.path().join("ca/key.pem"))
            .expect("a key")
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);

        // The request asks for another name: ignored.
        let key = KeyPair::generate().expect("a key");
        let csr = CertificateParams::new(vec!["evil.example".to_owned()])
            .and_then(|params| params.serialize_request(&key))
            .expect("a request");
        let identity = Identity::Agent("shop/web-1".into());
        let issued = again
            .sign(csr.der(), &identity, 7, Duration::from_secs(3600))
            .expect("signed");
        let certified = Certified::read(&issued.certificate, "td").expect("reads");
        assert_eq!(certified.identity, identity);
        assert_eq!(certified.enrolment, 7);
        assert!(Certified::read(&issued.certificate, "other").is_none());
        assert!(again.sign(b"rubbish", &identity, 7, BACKDATE).is_err());
    }

    #[test]
    fn the_operators_bundle_is_written_once() {
        let dir = tempfile::tempdir().expect("a directory");
        let authority = Authority::open(dir.path(), "td").expect("made");
        let year = Duration::from_secs(365 * 24 * 3600);
        let bundle = authority
            .ensure_operator(dir.path(), year)
            .expect("written");
        let cert = fs::read(bundle.join("cert.pem")).expect("a certificate");
        authority.ensure_operator(dir.path(), year).expect("kept");
        assert_eq!(fs::read(bundle.join("cert.pem")).expect("still"), cert);
        // A longer life is wanted than is left by far: written anew.
        authority
            .ensure_operator(dir.path(), year * 3)
            .expect("renewed");
        assert_ne!(fs::read(bundle.join("cert.pem")).expect("again"), cert);
    }
}
