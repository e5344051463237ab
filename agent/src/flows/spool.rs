//! Batches on disk until the controller has them: append-only segments, numbered without gaps.
//!
//! A batch is appended in one write before the entries that it describes are deleted, so neither a killed
//! process nor a slow controller loses a record. A torn tail (power cut) is found by its checksum and cut
//! off. The size is bounded; what has to go is counted and said.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

const MAGIC: u32 = 0x4346_4453;
const HEADER: usize = 28;
const SEGMENT_BYTES: u64 = 8 << 20;
const MAX_BATCH: usize = 64 << 20;

/// What is remembered beside a batch, to go on from after a restart.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Meta {
    /// Kernel's loss counters, as far as they have been reported.
    pub losses: BTreeMap<String, u64>,
    /// Which boot those counters belong to.
    pub boot_id: String,
    /// Instances whose last word is in this batch.
    pub closed: Vec<String>,
}

/// One batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch {
    /// From 1, without gaps.
    pub sequence: u64,
    /// To go on from.
    pub meta: Meta,
    /// Encoded records.
    pub payload: Vec<u8>,
}

#[derive(Debug)]
struct Segment {
    path: PathBuf,
    first: u64,
    last: u64,
    bytes: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Spool {
    dir: PathBuf,
    limit: u64,
    segments: VecDeque<Segment>,
    current: Option<File>,
    next: u64,
    acked: u64,
    dropped: u64,
}

impl Spool {
    /// Opens the directory and finds where the last process stopped.
    ///
    /// # Errors
    /// When the directory cannot be made or read.
    pub fn open(dir: &Path, limit: u64) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let acked = fs::read_to_string(dir.join("acked"))
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0);
        let mut paths: Vec<PathBuf> = fs::read_dir(dir)?
            .filter_map(|entry| entry.ok().map(|entry| entry.path()))
            .filter(|path| {
                path.extension()
                    .is_some_and(|extension| extension == "spool")
            })
            .collect();
        paths.sort();
        let mut segments = VecDeque::new();
        let mut next = acked + 1;
        for path in paths {
            let mut ends = (0, 0);
            let good = scan(&path, &mut |batch| {
                ends = (
                    if ends.0 == 0 { batch.sequence } else { ends.0 },
                    batch.sequence,
                );
            })?;
            let length = fs::metadata(&path)?.len();
            if good < length {
                tracing::warn!(segment = %path.display(), torn = length - good, "cutting off a torn tail");
                OpenOptions::new().write(true).open(&path)?.set_len(good)?;
            }
            if ends.0 == 0 {
                fs::remove_file(&path)?;
                continue;
            }
            next = next.max(ends.1 + 1);
            segments.push_back(Segment {
                path,
                first: ends.0,
                last: ends.1,
                bytes: good,
            });
        }
        Ok(Self {
            dir: dir.to_owned(),
            limit,
            segments,
            current: None,
            next,
            acked,
            dropped: 0,
        })
    }

    /// The number that the next batch will have.
    #[must_use]
    pub const fn next_sequence(&self) -> u64 {
        self.next
    }

    /// The last batch that is durable at the other end.
    #[must_use]
    pub const fn acked(&self) -> u64 {
        self.acked
    }

    /// Batches that wait.
    #[must_use]
    pub const fn waiting(&self) -> u64 {
        self.next - 1 - self.acked
    }

    /// Batches that were given up for want of room, since the process began.
    #[must_use]
    pub const fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Appends a batch; gives its number.
    ///
    /// # Errors
    /// When it cannot be written whole: then it is not there.
    pub fn append(&mut self, meta: &Meta, payload: &[u8], durable: bool) -> io::Result<u64> {
        let sequence = self.next;
        let frame = encode(sequence, meta, payload)?;
        let fits = self
            .segments
            .back()
            .is_some_and(|segment| segment.bytes + frame.len() as u64 <= SEGMENT_BYTES);
        if !fits {
            self.current = None;
        }
        let file = match &mut self.current {
            Some(file) => file,
            slot => {
                let path = self.dir.join(format!("{sequence:020}.spool"));
                let file = OpenOptions::new().create(true).append(true).open(&path)?;
                self.segments.push_back(Segment {
                    path,
                    first: sequence,
                    last: sequence - 1,
                    bytes: 0,
                });
                slot.insert(file)
            }
        };
        let segment = self
            .segments
            .back_mut()
            .ok_or_else(|| io::Error::from(io::ErrorKind::NotFound))?;
        if let Err(error) = file.write_all(&frame) {
            // A half-written frame must not precede a good one.
            file.set_len(segment.bytes)?;
            return Err(error);
        }
        if durable {
            file.sync_data()?;
        }
        segment.bytes += frame.len() as u64;
        segment.last = sequence;
        self.next = sequence + 1;
        self.make_room()?;
        Ok(sequence)
    }

    fn make_room(&mut self) -> io::Result<()> {
        while self.segments.len() > 1
            && self
                .segments
                .iter()
                .map(|segment| segment.bytes)
                .sum::<u64>()
                > self.limit
        {
            let Some(oldest) = self.segments.pop_front() else {
                break;
            };
            fs::remove_file(&oldest.path)?;
            if oldest.last > self.acked {
                self.dropped += oldest.last - self.acked.max(oldest.first - 1);
                self.acked = oldest.last;
            }
        }
        Ok(())
    }

    /// Everything up to `sequence` is durable at the other end. Whole segments below it are removed, the
    /// newest one stays: a restart reads it.
    ///
    /// # Errors
    /// When the mark cannot be written.
    pub fn acknowledge(&mut self, sequence: u64) -> io::Result<()> {
        if sequence >= self.next {
            // The other end is ahead: this spool was lost and began anew. It would take what waits here for
            // repetitions, so that is given up and counted, and numbers go on from where it is.
            self.dropped += self.waiting();
            self.next = sequence + 1;
            self.current = None;
        }
        if sequence <= self.acked {
            return Ok(());
        }
        self.acked = sequence;
        fs::write(self.dir.join("acked.tmp"), sequence.to_string())?;
        fs::rename(self.dir.join("acked.tmp"), self.dir.join("acked"))?;
        while self.segments.len() > 1
            && self
                .segments
                .front()
                .is_some_and(|segment| segment.last <= sequence)
        {
            if let Some(done) = self.segments.pop_front() {
                fs::remove_file(&done.path)?;
            }
        }
        Ok(())
    }

    /// Batches from a number on, at most `count`.
    ///
    /// # Errors
    /// When a segment cannot be read.
    pub fn read_from(&self, sequence: u64, count: usize) -> io::Result<Vec<Batch>> {
        let mut found = Vec::new();
        for segment in &self.segments {
            if segment.last < sequence || found.len() >= count {
                continue;
            }
            scan(&segment.path, &mut |batch| {
                if batch.sequence >= sequence && found.len() < count {
                    found.push(batch);
                }
            })?;
        }
        Ok(found)
    }

    /// The newest batches, oldest first: what a restart reads to know what was already said.
    ///
    /// # Errors
    /// When a segment cannot be read.
    pub fn newest(&self, count: usize) -> io::Result<Vec<Batch>> {
        let from = self.next.saturating_sub(count as u64);
        self.read_from(from.max(1), count)
    }
}

