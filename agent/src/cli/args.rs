//! What can be said on the command line.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::admin::Leave;
use crate::kernel::PanicMode;

/// Enforces the policy of this host in the kernel and accounts for every flow.
#[derive(Debug, Parser)]
#[command(name = "cofferdam-agent", version, propagate_version = true)]
pub(super) struct Arguments {
    /// Configuration file [default: /etc/cofferdam/agent.yaml, if it is there].
    #[arg(short, long, global = true, env = "COFFERDAM_AGENT_CONFIG")]
    pub(super) config: Option<PathBuf>,
    /// How answers are printed.
    #[arg(
        short,
        long,
        global = true,
        env = "COFFERDAM_AGENT_OUTPUT",
        default_value = "text"
    )]
    pub(super) output: Output,
    #[command(flatten)]
    pub(super) overrides: Overrides,
    #[command(subcommand)]
    pub(super) verb: Verb,
}

#[derive(Debug, Args)]
pub(super) struct Overrides {
    /// Last good policy, spool, identity.
    #[arg(long, global = true)]
    pub(super) state_dir: Option<PathBuf>,
    /// Root of the pins.
    #[arg(long, global = true)]
    pub(super) pin_dir: Option<PathBuf>,
    /// Socket of the daemon.
    #[arg(long, global = true)]
    pub(super) admin_socket: Option<PathBuf>,
    /// Network namespace to live in, as a path or a name.
    #[arg(long, global = true)]
    pub(super) netns: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Output {
    /// For people.
    Text,
    /// For programs; where there are many answers, one a line.
    #[value(alias = "jsonl")]
    Json,
}

#[derive(Debug, Subcommand)]
pub(super) enum Verb {
    /// Arm this host and stay.
    Run {
        /// Without a controller: policy comes from a directory.
        #[arg(long)]
        standalone: bool,
        /// Directory of policy files.
        #[arg(long, value_name = "DIR")]
        policy: Option<PathBuf>,
    },
    /// Say what this kernel can do and what would be armed; change nothing.
    Preflight,
    /// What is enforced, with or without the daemon.
    Status,
    /// Flow records.
    Flows {
        /// And those to come.
        #[arg(short, long)]
        follow: bool,
        /// At most so many of those that were.
        #[arg(short = 'n', long)]
        limit: Option<usize>,
    },
    /// What this host would do with a new flow.
    Explain {
        /// Address or workload ("self" = this host).
        from: String,
        /// Address or workload.
        to: String,
        /// `443`, `udp/53`, `icmp/8` or `icmp/3/4`.
        port: String,
    },
    /// Make the change that waits final.
    Confirm {
        /// Only if this is the revision that waits.
        #[arg(default_value_t = 0)]
        revision: u64,
    },
    /// Read the policy directory again (standalone).
    Apply {
        /// Fall back unless confirmed within this time.
        #[arg(long, value_parser = humantime::parse_duration, conflicts_with = "now")]
        confirm_within: Option<Duration>,
        /// Final at once.
        #[arg(long)]
        now: bool,
    },
    /// Let everything pass, close everything but failsafes, or go back to policy. Needs no daemon.
    Panic {
        /// Which.
        mode: PanicArgument,
    },
    /// Stop the agent.
    Detach {
        /// What is left: enforcement, or an open host.
        #[arg(long)]
        leave: Option<LeaveArgument>,
    },
    /// Send a capture through the programs, on the capture's own clock, and say what becomes of every frame.
    Replay(Replay),
    /// The configuration.
    Config {
        #[command(subcommand)]
        verb: ConfigVerb,
    },
}

#[derive(Debug, Args)]
pub(super) struct Replay {
    /// Capture: pcap or pcapng; `-` is stdin.
    #[arg(long, value_name = "FILE")]
    pub(super) pcap: PathBuf,
    /// Directory of policy files, as for `run --standalone`.
    #[arg(long, value_name = "DIR")]
    pub(super) policy: PathBuf,
    /// Managed networks and workloads, as for `cofferdam policy eval`.
    #[arg(long, value_name = "FILE")]
    pub(super) inventory: Option<PathBuf>,
    /// Whose traffic is judged: what these addresses send is egress, what they get is ingress.
    #[arg(long, value_name = "CIDR", required = true, num_args = 1.., value_parser = network)]
    pub(super) local: Vec<ipnet::IpNet>,
    /// Mode of workloads about which policy says nothing [default: the configuration's; enforce where there is
    /// no configuration file].
    #[arg(long)]
    pub(super) mode: Option<ModeArgument>,
}

/// A network, or an address that stands for itself.
fn network(text: &str) -> Result<ipnet::IpNet, String> {
    text.parse::<ipnet::IpNet>()
        .or_else(|error| {
            text.parse::<std::net::IpAddr>()
                .map(ipnet::IpNet::from)
                .map_err(|_| error)
        })
        .map_err(|error| error.to_string())
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum ModeArgument {
    /// Nothing is dropped by policy.
    Observe,
    /// Listed ports are enforced.
    Selective,
    /// Policy is enforced.
    Enforce,
}

impl From<ModeArgument> for policy::snapshot::Mode {
    fn from(argument: ModeArgument) -> Self {
        match argument {
            ModeArgument::Observe => Self::Observe,
            ModeArgument::Selective => Self::Selective,
            ModeArgument::Enforce => Self::Enforce,
        }
    }
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(super) enum ConfigVerb {
    /// Check it.
    Check,
    /// Print it as it counts: file, environment and flags together.
    Print,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum PanicArgument {
    /// Everything passes.
    Open,
    /// Only failsafes pass.
    Close,
    /// Policy decides.
    Off,
}

impl From<PanicArgument> for PanicMode {
    fn from(argument: PanicArgument) -> Self {
        match argument {
            PanicArgument::Open => Self::Open,
            PanicArgument::Close => Self::Close,
            PanicArgument::Off => Self::Off,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum LeaveArgument {
    /// Enforcement goes on.
    Enforcing,
    /// Everything passes.
    Open,
}

impl From<LeaveArgument> for Leave {
    fn from(argument: LeaveArgument) -> Self {
        match argument {
            LeaveArgument::Enforcing => Self::Enforcing,
            LeaveArgument::Open => Self::Open,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Arguments::command().debug_assert();
    }
}
