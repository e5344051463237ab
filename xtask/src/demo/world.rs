//! The demo's estate with everything that runs on it.

use std::net::IpAddr;

use anyhow::{Context, Result};
use serde_json::json;

use super::Args;
use super::report::Outcome;
use crate::estate::cofferdam::{Agent, Controller, Programs};
use crate::estate::process::{Process, Session};
use crate::estate::{Estate, Host, servers};
use crate::project::Project;

/// Hosts: name, last address byte, labels. The controller's host has no agent: its policy is the operator's own.
const PLAN: &[(&str, u8, &[&str])] = &[
    ("control", 2, &[]),
    ("web", 10, &["app=shop", "role=web"]),
    ("app", 20, &["app=shop", "role=app"]),
    ("db", 30, &["app=shop", "role=db"]),
    ("cache", 40, &["app=shop", "role=cache"]),
    ("bastion", 50, &["role=bastion"]),
    ("monitoring", 60, &["role=monitoring"]),
    ("kiosk", 66, &["role=kiosk"]),
];

/// Services that are probed: host and port.
pub(crate) const SERVICES: &[(&str, u16)] = &[
    ("web", 80),
    ("web", 22),
    ("app", 8080),
    ("app", 22),
    ("db", 5432),
    ("db", 22),
    ("cache", 6379),
    ("cache", 22),
];

/// Everything that is alive. Fields are dropped in this order: clients, agents, controller, servers, network.
pub(crate) struct World {
    pub(crate) sessions: Vec<(&'static str, Session)>,
    pub(crate) agents: Vec<Agent>,
    pub(crate) controller: Controller,
    servers: Vec<Process>,
    pub(crate) programs: Programs,
    pub(crate) estate: Estate,
}

impl World {
    /// Builds the network, starts the servers and the controller.
    pub(crate) fn build(project: &Project, args: &Args) -> Result<Outcome<Self>> {
        let programs = Programs::build(project)?;
        let estate = Estate::build(PLAN, args.keep, &project.scratch().join("demo-logs"))?;
        let large = [("large", args.transfer)];
        let mut running = vec![
            servers::nginx(&estate, estate.host("web")?, 80, &large)?,
            servers::nginx(&estate, estate.host("app")?, 8080, &large)?,
            servers::postgres(&estate, estate.host("db")?)?,
            servers::redis(&estate, estate.host("cache")?)?,
        ];
        for name in ["web", "app", "db", "cache"] {
            running.push(servers::sshd(&estate, estate.host(name)?)?);
        }
        let controller = Controller::start(&estate, &programs, estate.host("control")?)?;
        let text = format!(
            "   {} hosts on one bridge below {}\n   nginx, PostgreSQL, Redis and OpenSSH are up; the controller listens",
            estate.hosts.len(),
            estate.root().display()
        );
        let data = json!({"hosts": estate.hosts.len(), "servers": running.len()});
        let world = Self {
            sessions: Vec::new(),
            agents: Vec::new(),
            controller,
            servers: running,
            programs,
            estate,
        };
        Ok(Outcome::new(world, text, data))
    }

    /// A host.
    pub(crate) fn host(&self, name: &str) -> Result<&Host> {
        self.estate.host(name)
    }

    /// The agent of a host.
    pub(crate) fn agent(&mut self, name: &str) -> Result<&mut Agent> {
        self.agents
            .iter_mut()
            .find(|agent| agent.name == name)
            .with_context(|| format!("no agent on {name}"))
    }

    /// Hosts that have, or will have, an agent.
    pub(crate) fn protected(&self) -> impl Iterator<Item = &Host> {
        self.estate
            .hosts
            .iter()
            .filter(|host| host.name != "control")
    }

    /// The probed services as addresses, both families.
    pub(crate) fn targets(&self) -> Result<Vec<(&'static str, IpAddr, u16)>> {
        let mut targets = Vec::new();
        for (name, port) in SERVICES {
            for address in self.host(name)?.addresses() {
                targets.push((*name, address, *port));
            }
        }
        Ok(targets)
    }

    /// Lets everything live on after this process.
    pub(crate) fn keep(&mut self) {
        self.sessions.clear();
        for agent in &mut self.agents {
            agent.process.release();
        }
        for server in &mut self.servers {
            server.release();
        }
        self.controller.process.release();
    }

    /// What to type next.
    pub(crate) fn how_to_play(&self) -> String {
        let prefix = self
            .estate
            .switch
            .name()
            .trim_end_matches("switch")
            .to_owned();
        format!(
            "Everything is still running. Ask the controller:\n  {}\nRun something on a host (web, app, db, cache, bastion, \
             monitoring, kiosk):\n  ip netns exec {prefix}kiosk nmap -Pn 10.77.0.30\nEnd it:\n  for n in $(ip netns list | \
             grep -o '{prefix}[a-z]*'); do ip netns pids $n | xargs -r kill; ip netns delete $n; done; umount {}/agent-*/bpf; rm -r {}",
            self.controller.how_to_ask(),
            self.estate.root().display(),
            self.estate.root().display()
        )
    }
}
