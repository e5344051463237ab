//! `cargo xtask setup`: what the tests need from Debian, with `--bpf` what the kernel object needs, with
//! `--vm` what booting other kernels needs. It installs only what is missing and touches no network when nothing is.

pub(crate) mod bpf;
mod debian;
mod sysroot;
pub(crate) mod tool;

use anyhow::Result;

use crate::project::Project;

/// Arguments of `cargo xtask setup`.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Prepare to build the kernel object (only people who change kernel code need this).
    #[arg(long)]
    bpf: bool,
    /// Prepare to boot other kernels in virtual machines (`cargo xtask vm`).
    #[arg(long)]
    vm: bool,
}

/// Runs the verb.
pub(crate) fn run(project: &Project, args: &Args) -> Result<()> {
    if args.vm {
        debian::ensure(debian::FOR_VM)?;
    }
    if args.bpf {
        let toolchain = bpf::prepare(project)?;
        println!(
            "setup: the BPF toolchain is ready ({})",
            toolchain.sysroot.display()
        );
        return Ok(());
    }
    // The guests' tools are those of the tests.
    for_tests()
}

/// Installs what the tests need and is missing.
pub(crate) fn for_tests() -> Result<()> {
    debian::ensure(debian::FOR_TESTS)
}
