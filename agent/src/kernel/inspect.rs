//! Raw looks into the tables and single runs of the programs, for tests and diagnosis.

use std::os::fd::OwnedFd;

use datapath::abi::{
    DenyKey, DenyValue, Flow4, Flow6, FragmentKey, FragmentValue, Key4, Key6, Tables, maps,
};

use super::host::{Kernel, OfflineKernel};
use super::sys::{self, TestRun};
use super::{KernelError, Result};

impl OfflineKernel {
    /// Every IPv4 entry.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn entries4(&self) -> Result<Vec<(Key4, Flow4)>> {
        self.flows4
            .entries()
            .map_err(KernelError::map(maps::FLOWS4, "read"))
    }

    /// Every IPv6 entry.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn entries6(&self) -> Result<Vec<(Key6, Flow6)>> {
        self.flows6
            .entries()
            .map_err(KernelError::map(maps::FLOWS6, "read"))
    }

    /// Geometry and secret of the flow tables.
    ///
    /// # Errors
    /// When the map cannot be read.
    pub fn tables(&self) -> Result<Tables> {
        let path = self.dir().map(maps::TABLES);
        let map: super::table::Table<u32, Tables> =
            super::table::Table::open(&path).map_err(|source| KernelError::pin(&path, source))?;
        map.get(&0)
            .map(Option::unwrap_or_default)
            .map_err(KernelError::map(maps::TABLES, "read"))
    }

    /// Every aggregated denial.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn denial_entries(&self) -> Result<Vec<(DenyKey, DenyValue)>> {
        self.denies
            .entries()
            .map_err(KernelError::map(maps::DENIES, "read"))
    }

    /// Every packet that comes in fragments.
    ///
    /// # Errors
    /// When the table cannot be read.
    pub fn fragment_entries(&self) -> Result<Vec<(FragmentKey, FragmentValue)>> {
        self.fragments
            .entries()
            .map_err(KernelError::map(maps::FRAGMENTS, "read"))
    }

    /// Writes what is remembered of a packet in fragments; `None` forgets it.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub fn put_fragment(&self, key: &FragmentKey, value: Option<&FragmentValue>) -> Result<()> {
        match value {
            Some(value) => self.fragments.set(key, value),
            None => self.fragments.remove(key).map(drop),
        }
        .map_err(KernelError::map(maps::FRAGMENTS, "write"))
    }

    /// Writes an IPv4 entry over the one of the same key.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub fn put4(&self, key: &Key4, flow: &Flow4) -> Result<()> {
        self.flows4
            .put(key, flow)
            .map_err(KernelError::map(maps::FLOWS4, "write"))
    }

    /// Writes an IPv6 entry over the one of the same key.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub fn put6(&self, key: &Key6, flow: &Flow6) -> Result<()> {
        self.flows6
            .put(key, flow)
            .map_err(KernelError::map(maps::FLOWS6, "write"))
    }

    /// Empties the negative entries, and with them what was not moved: for tests, while no packet is on its way.
    pub fn clear_negatives(&self) {
        for slot in 0..self.negatives.len() {
            if let Some(entry) = self.negatives.at(slot) {
                // SAFETY: a whole entry of the mapping, and nobody else uses it (see above).
                unsafe { std::ptr::write_bytes(entry, 0, size_of::<datapath::abi::Negative>()) };
            }
        }
    }

    /// Empties the flow tables, while no packet is on its way.
    ///
    /// # Errors
    /// When a table cannot be written.
    pub fn clear_flows(&self) -> Result<()> {
        let failed = || KernelError::map(maps::FLOWS4, "empty");
        self.flows4.clear().map_err(failed())?;
        self.flows6.clear().map_err(failed())
    }

    /// Writes an aggregated denial as it is; `None` removes it.
    ///
    /// # Errors
    /// When the table cannot be written.
    pub fn put_denial(&self, key: &DenyKey, value: Option<&DenyValue>) -> Result<()> {
        match value {
            Some(value) => self.denies.set(key, value),
            None => self.denies.remove(key).map(drop),
        }
        .map_err(KernelError::map(maps::DENIES, "write"))
    }
}

impl Kernel {
    /// A descriptor of one of the programs, for measuring it.
    ///
    /// # Errors
    /// When the object has no such program, or the descriptor cannot be duplicated.
    pub fn program_fd(&self, program: &'static str) -> Result<OwnedFd> {
        self.with_programs(|programs| programs.with(program, |fd| fd.try_clone_to_owned()))?
            .map_err(KernelError::system("duplicating a program's descriptor"))
    }

    /// Runs one of the programs once over a frame with a `__sk_buff` of the caller (device, segments of a
    /// merged packet).
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn test_run_with(
        &self,
        program: &'static str,
        frame: &[u8],
        context: &[u8],
    ) -> Result<TestRun> {
        self.with_programs(|programs| {
            programs.with(program, |fd| sys::test_run(fd, frame, Some(context), 1))
        })?
        .map_err(KernelError::system("running a program once with a context"))
    }
}
