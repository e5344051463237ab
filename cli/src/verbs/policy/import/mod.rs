//! `policy import`: rule sets of other systems as staged policy.

mod cloud;
mod host;
mod kubernetes;
mod output;

use clap::{Args, Subcommand};

use crate::Outcome;
use crate::output::Screen;

/// Make policy of the rules of another system
#[derive(Debug, Args)]
pub(super) struct Import {
    #[command(subcommand)]
    from: From,
}

#[derive(Debug, Subcommand)]
enum From {
    Aws(cloud::Aws),
    Iptables(host::Iptables),
    Kubernetes(kubernetes::Kubernetes),
    Nftables(host::Nftables),
    Terraform(cloud::Terraform),
}

impl Import {
    /// Runs the verb.
    pub(super) fn run(self, screen: &mut Screen) -> anyhow::Result<Outcome> {
        match self.from {
            From::Aws(verb) => verb.run(screen),
            From::Iptables(verb) => verb.run(screen),
            From::Kubernetes(verb) => verb.run(screen),
            From::Nftables(verb) => verb.run(screen),
            From::Terraform(verb) => verb.run(screen),
        }
    }
}
