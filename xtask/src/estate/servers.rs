//! Real servers on the estate's hosts: nginx, PostgreSQL, Redis, OpenSSH.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::probe::{Reach, from_host};
use super::process::Process;
use super::{Estate, Host, wait_for};
use crate::run;

/// How long a server may take to answer on its port.
const START: Duration = Duration::from_secs(30);

/// Waits until something listens on `port` of `host`, asked from the host itself.
fn answers(host: &Host, port: u16, server: &mut Process) -> Result<()> {
    let target = [(host.addresses()[0], port)];
    let outcome = wait_for("a server to listen", START, || {
        if !server.is_running() {
            return Some(false);
        }
        let reached = from_host(host, &target, Duration::from_secs(1)).ok()?;
        (reached == [Reach::Open]).then_some(true)
    })?;
    if !outcome {
        bail!(
            "a server on {} ended at once:\n{}",
            host.name,
            server.tail()
        );
    }
    Ok(())
}

/// Serves files with nginx on `port`; `files`: name and size in bytes (sparse).
pub(crate) fn nginx(
    estate: &Estate,
    host: &Host,
    port: u16,
    files: &[(&str, u64)],
) -> Result<Process> {
    let dir = estate.dir(&format!("nginx-{}", host.name))?;
    let root = estate.dir(&format!("nginx-{}/www", host.name))?;
    fs::write(root.join("index.html"), format!("{}\n", host.name))?;
    for (name, size) in files {
        fs::File::create(root.join(name))?.set_len(*size)?;
    }
    let config = dir.join("nginx.conf");
    fs::write(
        &config,
        format!(
            "daemon off; user root; worker_processes 1; pid {0}/pid; error_log {0}/error.log;\n\
             events {{ worker_connections 4096; }}\n\
             http {{ access_log off; sendfile on; client_body_temp_path {0}/t1; proxy_temp_path {0}/t2;\n\
             fastcgi_temp_path {0}/t3; uwsgi_temp_path {0}/t4; scgi_temp_path {0}/t5;\n\
             server {{ listen 0.0.0.0:{port} backlog=4096; listen [::]:{port} backlog=4096; root {1}; }} }}\n",
            dir.display(),
            root.display()
        ),
    )?;
    let mut command = host.netns.command("nginx");
    command
        .arg("-c")
        .arg(&config)
        .arg("-p")
        .arg(&dir)
        .arg("-e")
        .arg(dir.join("error.log"));
    let mut server = Process::start("nginx", &mut command, &dir.join("log"))?;
    answers(host, port, &mut server)?;
    Ok(server)
}

/// PostgreSQL on its usual port, with a database that trusts everybody: who may reach it is our business.
pub(crate) fn postgres(estate: &Estate, host: &Host) -> Result<Process> {
    let bin = postgres_bin()?;
    let dir = estate.dir(&format!("postgres-{}", host.name))?;
    run::output(Command::new("chown").arg("postgres").arg(&dir))?;
    let data = dir.join("data");
    run::output(
        Command::new("runuser")
            .args(["-u", "postgres", "--"])
            .arg(bin.join("initdb"))
            .arg("-D")
            .arg(&data)
            .args(["-A", "trust", "--no-sync", "-E", "UTF8", "--locale=C"])
            .current_dir(&dir),
    )?;
    fs::write(
        data.join("pg_hba.conf"),
        "local all all trust\nhost all all all trust\n",
    )?;
    let mut command = host.netns.command("runuser");
    command
        .args(["-u", "postgres", "--"])
        .arg(bin.join("postgres"))
        .arg("-D")
        .arg(&data)
        .arg("-k")
        .arg(&dir)
        .args([
            "-c",
            "listen_addresses=*",
            "-c",
            "fsync=off",
            "-c",
            "max_connections=50",
        ])
        .current_dir(&dir);
    let mut server = Process::start("postgres", &mut command, &dir.join("log"))?;
    answers(host, 5432, &mut server)?;
    Ok(server)
}

fn postgres_bin() -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .context("PostgreSQL is not installed")?
        .filter_map(|entry| Some(entry.ok()?.path().join("bin")))
        .filter(|bin| bin.join("initdb").is_file())
        .collect();
    found.sort();
    found.pop().context("PostgreSQL's server is not installed")
}

/// Redis on its usual port.
pub(crate) fn redis(estate: &Estate, host: &Host) -> Result<Process> {
    let dir = estate.dir(&format!("redis-{}", host.name))?;
    let mut command = host.netns.command("redis-server");
    command
        .args([
            "--bind",
            "0.0.0.0",
            "::",
            "--protected-mode",
            "no",
            "--save",
            "",
            "--port",
            "6379",
            "--dir",
        ])
        .arg(&dir);
    let mut server = Process::start("redis-server", &mut command, &dir.join("log"))?;
    answers(host, 6379, &mut server)?;
    Ok(server)
}

/// OpenSSH's server on port 22 with keys of the estate's own.
pub(crate) fn sshd(estate: &Estate, host: &Host) -> Result<Process> {
    let dir = estate.dir(&format!("sshd-{}", host.name))?;
    let keys = ssh_keys(estate)?;
    fs::create_dir_all("/run/sshd").context("cannot make sshd's own directory")?;
    let config = dir.join("sshd_config");
    // The probes of the demo connect and hang up; a server that holds that against their hosts (MaxStartups, and
    // PerSourcePenalties from OpenSSH 9.8 on) would refuse a session for reasons that are not ours to show.
    let text = format!(
        "Port 22\nHostKey {0}/host\nAuthorizedKeysFile {0}/client.pub\nPidFile {1}/pid\nPermitRootLogin yes\n\
         StrictModes no\nUsePAM no\nPasswordAuthentication no\nUseDNS no\nMaxStartups 1000:30:2000\n",
        keys.display(),
        dir.display()
    );
    fs::write(&config, format!("{text}PerSourcePenalties no\n"))?;
    let mut check = host.netns.command("/usr/sbin/sshd");
    if run::output(check.args(["-t", "-f"]).arg(&config)).is_err() {
        fs::write(&config, text)?;
    }
    let mut command = host.netns.command("/usr/sbin/sshd");
    command.args(["-D", "-e", "-f"]).arg(&config);
    let mut server = Process::start("sshd", &mut command, &dir.join("log"))?;
    answers(host, 22, &mut server)?;
    Ok(server)
}

fn ssh_keys(estate: &Estate) -> Result<PathBuf> {
    let dir = estate.dir("ssh-keys")?;
    for name in ["host", "client"] {
        let file = dir.join(name);
        if !file.exists() {
            run::output(
                Command::new("ssh-keygen")
                    .args(["-q", "-t", "ed25519", "-N", "", "-f"])
                    .arg(&file),
            )?;
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600))?;
        }
    }
    Ok(dir)
}

/// An ssh client on `from` that runs `cat` on `to`: what is sent comes back.
pub(crate) fn ssh_command(estate: &Estate, from: &Host, to: &Host) -> Result<Command> {
    let key: &Path = &ssh_keys(estate)?.join("client");
    let mut command = from.netns.command("ssh");
    command
        .args([
            "-T",
            "-q",
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
        ])
        .args(["-o", "BatchMode=yes", "-o", "ConnectTimeout=5", "-i"])
        .arg(key)
        .arg(format!("root@{}", to.v4()))
        .arg("cat");
    Ok(command)
}
