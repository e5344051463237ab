//! `context`: named controllers.

use std::io;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::session::Session;
use crate::Outcome;
use crate::client::{Context, ContextFile, Environment, Target, config_path};
use crate::error::Failure;
use crate::output::{Document, Screen, Table};

/// Keep the controllers and certificates that you use by name
#[derive(Debug, Args)]
pub(crate) struct ContextVerb {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Add a context, or replace it; the first one becomes the current one
    ///
    /// Give --controller and --operator-dir, or --ca, --cert and --key.
    Add {
        /// What to call it
        name: String,
        /// Make it the current one
        #[arg(long = "use")]
        make_current: bool,
    },
    /// Make a context the current one
    Use {
        /// Which
        name: String,
    },
    /// List the contexts
    List,
    /// Forget a context
    Remove {
        /// Which
        name: String,
    },
}

impl ContextVerb {
    /// Runs the verb.
    pub(crate) fn run(self, session: &Session, screen: &mut Screen) -> anyhow::Result<Outcome> {
        let path = config_path().ok_or_else(|| {
            Failure::new(
                "there is no place for the configuration",
                "set HOME or XDG_CONFIG_HOME",
            )
        })?;
        let mut file = ContextFile::load(&path)?;
        match self.verb {
            Verb::Add { name, make_current } => {
                let context = settle(name.clone(), session)?;
                match file.contexts.iter_mut().find(|c| c.name == name) {
                    Some(old) => *old = context,
                    None => file.contexts.push(context),
                }
                if make_current || file.current.is_none() {
                    file.current = Some(name);
                }
                file.save(&path)?;
            }
            Verb::Use { name } => {
                file.find(&name)?;
                file.current = Some(name);
                file.save(&path)?;
            }
            Verb::Remove { name } => {
                file.find(&name)?;
                file.contexts.retain(|context| context.name != name);
                file.current = file.current.filter(|current| *current != name);
                file.save(&path)?;
            }
            Verb::List => {}
        }
        screen.show(&ContextList::of(file))?;
        Ok(Outcome::Done)
    }
}

/// The context that the flags describe, with absolute paths to files that exist.
fn settle(name: String, session: &Session) -> anyhow::Result<Context> {
    let flags = session.flags();
    let target = Target::resolve(flags, &Environment::read(), &ContextFile::default())?;
    let existing = |path: &Path| -> anyhow::Result<PathBuf> {
        path.canonicalize()
            .with_context(|| format!("cannot find {}", path.display()))
    };
    Ok(Context {
        name,
        controller: target.controller,
        ca: existing(&target.ca)?,
        cert: existing(&target.cert)?,
        key: existing(&target.key)?,
    })
}

/// The contexts.
#[derive(Debug, Serialize)]
struct ContextList {
    current: Option<String>,
    contexts: Vec<Context>,
}

impl ContextList {
    fn of(file: ContextFile) -> Self {
        Self {
            current: file.current,
            contexts: file.contexts,
        }
    }
}

impl Document for ContextList {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        let mut table = Table::new(&[("CURRENT", 0), ("NAME", 0), ("CONTROLLER", 0), ("CERT", 0)]);
        for context in &self.contexts {
            let current = self.current.as_ref() == Some(&context.name);
            table.row([
                if current { "*" } else { "" }.to_owned(),
                context.name.clone(),
                context.controller.clone(),
                context.cert.display().to_string(),
            ]);
        }
        table.print(screen)
    }

    fn names(&self) -> Option<Vec<String>> {
        Some(self.contexts.iter().map(|c| c.name.clone()).collect())
    }
}
