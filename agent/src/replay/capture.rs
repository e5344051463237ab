//! Frames from a capture file: pcap in both byte orders with micro- or nanoseconds, and pcapng.
//!
//! Everything before the first broken byte is given; then one [`CaptureError`] says what is wrong, and where.

use std::io::{self, Read};

use pcap_parser::pcapng::Block;
use pcap_parser::traits::PcapNGPacketBlock;
use pcap_parser::{LegacyPcapBlock, PcapBlockOwned, PcapError, PcapHeader, create_reader};

use super::link::Link;

/// Room for the reader at first; a longer block makes it grow.
const BUFFER: usize = 256 << 10;
/// No block of a sound file is longer: libpcap takes 256 KiB a frame.
const LONGEST: usize = 16 << 20;

/// One captured frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Frame<'a> {
    /// Nanoseconds since the epoch.
    pub at_ns: i64,
    /// What its bytes begin with.
    pub link: Link,
    /// Length on the wire.
    pub original: usize,
    /// What was captured of it.
    pub bytes: &'a [u8],
}

/// Why a file could not be read to its end.
#[derive(Debug, thiserror::Error)]
pub enum CaptureError {
    /// The operating system.
    #[error("reading the capture at byte {offset}: {source}")]
    Io {
        /// Where.
        offset: u64,
        /// Why.
        source: io::Error,
    },
    /// Neither pcap nor pcapng.
    #[error("this is no capture: it begins neither like pcap nor like pcapng")]
    NotACapture,
    /// It ends inside a record.
    #[error("the capture is cut off: what begins at byte {offset} is not complete")]
    CutOff {
        /// Where the record begins.
        offset: u64,
    },
    /// What should be a record is none.
    #[error("the capture is damaged at byte {offset}: {what}")]
    Damaged {
        /// Where the record begins.
        offset: u64,
        /// What is wrong.
        what: &'static str,
    },
}

/// An interface of a pcapng section.
#[derive(Clone, Copy, Debug)]
struct Interface {
    link: Link,
    snaplen: usize,
    /// `if_tsresol`: units per second, as a power of ten or (high bit) of two.
    resolution: u8,
    /// Seconds to add.
    offset: i64,
}

/// What the blocks before say about the next ones.
#[derive(Debug, Default)]
struct State {
    legacy: Option<(Link, i64)>,
    big_endian: bool,
    interfaces: Vec<Interface>,
}

/// Reads a capture and gives every frame to `each`, which may stop it with an error of its own.
///
/// # Errors
/// The inner result is what `each` said; the outer one is about the file.
pub fn frames<E>(
    input: impl Read + Send,
    each: impl FnMut(Frame<'_>) -> Result<(), E>,
) -> Result<Result<(), E>, CaptureError> {
    frames_with(BUFFER, input, each)
}

/// [`frames`] with another room at first.
fn frames_with<E>(
    mut room: usize,
    input: impl Read + Send,
    mut each: impl FnMut(Frame<'_>) -> Result<(), E>,
) -> Result<Result<(), E>, CaptureError> {
    let failure = std::sync::Arc::default();
    let input = Whole {
        input,
        failure: std::sync::Arc::clone(&failure),
    };
    let taken = |offset: u64, what: PcapError<&[u8]>| fault(&failure, offset, &what);
    let mut reader = match create_reader(room, input) {
        Ok(reader) => reader,
        Err(PcapError::Incomplete(_)) => return Err(CaptureError::CutOff { offset: 0 }),
        Err(PcapError::ReadError) => return Err(taken(0, PcapError::ReadError)),
        Err(_) => return Err(CaptureError::NotACapture),
    };
    let mut state = State::default();
    let mut offset = 0u64;
    loop {
        let step = match reader.next() {
            Ok((length, block)) => match state.block(&block, offset) {
                Ok(frame) => {
                    if let Some(frame) = frame
                        && let Err(error) = each(frame)
                    {
                        return Ok(Err(error));
                    }
                    Step::Consume(length)
                }
                Err(error) => return Err(error),
            },
            Err(PcapError::Eof) => return Ok(Ok(())),
            Err(PcapError::Incomplete(_)) => Step::Refill,
            Err(PcapError::BufferTooSmall) => Step::Grow,
            Err(error) => return Err(taken(offset, error)),
        };
        match step {
            // A block of no length would be read for ever.
            Step::Consume(0) => {
                return Err(CaptureError::Damaged {
                    offset,
                    what: "a block without a length",
                });
            }
            Step::Consume(length) => {
                offset += length as u64;
                reader.consume(length);
            }
            Step::Refill => reader.refill().map_err(|error| taken(offset, error))?,
            Step::Grow => {
                room *= 2;
                if room > LONGEST {
                    return Err(CaptureError::Damaged {
                        offset,
                        what: "a record claims to be longer than 16 MiB",
                    });
                }
                reader.grow(room);
                reader.refill().map_err(|error| taken(offset, error))?;
            }
        }
    }
}

enum Step {
    Consume(usize),
    Refill,
    Grow,
}

/// What the last failed read said: the parser keeps only that it failed.
type Failure = std::sync::Arc<std::sync::Mutex<Option<io::Error>>>;

fn fault(failure: &Failure, offset: u64, error: &PcapError<&[u8]>) -> CaptureError {
    match error {
        PcapError::ReadError => {
            let said = failure.lock().ok().and_then(|mut said| said.take());
            CaptureError::Io {
                offset,
                source: said.unwrap_or_else(|| io::ErrorKind::Other.into()),
            }
        }
        PcapError::UnexpectedEof | PcapError::Incomplete(_) => CaptureError::CutOff { offset },
        _ => CaptureError::Damaged {
            offset,
            what: "what is there is no block of the format",
        },
    }
}

/// A reader that fills what it is given: the parser takes a short read for the whole of a small file.
struct Whole<R> {
    input: R,
    failure: Failure,
}

impl<R: Read> Read for Whole<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let mut filled = 0;
        while let Some(space) = into.get_mut(filled..).filter(|space| !space.is_empty()) {
            match self.input.read(space) {
                Ok(0) => break,
                Ok(length) => filled += length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => {
                    let again = io::Error::from(error.kind());
                    if let Ok(mut failure) = self.failure.lock() {
                        *failure = Some(error);
                    }
                    return Err(again);
                }
            }
        }
        Ok(filled)
    }
}

