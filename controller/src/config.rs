//! Configuration: a YAML file, then `COFFERDAM_*` of the environment, then flags; the later wins.
//!
//! An unknown key is refused, so that a slip of the pen does not quietly leave a default in place.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use std::{fs, io};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::detect::ProbingConfig;

/// Where the file is looked for when nobody names one.
pub const DEFAULT_PATH: &str = "/etc/cofferdam/controller.yaml";

/// Name that the controller's certificate always has: agents verify it whatever address they use.
pub const SERVER_NAME: &str = "cofferdam-controller";

/// The longest life that an agent's certificate may have.
pub const MAX_AGENT_LIFETIME: Duration = Duration::from_secs(24 * 3600);

/// Everything that can be set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Databases, keys and the operator's certificate live here.
    pub data_dir: PathBuf,
    /// gRPC with TLS, for agents and operators.
    pub listen: SocketAddr,
    /// `/metrics` and `/healthz`, plain HTTP; absent = off.
    pub http_listen: Option<SocketAddr>,
    /// Trust domain of every identity that this controller hands out.
    pub trust_domain: String,
    /// Further names and addresses for the controller's certificate.
    pub server_names: Vec<String>,
    /// What is inside: an address in here without a workload is "unmanaged", one outside is "world".
    pub managed_networks: Vec<IpNet>,
    /// Mode of workloads that no `Mode` object speaks about.
    pub default_mode: DefaultMode,
    /// Lifetimes of certificates.
    pub certificates: Certificates,
    /// How much is kept of flows.
    pub flows: Flows,
    /// Upper bounds of what one agent is sent.
    pub limits: Limits,
    /// The detector of probing.
    pub probing: ProbingConfig,
    /// The log.
    pub log: Log,
}

/// Mode of workloads that nobody spoke about.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultMode {
    /// Verdicts are recorded, nothing is dropped by policy.
    #[default]
    Observe,
    /// Policy is enforced.
    Enforce,
}

/// Lifetimes of certificates.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Certificates {
    /// Of agents; at most 24 h.
    #[serde(with = "duration")]
    pub agent: Duration,
    /// Of the controller itself; renewed at half of it without a restart.
    #[serde(with = "duration")]
    pub server: Duration,
    /// Of the operator's bundle, renewed at a start when less than half is left.
    #[serde(with = "duration")]
    pub operator: Duration,
}

/// How much is kept of flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Flows {
    /// Raw records; edges are kept as long as they exist.
    pub max_records: u32,
    /// Batches that an agent may have under way.
    pub credit: u32,
    /// Records in one batch.
    pub max_batch: u32,
    /// Records that a slow live follower may be behind before it loses some (and is told).
    pub follower_backlog: u32,
}

/// Upper bounds of what one agent is sent: the sizes of the kernel's maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Limits {
    /// Host addresses.
    pub addresses: usize,
    /// Prefixes.
    pub cidrs: usize,
    /// Class bindings.
    pub classes: usize,
    /// Rule cells.
    pub rules: usize,
    /// Filter cells.
    pub filters: usize,
    /// Addresses that one agent may claim.
    pub workload_addresses: usize,
}

/// The log.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Log {
    /// Filter in the syntax of `tracing`.
    pub filter: String,
    /// Shape of a line.
    pub format: LogFormat,
}

/// Shape of a log line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Plain,
    /// For machines.
    Json,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("/var/lib/cofferdam-controller"),
            listen: SocketAddr::from(([0, 0, 0, 0], 7443)),
            http_listen: Some(SocketAddr::from(([127, 0, 0, 1], 7480))),
            trust_domain: "cofferdam.local".to_owned(),
            server_names: Vec::new(),
            managed_networks: ["10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"]
                .iter()
                .filter_map(|net| net.parse().ok())
                .collect(),
            default_mode: DefaultMode::default(),
            certificates: Certificates::default(),
            flows: Flows::default(),
            limits: Limits::default(),
            probing: ProbingConfig::default(),
            log: Log::default(),
        }
    }
}

impl Default for Certificates {
    fn default() -> Self {
        Self {
            agent: MAX_AGENT_LIFETIME,
            server: Duration::from_secs(30 * 24 * 3600),
            operator: Duration::from_secs(365 * 24 * 3600),
        }
    }
}

impl Default for Flows {
    fn default() -> Self {
        Self {
            max_records: 200_000,
            credit: 16,
            max_batch: 4_096,
            follower_backlog: 8_192,
        }
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            addresses: 65_536,
            cidrs: 16_384,
            classes: 65_536,
            rules: 262_144,
            filters: 65_536,
            workload_addresses: 256,
        }
    }
}

impl Default for Log {
    fn default() -> Self {
        Self {
            filter: "info".to_owned(),
            format: LogFormat::default(),
        }
    }
}

/// What may be said on the command line or in the environment.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// Replaces `data_dir`.
    pub data_dir: Option<PathBuf>,
    /// Replaces `listen`.
    pub listen: Option<SocketAddr>,
    /// Replaces `http_listen`.
    pub http_listen: Option<SocketAddr>,
    /// Replaces `trust_domain`.
    pub trust_domain: Option<String>,
    /// Replaces `managed_networks`.
    pub managed_networks: Option<Vec<IpNet>>,
    /// Replaces `log.filter`.
    pub log_filter: Option<String>,
    /// Replaces `log.format`.
    pub log_json: bool,
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The file is not what it should be.
    #[error("{path}: {message}")]
    Parse {
        /// The file.
        path: PathBuf,
        /// With line and column.
        message: String,
    },
    /// A value makes no sense.
    #[error("{key}: {message}")]
    Value {
        /// Path of the key.
        key: &'static str,
        /// What is wrong.
        message: String,
    },
}

