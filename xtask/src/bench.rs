//! `cargo xtask bench`: builds the benchmark with optimisation and runs it.

use anyhow::Result;

use crate::project::Project;
use crate::run;

/// Arguments of `cargo xtask bench`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// What to measure, and how: see `cargo xtask bench -- --help`. A bare `--gate` is that of bench/limits.json or bench/stack-limits.json, a bare
    /// `--record` that of docs/benchmarks.md.
    #[arg(
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ARGUMENTS"
    )]
    arguments: Vec<String>,
}

/// Runs the verb.
pub(crate) fn run(project: &Project, args: &Args) -> Result<()> {
    let is_stack = args.arguments.first().is_some_and(|what| what == "stack");
    if is_stack {
        // It puts the agent itself under load.
        run::check(run::cargo().current_dir(project.root()).args([
            "build",
            "--release",
            "--locked",
            "--package=agent",
        ]))?;
    }
    let limits = if is_stack {
        "bench/stack-limits.json"
    } else {
        "bench/limits.json"
    };
    let defaults = [
        ("--gate", project.path(limits)),
        ("--record", project.path("docs/benchmarks.md")),
    ];
    let mut command = run::cargo();
    command.current_dir(project.root()).args([
        "run",
        "--release",
        "--locked",
        "--package=bench",
        "--",
    ]);
    let mut arguments = args.arguments.iter().peekable();
    while let Some(argument) = arguments.next() {
        command.arg(argument);
        let bare = arguments.peek().is_none_or(|next| next.starts_with('-'));
        if let Some((_, path)) = defaults.iter().find(|(name, _)| name == argument)
            && bare
        {
            command.arg(path);
        }
    }
    run::check(&mut command)
}
