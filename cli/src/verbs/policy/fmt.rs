//! `policy fmt`: the canonical layout of policy files.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, fchown};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::Args;
use serde::Serialize;
use similar::TextDiff;

use crate::Outcome;
use crate::output::{self, Document, Screen};
use crate::sources;

/// Lay out policy files canonically; comments and meaning stay
///
/// All files are read before any is written: if one does not parse, none changes. Stdin (-) goes to stdout.
#[derive(Debug, Args)]
pub(super) struct Fmt {
    /// Files or directories; - for stdin
    #[arg(value_name = "FILE|DIR", required = true)]
    files: Vec<PathBuf>,
    /// Write nothing, say which files would change; exit code 2 when there are any
    #[arg(long)]
    check: bool,
    /// Write nothing, show what would change
    #[arg(long)]
    diff: bool,
}

/// What became of the files.
#[derive(Debug, Serialize)]
struct Report {
    files: Vec<File>,
    changed: usize,
    /// Whether the files were written.
    written: bool,
}

#[derive(Debug, Serialize)]
struct File {
    file: String,
    changed: bool,
    /// With `--diff`, in unified format.
    #[serde(skip_serializing_if = "Option::is_none")]
    diff: Option<String>,
    #[serde(skip)]
    text: String,
}

impl Document for Report {
    fn table(&self, screen: &mut Screen) -> io::Result<()> {
        let verb = if self.written {
            "formatted"
        } else {
            "would format"
        };
        for file in self.files.iter().filter(|file| file.changed) {
            match &file.diff {
                Some(diff) => screen.line(diff.trim_end_matches('\n'))?,
                None => screen.line(&format!("{verb} {}", file.file))?,
            }
        }
        Ok(())
    }

    fn names(&self) -> Option<Vec<String>> {
        let changed = self.files.iter().filter(|file| file.changed);
        Some(changed.map(|file| file.file.clone()).collect())
    }
}

impl Fmt {
    /// Runs the verb.
    pub(super) fn run(self, screen: &mut Screen) -> anyhow::Result<Outcome> {
        let sources = sources::read(&self.files)?;
        let mut files = Vec::new();
        let mut problems = policy::problems::Problems::default();
        for source in &sources {
            match policy::format::format(source) {
                Ok(text) => {
                    let changed = text != source.text;
                    let name = source.name.to_string();
                    let diff = (self.diff && changed).then(|| unified(&name, &source.text, &text));
                    files.push(File {
                        file: name,
                        changed,
                        diff,
                        text,
                    });
                }
                Err(more) => problems.0.extend(more.0),
            }
        }
        if !problems.0.is_empty() {
            return super::refuse(problems, screen);
        }
        let dry = self.check || self.diff;
        if !dry {
            for file in &files {
                if file.file == sources::STDIN {
                    screen.raw(&file.text)?;
                } else if file.changed {
                    replace(Path::new(&file.file), &file.text)
                        .with_context(|| format!("cannot write {}", file.file))?;
                }
            }
            // What came from stdin has been answered.
            files.retain(|file| file.file != sources::STDIN);
        }
        let changed = files.iter().filter(|file| file.changed).count();
        let count = files.len();
        screen.show(&Report {
            files,
            changed,
            written: !dry,
        })?;
        if self.check && changed > 0 {
            screen.remark(&format!(
                "{changed} of {} to be formatted",
                output::counted(count, "file")
            ))?;
            return Ok(Outcome::Changes);
        }
        Ok(Outcome::Done)
    }
}

fn unified(name: &str, before: &str, after: &str) -> String {
    TextDiff::from_lines(before, after)
        .unified_diff()
        .header(name, name)
        .to_string()
}

/// Writes a file anew, whole or not at all; mode and owner stay, and a link stays a link.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    let path = fs::canonicalize(path)?;
    let directory = path.parent().unwrap_or(Path::new("/"));
    let old = fs::metadata(&path)?;
    let mut file = tempfile::Builder::new()
        .prefix(".cofferdam-fmt-")
        .tempfile_in(directory)?;
    file.write_all(text.as_bytes())?;
    let new = file.as_file().metadata()?;
    if (new.uid(), new.gid()) != (old.uid(), old.gid()) {
        fchown(file.as_file(), Some(old.uid()), Some(old.gid()))?;
    }
    // After the owner: changing that takes set-id bits away.
    file.as_file().set_permissions(old.permissions())?;
    file.as_file().sync_all()?;
    file.persist(&path).map_err(|error| error.error)?;
    Ok(())
}
