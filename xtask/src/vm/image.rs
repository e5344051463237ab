//! The guest's file system and its init: mounts, modules, the suites one after the other, and the end.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::cpio::Cpio;
use super::expect::{Expected, How};
use super::kernel::Kernel;
use super::suites::Programs;
use super::{Plan, SCALE, guest};
use crate::run;

/// Programs of this machine that the suites call; they go into the guest with their libraries.
const TOOLS: [&str; 4] = ["ip", "tc", "nsenter", "setpriv"];
const BUSYBOX: &str = "/bb/busybox";

/// Seconds that a suite may take on a processor that is not emulated.
const SUITE_LIMIT: u32 = 240;

/// Packets that the suite against the reference evaluator judges in a guest. On the machine's own kernel they are
/// many more, with their coverage asserted; here the question is whether this kernel says the same.
const PAIRS: u32 = 8_000;

/// Where the guest writes what [`guest`] reads.
const REPORT: &str = "/dev/ttyS1";

/// Builds the file system for a kernel.
pub(super) fn build(
    series: &str,
    kernel: &Kernel,
    programs: &Programs,
    plan: &Plan,
) -> Result<Vec<u8>> {
    let mut cpio = Cpio::default();
    for dir in [
        "/proc",
        "/sys",
        "/tmp",
        "/run/netns",
        "/var",
        "/etc",
        "/root",
    ] {
        cpio.directory(Path::new(dir));
    }
    cpio.link(Path::new("/var/run"), "/run");
    let mut libraries = BTreeSet::new();
    let busybox = run::find_program("busybox").context("no busybox: run cargo xtask setup --vm")?;
    program(&mut cpio, &busybox, Path::new(BUSYBOX), &mut libraries)?;
    for name in TOOLS {
        let file =
            run::find_program(name).with_context(|| format!("no {name}: run cargo xtask setup"))?;
        program(
            &mut cpio,
            &file,
            &Path::new("/tools").join(name),
            &mut libraries,
        )?;
    }
    program(&mut cpio, &programs.agent, &programs.agent, &mut libraries)?;
    for (name, file) in &programs.suites {
        program(
            &mut cpio,
            file,
            &Path::new("/suites").join(name),
            &mut libraries,
        )?;
    }
    for (name, bytes) in &kernel.modules {
        cpio.file(Path::new(&format!("/modules/{name}.ko")), bytes);
    }
    cpio.file(
        Path::new("/init"),
        init(series, kernel, &programs.agent, plan).as_bytes(),
    );
    Ok(cpio.finish())
}

/// Adds a program under a name of its own, and its libraries where its loader looks for them.
fn program(
    cpio: &mut Cpio,
    file: &Path,
    name: &Path,
    libraries: &mut BTreeSet<PathBuf>,
) -> Result<()> {
    let read =
        |file: &Path| fs::read(file).with_context(|| format!("cannot read {}", file.display()));
    cpio.file(name, &read(file)?);
    for library in needed(file)? {
        if libraries.insert(library.clone()) {
            cpio.file(&library, &read(&library)?);
        }
    }
    Ok(())
}

fn needed(file: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd")
        .arg(file)
        .output()
        .context("cannot run ldd")?;
    // Of a static program ldd complains, and names nothing.
    Ok(libraries_in(&String::from_utf8_lossy(&output.stdout)))
}

/// The files in what ldd prints: `name => /file (address)` and the loader's `/file (address)`.
fn libraries_in(text: &str) -> Vec<PathBuf> {
    text.lines()
        .filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')))
        .map(PathBuf::from)
        .collect()
}

