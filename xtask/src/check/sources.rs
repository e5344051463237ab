//! Rules about the text of files.

use super::Finding;
use super::scan::{self, Line};

/// A file longer than this wants to be split.
const LONG: usize = 600;
/// A file longer than this must be.
const TOO_LONG: usize = 800;

/// Directories of machines on which this was developed; nobody else has them.
const MACHINE_PATHS: [&str; 2] = [concat!("/wo", "rk/"), concat!("/tmp/", "wt")];

/// What a package without I/O and without a clock must not name.
const IMPURE: [&str; 9] = [
    "std::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::process",
    "std::env",
    "std::thread",
    "tokio::",
    "Instant::now",
    "SystemTime::now",
];

/// Applies every rule to one file; `name` is its path from the root of the repository.
pub(super) fn check(name: &str, text: &str) -> Vec<Finding> {
    let mut findings = machine_paths(name, text);
    if !name.ends_with(".rs") || generated(text) {
        return findings;
    }
    let lines = scan::lines(text);
    findings.extend(length(name, lines.len()));
    findings.extend(head(name, text));
    findings.extend(unfinished(name, &lines));
    findings.extend(safety(name, &lines));
    findings.extend(aya(name, &lines));
    findings.extend(purity(name, &lines));
    findings
}

fn generated(text: &str) -> bool {
    text.lines().take(5).any(|line| line.contains("@generated"))
}

fn at(name: &str, index: usize) -> String {
    format!("{name}:{}", index + 1)
}

fn machine_paths(name: &str, text: &str) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in text.lines().enumerate() {
        for path in MACHINE_PATHS.iter().filter(|path| line.contains(*path)) {
            // `network/`, `target/work/` and the like are parts of other names.
            let before = line.split(path).next().and_then(|text| text.chars().last());
            if !before.is_some_and(|c| c.is_alphanumeric() || "_-.}".contains(c)) {
                findings.push(Finding::error(at(name, index), format!("names {path}")));
            }
        }
    }
    findings
}

fn length(name: &str, lines: usize) -> Option<Finding> {
    if lines > TOO_LONG {
        Some(Finding::error(
            name,
            format!("{lines} lines, the limit is {TOO_LONG}"),
        ))
    } else if lines > LONG {
        Some(Finding::warning(
            name,
            format!("{lines} lines, {LONG} are plenty"),
        ))
    } else {
        None
    }
}

fn head(name: &str, text: &str) -> Option<Finding> {
    let documented = text
        .lines()
        .find(|line| !line.trim().is_empty())
        .is_none_or(|line| line.starts_with("//!"));
    (name.contains("/src/") && !documented).then(|| {
        Finding::error(
            name,
            "does not begin with `//!` that says what the module owns",
        )
    })
}

fn unfinished(name: &str, lines: &[Line]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        for word in ["todo!(", "unimplemented!("] {
            if line.code.contains(word) {
                findings.push(Finding::error(at(name, index), format!("{word}) is left")));
            }
        }
        if line.comment.contains("FIXME") {
            findings.push(Finding::error(
                at(name, index),
                "a note to fix something is left",
            ));
        }
    }
    findings
}

/// Every use of `unsafe` has its reason before it, up to the nearest empty line.
fn safety(name: &str, lines: &[Line]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        if !["unsafe {", "unsafe fn", "unsafe impl"]
            .iter()
            .any(|word| line.code.contains(word))
        {
            continue;
        }
        // A pointer's type is a mere name.
        if line.code.contains(": unsafe fn") || line.code.contains("(unsafe fn") {
            continue;
        }
        let reasoned = lines[..=index]
            .iter()
            .rev()
            .take_while(|line| !(line.code.trim().is_empty() && line.comment.is_empty()))
            .any(|line| line.comment.contains("SAFETY") || line.comment.contains("# Safety"));
        if !reasoned {
            findings.push(Finding::error(
                at(name, index),
                "`unsafe` without a SAFETY comment",
            ));
        }
    }
    findings
}

