//! `preflight`: everything that decides whether and how this host can be armed, without changing it.

use std::process::ExitCode;

use serde_json::json;

use super::args::Output;
use crate::config::Config;
use crate::kernel::features::{Answer, Features};
use crate::kernel::{attach, devices, loader};

pub(super) fn run(config: &Config, output: Output) -> anyhow::Result<ExitCode> {
    crate::daemon::enter_netns(config)?;
    let features = Features::probe();
    let list = devices::list()?;
    let mut problems: Vec<String> = features
        .missing()
        .into_iter()
        .map(|name| format!("this kernel lacks {name}"))
        .collect();
    if !nix::unistd::geteuid().is_root() {
        problems.push("not root: probes that need CAP_BPF say \"unknown\"".to_owned());
    }
    if !loader::has_object() {
        problems.push("this build carries no kernel object".to_owned());
    }
    let chosen = config.devices.chosen(&list);
    let mut shown = Vec::new();
    for device in &list {
        shown.push(json!({
            "name": device.name,
            "index": device.index,
            "armed": chosen.contains(&device),
            "addresses": device.addresses,
            "others": attach::others_on(device),
        }));
    }
    if chosen.is_empty() {
        problems.push("no device would be armed: see `devices` in the configuration".to_owned());
    }
    let filters = other_filters();
    let report = json!({
        "kernel": features.kernel,
        "features": features.features,
        "object_sha256": loader::object_digest(),
        "hook": if config.hooks == attach::Hooks::Auto && features.features.iter().any(|f| f.name == "tcx" && f.answer == Answer::Yes) { "tcx" } else { "clsact" },
        "devices": shown,
        "other_filters": filters,
        "problems": problems,
    });
    match output {
        Output::Json => println!("{report}"),
        Output::Text => text(&features, &list, config, &filters, &problems),
    }
    Ok(if problems.is_empty() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn text(
    features: &Features,
    list: &[devices::Device],
    config: &Config,
    filters: &[String],
    problems: &[String],
) {
    let chosen = config.devices.chosen(list);
    println!("kernel       {}", features.kernel);
    for feature in &features.features {
        let need = if feature.required { "" } else { " (optional)" };
        println!("  {:<14} {}{need}", feature.name, feature.answer.name());
    }
    for device in list {
        let what = if chosen.contains(&device) {
            "would be armed"
        } else {
            "left alone"
        };
        println!("device       {} {what}", device.name);
        for other in attach::others_on(device) {
            println!("  also there: {other}");
        }
    }
    for filter in filters {
        println!("also filters {filter}");
    }
    for problem in problems {
        println!("PROBLEM      {problem}");
    }
}

/// Other packet filters of this host, as far as procfs tells.
fn other_filters() -> Vec<String> {
    let mut found = Vec::new();
    for (family, file) in [
        ("iptables", "/proc/net/ip_tables_names"),
        ("ip6tables", "/proc/net/ip6_tables_names"),
    ] {
        let tables = std::fs::read_to_string(file).unwrap_or_default();
        if !tables.trim().is_empty() {
            found.push(format!(
                "{family}: {}",
                tables.split_whitespace().collect::<Vec<_>>().join(" ")
            ));
        }
    }
    let modules = std::fs::read_to_string("/proc/modules").unwrap_or_default();
    if modules.lines().any(|line| line.starts_with("nf_tables ")) {
        found.push("nf_tables is loaded (list its rules with `nft list ruleset`)".to_owned());
    }
    found
}
