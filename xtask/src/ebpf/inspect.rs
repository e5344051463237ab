//! Looks at a linked kernel object: what the kernel would refuse or what would cost is found here,
//! not by a verifier on somebody's machine.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use object::{Object, ObjectSection, ObjectSymbol, RelocationTarget, SectionKind, SymbolKind};

/// Length of a BPF instruction; loads of 64-bit constants take two.
const INSN: usize = 8;

/// Functions the compiler calls for copies and fills; in BPF each is a loop in a subprogram.
const MEM: [&str; 5] = ["memcpy", "memset", "memmove", "memcmp", "bcmp"];

/// What an object contains.
pub(super) struct Report {
    /// Sections, by name.
    sections: Vec<String>,
    /// Names of all symbols.
    symbols: Vec<String>,
    /// Every function, programs first.
    functions: Vec<Function>,
}

/// A program or a subprogram.
#[derive(Debug, PartialEq, Eq)]
struct Function {
    section: String,
    name: String,
    instructions: usize,
    /// Calls of [`MEM`], with their number.
    mem_calls: BTreeMap<String, usize>,
}

impl Report {
    /// Reads an object.
    pub(super) fn of(bytes: &[u8]) -> Result<Self> {
        let file = object::File::parse(bytes).context("the kernel object is not an ELF file")?;
        let mut names = BTreeMap::new();
        let mut spans = Vec::new();
        let mut symbols = Vec::new();
        for symbol in file.symbols() {
            let name = symbol
                .name()
                .context("a symbol's name is not text")?
                .to_owned();
            if symbol.kind() == SymbolKind::Text
                && let Some(section) = symbol.section_index()
            {
                names.insert((section.0, symbol.address()), name.clone());
                spans.push((section.0, symbol.address(), symbol.size(), name.clone()));
            }
            symbols.push(name);
        }
        spans.sort();
        let mut sections = Vec::new();
        let mut functions = Vec::new();
        for section in file.sections() {
            let name = section.name().context("a section's name is not text")?;
            sections.push(name.to_owned());
            if section.kind() != SectionKind::Text {
                continue;
            }
            let code = section
                .data()
                .with_context(|| format!("cannot read section {name}"))?;
            let calls = calls(&file, &section, code, &names)?;
            for (_, start, size, function) in spans
                .iter()
                .filter(|(index, ..)| *index == section.index().0)
            {
                let mut mem_calls = BTreeMap::new();
                for (_, callee) in calls.iter().filter(|(at, callee)| {
                    (*start..start + size).contains(at) && MEM.contains(&callee.as_str())
                }) {
                    *mem_calls.entry(callee.clone()).or_insert(0) += 1;
                }
                functions.push(Function {
                    section: name.to_owned(),
                    name: function.clone(),
                    instructions: usize::try_from(*size).unwrap_or(usize::MAX) / INSN,
                    mem_calls,
                });
            }
        }
        functions.sort_by_key(|function| function.section == ".text");
        Ok(Self {
            sections,
            symbols,
            functions,
        })
    }

    /// Prints the functions with their cost.
    pub(super) fn print(&self) {
        for function in &self.functions {
            let kind = if function.section == ".text" {
                "subprogram"
            } else {
                "program"
            };
            let calls: Vec<String> = function
                .mem_calls
                .iter()
                .map(|(name, count)| format!(" {name}×{count}"))
                .collect();
            println!(
                "{kind:10} {:70} {:5} instructions{}{}",
                readable(&function.name),
                function.instructions,
                if calls.is_empty() { "" } else { ", calls" },
                calls.concat()
            );
        }
    }

    /// Fails on what no kernel object of ours may have.
    pub(super) fn verdict(&self) -> Result<()> {
        let mut faults = Vec::new();
        for needed in [".BTF", ".BTF.ext"] {
            if !self.sections.iter().any(|name| name == needed) {
                faults.push(format!(
                    "there is no section {needed}: maps could not be loaded"
                ));
            }
        }
        for name in &self.sections {
            if name.starts_with(".text.unlikely") {
                faults.push(format!(
                    "section {name}: a panic path is left (an index or a division that the compiler cannot prove safe)"
                ));
            }
            if name.starts_with(".debug_") {
                faults.push(format!("section {name}: DWARF was not stripped"));
            }
        }
        for name in self
            .symbols
            .iter()
            .filter(|name| name.contains("panicking"))
        {
            faults.push(format!("symbol {name}: a panic path is left"));
        }
        if !self
            .functions
            .iter()
            .any(|function| function.section != ".text")
        {
            faults.push("there is no program in it".to_owned());
        }
        if faults.is_empty() {
            return Ok(());
        }
        bail!(
            "the kernel object is not acceptable:\n  {}",
            faults.join("\n  ")
        )
    }
}

