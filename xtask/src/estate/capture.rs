//! The independent count: tcpdump on a host's own device, added up from the packets' own headers.
//!
//! File format: the classic libpcap one (draft-ietf-opsawg-pcap), in this machine's byte order, Ethernet.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use super::process::Process;
use super::{Host, wait_for};

/// Packets and L3 bytes one way.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug, serde::Serialize)]
pub(crate) struct Count {
    /// Wire segments.
    pub(crate) packets: u64,
    /// Bytes from the IP header on.
    pub(crate) bytes: u64,
    /// Microseconds since the epoch of the last one.
    pub(crate) last_us: u64,
}

impl Count {
    /// Adds another count.
    pub(crate) fn add(&mut self, other: Self) {
        self.packets += other.packets;
        self.bytes += other.bytes;
        self.last_us = self.last_us.max(other.last_us);
    }
}

/// Counts by (source, destination).
pub(crate) type Counts = BTreeMap<(SocketAddr, SocketAddr), Count>;

/// A running tcpdump.
pub(crate) struct Capture {
    process: Process,
    file: PathBuf,
    log: PathBuf,
}

impl Capture {
    /// Captures headers on a host's own device, where what arrives is seen just before our hook and what leaves just
    /// after it: a packet that the host's receive queue loses on the way was on the wire, but never reached the host.
    pub(crate) fn start(host: &Host, filter: &str, dir: &Path) -> Result<Self> {
        let file = dir.join(format!("{}.pcap", host.name));
        let log = dir.join(format!("{}.tcpdump", host.name));
        let _ = std::fs::remove_file(&log);
        let mut command = host.netns.command("tcpdump");
        command
            .args([
                "-i",
                "eth0",
                "-n",
                "-p",
                "-s",
                "96",
                "-B",
                "65536",
                "--immediate-mode",
                "-U",
                "-Z",
                "root",
                "-w",
            ])
            .arg(&file)
            .arg(filter);
        let mut process = Process::start("tcpdump", &mut command, &log)?;
        wait_for("tcpdump", Duration::from_secs(20), || {
            (!process.is_running() || process.tail().contains("listening on")).then_some(())
        })?;
        if !process.is_running() {
            bail!("tcpdump ended at once: {}", process.tail());
        }
        Ok(Self { process, file, log })
    }

    /// Ends it and adds up. A packet that tcpdump lost is an error: the count would not be one.
    pub(crate) fn finish(mut self) -> Result<Counts> {
        // What the kernel has seen reaches the file a moment later; on its way it would be lost with tcpdump's end.
        let mut size = 0;
        let mut since = Instant::now();
        wait_for(
            "tcpdump to write what it has",
            Duration::from_secs(30),
            || {
                let now = std::fs::metadata(&self.file).ok()?.len();
                if now != size {
                    (size, since) = (now, Instant::now());
                }
                (since.elapsed() > Duration::from_millis(500)).then_some(())
            },
        )?;
        self.process.stop(Signal::SIGINT);
        let said = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lost = said
            .lines()
            .find_map(|line| line.strip_suffix(" packets dropped by kernel"))
            .context("tcpdump did not say how many packets it lost")?;
        if lost.trim() != "0" {
            bail!("tcpdump lost {lost} packets: nothing can be compared with its count");
        }
        count(&self.file)
    }
}

/// Adds up a capture file.
pub(crate) fn count(file: &Path) -> Result<Counts> {
    let mut input = BufReader::with_capacity(
        1 << 20,
        File::open(file).with_context(|| format!("cannot open {}", file.display()))?,
    );
    let mut header = [0_u8; 24];
    input.read_exact(&mut header).context("no capture header")?;
    if u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) != 0xa1b2_c3d4 {
        bail!("not a capture file of this machine's byte order");
    }
    let mut counts = Counts::new();
    let mut packet = [0_u8; 16];
    let mut bytes = Vec::new();
    while input.read_exact(&mut packet).is_ok() {
        let captured = u32::from_ne_bytes([packet[8], packet[9], packet[10], packet[11]]);
        bytes.resize(captured as usize, 0);
        input
            .read_exact(&mut bytes)
            .context("the capture ends within a packet")?;
        if let Some((from, to, length)) = addresses(&bytes) {
            let entry = counts.entry((from, to)).or_default();
            entry.packets += 1;
            let word = |at: usize| {
                u64::from(u32::from_ne_bytes([
                    packet[at],
                    packet[at + 1],
                    packet[at + 2],
                    packet[at + 3],
                ]))
            };
            entry.last_us = word(0) * 1_000_000 + word(4);
            entry.bytes += length;
        }
    }
    Ok(counts)
}

/// Source, destination and IP length of a TCP or UDP packet without IPv6 extension headers.
fn addresses(frame: &[u8]) -> Option<(SocketAddr, SocketAddr, u64)> {
    let be16 = |at: usize| Some(u16::from_be_bytes([*frame.get(at)?, *frame.get(at + 1)?]));
    let (from, to, length, l4): (IpAddr, IpAddr, u64, usize) = match be16(12)? {
        0x0800 => {
            let source: [u8; 4] = frame.get(26..30)?.try_into().ok()?;
            let target: [u8; 4] = frame.get(30..34)?.try_into().ok()?;
            let header = usize::from(frame.get(14)? & 15) * 4;
            (
                Ipv4Addr::from(source).into(),
                Ipv4Addr::from(target).into(),
                u64::from(be16(16)?),
                14 + header,
            )
        }
        0x86dd => {
            let source: [u8; 16] = frame.get(22..38)?.try_into().ok()?;
            let target: [u8; 16] = frame.get(38..54)?.try_into().ok()?;
            (
                Ipv6Addr::from(source).into(),
                Ipv6Addr::from(target).into(),
                u64::from(be16(18)?) + 40,
                54,
            )
        }
        _ => return None,
    };
    Some((
        SocketAddr::new(from, be16(l4)?),
        SocketAddr::new(to, be16(l4 + 2)?),
        length,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_gives_its_tuple_and_ip_length() {
        let mut frame = vec![0; 12];
        frame.extend([
            0x08, 0x00, 0x45, 0, 0, 60, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x9c,
            0x40, 0, 80,
        ]);
        let (from, to, length) = addresses(&frame).unwrap();
        assert_eq!(
            (from.to_string().as_str(), to.to_string().as_str(), length),
            ("10.0.0.1:40000", "10.0.0.2:80", 60)
        );
        assert!(addresses(&frame[..20]).is_none());
    }

    #[test]
    fn a_file_that_is_no_capture_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), [7; 64]).unwrap();
        assert!(count(file.path()).is_err());
    }
}
