//! Rule sets of one host's packet filter.

use std::net::IpAddr;
use std::path::PathBuf;

use clap::Args;
use policy::brownfield::{HostOptions, Imported, iptables, nftables};
use policy::model::{Metadata, Object, WorkloadObject};
use policy::selectors::{Labels, Selector};
use policy::source::Place;

use super::output::Output;
use crate::Outcome;
use crate::error::Failure;
use crate::output::Screen;
use crate::sources;

/// Label of a workload that was named and not selected.
const WORKLOAD_LABEL: &str = "workload";

/// Import `iptables-save` and `ip6tables-save` of one host, with `ipset save` beside them
#[derive(Debug, Args)]
pub(super) struct Iptables {
    /// One file a family, and any `ipset save` files; - for stdin
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    host: Host,
    #[command(flatten)]
    output: Output,
}

/// Import `nft -j list ruleset` of one host
#[derive(Debug, Args)]
pub(super) struct Nftables {
    /// The rule set as JSON; - for stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    host: Host,
    #[command(flatten)]
    output: Output,
}

/// What the rules do not say about the host.
#[derive(Debug, Args)]
struct Host {
    #[command(flatten)]
    whose: Whose,
    /// Address of the host, repeatable: all of them, so that conditions on the host's own address can be
    /// carried over
    #[arg(long, value_name = "IP")]
    address: Vec<IpAddr>,
    /// Interface of the host, repeatable: all over which its traffic comes and goes, so that conditions
    /// on interfaces can be carried over
    #[arg(long, value_name = "NAME")]
    interface: Vec<String>,
    /// Name of the policy [default: host/ and the workload's name or labels]
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Who answers for the policy
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// Let what cannot be carried over exactly allow more than the source, instead of less
    #[arg(long)]
    allow_wider: bool,
}

/// Which workload the host is.
#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Whose {
    /// Labels of the workload that the host is
    #[arg(long, value_name = "KEY=VALUE[,…]", value_parser = subject)]
    subject: Option<Selector>,
    /// Name of the workload that the host is; it is selected by the label workload=NAME
    #[arg(long, value_name = "NAME")]
    workload: Option<String>,
}

impl Iptables {
    pub(super) fn run(self, screen: &mut Screen) -> anyhow::Result<Outcome> {
        let sources = sources::read_foreign(&self.files)?;
        let imported = iptables::import(&sources, &self.host.options()?)?;
        self.output.write(self.host.with_workload(imported), screen)
    }
}

impl Nftables {
    pub(super) fn run(self, screen: &mut Screen) -> anyhow::Result<Outcome> {
        let sources = sources::read_foreign(std::slice::from_ref(&self.file))?;
        let source = sources
            .first()
            .ok_or_else(|| Failure::plain("no file was read"))?;
        let imported = nftables::import(source, &self.host.options()?)?;
        self.output.write(self.host.with_workload(imported), screen)
    }
}

impl Host {
    fn options(&self) -> Result<HostOptions, Failure> {
        let (subject, whose) = match (&self.whose.subject, &self.whose.workload) {
            (Some(subject), _) => {
                let pairs = subject.match_labels.iter();
                let pairs: Vec<String> =
                    pairs.map(|(key, value)| format!("{key}-{value}")).collect();
                (subject.clone(), pairs.join("-"))
            }
            (None, Some(name)) => (Selector::label(WORKLOAD_LABEL, name), name.clone()),
            (None, None) => {
                return Err(Failure::new(
                    "it is not said which workload the host is",
                    "add --subject KEY=VALUE or --workload NAME",
                ));
            }
        };
        let name = self
            .name
            .clone()
            .unwrap_or_else(|| policy::brownfield::name(&["host", &whose]));
        Ok(HostOptions {
            name,
            owner: self.owner.clone(),
            subject,
            addresses: self.address.clone(),
            interfaces: self.interface.clone(),
            allow_wider: self.allow_wider,
        })
    }

    /// A workload that is named with its addresses is written down too.
    fn with_workload(&self, mut imported: Imported) -> Imported {
        if let Some(name) = &self.whose.workload {
            let label = (WORKLOAD_LABEL.to_owned(), name.clone());
            if self.address.is_empty() {
                imported.report.remarks.push(format!(
                    "give the workload {name} the label {WORKLOAD_LABEL}={name}, which the policy selects"
                ));
            } else {
                imported.objects.push(Object::Workload(WorkloadObject {
                    metadata: Metadata {
                        name: name.clone(),
                        labels: Labels::from([label]),
                        ..Metadata::default()
                    },
                    addresses: self.address.clone(),
                    named_ports: Vec::new(),
                    namespace_labels: Labels::new(),
                    place: Place::default(),
                }));
            }
        }
        imported
    }
}

/// `role=db,env=prod`
fn subject(text: &str) -> Result<Selector, String> {
    let mut selector = Selector::default();
    for pair in text.split(',') {
        match pair.split_once('=') {
            Some((key, value)) if !key.is_empty() => {
                selector
                    .match_labels
                    .insert(key.to_owned(), value.to_owned());
            }
            _ => return Err(format!("{pair:?} is no label; write it like role=db")),
        }
    }
    Ok(selector)
}
