//! `replay`: a capture through the programs.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};

use anyhow::Context;
use policy::api::Scenario;
use policy::snapshot::Mode;
use policy::source::Source;

use super::args::{Output, Replay};
use crate::config::Config;
use crate::replay::{self, Options, ReplayError};
use crate::standalone;

pub(super) fn run(
    mut config: Config,
    configured: bool,
    output: Output,
    asked: Replay,
) -> anyhow::Result<()> {
    match asked.mode {
        Some(mode) => config.mode = mode.into(),
        None if !configured => config.mode = Mode::Enforce,
        None => {}
    }
    let scenario = scenario(&asked)?;
    config.check()?;
    let input: Box<dyn Read + Send> = if asked.pcap.as_os_str() == "-" {
        Box::new(io::stdin())
    } else {
        let name = asked.pcap.display();
        Box::new(File::open(&asked.pcap).with_context(|| format!("opening {name}"))?)
    };
    let mut out = BufWriter::new(io::stdout().lock());
    let options = Options {
        config,
        scenario,
        local: asked.local,
    };
    let outcome = replay::run(options, input, &mut |line| {
        let text = match output {
            Output::Json => line.json()?,
            Output::Text => line.text(),
        };
        writeln!(out, "{text}")
    });
    let flushed = out.flush();
    match outcome {
        // The reader went away (`replay … | head`): done.
        Err(ReplayError::Output(error)) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        Ok(()) => match flushed {
            Err(error) if error.kind() != io::ErrorKind::BrokenPipe => Err(error.into()),
            _ => Ok(()),
        },
        Err(error) => Err(error).with_context(|| asked.pcap.display().to_string()),
    }
}

fn scenario(asked: &Replay) -> anyhow::Result<Scenario> {
    let inventory = match &asked.inventory {
        Some(path) => {
            let name = path.display().to_string();
            let bytes = std::fs::read(path).with_context(|| name.clone())?;
            Some(
                Source::from_bytes(name, &bytes)
                    .map_err(|problems| anyhow::anyhow!("{problems}"))?,
            )
        }
        None => None,
    };
    let sources = standalone::read_dir(&asked.policy)?;
    Scenario::parse(inventory.as_ref(), &sources).map_err(|problems| anyhow::anyhow!("{problems}"))
}
