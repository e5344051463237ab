//! What this kernel can do, asked once and in three values: yes, no, and cannot tell.

use aya::maps::MapType;
use aya::programs::ProgramType;
use aya::sys::{is_map_supported, is_program_supported};
use serde::Serialize;

use super::map::RawMap;
use super::sys;

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
        let kernel = nix::sys::utsname::uname()
            .map(|name| name.release().to_string_lossy().into_owned())
            .unwrap_or_default();
        let feature = |name, answer, required| Feature {
            name,
            answer,
            required,
        };
        let features = vec![
            feature(
                "tc-classifier",
                Answer::of(is_program_supported(ProgramType::SchedClassifier)),
                true,
            ),
            feature("hash", Answer::of(is_map_supported(MapType::Hash)), true),
            feature(
                "lpm-trie",
                Answer::of(is_map_supported(MapType::LpmTrie)),
                true,
            ),
            feature(
                "array-of-maps",
                Answer::of(is_map_supported(MapType::ArrayOfMaps)),
                true,
            ),
            feature(
                "ring-buffer",
                Answer::of(is_map_supported(MapType::RingBuf)),
                true,
            ),
            feature("tcx", tcx(), false),
            feature("lpm-batch", lpm_batch(), false),
            feature("btf", btf(), false),
            feature(
                "membarrier",
                Answer::of(sys::grace_period().map(|()| true)),
                false,
            ),
        ];
        Self { kernel, features }
    }

    /// Names of what is missing that the agent cannot do without.
    #[must_use]
    pub fn missing(&self) -> Vec<&'static str> {
        self.features
            .iter()
            .filter(|feature| feature.required && feature.answer == Answer::No)
            .map(|feature| feature.name)
            .collect()
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
