//! Reads the configuration from its sources.

use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::Config;

/// Why the configuration cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("{}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A key or value that is not understood, with its place.
    #[error("{place}: {why}")]
    Parse {
        /// `file:line:column`.
        place: String,
        /// What is wrong.
        why: String,
    },
    /// A variable that is not understood.
    #[error("{variable}: {why}")]
    Variable {
        /// Its name.
        variable: String,
        /// What is wrong.
        why: String,
    },
    /// A value that cannot work.
    #[error("{key}: {why}")]
    Invalid {
        /// The key.
        key: String,
        /// What is wrong.
        why: String,
    },
}

const PREFIX: &str = "COFFERDAM_AGENT_";

/// Reads the file (none = defaults, unless it was asked for), then the environment.
///
/// # Errors
/// When something is not understood or cannot work.
pub fn load(
    path: &Path,
    required: bool,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    let config = match std::fs::read_to_string(path) {
        Ok(text) => parse(&path.display().to_string(), &text)?,
        Err(error) if error.kind() == io::ErrorKind::NotFound && !required => Config::default(),
        Err(source) => {
            return Err(ConfigError::Read {
                path: path.to_owned(),
                source,
            });
        }
    };
    let config = merge_env(&config, environment)?;
    config.check()?;
    Ok(config)
}

/// Reads one text.
///
/// # Errors
/// With the place of what is not understood.
pub fn parse(name: &str, text: &str) -> Result<Config, ConfigError> {
    if text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    {
        return Ok(Config::default());
    }
    serde_saphyr::from_str(text).map_err(|error| {
        let place = error.location().map_or_else(
            || name.to_owned(),
            |at| format!("{name}:{}:{}", at.line(), at.column()),
        );
        let why = error.to_string();
        ConfigError::Parse {
            place,
            why: why.lines().next().unwrap_or_default().to_owned(),
        }
    })
}

/// `COFFERDAM_AGENT_STATE_DIR=…`, nested keys with two underscores: `COFFERDAM_AGENT_CONTROLLER__TOKEN=…`.
/// Values are YAML. Variables that name no key are refused, except those of the command line itself.
///
/// # Errors
/// With the variable that is not understood.
pub fn merge_env(
    config: &Config,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    let mut config = config.clone();
    for (variable, text) in environment {
        let Some(key) = variable.strip_prefix(PREFIX) else {
            continue;
        };
        if matches!(key, "CONFIG" | "LOG" | "LOG_FORMAT" | "OUTPUT") {
            continue;
        }
        let failed = |why: String| ConfigError::Variable {
            variable: variable.clone(),
            why,
        };
        let value: Value = serde_saphyr::from_str(&text).unwrap_or(Value::String(text.clone()));
        let mut whole = serde_json::to_value(&config).map_err(|error| failed(error.to_string()))?;
        let path: Vec<String> = key.split("__").map(str::to_lowercase).collect();
        let mut place = &mut whole;
        for part in &path {
            place = match place {
                Value::Object(object) => object
                    .get_mut(part)
                    .ok_or_else(|| failed(format!("there is no key {}", path.join("."))))?,
                _ => return Err(failed(format!("there is no key {}", path.join(".")))),
            };
        }
        // A string stays a string even if it looks like a number.
        *place = if place.is_string() && !value.is_string() {
            Value::String(text)
        } else {
            value
        };
        config = serde_json::from_value(whole).map_err(|error| failed(error.to_string()))?;
    }
    Ok(config)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_key_is_refused_with_its_place() {
        let error = parse("agent.yaml", "state_dir: /x\nstate_dri: /y\n").expect_err("unknown");
        let text = error.to_string();
        assert!(text.starts_with("agent.yaml:2:"), "{text}");
        assert!(text.contains("state_dri"), "{text}");
    }

    #[test]
    fn the_environment_overrides_the_file() {
        let config = parse("a", "state_dir: /x\ncontroller: {endpoints: ['a:1']}").expect("parse");
        let env = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let merged = merge_env(
            &config,
            [
                env("COFFERDAM_AGENT_STATE_DIR", "/z"),
                env("COFFERDAM_AGENT_TABLES__FLOWS4", "1000"),
                env("COFFERDAM_AGENT_CONFIRM_WITHIN", "5s"),
                env("COFFERDAM_AGENT_CONTROLLER__TOKEN", "abc"),
                env("COFFERDAM_AGENT_DEVICES__INCLUDE", "[eth0]"),
                env("HOME", "/root"),
            ],
        )
        .expect("merge");
        assert_eq!(merged.state_dir, Path::new("/z"));
        assert_eq!(merged.tables.flows4, 1000);
        assert_eq!(merged.confirm_within.as_secs(), 5);
        assert_eq!(merged.controller.token.as_deref(), Some("abc"));
        assert_eq!(merged.devices.include, vec!["eth0"]);
        assert_eq!(merged.controller.endpoints, vec!["a:1"]);
        let error = merge_env(&config, [env("COFFERDAM_AGENT_NOPE", "1")]).expect_err("unknown");
        assert_eq!(
            error.to_string(),
            "COFFERDAM_AGENT_NOPE: there is no key nope"
        );
    }

    #[test]
    fn what_is_printed_can_be_read_again() {
        let config = Config::default();
        let text = serde_json::to_string(&config).expect("print");
        assert_eq!(parse("printed", &text).expect("read"), config);
    }
}
