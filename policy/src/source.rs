//! Named texts and places inside them.

use std::fmt;
use std::sync::Arc;

use crate::problems::{Problem, Problems};

/// The largest text that is read as one source.
pub const MAX_SOURCE_BYTES: usize = 4 * 1024 * 1024;

/// A text and the name under which messages mention it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Source {
    /// File name, or a stand-in such as `<stdin>`.
    pub name: Arc<str>,
    /// The whole text.
    pub text: String,
}

impl Source {
    /// A text that is already known to be UTF-8.
    #[must_use]
    pub fn new(name: impl Into<Arc<str>>, text: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            text: text.into(),
        }
    }

    /// Bytes from a file: refuses what is too long or not UTF-8, naming the place of the bad byte.
    pub fn from_bytes(name: impl Into<Arc<str>>, bytes: &[u8]) -> Result<Self, Problems> {
        let name = name.into();
        if bytes.len() > MAX_SOURCE_BYTES {
            return Err(too_long(&name, bytes.len()).into());
        }
        Self::utf8(name, bytes)
    }

    /// A text of another system, whose length the caller has bounded: refuses what is not UTF-8,
    /// naming the place of the bad byte.
    pub fn utf8(name: impl Into<Arc<str>>, bytes: &[u8]) -> Result<Self, Problems> {
        let name = name.into();
        match std::str::from_utf8(bytes) {
            Ok(text) => Ok(Self::new(name, text)),
            Err(error) => {
                let good = bytes.get(..error.valid_up_to()).unwrap_or_default();
                let line = 1 + good.iter().filter(|byte| **byte == b'\n').count();
                let last_line = good
                    .rsplit(|byte| *byte == b'\n')
                    .next()
                    .unwrap_or_default();
                // `good` is UTF-8 by construction, so counting characters cannot fail.
                let column = 1 + String::from_utf8_lossy(last_line).chars().count();
                let place = Place::new(name, line as u64, column as u64);
                Err(Problem::at(&place, "this byte is not UTF-8")
                    .suggest("save the file as UTF-8")
                    .into())
            }
        }
    }
}

/// The refusal of an over-long text.
pub(crate) fn too_long(name: &Arc<str>, length: usize) -> Problem {
    Problem::at(
        &Place::new(Arc::clone(name), 1, 1),
        format!("the file has {length} bytes, more than the limit of {MAX_SOURCE_BYTES}"),
    )
    .suggest("split it into several files")
}

/// Where something stands in a source.
///
/// All places are equal to each other, so that objects compare by meaning and not by layout.
#[derive(Clone, Debug)]
pub struct Place {
    /// Name of the source.
    pub file: Arc<str>,
    /// From 1.
    pub line: u64,
    /// From 1, in characters.
    pub column: u64,
}

impl Place {
    /// A place in a named source.
    #[must_use]
    pub fn new(file: impl Into<Arc<str>>, line: u64, column: u64) -> Self {
        Self {
            file: file.into(),
            line,
            column,
        }
    }
}

impl Default for Place {
    /// The place of what was made by a program and not read from a text.
    fn default() -> Self {
        Self::new("<generated>", 0, 0)
    }
}

impl PartialEq for Place {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for Place {}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}
