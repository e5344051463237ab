//! Policies of a cluster: what they become, printed as ours.

use std::path::PathBuf;

use clap::Args;
use policy::kubernetes;
use policy::model::{Object, State};
use serde_json::{Value, json};

use crate::Outcome;
use crate::error::Failure;
use crate::model::Problems;
use crate::output::{Format, Screen, counted, to_yaml};
use crate::sources;

/// Print NetworkPolicy, AdminNetworkPolicy, BaselineAdminNetworkPolicy and ClusterNetworkPolicy objects as our own
///
/// Reads what `kubectl get … -o yaml` or `-o json` prints, unchanged. What cannot be carried over is an error with its
/// place, and nothing is printed. Besides the policies there comes one Mode object: Kubernetes allows a pod what no
/// policy speaks about.
#[derive(Debug, Args)]
pub(super) struct Kubernetes {
    /// Files or directories; - for stdin
    #[arg(value_name = "FILE|DIR", required = true)]
    files: Vec<PathBuf>,
    /// Print policies as staged: they count for the draft verdict only
    #[arg(long)]
    staged: bool,
}

impl Kubernetes {
    /// Runs the verb.
    pub(super) fn run(self, screen: &mut Screen) -> anyhow::Result<Outcome> {
        let sources = sources::read(&self.files)?;
        let mut objects = match policy::parse::parse(&sources) {
            Ok(objects) => objects,
            Err(problems) => {
                screen.show(&Problems::from(problems))?;
                return Ok(Outcome::Refused);
            }
        };
        if objects.is_empty() {
            return Err(Failure::new(
                "the files hold no policy",
                "name the files that hold your cluster's policies",
            )
            .into());
        }
        if self.staged {
            for object in &mut objects {
                if let Object::Policy(policy) = object {
                    policy.state = State::Staged;
                }
            }
        }
        print(&objects, screen)?;
        for remark in kubernetes::remarks(&objects) {
            crate::error::complain(&remark);
        }
        Ok(Outcome::Done)
    }
}

/// Objects as documents that parse to the same objects again: YAML, or one JSON list.
fn print(objects: &[Object], screen: &mut Screen) -> anyhow::Result<()> {
    match screen.format() {
        Format::Markdown => return Err(screen.unsupported("Markdown", "-o yaml").into()),
        Format::Sarif => return Err(screen.unsupported("SARIF", "-o yaml").into()),
        Format::Table | Format::Yaml => {
            for object in objects {
                screen.raw("---\n")?;
                screen.raw(&to_yaml(&object.to_json()))?;
            }
        }
        Format::Json => {
            let items: Vec<Value> = objects.iter().map(Object::to_json).collect();
            let list =
                json!({"apiVersion": policy::model::API_VERSION, "kind": "List", "items": items});
            screen.raw(&serde_json::to_string_pretty(&list)?)?;
            screen.raw("\n")?;
        }
        Format::Name => {
            for object in objects {
                screen.line(&object.id())?;
            }
        }
    }
    screen.flush()?;
    screen
        .remark(&format!("{} imported", counted(objects.len(), "object")))
        .map_err(Into::into)
}
