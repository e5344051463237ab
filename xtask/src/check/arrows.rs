//! Who may use whom: the dependencies between our packages, and who may use aya.

use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::Finding;

/// What a package may depend on.
struct Rule {
    package: &'static str,
    /// Packages of ours that it may use.
    ours: &'static [&'static str],
    aya: Aya,
}

/// How a package may use the aya family.
#[derive(PartialEq, Eq)]
enum Aya {
    Never,
    /// Only behind a feature.
    Optional,
    Yes,
}

/// The arrows of docs/architecture.md. Agent and controller never use each other.
const RULES: [Rule; 10] = [
    Rule {
        package: "datapath",
        ours: &[],
        aya: Aya::Optional,
    },
    Rule {
        package: "agent-ebpf",
        ours: &["datapath"],
        aya: Aya::Yes,
    },
    Rule {
        package: "policy",
        ours: &["datapath"],
        aya: Aya::Never,
    },
    Rule {
        package: "proto",
        ours: &["policy", "datapath"],
        aya: Aya::Never,
    },
    Rule {
        package: "agent",
        ours: &["proto", "policy", "datapath"],
        aya: Aya::Yes,
    },
    Rule {
        package: "controller",
        ours: &["proto", "policy"],
        aya: Aya::Never,
    },
    Rule {
        package: "cli",
        ours: &["proto", "policy"],
        aya: Aya::Never,
    },
    Rule {
        package: "xtask",
        ours: &[],
        aya: Aya::Never,
    },
    Rule {
        package: "bench",
        ours: &["agent", "proto", "policy", "datapath"],
        aya: Aya::Never,
    },
    Rule {
        package: "vm-tests",
        ours: &["agent", "datapath"],
        aya: Aya::Never,
    },
];

/// The part of `cargo metadata --no-deps` that matters here.
#[derive(Deserialize)]
pub(super) struct Metadata {
    pub(super) packages: Vec<Package>,
}

/// A workspace member.
#[derive(Deserialize)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) manifest_path: PathBuf,
    dependencies: Vec<Dependency>,
}

/// A dependency of any kind: what tests use is an arrow as well.
#[derive(Deserialize)]
struct Dependency {
    name: String,
    optional: bool,
    /// Set when the dependency lies in this repository.
    path: Option<PathBuf>,
}

/// Reads the output of cargo.
pub(super) fn metadata(json: &str) -> Result<Metadata> {
    serde_json::from_str(json).context("cannot understand cargo metadata")
}

/// Compares every dependency with the rules.
pub(super) fn check(metadata: &Metadata) -> Vec<Finding> {
    let mut findings = Vec::new();
    for package in &metadata.packages {
        let Some(rule) = RULES.iter().find(|rule| rule.package == package.name) else {
            findings.push(Finding::error(
                &package.name,
                "no rule says whom this package may use",
            ));
            continue;
        };
        for dependency in &package.dependencies {
            let name = dependency.name.as_str();
            if dependency.path.is_some() {
                // Tests turn on a package's own features by depending on it once more.
                if name != package.name && !rule.ours.contains(&name) {
                    findings.push(Finding::error(&package.name, format!("may not use {name}")));
                }
            } else if name == "aya" || name.starts_with("aya-") {
                let allowed = match rule.aya {
                    Aya::Yes => true,
                    Aya::Optional => dependency.optional,
                    Aya::Never => false,
                };
                if !allowed {
                    let how = if rule.aya == Aya::Optional {
                        " except optionally"
                    } else {
                        ""
                    };
                    findings.push(Finding::error(
                        &package.name,
                        format!("may not use {name}{how}: kernel access is the agent's"),
                    ));
                }
            }
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings(package: &str, dependencies: &str) -> Vec<String> {
        let json = format!(
            r#"{{"packages": [{{"name": "{package}", "manifest_path": "/x/Cargo.toml",
                 "dependencies": [{dependencies}]}}]}}"#
        );
        check(&metadata(&json).unwrap())
            .into_iter()
            .map(|finding| finding.text)
            .collect()
    }

    const DATAPATH: &str = r#"{"name": "datapath", "optional": false, "path": "/x/datapath"}"#;
    const AGENT: &str = r#"{"name": "agent", "optional": false, "path": "/x/agent"}"#;
    const AYA: &str = r#"{"name": "aya", "optional": false, "path": null}"#;
    const AYA_OPTIONAL: &str = r#"{"name": "aya", "optional": true, "path": null}"#;

    #[test]
    fn allowed_arrows_pass() {
        assert!(findings("policy", DATAPATH).is_empty());
        assert!(findings("vm-tests", &format!("{AGENT},{DATAPATH}")).is_empty());
        assert!(findings("agent", AYA).is_empty());
        assert!(findings("datapath", AYA_OPTIONAL).is_empty());
        assert!(findings("datapath", DATAPATH).is_empty());
    }

    #[test]
    fn forbidden_arrows_are_found() {
        assert_eq!(findings("controller", AGENT), ["may not use agent"]);
        assert_eq!(findings("controller", DATAPATH), ["may not use datapath"]);
        assert_eq!(findings("xtask", DATAPATH), ["may not use datapath"]);
        assert_eq!(findings("datapath", AGENT), ["may not use agent"]);
    }

    #[test]
    fn aya_outside_the_agent_is_found() {
        assert_eq!(findings("policy", AYA).len(), 1);
        assert_eq!(findings("policy", AYA_OPTIONAL).len(), 1);
        assert!(findings("datapath", AYA)[0].contains("except optionally"));
    }

    #[test]
    fn an_unknown_package_is_found() {
        assert_eq!(findings("extra", "").len(), 1);
    }
}