/// The kernel is reached through one module only.
fn aya(name: &str, lines: &[Line]) -> Vec<Finding> {
    let kernel = name.starts_with("agent/src/kernel/")
        || name == "agent/src/kernel.rs"
        || name.starts_with("agent-ebpf/");
    if kernel {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (index, line) in lines.iter().enumerate() {
        // The types that cross the boundary are marked in datapath; the orphan rule wants it so.
        let code = if name.starts_with("datapath/") {
            line.code.replace("aya::Pod", "")
        } else {
            line.code.clone()
        };
        if word_then(&code, "aya", "::") {
            findings.push(Finding::error(
                at(name, index),
                "aya is used outside agent/src/kernel",
            ));
        }
    }
    findings
}

/// Whether `word` stands alone in `code`, followed by `next`.
fn word_then(code: &str, word: &str, next: &str) -> bool {
    code.match_indices(word).any(|(start, _)| {
        let before = code[..start].chars().last();
        !before.is_some_and(|c| c.is_alphanumeric() || c == '_')
            && code[start + word.len()..].starts_with(next)
    })
}

/// `datapath` and `policy` decide; they do no I/O and read no clock. Their tests may.
fn purity(name: &str, lines: &[Line]) -> Vec<Finding> {
    let pure = name.starts_with("datapath/src/") || name.starts_with("policy/src/");
    if !pure || name.ends_with("/tests.rs") || name.contains("/tests/") {
        return Vec::new();
    }
    let mut findings = Vec::new();
    for (index, line) in lines
        .iter()
        .enumerate()
        .take_while(|(_, line)| !line.code.contains("#[cfg(test)]"))
    {
        for word in IMPURE.iter().filter(|word| line.code.contains(*word)) {
            findings.push(Finding::error(
                at(name, index),
                format!("{word}: this package does no I/O and reads no clock"),
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The texts of what is found in a documented file.
    fn found(name: &str, body: &str) -> Vec<String> {
        check(name, &format!("//! A module.\n{body}"))
            .into_iter()
            .map(|f| f.text)
            .collect()
    }

    const FILE: &str = "agent/src/lib.rs";

    #[test]
    fn a_good_file_passes() {
        assert!(found(FILE, "use std::fs;\nfn main() {}\n").is_empty());
    }

    #[test]
    fn long_files_are_found() {
        assert!(found(FILE, &"\n".repeat(599)).is_empty());
        let long = check(FILE, &format!("//! A.\n{}", "\n".repeat(600)));
        assert_eq!(long[0].severity, super::super::Severity::Warning);
        let too_long = check(FILE, &format!("//! A.\n{}", "\n".repeat(800)));
        assert_eq!(too_long[0].severity, super::super::Severity::Error);
    }

    #[test]
    fn generated_files_are_left_alone() {
        let text = format!(
            "// This file is @generated by a tool.\n{}",
            "\n".repeat(900)
        );
        assert!(check("proto/src/gen/x.rs", &text).is_empty());
    }

    #[test]
    fn missing_heads_are_found() {
        assert_eq!(check(FILE, "use std::fs;\n").len(), 1);
        assert_eq!(check(FILE, "/// An item.\nfn f() {}\n").len(), 1);
        assert!(check("agent/build.rs", "fn main() {}\n").is_empty());
    }

    #[test]
    fn unfinished_work_is_found() {
        assert_eq!(found(FILE, "fn f() { todo!() }\n").len(), 1);
        assert_eq!(found(FILE, "fn f() { unimplemented!(\"x\") }\n").len(), 1);
        assert_eq!(found(FILE, "// FIXME: later\n").len(), 1);
        assert!(found(FILE, "let x = \"todo!()\";\n").is_empty());
    }

    #[test]
    fn unsafe_without_a_reason_is_found() {
        assert_eq!(found(FILE, "fn f() {\n    unsafe { g() }\n}\n").len(), 1);
        assert_eq!(found(FILE, "unsafe impl Send for X {}\n").len(), 1);
        assert_eq!(
            found(FILE, "// SAFETY: far away\n\nunsafe fn f() {}\n").len(),
            1
        );
    }

    #[test]
    fn unsafe_with_a_reason_passes() {
        assert!(
            found(
                FILE,
                "    // SAFETY: checked\n    let x =\n        unsafe { g() };\n"
            )
            .is_empty()
        );
        assert!(
            found(
                FILE,
                "/// # Safety\n///\n/// Y.\n#[inline]\nunsafe fn f() {}\n"
            )
            .is_empty()
        );
        assert!(found(FILE, "let x = \"unsafe {\"; // unsafe fn\n").is_empty());
    }

    #[test]
    fn aya_outside_the_kernel_module_is_found() {
        assert_eq!(found(FILE, "use aya::Ebpf;\n").len(), 1);
        assert!(found("agent/src/kernel/maps.rs", "use aya::Ebpf;\n").is_empty());
        assert!(found("agent-ebpf/src/main.rs", "use aya::Ebpf;\n").is_empty());
        assert!(
            found(
                "datapath/src/abi.rs",
                "// SAFETY: ok\nunsafe impl aya::Pod for K {}\n"
            )
            .is_empty()
        );
        assert_eq!(found("datapath/src/abi.rs", "use aya::Ebpf;\n").len(), 1);
        assert!(found(FILE, "use malaya::x; // aya::y\n").is_empty());
    }

    #[test]
    fn impure_decisions_are_found() {
        assert_eq!(found("policy/src/lib.rs", "use std::fs;\n").len(), 1);
        assert_eq!(
            found("datapath/src/lib.rs", "let t = Instant::now();\n").len(),
            1
        );
        assert!(
            found(
                "policy/src/lib.rs",
                "#[cfg(test)]\nmod t { use std::fs; }\n"
            )
            .is_empty()
        );
        assert!(found("controller/src/lib.rs", "use std::fs;\n").is_empty());
    }

    #[test]
    fn machine_paths_are_found() {
        let bad = ["/wo", "rk/main"].concat();
        assert_eq!(check("docs/a.md", &format!("see {bad}\n")).len(), 1);
        assert_eq!(
            check(
                "docs/a.md",
                &format!("see {}\n", ["/tmp/", "wt/x"].concat())
            )
            .len(),
            1
        );
        assert!(check("docs/a.md", &format!("var{bad} and net{bad}\n")).is_empty());
    }
}