/// Init. What it reports is explained at [`guest::Report`].
fn init(series: &str, kernel: &Kernel, agent: &Path, plan: &Plan) -> String {
    let mut script = format!(
        "#!{BUSYBOX} sh\n\
         {BUSYBOX} --install -s /bb\n\
         export PATH=/tools:/bb HOME=/root TMPDIR=/tmp RUST_BACKTRACE=0\n\
         mount -t proc proc /proc\n\
         mount -t sysfs sys /sys\n\
         mount -t devtmpfs dev /dev\n\
         mount -t bpf bpf /sys/fs/bpf\n\
         mount -t cgroup2 cgroup2 /sys/fs/cgroup\n\
         mount -t tracefs tracefs /sys/kernel/tracing\n\
         stty -F {REPORT} raw\n\
         exec >{REPORT} 2>&1\n\
         ip link set lo up\n"
    );
    for (name, _) in &kernel.modules {
        script.push_str(&format!(
            "insmod /modules/{name}.ko || echo '@broken module {name}'\n"
        ));
    }
    script.push_str(&format!(
        "export COFFERDAM_SKIP_LOG=/run/skips COFFERDAM_VERIFIER_LOG=/run/verifier COFFERDAM_TEST_SCALE={SCALE} COFFERDAM_PAIRS={PAIRS}\n\
         echo \"@kernel $(uname -r)\"\n\
         echo '{{\"policy_dir\": \"/tmp\"}}' >/run/agent.yaml\n\
         echo \"@preflight $({} --config /run/agent.yaml -o json preflight)\"\n",
        agent.display()
    ));
    if let Some(features) = plan.expected.refusal(series) {
        script.push_str(&format!(
            "export COFFERDAM_EXPECT_MISSING={}\n",
            features.join(",")
        ));
    }
    for suite in plan.of(series) {
        script.push_str(&suite_lines(series, suite, &plan.expected));
    }
    script.push_str(
        "sed 's/^/@verifier /' /run/verifier\n\
         dmesg | grep -E 'WARNING: |BUG: |Oops|general protection|verifier bug' | sed 's/^/@dmesg /'\n\
         echo @done\n\
         sync\n\
         poweroff -f\n",
    );
    script
}

/// Runs a suite without the tests that are known to fail, then each of those alone.
fn suite_lines(series: &str, suite: &str, expected: &Expected) -> String {
    let limit = SUITE_LIMIT * SCALE;
    let failing: Vec<&str> = expected
        .of(series, suite)
        .filter(|excuse| excuse.how == How::Fails)
        .map(|excuse| excuse.test.as_str())
        .collect();
    let skip: String = failing
        .iter()
        .map(|test| format!(" --skip {test}"))
        .collect();
    let mut lines = format!(
        "echo '@suite {suite}'\n\
         : >/run/skips\n\
         timeout -s KILL {limit} /suites/{suite} --test-threads 2 --exact{skip}\n\
         echo \"@exit $?\"\n\
         sed 's/^/@skipped /' /run/skips\n"
    );
    for test in failing {
        lines.push_str(&format!(
            "echo '@alone {suite} {test}'\n\
             timeout -s KILL {limit} /suites/{suite} --test-threads 2 --exact {test}\n\
             echo \"@exit $?\"\n"
        ));
    }
    lines
}

/// Seconds within which a guest must have ended, whatever it does.
pub(super) fn limit(plan: &Plan) -> std::time::Duration {
    guest::BOOT_LIMIT * SCALE
        + std::time::Duration::from_secs(u64::from(SUITE_LIMIT * SCALE) * plan.suites.len() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_those_that_the_loader_finds() {
        let text = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/x/libc.so.6 (0x2)\n\t/lib64/ld.so.2 (0x3)\n";
        assert_eq!(
            libraries_in(text),
            [
                PathBuf::from("/lib/x/libc.so.6"),
                PathBuf::from("/lib64/ld.so.2")
            ]
        );
        assert!(libraries_in("\tstatically linked\n").is_empty());
    }

    #[test]
    fn a_failing_test_runs_alone_and_not_with_its_suite() {
        let expected = Expected::parse("fails 6.1 kernel m::bad why").unwrap();
        let lines = suite_lines("6.1", "kernel", &expected);
        assert!(
            lines.contains("--exact --skip m::bad\n") && lines.contains("--exact m::bad\n"),
            "{lines}"
        );
        assert!(!suite_lines("6.12", "kernel", &expected).contains("bad"));
    }

    #[test]
    fn a_refused_kernel_runs_no_suite_but_the_one_that_sees_it_refused() {
        let kernel = Kernel {
            image: PathBuf::new(),
            modules: Vec::new(),
        };
        let expected = Expected::parse("refused 5.10 fetch-atomics").unwrap();
        let plan = Plan {
            suites: ["kernel_support", "kernel", "clsact"]
                .map(str::to_owned)
                .into(),
            expected,
            object: String::new(),
        };
        let script = |series| init(series, &kernel, Path::new("/agent"), &plan);
        assert!(script("5.10").contains("COFFERDAM_EXPECT_MISSING=fetch-atomics"));
        assert!(
            !script("5.10").contains("@suite kernel\n")
                && !script("5.10").contains("@suite clsact")
        );
        assert!(
            script("6.1").contains("@suite clsact'") && !script("6.1").contains("EXPECT_MISSING")
        );
    }
}