/// The names in a mangled symbol, enough to see which function it is: hashes and the grammar of
/// types are left out.
fn readable(symbol: &str) -> String {
    let Some(mut rest) = symbol.strip_prefix("_R") else {
        return symbol.to_owned();
    };
    let mut names = Vec::new();
    while let Some(first) = rest.chars().next() {
        if let Some(hash) = rest.strip_prefix("Cs") {
            // A crate's hash may contain digits; an underscore ends it.
            rest = hash.split_once('_').map_or("", |(_, after)| after);
            continue;
        }
        if first == 'B' || first == 's' {
            // A reference to something earlier, or a number that tells namesakes apart.
            rest = rest.split_once('_').map_or("", |(_, after)| after);
            continue;
        }
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        if let Some(name) = rest[..digits]
            .parse()
            .ok()
            .and_then(|length: usize| rest[digits..].trim_start_matches('_').get(..length))
            .filter(|name| !name.is_empty())
        {
            names.push(name);
            let skipped = rest[digits..].len() - rest[digits..].trim_start_matches('_').len();
            rest = &rest[digits + skipped + name.len()..];
        } else {
            rest = &rest[first.len_utf8()..];
        }
    }
    names.join("::")
}

/// The calls of subprograms in a section: where, and whom.
fn calls(
    file: &object::File<'_>,
    section: &object::Section<'_, '_>,
    code: &[u8],
    names: &BTreeMap<(usize, u64), String>,
) -> Result<Vec<(u64, String)>> {
    let mut relocated = BTreeMap::new();
    for (at, relocation) in section.relocations() {
        if let RelocationTarget::Symbol(index) = relocation.target() {
            relocated.insert(at, index);
        }
    }
    let mut calls = Vec::new();
    for (at, insn) in (0_u64..).step_by(INSN).zip(code.chunks_exact(INSN)) {
        // BPF_JMP | BPF_CALL with src_reg BPF_PSEUDO_CALL.
        if insn[0] != 0x85 || insn[1] >> 4 != 1 {
            continue;
        }
        let distance = i64::from(i32::from_le_bytes([insn[4], insn[5], insn[6], insn[7]]));
        let (target_section, base, name) = match relocated.get(&at) {
            Some(index) => {
                let symbol = file
                    .symbol_by_index(*index)
                    .context("a relocation is broken")?;
                let index = symbol.section_index().unwrap_or(section.index());
                // Against a named function the distance is relative to nothing.
                let named = (symbol.kind() != SymbolKind::Section)
                    .then(|| symbol.name().map(str::to_owned))
                    .transpose()
                    .context("a symbol's name is not text")?;
                (index, symbol.address(), named)
            }
            None => (section.index(), at, None),
        };
        let name = name.or_else(|| {
            let target = base.checked_add_signed((distance + 1) * 8)?;
            names.get(&(target_section.0, target)).cloned()
        });
        calls.push((at, name.unwrap_or_else(|| "?".to_owned())));
    }
    Ok(calls)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn good() -> Report {
        Report {
            sections: [".BTF", ".BTF.ext", "classifier"]
                .map(str::to_owned)
                .to_vec(),
            symbols: vec!["ingress".into()],
            functions: vec![Function {
                section: "classifier".into(),
                name: "ingress".into(),
                instructions: 2,
                mem_calls: BTreeMap::new(),
            }],
        }
    }

    fn fault(report: &Report) -> String {
        report.verdict().unwrap_err().to_string()
    }

    #[test]
    fn a_good_object_passes() {
        good().verdict().unwrap();
    }

    #[test]
    fn missing_btf_is_found() {
        let mut report = good();
        report.sections.remove(0);
        assert!(fault(&report).contains("no section .BTF:"));
    }

    #[test]
    fn panic_paths_are_found() {
        let mut report = good();
        report.sections.push(".text.unlikely.".into());
        report
            .symbols
            .push("_RNvNtCs_4core9panicking18panic_bounds_check".into());
        let text = fault(&report);
        assert!(
            text.contains("section .text.unlikely.") && text.contains("symbol _R"),
            "{text}"
        );
    }

    #[test]
    fn dwarf_and_emptiness_are_found() {
        let mut report = good();
        report.sections.push(".debug_info".into());
        report.functions.clear();
        let text = fault(&report);
        assert!(
            text.contains("DWARF") && text.contains("no program"),
            "{text}"
        );
    }

    #[test]
    fn symbols_become_readable() {
        assert_eq!(readable("memset"), "memset");
        assert_eq!(
            readable("_RNvCs15hC8AS7OpP_9cofferdam6judge4"),
            "cofferdam::judge4"
        );
        assert_eq!(
            readable(
                "_RINvNtNtCsaV67Fp2GMJ5_8datapath8pipeline7opening4makeNtNtB6_6packet2V4EB1a_"
            ),
            "datapath::pipeline::opening::make::packet::V4"
        );
        assert_eq!(readable("_R99x"), "");
    }

    #[test]
    fn something_else_is_not_an_object() {
        assert!(Report::of(b"not an object").is_err());
    }
}
