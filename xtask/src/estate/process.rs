//! A program that was started and is ended again, by its own process id and no other.

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A running program with its output in a file.
pub(crate) struct Process {
    name: String,
    child: Child,
    log: PathBuf,
    released: bool,
}

impl Process {
    /// Starts a command; standard output and error go to `log`.
    pub(crate) fn start(name: &str, command: &mut Command, log: &Path) -> Result<Self> {
        let file = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        Ok(Self {
            name: name.to_owned(),
            child,
            log: log.to_path_buf(),
            released: false,
        })
    }

    /// Whether it is still there.
    pub(crate) fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// The end of its output, for messages.
    pub(crate) fn tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(12)..].join("\n")
    }

    /// Lets it live on when this is dropped.
    pub(crate) fn release(&mut self) {
        self.released = true;
    }

    /// Ends it as a crash would and waits until it is gone.
    pub(crate) fn crash(&mut self) -> Result<()> {
        self.child
            .kill()
            .with_context(|| format!("cannot kill {}", self.name))?;
        self.child
            .wait()
            .with_context(|| format!("cannot wait for {}", self.name))?;
        Ok(())
    }

    /// Asks it to end; kills it when it has not within ten seconds.
    pub(crate) fn stop(&mut self, signal: Signal) {
        if !self.is_running() {
            return;
        }
        let _ = kill(Pid::from_raw(self.child.id() as i32), signal);
        let start = Instant::now();
        while self.is_running() {
            if start.elapsed() > Duration::from_secs(10) {
                let _ = self.crash();
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Waits for its end and says whether it succeeded.
    pub(crate) fn finish(&mut self, limit: Duration) -> Result<bool> {
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status.success());
            }
            if start.elapsed() > limit
                || super::INTERRUPTED.load(std::sync::atomic::Ordering::SeqCst)
            {
                self.crash()?;
                bail!("{} did not end within {limit:?}", self.name);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if !self.released {
            self.stop(Signal::SIGTERM);
        }
    }
}

/// A client that is talked to line by line: a session whose life can be proved at any time.
pub(crate) struct Session {
    name: String,
    child: Child,
    input: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Session {
    /// Starts a client with pipes on both sides.
    pub(crate) fn start(name: &str, command: &mut Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {name}"))?;
        let input = child.stdin.take();
        let output = child.stdout.take().context("no output pipe")?;
        Ok(Self {
            name: name.to_owned(),
            child,
            input,
            lines: read_lines(output),
        })
    }

    /// Sends a line and waits for one that contains `expected`; false when none comes in time.
    pub(crate) fn ask(&mut self, line: &str, expected: &str, limit: Duration) -> Result<bool> {
        let input = self
            .input
            .as_mut()
            .with_context(|| format!("{} has no input", self.name))?;
        if writeln!(input, "{line}")
            .and_then(|()| input.flush())
            .is_err()
        {
            return Ok(false);
        }
        let start = Instant::now();
        loop {
            let left = limit.saturating_sub(start.elapsed());
            match self.lines.recv_timeout(left) {
                Ok(answer) if answer.contains(expected) => return Ok(true),
                Ok(_) => {}
                Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
                    return Ok(false);
                }
            }
        }
    }
}

impl Session {
    /// The next line that the client prints; `None` when none comes in time.
    pub(crate) fn next_line(&mut self, limit: Duration) -> Option<String> {
        self.lines.recv_timeout(limit).ok()
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        drop(self.input.take());
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn read_lines(output: ChildStdout) -> Receiver<String> {
    let (sender, receiver) = channel();
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if sender.send(line).is_err() {
                return;
            }
        }
    });
    receiver
}
