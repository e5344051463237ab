//! The event ring: drained on a timer, because a wakeup per event costs more than the event.

use std::path::Path;

use aya::maps::{Map, MapData, RingBuf};
use datapath::abi::Event;

use super::table::from_bytes;
use super::{KernelError, Result};

/// The one reader of the event ring.
pub struct Events {
    ring: RingBuf<MapData>,
    malformed: u64,
}

impl Events {
    /// Opens the pinned ring.
    ///
    /// # Errors
    /// When the pin is not a ring.
    pub fn open(path: &Path) -> Result<Self> {
        let failed = |error: aya::maps::MapError| KernelError::Map {
            map: "EVENTS".into(),
            what: "open the ring",
            source: std::io::Error::other(error),
        };
        let data = MapData::from_pin(path).map_err(failed)?;
        let map = Map::from_map_data(data).map_err(failed)?;
        Ok(Self {
            ring: RingBuf::try_from(map).map_err(failed)?,
            malformed: 0,
        })
    }

    /// Takes what is there, at most `limit` events.
    pub fn drain(&mut self, limit: usize, into: &mut Vec<Event>) {
        for _ in 0..limit {
            let Some(item) = self.ring.next() else { return };
            match from_bytes(&item) {
                Some(event) => into.push(event),
                None => self.malformed += 1,
            }
        }
    }

    /// Events too short to be understood; a loss like any other.
    #[must_use]
    pub const fn malformed(&self) -> u64 {
        self.malformed
    }
}
