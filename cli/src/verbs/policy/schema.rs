//! `policy schema`: the language for editors.

use clap::Args;

use crate::Outcome;
use crate::output::{Format, Screen};

/// Print the JSON Schema (draft 2020-12) of policy documents, for editors and other programs
#[derive(Debug, Args)]
pub(super) struct Schema {
    /// That of the inventory file instead
    #[arg(long)]
    inventory: bool,
}

impl Schema {
    /// Runs the verb.
    pub(super) fn run(self, screen: &mut Screen) -> anyhow::Result<Outcome> {
        if !matches!(screen.format(), Format::Table | Format::Json) {
            return Err(screen
                .unsupported("such", "-o json, which is the default")
                .into());
        }
        let schema = if self.inventory {
            policy::schema::inventory()
        } else {
            policy::schema::documents()
        };
        screen.raw(&serde_json::to_string_pretty(&schema)?)?;
        screen.raw("\n")?;
        Ok(Outcome::Done)
    }
}
