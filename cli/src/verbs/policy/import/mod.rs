//! `policy import`: rule sets of other systems as staged policy.

mod cloud;
mod host;
mod output;

use clap::{Args, Subcommand};

use crate::Outcome;
use crate::output::Screen;

/// Make staged policy of the rules of another system, with a report of what could not be carried over
#[derive(Debug, Args)]
pub(super) struct Import {
    #[command(subcommand)]
    from: From,
}

#[derive(Debug, Subcommand)]
enum From {
    Aws(cloud::Aws),
    Iptables(host::Iptables),
    Nftables(host::Nftables),
    Terraform(cloud::Terraform),
}

impl Import {
    /// Runs the verb.
    pub(super) fn run(self, screen: &mut Screen) -> anyhow::Result<Outcome> {
        match self.from {
            From::Aws(verb) => verb.run(screen),
            From::Iptables(verb) => verb.run(screen),
            From::Nftables(verb) => verb.run(screen),
            From::Terraform(verb) => verb.run(screen),
        }
    }
}
