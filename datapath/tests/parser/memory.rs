//! A frame in memory, with what a driver would say of its segments.

use datapath::packet::PacketRead;

/// A frame and its segments.
#[derive(Clone, Copy)]
pub(crate) struct Memory<'a> {
    /// Bytes from the link-layer header on.
    pub(crate) frame: &'a [u8],
    /// Wire segments; 0 when nobody counted them.
    pub(crate) segments: u32,
    /// Payload of one segment.
    pub(crate) size: u32,
}

impl<'a> Memory<'a> {
    /// An unmerged frame.
    pub(crate) const fn of(frame: &'a [u8]) -> Self {
        Self {
            frame,
            segments: 1,
            size: 0,
        }
    }
}

impl PacketRead for Memory<'_> {
    fn read<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let start = offset as usize;
        self.frame
            .get(start..start.checked_add(N)?)?
            .try_into()
            .ok()
    }

    fn frame_len(&self) -> u32 {
        self.frame.len() as u32
    }

    fn segments(&self) -> u32 {
        self.segments
    }

    fn segment_size(&self) -> u32 {
        self.size
    }
}
