//! The operator's verbs: by the daemon if one answers, otherwise on the pinned maps where that is possible.

use std::io::{IsTerminal, Write};

use anyhow::{Context, bail};
use serde_json::{Value, json};

use super::args::Output;
use crate::admin::{Answer, Leave, Request, client, offline};
use crate::config::Config;
use crate::daemon::status::Status;
use crate::kernel::pins::PinDir;
use crate::kernel::{OfflineKernel, PanicMode};
use crate::reconcile::store::Store;

/// The daemon's answer; `None` when no daemon runs.
fn ask(config: &Config, request: &Request) -> anyhow::Result<Option<Value>> {
    let path = &config.admin_socket;
    let answer = client::ask(path, request)
        .with_context(|| format!("asking the agent at {}", path.display()))?;
    match answer {
        None => Ok(None),
        Some(Answer::Ok(value)) => Ok(Some(value)),
        Some(Answer::Error(error)) => bail!(error),
    }
}

fn print(output: Output, value: &Value, text: &str) {
    match output {
        Output::Json => println!("{value}"),
        Output::Text => println!("{text}"),
    }
}

fn no_daemon(config: &Config) -> anyhow::Error {
    anyhow::anyhow!("no agent answers at {}", config.admin_socket.display())
}

pub(super) fn status(config: &Config, output: Output) -> anyhow::Result<()> {
    let value = match ask(config, &Request::Status)? {
        Some(value) => value,
        None => {
            enter(config)?;
            let kernel = OfflineKernel::open(&config.pin_dir).context(
                "no agent answers, and nothing is pinned: nothing is enforced on this host",
            )?;
            let store = config
                .state_dir
                .exists()
                .then(|| Store::open(&config.state_dir))
                .transpose()?;
            let mut status = Status::offline(&kernel, store.as_ref())?;
            status.standalone = config.controller.endpoints.is_empty();
            serde_json::to_value(&status)?
        }
    };
    match output {
        Output::Json => println!("{value}"),
        Output::Text => print!("{}", Status::text_of(&value)),
    }
    Ok(())
}

/// Devices are named by namespace.
fn enter(config: &Config) -> anyhow::Result<()> {
    crate::daemon::enter_netns(config).context("entering the network namespace")
}

pub(super) fn flows(
    config: &Config,
    output: Output,
    follow: bool,
    limit: Option<usize>,
) -> anyhow::Result<()> {
    let answers = client::open(&config.admin_socket, &Request::Flows { follow, limit })?
        .ok_or_else(|| no_daemon(config))?;
    let mut out = std::io::stdout().lock();
    for answer in answers {
        let line = match answer? {
            Answer::Ok(Value::Null) => break,
            Answer::Ok(value) if output == Output::Json => value.to_string(),
            Answer::Ok(value) => crate::flows::record::line_of(&value),
            Answer::Error(error) => {
                eprintln!("cofferdam-agent: {error}");
                continue;
            }
        };
        // The reader went away (`flows | head`): done.
        if writeln!(out, "{line}").is_err() {
            break;
        }
    }
    Ok(())
}

pub(super) fn explain(
    config: &Config,
    output: Output,
    from: String,
    to: String,
    port: &str,
) -> anyhow::Result<()> {
    let (protocol, port) = parse_port(port)?;
    let request = Request::Explain {
        from,
        to,
        protocol: Some(protocol),
        port,
    };
    let value = ask(config, &request)?.ok_or_else(|| no_daemon(config))?;
    let text = value
        .get("text")
        .and_then(Value::as_str)
        .unwrap_or_default()
        .trim_end()
        .to_owned();
    print(output, &value, &text);
    Ok(())
}

