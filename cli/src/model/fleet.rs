//! Agents, workloads and join tokens.

use std::collections::BTreeMap;
use std::io;

use proto::v1;
use serde::Serialize;

use super::{address, mode, moment, some};
use crate::output::{self, Document, Screen, Table, Tone};

/// One agent.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Agent {
    pub(crate) workload: String,
    pub(crate) hostname: String,
    pub(crate) version: String,
    pub(crate) kernel: String,
    pub(crate) connected: bool,
    /// `observe`, `selective`, `enforce`, `isolate` or `unknown`.
    pub(crate) mode: &'static str,
    /// What the controller wants it to have.
    pub(crate) desired_revision: u64,
    /// What it says it applied.
    pub(crate) applied_revision: u64,
    /// What it read back from the kernel.
    pub(crate) verified_revision: u64,
    /// What was read back is what was sent.
    pub(crate) digest_matches: bool,
    /// The change waits for a confirmation.
    pub(crate) pending: bool,
    pub(crate) last_error: Option<String>,
    pub(crate) last_seen: Option<String>,
    /// Records lost, by cause.
    pub(crate) losses: BTreeMap<String, u64>,
}

impl From<v1::AgentInfo> for Agent {
    fn from(agent: v1::AgentInfo) -> Self {
        Self {
            mode: mode(agent.mode()),
            last_seen: moment(agent.last_seen),
            losses: agent.losses.into_iter().collect(),
            last_error: some(agent.last_error),
            workload: agent.workload,
            hostname: agent.hostname,
            version: agent.version,
            kernel: agent.kernel,
            connected: agent.connected,
            desired_revision: agent.desired_revision,
            applied_revision: agent.applied_revision,
            verified_revision: agent.verified_revision,
            digest_matches: agent.digest_matches,
            pending: agent.pending,
        }
    }
}

impl Agent {
    /// Whether the kernel was seen to hold what `revision` asks of this agent. A change that does not
    /// concern an agent is not sent to it: then what it should have is enough.
    fn has_verified(&self, revision: u64) -> bool {
        self.digest_matches && self.verified_revision >= revision.min(self.desired_revision)
    }

    fn add_to(&self, table: &mut Table) {
        let behind = |revision| {
            if revision < self.desired_revision {
                Tone::Warn
            } else {
                Tone::Plain
            }
        };
        let either = |good: bool, yes: &str, no: &str| {
            if good {
                (yes.to_owned(), Tone::Good)
            } else {
                (no.to_owned(), Tone::Bad)
            }
        };
        let lost = self
            .losses
            .values()
            .fold(0u64, |sum, count| sum.saturating_add(*count));
        let lost_tone = if lost > 0 { Tone::Warn } else { Tone::Plain };
        let pending = if self.pending { " (pending)" } else { "" };
        let plain = |text: String| (text, Tone::Plain);
        table.row([
            plain(self.workload.clone()),
            plain(self.mode.to_owned()),
            either(self.connected, "yes", "no"),
            plain(self.desired_revision.to_string()),
            (
                format!("{}{pending}", self.applied_revision),
                behind(self.applied_revision),
            ),
            (
                self.verified_revision.to_string(),
                behind(self.verified_revision),
            ),
            either(self.digest_matches, "match", "differs"),
            plain(output::moment_or_empty(self.last_seen.as_ref())),
            (lost.to_string(), lost_tone),
            (self.last_error.clone().unwrap_or_default(), Tone::Bad),
        ]);
    }
}

/// How far a wait has come.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Convergence {
    pub(crate) revision: u64,
    /// Asked for, of all agents.
    pub(crate) percent: f64,
    pub(crate) verified: usize,
    pub(crate) agents: usize,
    pub(crate) reached: bool,
    pub(crate) waited_ms: u64,
}

/// The fleet.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct FleetStatus {
    /// Of the store.
    pub(crate) revision: u64,
    pub(crate) controller_version: String,
    pub(crate) agents: Vec<Agent>,
    /// With `--wait` only.
    pub(crate) wait: Option<Convergence>,
}

impl From<v1::GetStatusResponse> for FleetStatus {
    fn from(status: v1::GetStatusResponse) -> Self {
        let mut agents: Vec<Agent> = status.agents.into_iter().map(Into::into).collect();
        agents.sort_by(|a, b| a.workload.cmp(&b.workload));
        Self {
            revision: status.revision,
            controller_version: status.version,
            agents,
            wait: None,
        }
    }
}

impl FleetStatus {
    /// Counts who has verified a revision.
    #[expect(
        clippy::cast_precision_loss,
        reason = "a fleet has fewer agents than 2^52"
    )]
    pub(crate) fn convergence(&self, revision: u64, percent: f64, waited_ms: u64) -> Convergence {
        let agents = self.agents.len();
        let verified = self
            .agents
            .iter()
            .filter(|agent| agent.has_verified(revision))
            .count();
        Convergence {
            revision,
            percent,
            verified,
            agents,
            // Without agents nothing is enforced anywhere: that is not success.
            reached: agents > 0
                && self.revision >= revision
                && verified as f64 * 100.0 >= percent * agents as f64,
            waited_ms,
        }
    }
}