/// magic 4 | crc 4 | sequence 8 | meta length 4 | payload length 4 | reserved 4, little-endian; the checksum
/// covers what follows it.
fn encode(sequence: u64, meta: &Meta, payload: &[u8]) -> io::Result<Vec<u8>> {
    let meta = serde_json::to_vec(meta)?;
    let length = |bytes: &[u8]| {
        u32::try_from(bytes.len()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))
    };
    let mut frame = Vec::with_capacity(HEADER + meta.len() + payload.len());
    frame.extend_from_slice(&MAGIC.to_le_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(&sequence.to_le_bytes());
    frame.extend_from_slice(&length(&meta)?.to_le_bytes());
    frame.extend_from_slice(&length(payload)?.to_le_bytes());
    frame.extend_from_slice(&[0; 4]);
    frame.extend_from_slice(&meta);
    frame.extend_from_slice(payload);
    let crc = crc32(frame.get(8..).unwrap_or_default());
    if let Some(slot) = frame.get_mut(4..8) {
        slot.copy_from_slice(&crc.to_le_bytes());
    }
    Ok(frame)
}

/// Calls `each` with every whole batch; gives the length of the good part.
fn scan(path: &Path, each: &mut dyn FnMut(Batch)) -> io::Result<u64> {
    let mut file = File::open(path)?;
    let length = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(0))?;
    let mut reader = io::BufReader::new(file);
    let mut good = 0;
    loop {
        let mut header = [0u8; HEADER];
        if reader.read_exact(&mut header).is_err() {
            return Ok(good);
        }
        let word = |at: usize| {
            header
                .get(at..at + 4)
                .and_then(|bytes| bytes.try_into().ok())
                .map_or(0, u32::from_le_bytes)
        };
        let (meta_length, payload_length) = (word(16) as usize, word(20) as usize);
        let body_length = meta_length + payload_length;
        if word(0) != MAGIC
            || body_length > MAX_BATCH
            || good + (HEADER + body_length) as u64 > length
        {
            return Ok(good);
        }
        let mut body = vec![0u8; body_length];
        if reader.read_exact(&mut body).is_err() {
            return Ok(good);
        }
        let mut covered = header.get(8..).unwrap_or_default().to_vec();
        covered.extend_from_slice(&body);
        if crc32(&covered) != word(4) {
            return Ok(good);
        }
        let payload = body.split_off(meta_length);
        let Ok(meta) = serde_json::from_slice(&body) else {
            return Ok(good);
        };
        good += (HEADER + body_length) as u64;
        each(Batch {
            sequence: u64::from(word(8)) | (u64::from(word(12)) << 32),
            meta,
            payload,
        });
    }
}