fn parse_port(text: &str) -> anyhow::Result<(String, u16)> {
    let wrong = || format!("\"{text}\" is no port: say 443, udp/53, icmp/8 or icmp/3/4");
    let parts: Vec<&str> = text.split('/').collect();
    match parts.as_slice() {
        [port] => Ok(("tcp".to_owned(), port.parse().with_context(wrong)?)),
        [protocol @ ("icmp" | "icmpv6"), kind] => {
            let kind: u8 = kind.parse().with_context(wrong)?;
            Ok(((*protocol).to_owned(), u16::from_be_bytes([kind, 0])))
        }
        [protocol @ ("icmp" | "icmpv6"), kind, code] => {
            let (kind, code) = (
                kind.parse().with_context(wrong)?,
                code.parse().with_context(wrong)?,
            );
            Ok(((*protocol).to_owned(), u16::from_be_bytes([kind, code])))
        }
        [protocol, port] => Ok(((*protocol).to_owned(), port.parse().with_context(wrong)?)),
        _ => bail!(wrong()),
    }
}

pub(super) fn confirm(config: &Config, output: Output, revision: u64) -> anyhow::Result<()> {
    let confirmed = match ask(config, &Request::Confirm { revision })? {
        Some(value) => value.get("confirmed").and_then(Value::as_u64).unwrap_or(0),
        None => offline::confirm(&config.pin_dir, &config.state_dir)?,
    };
    print(
        output,
        &json!({ "confirmed": confirmed }),
        &format!("revision {confirmed} is final"),
    );
    Ok(())
}

pub(super) fn apply(
    config: &Config,
    output: Output,
    confirm_within: Option<u64>,
) -> anyhow::Result<()> {
    let value =
        ask(config, &Request::Apply { confirm_within })?.ok_or_else(|| no_daemon(config))?;
    let revision = value.get("revision").and_then(Value::as_u64).unwrap_or(0);
    let text = match value.get("falls_back_in").and_then(Value::as_u64) {
        Some(seconds) => format!(
            "revision {revision} is enforced; it falls back in {seconds} s unless you run: cofferdam-agent confirm"
        ),
        None => format!("revision {revision} is enforced"),
    };
    print(output, &value, &text);
    Ok(())
}

pub(super) fn panic(config: &Config, output: Output, mode: PanicMode) -> anyhow::Result<()> {
    // Always on the maps themselves: the switch must not depend on a daemon that may hang.
    offline::panic(&config.pin_dir, mode)?;
    let text = match mode {
        PanicMode::Open => "OPEN: everything passes and is recorded",
        PanicMode::Close => "CLOSED: only failsafes pass",
        PanicMode::Off => "policy decides",
    };
    print(output, &json!({ "panic": mode.name() }), text);
    Ok(())
}

pub(super) fn detach(config: &Config, output: Output, leave: Option<Leave>) -> anyhow::Result<()> {
    let leave = match leave {
        Some(leave) => leave,
        None => ask_person()?,
    };
    let daemon = ask(config, &Request::Detach { leave })?.is_some();
    if !daemon && leave == Leave::Open {
        enter(config)?;
        offline::release(&PinDir::at(&config.pin_dir))?;
    }
    let text = match leave {
        Leave::Enforcing => "the agent stops; what is enforced goes on",
        Leave::Open => "the agent stops; nothing is enforced on this host",
    };
    print(output, &json!({ "leave": leave, "daemon": daemon }), text);
    Ok(())
}

fn ask_person() -> anyhow::Result<Leave> {
    if !std::io::stdin().is_terminal() {
        bail!("say what to leave: --leave enforcing or --leave open");
    }
    eprint!("Leave this host (e)nforcing without an agent, or (o)pen, with nothing enforced? ");
    let mut line = String::new();
    std::io::stdin().read_line(&mut line)?;
    match line.trim() {
        "e" | "enforcing" => Ok(Leave::Enforcing),
        "o" | "open" => Ok(Leave::Open),
        _ => bail!("nothing was changed"),
    }
}

#[cfg(test)]
mod tests {
    use super::parse_port;

    #[test]
    fn ports_as_people_write_them() {
        let parse = |text| parse_port(text).map_err(|error| error.to_string());
        assert_eq!(parse("443"), Ok(("tcp".into(), 443)));
        assert_eq!(parse("udp/53"), Ok(("udp".into(), 53)));
        assert_eq!(parse("icmp/8"), Ok(("icmp".into(), 2048)));
        assert_eq!(parse("icmp/3/4"), Ok(("icmp".into(), 772)));
        assert!(parse("http").is_err());
    }
}
