//! Whether the running kernel is taken: refused by name when it lacks something, else every program is loaded
//! within its budget of the verifier's work.
//!
//! `COFFERDAM_EXPECT_MISSING` names features that the kernel must be found to lack. What the programs cost is
//! appended to the file that `COFFERDAM_VERIFIER_LOG` names.
#![allow(
    clippy::expect_used,
    clippy::panic,
    reason = "helpers of tests: one that fails fails the test"
)]

mod common;

use std::env;
use std::fs::OpenOptions;
use std::io::Write;

use agent::kernel::attribution::Attribution;
use agent::kernel::features::Features;
use agent::kernel::loader::TableSizes;
use agent::kernel::{Kernel, KernelError};
use common::Lab;

const BUDGET: &str = include_str!("../../agent-ebpf/verifier.budget");

const SIZES: TableSizes = TableSizes {
    flows4: 1024,
    flows6: 1024,
    denies: 1024,
    ring: 1 << 16,
    share: 0,
};

/// What the caller knows this kernel to lack.
fn expected() -> Vec<String> {
    let names = env::var("COFFERDAM_EXPECT_MISSING").unwrap_or_default();
    names
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[test]
fn the_probes_find_what_is_known_to_be_missing_and_nothing_else() {
    if !nix::unistd::geteuid().is_root() {
        common::skip(
            "the_probes_find_what_is_known_to_be_missing_and_nothing_else",
            "needs root",
        );
        return;
    }
    assert_eq!(Features::probe().missing(), expected());
}

#[test]
fn a_kernel_that_lacks_something_is_refused_by_name() {
    let Some(mut lab) = Lab::new("a_kernel_that_lacks_something_is_refused_by_name") else {
        return;
    };
    let missing = expected();
    let opened = Kernel::open(lab.pin(), SIZES, None);
    if missing.is_empty() {
        opened.expect("nothing is missing");
        return;
    }
    let Err(error @ KernelError::Unsupported { .. }) = opened else {
        panic!("not refused")
    };
    let message = error.to_string();
    let release = nix::sys::utsname::uname().expect("uname");
    assert!(
        message.contains(&*release.release().to_string_lossy()),
        "{message}"
    );
    for name in &missing {
        assert!(message.contains(name), "{message}");
    }
    assert!(!lab.pin().exists(), "nothing was pinned");
    // The agent says the same, ends, and leaves the host as it was.
    lab.allow(&[]);
    lab.spawn();
    lab.wait_for_end();
    assert!(lab.log().contains(&message), "{}", lab.log());
    let shut = lab.listen(22);
    assert!(lab.session(&shut, lab.v4()).works());
    let report = lab.try_verb(&["preflight"]).expect_err("preflight fails");
    for name in &missing {
        assert!(report.contains(&format!("lacks {name}")), "{report}");
    }
}

/// What a program may cost on a kernel: the line of its series, else the line for all.
fn budget(release: &str, program: &str) -> Option<u32> {
    let lines = BUDGET
        .lines()
        .filter(|line| !line.starts_with('#'))
        .filter_map(|line| {
            let [series, name, number] = line.split_whitespace().collect::<Vec<_>>()[..] else {
                return None;
            };
            (name == program).then(|| (series, number.parse().expect("a number")))
        });
    let of = |wanted: fn(&str, &str) -> bool| {
        lines
            .clone()
            .find(|(series, _)| wanted(release, series))
            .map(|(_, number)| number)
    };
    of(|release, series| release.starts_with(&format!("{series}.")))
        .or_else(|| of(|_, series| series == "*"))
}

#[test]
fn every_program_is_within_its_budget() {
    if !expected().is_empty() {
        // Nothing is loaded: the test above says so.
        return;
    }
    let Some(lab) = Lab::new("every_program_is_within_its_budget") else {
        return;
    };
    let kernel = Kernel::open(lab.pin(), SIZES, None).expect("opens");
    let socket_hooks = kernel
        .with_programs(|programs| Attribution::attach(kernel.dir(), programs, true))
        .expect("the maps are there");
    // Without cgroup2 none can be tried.
    let missing = &socket_hooks.state().missing;
    assert!(missing.keys().all(|hook| *hook == "all"), "{missing:?}");
    let programs = kernel.verified_instructions().expect("known");
    assert!(
        programs.len() >= 3 + socket_hooks.state().hooks.len(),
        "{programs:?}"
    );
    let release = nix::sys::utsname::uname().expect("uname");
    let release = release.release().to_string_lossy();
    let mut log = env::var_os("COFFERDAM_VERIFIER_LOG").map(|path| {
        OpenOptions::new()
            .create(true)
            .append(true)
            .open(path)
            .expect("the log opens")
    });
    let mut over = Vec::new();
    for (name, cost) in programs {
        let cost = cost.expect("kernels since 5.16 tell");
        println!("{name}: {cost} instructions processed");
        if let Some(log) = &mut log {
            writeln!(log, "{name} {cost}").expect("the log is written");
        }
        let budget = budget(&release, &name);
        if budget.is_none_or(|budget| cost > budget) {
            over.push(format!("{name}: {cost} instructions, budget {budget:?}"));
        }
    }
    assert!(over.is_empty(), "{over:#?} (agent-ebpf/verifier.budget)");
}
