//! `diff`: what `apply` would change.

use std::path::PathBuf;

use clap::Args;
use proto::v1;

use super::apply;
use super::session::{Session, mutation};
use crate::Outcome;
use crate::options::MutationFlags;
use crate::output::Screen;

/// Show what `apply` would change; exit code 2 when it is anything
#[derive(Debug, Args)]
pub(crate) struct Diff {
    /// File, directory (recursively: .yaml, .yml, .json) or - for stdin; may be repeated
    #[arg(short, long = "file", value_name = "FILE|DIR", required = true, num_args = 1..)]
    files: Vec<PathBuf>,
    /// As if the objects that are not in the files were removed
    #[arg(long)]
    prune: bool,
}

impl Diff {
    /// Runs the verb.
    pub(crate) async fn run(
        self,
        session: &Session,
        screen: &mut Screen,
    ) -> anyhow::Result<Outcome> {
        let request = v1::ApplyRequest {
            options: Some(mutation(&MutationFlags::default(), true)?),
            files: Vec::new(),
            prune: self.prune,
            confirm_within_seconds: 0,
        };
        let Some(document) = apply::send(&self.files, request, session, screen).await? else {
            return Ok(Outcome::Refused);
        };
        screen.show(&document)?;
        Ok(if document.has_changes() {
            Outcome::Changes
        } else {
            Outcome::Done
        })
    }
}
