//! Our own programs on the estate: one controller, one agent a host, and the `cofferdam` command.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::process::Process;
use super::{Estate, Host, NETWORKS, wait_for};
use crate::project::Project;
use crate::run;

/// Port of the controller's API.
const API: u16 = 7443;

/// How long a program of ours may take to be ready.
const READY: Duration = Duration::from_secs(60);

/// Where the built programs are.
pub(crate) struct Programs {
    dir: PathBuf,
}

impl Programs {
    /// Builds them (a no-op when they are fresh).
    pub(crate) fn build(project: &Project) -> Result<Self> {
        let mut command = run::cargo();
        command
            .current_dir(project.root())
            .args(["build", "--locked"]);
        for package in ["agent", "controller", "cli"] {
            command.args(["--package", package]);
        }
        run::check(&mut command)?;
        let target = std::env::var_os("CARGO_TARGET_DIR")
            .map_or_else(|| project.path("target"), |dir| project.root().join(dir));
        Ok(Self {
            dir: target.join("debug"),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}

/// A controller, with what is needed to start it again and to ask it.
pub(crate) struct Controller {
    /// The process.
    pub(crate) process: Process,
    programs: PathBuf,
    config: PathBuf,
    dir: PathBuf,
    endpoint: String,
    netns: String,
}

impl Controller {
    /// Starts it on a host.
    pub(crate) fn start(estate: &Estate, programs: &Programs, host: &Host) -> Result<Self> {
        let dir = estate.dir("controller")?;
        let config = dir.join("controller.yaml");
        let endpoint = format!("{}:{API}", host.v4());
        let networks: String = NETWORKS
            .iter()
            .map(|network| format!("  - {network}\n"))
            .collect();
        fs::write(
            &config,
            format!(
                "data_dir: {}/data\nlisten: 0.0.0.0:{API}\nhttp_listen: 127.0.0.1:7480\nserver_names:\n  - \
                 {}\nmanaged_networks:\n{networks}",
                dir.display(),
                host.v4()
            ),
        )?;
        let process = launch(
            &programs.path("cofferdam-controller"),
            host.netns.name(),
            &config,
            &dir,
        )?;
        let mut controller = Self {
            process,
            programs: programs.dir.clone(),
            config,
            dir,
            endpoint,
            netns: host.netns.name().to_owned(),
        };
        controller.wait_ready()?;
        Ok(controller)
    }

    /// Starts it again after a crash.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.process = launch(
            &self.programs.join("cofferdam-controller"),
            &self.netns,
            &self.config,
            &self.dir,
        )?;
        self.wait_ready()
    }

    fn wait_ready(&mut self) -> Result<()> {
        let ready = wait_for("the controller", READY, || {
            if !self.process.is_running() {
                return Some(false);
            }
            self.ask(&["status"]).is_ok().then_some(true)
        })?;
        if !ready {
            bail!("the controller ended at once:\n{}", self.process.tail());
        }
        Ok(())
    }

    /// `cofferdam …` on the controller's host, without its output format.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("ip");
        command
            .args(["netns", "exec", &self.netns])
            .arg(self.programs.join("cofferdam"))
            .args(arguments)
            .args([
                "--controller",
                &format!("https://{}", self.endpoint),
                "--operator-dir",
            ])
            .arg(self.dir.join("data/operator"));
        command
    }

    /// Runs `cofferdam … -o json` and reads its answer.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = self.command(arguments);
        command.args(["-o", "json"]);
        let text = run::output(&mut command)?;
        serde_json::from_str(&text)
            .with_context(|| format!("cofferdam {arguments:?} did not print JSON: {text}"))
    }

    /// What an operator types to reach it.
    pub(crate) fn how_to_ask(&self) -> String {
        let command = self.command(&["status"]);
        let mut line = command.get_program().to_string_lossy().into_owned();
        for argument in command.get_args() {
            line.push(' ');
            line.push_str(&argument.to_string_lossy());
        }
        line
    }
}

fn launch(program: &Path, netns: &str, config: &Path, dir: &Path) -> Result<Process> {
    let mut command = Command::new("ip");
    command
        .args(["netns", "exec", netns])
        .arg(program)
        .arg("--config")
        .arg(config)
        .arg("run");
    Process::start("cofferdam-controller", &mut command, &dir.join("log"))
}

