//! Policy contents in the kernel: written whole, read back, and only then put into a slot.

use std::io;
use std::os::fd::AsRawFd;
use std::sync::Mutex;

use datapath::abi::SLOTS;

use super::content::{Content, Flat, Part};
use super::map::RawMap;
use super::shape::{shape, unshape};
use super::{KernelError, OfflineKernel, Result, sys};

impl OfflineKernel {
    /// Puts a content into a slot that no packet looks at, and gives the digest of what was read back.
    /// Nothing is installed unless every table was read back as it was meant.
    ///
    /// # Errors
    /// When a map cannot be made, filled or read, or differs.
    pub fn fill(&self, slot: u32, content: &Content) -> Result<[u8; 32]> {
        let mut inner = Vec::new();
        let shaped = shape(content)?;
        let mut read_back = Content::default();
        for part in Part::ALL {
            let map = build(part, shaped.part(part))?;
            let read = read_map(&map, part)?;
            if read != *shaped.part(part) {
                return Err(KernelError::ReadBack {
                    slot,
                    map: part.map(),
                    read: read.len(),
                    written: shaped.part(part).len(),
                });
            }
            *read_back.part_mut(part) = read;
            inner.push((part, map));
        }
        // A packet that read the word before the last flip may still be looking at this slot.
        if let Err(error) = sys::grace_period() {
            tracing::debug!(%error, "no membarrier; replacing a slot's maps waits for readers by itself");
        }
        // Each of these waits for a grace period in the kernel: side by side they take one.
        let failed: Mutex<Option<KernelError>> = Mutex::new(None);
        std::thread::scope(|scope| {
            for (part, map) in &inner {
                let failed = &failed;
                scope.spawn(move || {
                    if let Err(error) = self.install(*part, slot, map)
                        && let Ok(mut first) = failed.lock()
                    {
                        first.get_or_insert(error);
                    }
                });
            }
        });
        match failed.into_inner() {
            Ok(None) => Ok(unshape(&read_back).digest()),
            Ok(Some(error)) => Err(error),
            Err(_) => Err(KernelError::system("installing a slot")(
                io::ErrorKind::Other.into(),
            )),
        }
    }

    fn install(&self, part: Part, slot: u32, inner: &RawMap) -> Result<()> {
        let path = self.dir().map(part.map());
        let outer = RawMap::open(&path).map_err(|source| KernelError::pin(&path, source))?;
        let fd = inner.fd().as_raw_fd().cast_unsigned();
        outer
            .update(&slot.to_ne_bytes(), &fd.to_ne_bytes(), sys::ANY)
            .map_err(KernelError::map(part.map(), "install the new contents of"))?;
        // Pinned beside, because opening a map by its id would take CAP_SYS_ADMIN.
        let pin = self.dir().inner(part.map(), slot);
        match std::fs::remove_file(&pin) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => {
                return Err(KernelError::pin(&pin, source));
            }
            _ => {}
        }
        sys::obj_pin(inner.fd(), &pin).map_err(|source| KernelError::pin(&pin, source))
    }

    /// What a slot holds; `None` when it was never filled, or not by this agent.
    ///
    /// # Errors
    /// When a map cannot be read.
    pub fn read(&self, slot: u32) -> Result<Option<Content>> {
        let mut content = Content::default();
        for part in Part::ALL {
            let path = self.dir().map(part.map());
            let outer = RawMap::open(&path).map_err(|source| KernelError::pin(&path, source))?;
            let mut id = [0u8; 4];
            let filled = outer
                .lookup(&(slot % SLOTS).to_ne_bytes(), &mut id)
                .map_err(KernelError::map(part.map(), "read"))?;
            let inner = match RawMap::open(&self.dir().inner(part.map(), slot)) {
                Ok(inner) if filled && inner.info().id == u32::from_ne_bytes(id) => inner,
                _ => return Ok(None),
            };
            *content.part_mut(part) = read_map(&inner, part)?;
        }
        Ok(Some(unshape(&content)))
    }
}

fn build(part: Part, flat: &Flat) -> Result<RawMap> {
    let (key, value) = part.kernel_sizes();
    let (kind, flags) = part.kind();
    let size = |size: usize| u32::try_from(size).unwrap_or(u32::MAX);
    let map = RawMap::create(
        kind,
        part.map(),
        size(key),
        size(value),
        size(part.room(flat.len())),
        flags,
    )
    .map_err(KernelError::map(part.map(), "create"))?;
    map.update_many(flat.keys(), flat.values())
        .map_err(KernelError::map(part.map(), "fill"))?;
    Ok(map)
}

fn read_map(map: &RawMap, part: Part) -> Result<Flat> {
    let (key, value) = part.kernel_sizes();
    let mut flat = Flat::new(key, value);
    map.for_each(&mut |key, value| flat.push_raw(key, value))
        .map_err(KernelError::map(part.map(), "read back"))?;
    // An array gives its lines in order.
    if !part.has_lines() {
        flat.sort();
    }
    Ok(flat)
}
