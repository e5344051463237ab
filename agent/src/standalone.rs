//! Policy from a directory of files, compiled here for the one workload of this host.
//!
//! The files stay the source: they are read again on `apply` and SIGHUP, and a set with any problem is
//! refused whole.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use datapath::ids::EndpointId;
use policy::api::Scenario;
use policy::compile::{CompileError, CompileInput, HostWorkload, IdentityAllocator, compile};
use policy::problems::Problems;
use policy::snapshot::{Endpoint, Snapshot};
use policy::source::Source;
use policy::world::Workload;
use sha2::{Digest, Sha256};

use crate::config::Config;

/// Why the files are no policy for this host.
#[derive(Debug, thiserror::Error)]
pub enum StandaloneError {
    /// A file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The directory holds no policy file.
    #[error("{}: there is no .yaml, .yml or .json file", path.display())]
    Empty {
        /// Which.
        path: PathBuf,
    },
    /// The texts have problems, all of them listed.
    #[error("{0}")]
    Problems(Problems),
    /// The texts are good, but cannot be compiled for this host.
    #[error(transparent)]
    Compile(#[from] CompileError),
    /// The clock cannot be expressed.
    #[error("the system clock is out of range")]
    Clock,
}

/// Reads every policy file below a directory, in the order of their names.
///
/// # Errors
/// When a file cannot be read or there is none.
pub fn read_dir(dir: &Path) -> Result<Vec<Source>, StandaloneError> {
    let mut paths = Vec::new();
    collect(dir, &mut paths)?;
    paths.sort();
    let mut sources = Vec::new();
    for path in paths {
        let bytes = std::fs::read(&path).map_err(|source| StandaloneError::Read {
            path: path.clone(),
            source,
        })?;
        sources.push(
            Source::from_bytes(path.display().to_string(), &bytes)
                .map_err(StandaloneError::Problems)?,
        );
    }
    if sources.is_empty() {
        return Err(StandaloneError::Empty {
            path: dir.to_owned(),
        });
    }
    Ok(sources)
}

fn collect(dir: &Path, into: &mut Vec<PathBuf>) -> Result<(), StandaloneError> {
    let failed = |source| StandaloneError::Read {
        path: dir.to_owned(),
        source,
    };
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        let hidden = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with('.'));
        if hidden {
            continue;
        }
        if path.is_dir() {
            collect(&path, into)?;
        } else if path.extension().is_some_and(|extension| {
            extension == "yaml" || extension == "yml" || extension == "json"
        }) {
            into.push(path);
        }
    }
    Ok(())
}

/// Compiles the files for this host. Revision 0: the caller numbers it.
///
/// # Errors
/// With every problem of the texts, or what does not fit.
pub fn snapshot(
    config: &Config,
    sources: &[Source],
    addresses: &BTreeSet<IpAddr>,
    utc_ns: i64,
) -> Result<Snapshot, StandaloneError> {
    let scenario = Scenario::parse(None, sources).map_err(StandaloneError::Problems)?;
    snapshot_of(config, scenario, addresses, utc_ns)
}

/// [`snapshot`] of what was read already.
///
/// # Errors
/// What does not fit.
pub fn snapshot_of(
    config: &Config,
    mut scenario: Scenario,
    addresses: &BTreeSet<IpAddr>,
    utc_ns: i64,
) -> Result<Snapshot, StandaloneError> {
    scenario
        .world
        .managed_networks
        .extend(config.managed_networks.iter().copied());
    scenario.world.default_mode = config.mode;
    let own = own_workload(config, addresses);
    let name = own.full_name();
    // A Workload object may describe this host; then it says what the host is.
    if scenario.world.workload(&name).is_none() {
        scenario.world.add(own).map_err(|error| {
            StandaloneError::Problems(Problems::from(policy::problems::Problem::at(
                &policy::source::Place::default(),
                error.to_string(),
            )))
        })?;
    }
    let at = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(utc_ns))
        .map_err(|_| StandaloneError::Clock)?;
    let host = [HostWorkload {
        name,
        endpoint: EndpointId::HOST,
    }];
    let limits = policy::compile::Limits {
        addresses: config.limits.addresses,
        cidrs: config.limits.cidrs,
        classes: config.limits.classes,
        rules: config.limits.rules,
        filters: config.limits.filters,
    };
    Ok(compile(
        &CompileInput {
            world: &scenario.world,
            set: &scenario.set,
            host: &host,
            at,
            revision: 0,
            limits,
            label_keys: &[],
        },
        &mut IdentityAllocator::default(),
    )?)
}

/// SHA-256, hex, of everything that makes the policy of this host but its addresses and the time.
#[must_use]
pub fn digest(config: &Config, sources: &[Source]) -> String {
    let mut hasher = Sha256::new();
    let mut part = |text: &str| {
        hasher.update((text.len() as u64).to_be_bytes());
        hasher.update(text);
    };
    let workload = &config.workload;
    part(&workload.name());
    part(&format!("{:?} {:?}", workload.namespace, workload.labels));
    part(&format!("{:?} {:?}", config.managed_networks, config.mode));
    for source in sources {
        part(&source.text);
    }
    hex::encode(hasher.finalize())
}

fn own_workload(config: &Config, addresses: &BTreeSet<IpAddr>) -> Workload {
    let mut own = Workload::new(
        config.workload.name(),
        config.workload.labels.clone(),
        addresses.iter().copied().collect(),
    );
    own.namespace.clone_from(&config.workload.namespace);
    own
}

/// What this host protects while there is no snapshot.
#[must_use]
pub fn endpoints(config: &Config, addresses: &BTreeSet<IpAddr>) -> Vec<Endpoint> {
    let own = own_workload(config, addresses);
    vec![Endpoint {
        id: EndpointId::HOST.0,
        name: own.full_name(),
        // Nothing was ever decided: see, do not cut. A policy that was lost is closed by the engine.
        mode: policy::snapshot::Mode::Observe,
        addresses: own.addresses,
    }]
}
