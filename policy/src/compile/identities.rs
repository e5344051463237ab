//! Identities: numbers for the sets of things that policy can tell apart.

use std::collections::BTreeMap;

use datapath::ids::Identity;
use serde::{Deserialize, Serialize};

use super::CompileError;

/// Gives numbers to identity contents; the same content has the same number for ever.
///
/// One allocator serves every host of a controller, and is stored with its state: numbers occur in
/// flow records, so they are never given to another content.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdentityAllocator {
    next: u32,
    numbers: BTreeMap<String, u32>,
}

impl Default for IdentityAllocator {
    fn default() -> Self {
        Self {
            next: Identity::FIRST_DYNAMIC.0,
            numbers: BTreeMap::new(),
        }
    }
}

impl IdentityAllocator {
    /// The number of a content, new if it was never seen.
    pub fn number(&mut self, content: &str) -> Result<u32, CompileError> {
        if let Some(number) = self.numbers.get(content) {
            return Ok(*number);
        }
        let number = self.next.max(Identity::FIRST_DYNAMIC.0);
        self.next = number
            .checked_add(1)
            .ok_or(CompileError::IdentitiesExhausted)?;
        self.numbers.insert(content.to_owned(), number);
        Ok(number)
    }

    /// How many numbers were given out.
    #[must_use]
    pub fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Whether none was given out yet.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }
}
