//! What the verifier had to do for the loaded programs.

use std::io;

use super::host::Kernel;
use super::{KernelError, Result};

impl Kernel {
    /// Instructions that the verifier processed, by program, of those that are loaded. Kernels before 5.16 do not
    /// tell: there it is `None`.
    ///
    /// # Errors
    /// When the kernel tells nothing of a program that it holds.
    pub fn verified_instructions(&self) -> Result<Vec<(String, Option<u32>)>> {
        self.with_programs(|programs| {
            let loaded = programs
                .object()
                .programs()
                .filter(|(_, program)| program.fd().is_ok());
            let mut found = Vec::new();
            for (name, program) in loaded {
                let info = program.info().map_err(|error| {
                    KernelError::system("asking for a program's information")(io::Error::other(
                        error,
                    ))
                })?;
                found.push((name.to_owned(), info.verified_instruction_count()));
            }
            found.sort();
            Ok(found)
        })
    }
}
