//! `cargo xtask`: everything a developer or CI does with this repository beyond plain cargo.
//! This file only dispatches; each verb lives in its own module.

mod bench;
mod cargo_test;
mod check;
mod codegen;
mod demo;
mod deny;
mod ebpf;
mod estate;
mod mutate;
mod project;
mod run;
mod setup;
mod test;
mod vm;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::project::Project;

/// Cofferdam's build, check and test tool.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Install what the tests need (Debian packages) or, with --bpf, what building the kernel object needs.
    Setup(setup::Args),
    /// Build the kernel object and record it in agent-ebpf/prebuilt.
    BuildEbpf(ebpf::BuildArgs),
    /// Run clippy on the kernel crate for the BPF target.
    ClippyEbpf,
    /// Put faults into the kernel's sources, one at a time, and see that the tests notice.
    Mutate(mutate::Args),
    /// Check the rules of this repository that the compiler does not know.
    Check,
    /// Write the generated code of proto.
    Codegen(codegen::Args),
    /// Check licences, sources and known problems of the dependencies.
    Deny,
    /// Set up, build and run all tests.
    Test(test::Args),
    /// The main job on real traffic: hosts, servers, policy, an intruder.
    Demo(demo::Args),
    /// Run the kernel suites inside distribution kernels, under emulation. Exit status 3: a kernel cannot be had.
    Vm(vm::Args),
    /// What the datapath costs, measured; needs root.
    Bench(bench::Args),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let outcome = Project::find().and_then(|project| match cli.verb {
        Verb::Setup(args) => setup::run(&project, &args),
        Verb::BuildEbpf(args) => ebpf::build(&project, &args),
        Verb::ClippyEbpf => ebpf::clippy(&project),
        Verb::Mutate(args) => mutate::run(&project, &args),
        Verb::Check => check::run(&project),
        Verb::Codegen(args) => codegen::run(&project, &args),
        Verb::Deny => deny::run(&project),
        Verb::Test(args) => test::run(&project, &args),
        Verb::Demo(args) => demo::run(&project, &args),
        Verb::Vm(args) => vm::run(&project, &args),
        Verb::Bench(args) => bench::run(&project, &args),
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            if error.is::<vm::Unavailable>() {
                ExitCode::from(3)
            } else {
                ExitCode::FAILURE
            }
        }
    }
}