impl Document for FleetStatus {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        screen.line(&format!(
            "controller {}, revision {}, {} of {} agents connected",
            self.controller_version,
            self.revision,
            self.agents.iter().filter(|agent| agent.connected).count(),
            self.agents.len()
        ))?;
        if !self.agents.is_empty() {
            let mut table = Table::new(&[
                ("WORKLOAD", 0),
                ("MODE", 0),
                ("CONNECTED", 0),
                ("DESIRED", 0),
                ("APPLIED", 0),
                ("VERIFIED", 0),
                ("DIGEST", 0),
                ("LAST-SEEN", 0),
                ("LOSSES", 0),
                ("LAST-ERROR", 0),
            ]);
            for agent in &self.agents {
                agent.add_to(&mut table);
            }
            table.print(screen)?;
        }
        if let Some(wait) = &self.wait {
            screen.line(&format!(
                "revision {}: {} of {} agents verified after {}",
                wait.revision,
                wait.verified,
                wait.agents,
                output::waited(wait.waited_ms)
            ))?;
        }
        Ok(())
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(self.agents.iter().map(|a| a.workload.clone()).collect())
    }
}

/// One workload.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Workload {
    pub(crate) name: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// Who says so: `enrolment-token` or `operator`.
    pub(crate) provenance: Option<String>,
    pub(crate) addresses: Vec<String>,
    pub(crate) mode: &'static str,
    pub(crate) connected: bool,
    /// Of an isolation with a time limit.
    pub(crate) isolation_seconds_left: Option<u32>,
}

impl From<v1::WorkloadInfo> for Workload {
    fn from(workload: v1::WorkloadInfo) -> Self {
        Self {
            mode: mode(workload.mode()),
            labels: workload.labels.into_iter().collect(),
            provenance: some(workload.provenance),
            addresses: workload.addresses.iter().filter_map(address).collect(),
            connected: workload.connected,
            isolation_seconds_left: (workload.isolation_seconds_left > 0)
                .then_some(workload.isolation_seconds_left),
            name: workload.name,
        }
    }
}

/// Every workload.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct WorkloadList {
    pub(crate) workloads: Vec<Workload>,
}

impl Document for WorkloadList {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        let mut table = Table::new(&[
            ("NAME", 0),
            ("MODE", 0),
            ("CONNECTED", 0),
            ("ADDRESSES", 0),
            ("LABELS", 0),
            ("FROM", 0),
        ]);
        for workload in &self.workloads {
            let mut mode = workload.mode.to_owned();
            if let Some(left) = workload.isolation_seconds_left {
                mode = format!("{mode} (for {})", output::seconds(left.into()));
            }
            let mode_tone = match workload.mode {
                "isolate" => Tone::Bad,
                _ => Tone::Plain,
            };
            let connected = match workload.connected {
                true => ("yes".to_owned(), Tone::Good),
                false => ("no".to_owned(), Tone::Bad),
            };
            table.row([
                (workload.name.clone(), Tone::Plain),
                (mode, mode_tone),
                connected,
                (workload.addresses.join(","), Tone::Plain),
                (output::labels(&workload.labels), Tone::Plain),
                (workload.provenance.clone().unwrap_or_default(), Tone::Plain),
            ]);
        }
        table.print(screen)
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(self.workloads.iter().map(|w| w.name.clone()).collect())
    }
}

/// A join token.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Token {
    pub(crate) workload: String,
    /// Secret; can be used once.
    pub(crate) token: String,
    pub(crate) expires_at: Option<String>,
    /// SHA-256 of the CA certificate, hex: what the agent pins before it trusts.
    pub(crate) ca_sha256: String,
}

impl Document for Token {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        screen.line(&format!("token      {}", self.token))?;
        screen.line(&format!("ca sha256  {}", self.ca_sha256))?;
        let expires = output::moment_or_empty(self.expires_at.as_ref());
        screen.line(&format!("expires    {expires}"))?;
        screen.remark(&format!(
            "one use, for workload {}; hand both to its agent",
            self.workload
        ))
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(vec![self.token.clone()])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(desired: u64, verified: u64, matches: bool) -> v1::AgentInfo {
        v1::AgentInfo {
            desired_revision: desired,
            applied_revision: verified,
            verified_revision: verified,
            digest_matches: matches,
            ..v1::AgentInfo::default()
        }
    }

    fn reached(revision: u64, percent: f64, agents: Vec<v1::AgentInfo>) -> bool {
        FleetStatus::from(v1::GetStatusResponse {
            revision: 12,
            agents,
            version: String::new(),
        })
        .convergence(revision, percent, 0)
        .reached
    }

    #[test]
    fn an_agent_that_the_change_does_not_concern_counts_as_verified() {
        let (behind, other) = (agent(12, 11, true), agent(9, 9, true));
        assert!(reached(12, 100.0, vec![agent(12, 12, true), other.clone()]));
        assert!(!reached(12, 100.0, vec![behind, other]));
    }

    #[test]
    fn a_wrong_digest_does_not_count() {
        assert!(!reached(12, 100.0, vec![agent(12, 12, false)]));
    }

    #[test]
    fn part_of_the_fleet_can_be_enough_but_nobody_never_is() {
        let half = vec![agent(12, 12, true), agent(12, 11, true)];
        assert!(reached(12, 50.0, half.clone()));
        assert!(!reached(12, 51.0, half));
        assert!(!reached(12, 0.0, vec![]));
    }

    #[test]
    fn a_revision_that_does_not_exist_yet_is_not_reached() {
        assert!(!reached(13, 100.0, vec![agent(12, 12, true)]));
    }
}
