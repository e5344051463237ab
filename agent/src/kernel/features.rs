//! What this kernel can do, asked once and in three values: yes, no, and cannot tell.

use std::sync::OnceLock;

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{is_map_supported, is_program_supported};
use serde::Serialize;

use super::map::RawMap;
use super::sys;
use super::{KernelError, Result};

/// The answer of a probe.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// It works.
    Yes,
    /// It does not.
    No,
    /// The probe itself failed (no right to ask, for example).
    Unknown,
}

impl Answer {
    /// The word.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Yes => "yes",
            Self::No => "no",
            Self::Unknown => "unknown",
        }
    }

    fn of<E>(result: Result<bool, E>) -> Self {
        match result {
            Ok(true) => Self::Yes,
            Ok(false) => Self::No,
            Err(_) => Self::Unknown,
        }
    }
}

/// One probe.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Feature {
    /// Stable name.
    pub name: &'static str,
    /// The answer.
    pub answer: Answer,
    /// Whether the agent can do without.
    pub required: bool,
}

/// Everything that was asked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Features {
    /// `uname -r`.
    pub kernel: String,
    /// The probes.
    pub features: Vec<Feature>,
}

impl Features {
    /// Asks the running kernel.
    #[must_use]
    pub fn probe() -> Self {
        let kernel = release();
        let mut features = required();
        let feature = |name, answer| Feature {
            name,
            answer,
            required: false,
        };
        features.extend([
            feature("tcx", tcx()),
            feature("lpm-batch", lpm_batch()),
            feature("btf", btf()),
            feature("membarrier", Answer::of(sys::grace_period().map(|()| true))),
        ]);
        Self { kernel, features }
    }

    /// Names of what is missing that the agent cannot do without.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        missing_of(&self.features)
    }

    /// Names of what works.
    #[must_use]
    pub fn present(&self) -> Vec<String> {
        self.features
            .iter()
            .filter(|feature| feature.answer == Answer::Yes)
            .map(|feature| feature.name.to_owned())
            .collect()
    }
}

/// What the agent cannot do without.
fn required() -> Vec<Feature> {
    let program = |kind| Answer::of(is_program_supported(kind));
    let map = |kind| Answer::of(is_map_supported(kind));
    [
        ("tc-classifier", program(ProgramType::SchedClassifier)),
        ("hash", map(MapType::Hash)),
        ("lpm-trie", map(MapType::LpmTrie)),
        ("array-of-maps", map(MapType::ArrayOfMaps)),
        ("ring-buffer", map(MapType::RingBuf)),
        ("fetch-atomics", fetch_atomics()),
    ]
    .map(|(name, answer)| Feature {
        name,
        answer,
        required: true,
    })
    .into()
}

fn missing_of(features: &[Feature]) -> Vec<&'static str> {
    features
        .iter()
        .filter(|feature| feature.required && feature.answer == Answer::No)
        .map(|feature| feature.name)
        .collect()
}

/// Refuses a kernel that lacks what the agent cannot do without. It is asked once: a kernel does not change.
///
/// # Errors
/// [`KernelError::Unsupported`], which names what is missing.
pub(super) fn refuse_unsupported() -> Result<()> {
    static MISSING: OnceLock<Vec<&'static str>> = OnceLock::new();
    let missing = MISSING.get_or_init(|| missing_of(&required()));
    if missing.is_empty() {
        return Ok(());
    }
    Err(KernelError::Unsupported {
        kernel: release(),
        missing: missing
            .iter()
            .map(|name| described(name))
            .collect::<Vec<_>>()
            .join(", "),
    })
}

fn release() -> String {
    nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default()
}

/// A feature's name and, where the name does not say it, what it is and since when Linux has it.
fn described(name: &str) -> String {
    match name {
        "fetch-atomics" => format!("{name} (compare-and-exchange in BPF programs, Linux 5.12)"),
        "ring-buffer" => format!("{name} (Linux 5.8)"),
        _ => name.to_owned(),
    }
}

/// The smallest program with a compare-and-exchange (include/uapi/linux/bpf.h). Before Linux 5.12 the verifier
/// knows no atomic instruction but a plain addition.
fn fetch_atomics() -> Answer {
    const CODE: [[u8; 8]; 5] = [
        [0xb7, 0x00, 0, 0, 0, 0, 0, 0],          // r0 = 0
        [0x7b, 0x0a, 0xf8, 0xff, 0, 0, 0, 0],    // *(u64 *)(r10 - 8) = r0
        [0xb7, 0x01, 0, 0, 1, 0, 0, 0],          // r1 = 1
        [0xdb, 0x1a, 0xf8, 0xff, 0xf1, 0, 0, 0], // r0 = cmpxchg_64(r10 - 8, r0, r1)
        [0x95, 0, 0, 0, 0, 0, 0, 0],             // exit
    ];
    match sys::prog_load_filter(&CODE) {
        Ok(_) => Answer::Yes,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Answer::No,
        Err(_) => Answer::Unknown,
    }
}

fn tcx() -> Answer {
    // A query needs no program: kernels without TCX do not know the attach type.
    match sys::query_tcx(1, sys::TCX_INGRESS) {
        Ok(_) => Answer::Yes,
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Answer::No,
        Err(_) => Answer::Unknown,
    }
}

fn lpm_batch() -> Answer {
    let Ok(map) = RawMap::create(sys::TYPE_LPM_TRIE, "probe", 8, 4, 2, sys::F_NO_PREALLOC) else {
        return Answer::Unknown;
    };
    match map.update_batch_once(&[32, 0, 0, 0, 10, 0, 0, 1], &[0; 4]) {
        Ok(()) => Answer::Yes,
        Err(error) if sys::no_batches(&error) => Answer::No,
        Err(_) => Answer::Unknown,
    }
}

fn btf() -> Answer {
    match std::fs::metadata("/sys/kernel/btf/vmlinux") {
        Ok(_) => Answer::Yes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Answer::No,
        Err(_) => Answer::Unknown,
    }
}
