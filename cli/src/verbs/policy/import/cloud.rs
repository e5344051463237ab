//! Rules of clouds.

use std::path::PathBuf;

use clap::Args;
use policy::brownfield::{AclForm, CloudOptions, aws, terraform};

use super::output::Output;
use crate::Outcome;
use crate::error::Failure;
use crate::output::Screen;
use crate::sources;

/// Import what `aws ec2 describe-…` printed: security groups and their rules, network ACLs, prefix lists,
/// and instances, interfaces, subnets and VPCs as the inventory of them
#[derive(Debug, Args)]
pub(super) struct Aws {
    /// Listings, in any order; entries of a managed prefix list in a file named pl-….json
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    cloud: Cloud,
    #[command(flatten)]
    output: Output,
}

/// Import `terraform show -json PLAN`: security groups and network ACLs of the AWS provider
#[derive(Debug, Args)]
pub(super) struct Terraform {
    /// The plan as JSON; - for stdin
    #[arg(value_name = "FILE")]
    file: PathBuf,
    #[command(flatten)]
    cloud: Cloud,
    #[command(flatten)]
    output: Output,
}

/// What becomes of network ACLs.
#[derive(Clone, Copy, Debug, Default, clap::ValueEnum)]
enum Acls {
    /// Staged policies of the guardrail tier, which judge connections
    #[default]
    Guardrail,
    /// Filters, which judge packets and cannot be staged
    Filter,
}

/// How it is imported.
#[derive(Debug, Args)]
struct Cloud {
    /// Who answers for the policies
    #[arg(long, value_name = "NAME")]
    owner: Option<String>,
    /// What network ACLs become
    #[arg(long, value_enum, default_value_t)]
    nacl: Acls,
    /// Ports that clients take: replies through a network ACL go there
    #[arg(long, value_name = "LOW-HIGH", default_value = "32768-60999", value_parser = ports)]
    client_ports: (u16, u16),
}

impl Cloud {
    fn options(&self) -> CloudOptions {
        CloudOptions {
            owner: self.owner.clone(),
            acls: match self.nacl {
                Acls::Guardrail => AclForm::Guardrail,
                Acls::Filter => AclForm::Filter,
            },
            client_ports: self.client_ports,
        }
    }
}

impl Aws {
    pub(super) fn run(self, screen: &mut Screen) -> anyhow::Result<Outcome> {
        let sources = sources::read_foreign(&self.files)?;
        let imported = aws::import(&sources, &self.cloud.options())?;
        self.output.write(imported, screen)
    }
}

impl Terraform {
    pub(super) fn run(self, screen: &mut Screen) -> anyhow::Result<Outcome> {
        let sources = sources::read_foreign(std::slice::from_ref(&self.file))?;
        let source = sources
            .first()
            .ok_or_else(|| Failure::plain("no file was read"))?;
        let imported = terraform::import(source, &self.cloud.options())?;
        self.output.write(imported, screen)
    }
}

fn ports(text: &str) -> Result<(u16, u16), String> {
    let ends = text
        .split_once('-')
        .and_then(|(low, high)| Some((low.parse::<u16>().ok()?, high.parse::<u16>().ok()?)));
    ends.filter(|(low, high)| low <= high)
        .ok_or_else(|| "write it like 1024-65535".into())
}