/// CRC-32 (IEEE 802.3), by table.
fn crc32(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0u32; 256];
        let mut index = 0;
        while index < 256 {
            let mut value = index as u32;
            let mut bit = 0;
            while bit < 8 {
                value = if value & 1 == 1 {
                    (value >> 1) ^ 0xedb8_8320
                } else {
                    value >> 1
                };
                bit += 1;
            }
            table[index] = value;
            index += 1;
        }
        table
    };
    !bytes.iter().fold(u32::MAX, |crc, byte| {
        TABLE[((crc ^ u32::from(*byte)) & 0xff) as usize] ^ (crc >> 8)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn meta(n: u64) -> Meta {
        Meta {
            losses: BTreeMap::from([("ring-full".to_owned(), n)]),
            ..Meta::default()
        }
    }

    #[test]
    fn the_checksum_is_the_known_one() {
        assert_eq!(crc32(b"123456789"), 0xcbf4_3926);
    }

    #[test]
    fn batches_survive_a_restart_without_gap_or_repetition() {
        let dir = tempfile::tempdir().expect("dir");
        let mut spool = Spool::open(dir.path(), 1 << 30).expect("open");
        for n in 1..=5u64 {
            assert_eq!(
                spool
                    .append(&meta(n), &[u8::try_from(n).expect("small"); 10], false)
                    .expect("append"),
                n
            );
        }
        spool.acknowledge(2).expect("ack");
        drop(spool);
        let mut spool = Spool::open(dir.path(), 1 << 30).expect("open");
        assert_eq!(
            (spool.next_sequence(), spool.acked(), spool.waiting()),
            (6, 2, 3)
        );
        let batches = spool.read_from(3, 10).expect("read");
        assert_eq!(
            batches
                .iter()
                .map(|batch| batch.sequence)
                .collect::<Vec<_>>(),
            vec![3, 4, 5]
        );
        assert_eq!(batches[0].payload, vec![3; 10]);
        assert_eq!(spool.newest(1).expect("read")[0].meta, meta(5));
        assert_eq!(spool.append(&meta(6), b"x", true).expect("append"), 6);
    }

    #[test]
    fn a_torn_tail_is_cut_off() {
        let dir = tempfile::tempdir().expect("dir");
        let mut spool = Spool::open(dir.path(), 1 << 30).expect("open");
        spool.append(&meta(1), b"whole", false).expect("append");
        spool
            .append(&meta(2), b"torn apart", false)
            .expect("append");
        let path = spool.segments[0].path.clone();
        drop(spool);
        let length = fs::metadata(&path).expect("meta").len();
        OpenOptions::new()
            .write(true)
            .open(&path)
            .expect("open")
            .set_len(length - 3)
            .expect("cut");
        let mut spool = Spool::open(dir.path(), 1 << 30).expect("open");
        assert_eq!(spool.next_sequence(), 2);
        spool.append(&meta(2), b"again", false).expect("append");
        let batches = spool.read_from(1, 10).expect("read");
        assert_eq!(batches.len(), 2);
        assert_eq!(batches[1].payload, b"again");
    }

    #[test]
    fn the_size_is_bounded_and_the_loss_counted() {
        let dir = tempfile::tempdir().expect("dir");
        let mut spool = Spool::open(dir.path(), 20 << 20).expect("open");
        let payload = vec![0u8; 3 << 20];
        for n in 1..=12u64 {
            spool.append(&meta(n), &payload, false).expect("append");
        }
        assert!(
            spool
                .segments
                .iter()
                .map(|segment| segment.bytes)
                .sum::<u64>()
                <= 24 << 20
        );
        assert!(spool.dropped() > 0);
        let first = spool.read_from(1, 100).expect("read")[0].sequence;
        assert_eq!(
            first,
            spool.dropped() + 1,
            "what is gone is what is counted"
        );
    }
}