/// The agent of one host, with what is needed to start it again.
pub(crate) struct Agent {
    /// The process.
    pub(crate) process: Process,
    program: PathBuf,
    config: PathBuf,
    dir: PathBuf,
    /// The workload.
    pub(crate) name: &'static str,
}

impl Agent {
    /// Enrols and starts the agent of a host. `management`: who keeps ssh access whatever policy says.
    pub(crate) fn start(
        estate: &Estate,
        programs: &Programs,
        controller: &Controller,
        host: &Host,
        management: &Host,
    ) -> Result<Self> {
        let dir = estate.dir(&format!("agent-{}", host.name))?;
        let token = join_token(controller, host)?;
        let config = dir.join("agent.yaml");
        fs::write(
            &config,
            format!(
                "state_dir: {dir}/state\npin_dir: {dir}/bpf\nadmin_socket: {dir}/admin.sock\nnetns: {netns}\n\
                 workload:\n  name: {name}\nmanaged_networks: [{networks}]\nfailsafes:\n  resolvers: []\n  management:\n    \
                 - cidr: {management}/32\n      ports: [22]\ncontroller:\n  endpoints: [\"{endpoint}\"]\n  ca_sha256: \
                 {ca}\n  token: {token}\n",
                dir = dir.display(),
                netns = host.netns.name(),
                name = host.name,
                networks = NETWORKS.map(|network| format!("\"{network}\"")).join(", "),
                management = management.v4(),
                endpoint = controller.endpoint,
                ca = token.ca_sha256,
                token = token.token,
            ),
        )?;
        let program = programs.path("cofferdam-agent");
        let process = run_agent(&program, &config, &dir)?;
        let mut agent = Self {
            process,
            program,
            config,
            dir,
            name: host.name,
        };
        agent.wait_ready()?;
        Ok(agent)
    }

    /// Starts it again after a crash.
    pub(crate) fn restart(&mut self) -> Result<()> {
        self.process = run_agent(&self.program, &self.config, &self.dir)?;
        self.wait_ready()
    }

    /// `cofferdam-agent …` for this host.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("--config").arg(&self.config).args(arguments);
        command
    }

    /// Runs `cofferdam-agent … -o json` and reads its answer.
    pub(crate) fn ask(&self, arguments: &[&str]) -> Result<Value> {
        let mut command = self.command(arguments);
        command.args(["-o", "json"]);
        let text = run::output(&mut command)?;
        serde_json::from_str(&text)
            .with_context(|| format!("cofferdam-agent {arguments:?} did not print JSON: {text}"))
    }

    fn wait_ready(&mut self) -> Result<()> {
        let ready = wait_for("an agent", READY, || {
            if !self.process.is_running() {
                return Some(false);
            }
            self.ask(&["status"]).is_ok().then_some(true)
        })?;
        if !ready {
            bail!(
                "the agent of {} ended at once:\n{}",
                self.name,
                self.process.tail()
            );
        }
        Ok(())
    }
}

fn run_agent(program: &Path, config: &Path, dir: &Path) -> Result<Process> {
    let mut command = Command::new(program);
    command.arg("--config").arg(config).arg("run");
    Process::start("cofferdam-agent", &mut command, &dir.join("log"))
}

struct Token {
    token: String,
    ca_sha256: String,
}

fn join_token(controller: &Controller, host: &Host) -> Result<Token> {
    let addresses = host.addresses().map(|address| address.to_string());
    let mut arguments = vec!["token", "create", "--workload", host.name, "--ttl", "10m"];
    for label in host.labels {
        arguments.extend(["--label", label]);
    }
    for address in &addresses {
        arguments.extend(["--address", address]);
    }
    let answer = controller.ask(&arguments)?;
    let field = |name: &str| {
        answer[name]
            .as_str()
            .map(ToOwned::to_owned)
            .with_context(|| format!("a token without {name}: {answer}"))
    };
    Ok(Token {
        token: field("token")?,
        ca_sha256: field("ca_sha256")?,
    })
}