impl State {
    fn block<'a>(
        &mut self,
        block: &'a PcapBlockOwned<'_>,
        offset: u64,
    ) -> Result<Option<Frame<'a>>, CaptureError> {
        let damaged = |what| CaptureError::Damaged { offset, what };
        match block {
            PcapBlockOwned::LegacyHeader(header) => {
                self.legacy = Some(legacy(header));
                Ok(None)
            }
            PcapBlockOwned::Legacy(frame) => {
                let (link, unit) = self
                    .legacy
                    .ok_or_else(|| damaged("a frame before the header"))?;
                Ok(Some(legacy_frame(frame, link, unit)))
            }
            PcapBlockOwned::NG(Block::SectionHeader(section)) => {
                self.big_endian = section.big_endian();
                self.interfaces.clear();
                Ok(None)
            }
            PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
                // The parser reads the offset as little-endian whatever the section says.
                let offset = if self.big_endian {
                    interface.if_tsoffset.swap_bytes()
                } else {
                    interface.if_tsoffset
                };
                self.interfaces.push(Interface {
                    link: Link::of(interface.linktype.0.cast_unsigned()),
                    snaplen: interface.snaplen as usize,
                    resolution: interface.if_tsresol,
                    offset,
                });
                Ok(None)
            }
            PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                let interface = self
                    .interfaces
                    .get(packet.if_id as usize)
                    .ok_or_else(|| damaged("a frame of an interface that was not described"))?;
                let units = (u64::from(packet.ts_high) << 32) | u64::from(packet.ts_low);
                Ok(Some(Frame {
                    at_ns: interface.nanoseconds(units),
                    link: interface.link,
                    original: packet.origlen as usize,
                    bytes: packet.packet_data(),
                }))
            }
            PcapBlockOwned::NG(Block::SimplePacket(packet)) => {
                let interface = self
                    .interfaces
                    .first()
                    .ok_or_else(|| damaged("a frame of an interface that was not described"))?;
                let bytes = packet.packet_data();
                let length = if interface.snaplen == 0 {
                    bytes.len()
                } else {
                    bytes.len().min(interface.snaplen)
                };
                // It has no time of its own: the clock stands.
                Ok(Some(Frame {
                    at_ns: 0,
                    link: interface.link,
                    original: packet.origlen as usize,
                    bytes: bytes.get(..length).unwrap_or_default(),
                }))
            }
            PcapBlockOwned::NG(_) => Ok(None),
        }
    }
}

/// Link type and nanoseconds of one unit of the fraction. The upper bits of the number tell of frame check
/// sequences, which the datapath does not look at.
fn legacy(header: &PcapHeader) -> (Link, i64) {
    let link = Link::of(header.network.0.cast_unsigned() & 0xffff);
    let unit = if header.is_nanosecond_precision() {
        1
    } else {
        1_000
    };
    (link, unit)
}

fn legacy_frame<'a>(frame: &LegacyPcapBlock<'a>, link: Link, unit: i64) -> Frame<'a> {
    Frame {
        at_ns: i64::from(frame.ts_sec) * 1_000_000_000 + i64::from(frame.ts_usec) * unit,
        link,
        original: frame.origlen as usize,
        bytes: frame.data,
    }
}

impl Interface {
    /// Nanoseconds since the epoch, at the ends of what 64 bits hold where it lies outside.
    fn nanoseconds(&self, units: u64) -> i64 {
        let exponent = u32::from(self.resolution & 0x7f);
        let base: u128 = if self.resolution & 0x80 == 0 { 10 } else { 2 };
        let units = u128::from(units);
        let nanos = match base.checked_pow(exponent) {
            Some(per_second) => units.saturating_mul(1_000_000_000) / per_second,
            // Units so small that all of them together are no second.
            None => 0,
        };
        i64::try_from(nanos)
            .unwrap_or(i64::MAX)
            .saturating_add(self.offset.saturating_mul(1_000_000_000))
    }
}

#[cfg(test)]
#[path = "capture_tests.rs"]
mod tests;
