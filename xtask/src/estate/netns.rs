//! A named network namespace, and running things in it.

use std::fs::File;
use std::process::Command;

use anyhow::{Context, Result, anyhow};
use nix::sched::{CloneFlags, setns};

use crate::run;

/// A namespace under /run/netns.
pub(crate) struct Namespace {
    name: String,
}

impl Namespace {
    /// Makes it; one of the same name is an error.
    pub(crate) fn create(name: &str) -> Result<Self> {
        run::output(Command::new("ip").args(["netns", "add", name]))?;
        Ok(Self {
            name: name.to_owned(),
        })
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The file that stands for it.
    pub(crate) fn path(&self) -> String {
        format!("/run/netns/{}", self.name)
    }

    /// Runs `ip` on it.
    pub(crate) fn ip(&self, arguments: &[&str]) -> Result<String> {
        run::output(Command::new("ip").args(["-n", &self.name]).args(arguments))
    }

    /// A command that will run in it.
    pub(crate) fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// Runs a program in it to its end and returns what it printed.
    pub(crate) fn run(&self, program: &str, arguments: &[&str]) -> Result<String> {
        run::output(self.command(program).args(arguments))
    }

    /// Calls `work` on a thread of its own inside the namespace.
    pub(crate) fn enter<T: Send>(&self, work: impl FnOnce() -> T + Send) -> Result<T> {
        let file =
            File::open(self.path()).with_context(|| format!("cannot open {}", self.path()))?;
        std::thread::scope(|scope| {
            scope
                .spawn(move || {
                    setns(&file, CloneFlags::CLONE_NEWNET).context("cannot enter the namespace")?;
                    Ok(work())
                })
                .join()
                .map_err(|_| anyhow!("the thread in {} panicked", self.name))?
        })
    }

    /// Ends what still runs in it.
    pub(crate) fn end_processes(&self) {
        let Ok(pids) = run::output(Command::new("ip").args(["netns", "pids", &self.name])) else {
            return;
        };
        for pid in pids.lines().filter_map(|line| line.trim().parse().ok()) {
            let _ = nix::sys::signal::kill(
                nix::unistd::Pid::from_raw(pid),
                nix::sys::signal::Signal::SIGKILL,
            );
        }
    }

    /// Removes it, whatever is still in it.
    pub(crate) fn delete(&self) {
        let _ = run::output(Command::new("ip").args(["netns", "delete", &self.name]));
    }
}