impl Config {
    /// Reads a file (the default one may be absent, a named one not), applies overrides and checks.
    ///
    /// # Errors
    /// When the file cannot be read or a value makes no sense.
    pub fn load(path: Option<&Path>, overrides: &Overrides) -> Result<Self, ConfigError> {
        let file = path.unwrap_or_else(|| Path::new(DEFAULT_PATH));
        let mut config = match fs::read_to_string(file) {
            Ok(text) => Self::parse(file, &text)?,
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.is_none() => {
                Self::default()
            }
            Err(source) => {
                return Err(ConfigError::Read {
                    path: file.to_owned(),
                    source,
                });
            }
        };
        config.apply(overrides);
        config.check()?;
        Ok(config)
    }

    fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        if text.lines().all(|line| {
            let line = line.trim();
            line.is_empty() || line.starts_with('#')
        }) {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(text).map_err(|error| ConfigError::Parse {
            path: path.to_owned(),
            message: error.to_string(),
        })
    }

    fn apply(&mut self, overrides: &Overrides) {
        let given = overrides.clone();
        if let Some(data_dir) = given.data_dir {
            self.data_dir = data_dir;
        }
        if let Some(listen) = given.listen {
            self.listen = listen;
        }
        if let Some(listen) = given.http_listen {
            self.http_listen = Some(listen);
        }
        if let Some(domain) = given.trust_domain {
            self.trust_domain = domain;
        }
        if let Some(networks) = given.managed_networks {
            self.managed_networks = networks;
        }
        if let Some(filter) = given.log_filter {
            self.log.filter = filter;
        }
        if given.log_json {
            self.log.format = LogFormat::Json;
        }
    }

    /// Checks what the types cannot.
    ///
    /// # Errors
    /// The first value that makes no sense.
    pub fn check(&self) -> Result<(), ConfigError> {
        let bad = |key, message: &str| {
            Err(ConfigError::Value {
                key,
                message: message.to_owned(),
            })
        };
        let domain = &self.trust_domain;
        let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-._".contains(c);
        if domain.is_empty() || domain.len() > 255 || !domain.chars().all(fits) {
            return bad(
                "trust_domain",
                "must be lower-case letters, digits, `-`, `.` and `_`",
            );
        }
        let minute = Duration::from_secs(60);
        if self.certificates.agent > MAX_AGENT_LIFETIME || self.certificates.agent < minute {
            return bad("certificates.agent", "must be between 1m and 24h");
        }
        if self.certificates.server < minute || self.certificates.operator < minute {
            return bad("certificates", "must live at least 1m");
        }
        let Flows {
            max_records,
            credit,
            max_batch,
            follower_backlog,
        } = self.flows;
        if max_records < 1_000 {
            return bad("flows.max_records", "must be at least 1000");
        }
        if credit == 0 || max_batch == 0 || follower_backlog == 0 {
            return bad(
                "flows",
                "credit, max_batch and follower_backlog are above 0",
            );
        }
        if let Some(net) = (self.managed_networks.iter()).find(|net| net.trunc() != **net) {
            return bad(
                "managed_networks",
                &format!(
                    "{net} has bits behind its prefix, did you mean {}?",
                    net.trunc()
                ),
            );
        }
        self.probing
            .check()
            .or_else(|message| bad("probing", &message))
    }

    /// The configuration as JSON (which is YAML).
    #[must_use]
    pub fn print(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }
}

/// Durations as people write them: `24h`, `90 s`.
mod duration {
    use std::time::Duration;

    use serde::{Deserialize as _, Deserializer, Serializer, de};

    #[allow(
        clippy::trivially_copy_pass_by_ref,
        reason = "serde prescribes the signature"
    )]
    pub(super) fn serialize<S: Serializer>(
        duration: &Duration,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&humantime::format_duration(*duration))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Duration, D::Error> {
        let text = String::deserialize(deserializer)?;
        humantime::parse_duration(&text).map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        let config = Config::parse(Path::new("c.yaml"), text)?;
        config.check().map(|()| config)
    }

    #[test]
    fn what_is_printed_can_be_read() {
        let config = Config::default();
        assert_eq!(parse(&config.print()).expect("reads"), config);
        assert_eq!(parse("# nothing\n").expect("reads"), config);
    }

    #[test]
    fn unknown_keys_and_bad_values_are_refused() {
        let message = |text| parse(text).expect_err("refused").to_string();
        assert!(message("listne: 127.0.0.1:1\n").contains("listne"));
        assert!(message("certificates: {agent: 25h}\n").contains("24h"));
        assert!(message("trust_domain: 'a b'\n").contains("trust_domain"));
        assert!(message("managed_networks: [10.0.0.1/8]\n").contains("10.0.0.0/8"));
        assert!(message("probing: {false_positives: 2.0}\n").contains("probing"));
        assert!(message("flows: {credit: 0}\n").contains("flows"));
    }

    #[test]
    fn flags_win() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("c.yaml");
        fs::write(&path, "listen: 127.0.0.1:1\ntrust_domain: a.example\n").expect("written");
        let overrides = Overrides {
            listen: Some(SocketAddr::from(([127, 0, 0, 1], 2))),
            ..Overrides::default()
        };
        let config = Config::load(Some(&path), &overrides).expect("loads");
        assert_eq!(
            (config.listen.port(), config.trust_domain.as_str()),
            (2, "a.example")
        );
        let missing = Config::load(Some(&dir.path().join("none")), &overrides);
        assert!(matches!(missing, Err(ConfigError::Read { .. })));
    }
}
