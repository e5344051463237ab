//! The context file: named controllers and the certificates to use with them.
//!
//! ```yaml
//! current: prod
//! contexts:
//!   - name: prod
//!     controller: https://cofferdam.example:7443
//!     ca: /etc/cofferdam/operator/ca.pem
//!     cert: /etc/cofferdam/operator/cert.pem
//!     key: /etc/cofferdam/operator/key.pem
//! ```

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use serde::{Deserialize, Serialize};

use crate::error::Failure;
use crate::output;

/// The whole file.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ContextFile {
    /// Used when nothing else is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) current: Option<String>,
    /// In the order they were added.
    #[serde(default)]
    pub(crate) contexts: Vec<Context>,
}

/// One controller and the certificates to use with it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Context {
    pub(crate) name: String,
    pub(crate) controller: String,
    pub(crate) ca: PathBuf,
    pub(crate) cert: PathBuf,
    pub(crate) key: PathBuf,
}

/// `$XDG_CONFIG_HOME/cofferdam/config.yaml`, or below `~/.config`.
pub(crate) fn config_path() -> Option<PathBuf> {
    let absolute = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_CONFIG_HOME")
        .or_else(|| absolute("HOME").map(|home| home.join(".config")))
        .map(|base| base.join("cofferdam").join("config.yaml"))
}

impl ContextFile {
    /// Reads the file; one that does not exist is empty.
    pub(crate) fn load(path: &Path) -> anyhow::Result<Self> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => {
                return Err(error).with_context(|| format!("cannot read {}", path.display()));
            }
        };
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        serde_saphyr::from_str(&text).map_err(|error| {
            Failure::new(
                format!("{}: {error}", path.display()),
                "correct the file, or remove it and run `cofferdam context add` again",
            )
            .into()
        })
    }

    /// Replaces the file in one step.
    pub(crate) fn save(&self, path: &Path) -> anyhow::Result<()> {
        let text = output::to_yaml(&serde_json::to_value(self)?);
        let write = || -> io::Result<()> {
            if let Some(directory) = path.parent() {
                fs::create_dir_all(directory)?;
            }
            let temporary = path.with_extension(format!("yaml.{}", std::process::id()));
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o600)
                .open(&temporary)?;
            file.write_all(text.as_bytes())?;
            file.sync_all()?;
            fs::rename(&temporary, path)
        };
        write().with_context(|| format!("cannot write {}", path.display()))
    }

    /// The context of a name, or an error that lists the names there are.
    pub(crate) fn find(&self, name: &str) -> Result<&Context, Failure> {
        self.contexts
            .iter()
            .find(|context| context.name == name)
            .ok_or_else(|| {
                let names: Vec<_> = self.contexts.iter().map(|c| c.name.as_str()).collect();
                Failure::new(
                    format!("no context is named {name}"),
                    if names.is_empty() {
                        "add it with `cofferdam context add`".to_owned()
                    } else {
                        format!("there are: {}", names.join(", "))
                    },
                )
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_saved_is_read_again() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/config.yaml");
        assert_eq!(ContextFile::load(&path).unwrap(), ContextFile::default());
        let file = ContextFile {
            current: Some("no".into()),
            contexts: vec![Context {
                name: "no".into(),
                controller: "https://[fd00::1]:7443".into(),
                ca: "/a b/ca.pem".into(),
                cert: "/c.pem".into(),
                key: "/k.pem".into(),
            }],
        };
        file.save(&path).unwrap();
        assert_eq!(ContextFile::load(&path).unwrap(), file);
    }

    #[test]
    fn an_unknown_field_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("config.yaml");
        fs::write(&path, "curent: prod\n").unwrap();
        let error = ContextFile::load(&path).unwrap_err().to_string();
        assert!(error.contains("curent"), "{error}");
    }
}
