//! The lines of a replay, for programs (JSON, one object a line) and for people.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::net::IpAddr;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::Verdict;
use super::capture::Frame;
use super::view::Tuple;
use crate::flows::Record;

/// One line.
#[derive(Debug, Serialize)]
#[serde(tag = "type", rename_all = "lowercase")]
pub enum Line<'a> {
    /// What became of a frame at one host.
    Frame(FrameLine<'a>),
    /// A flow, or an aggregated denial.
    Flow {
        /// Whose.
        host: Cow<'a, str>,
        /// The record, as the agent would export it.
        #[serde(flatten)]
        record: &'a Record,
    },
    /// The end.
    Totals(&'a Summary),
}

/// What became of a frame.
#[derive(Debug, Serialize)]
pub struct FrameLine<'a> {
    /// Its number in the capture, from 1.
    pub frame: u64,
    /// UTC nanoseconds at which it was judged.
    pub at_ns: i64,
    /// Bytes on the wire, as the capture says.
    pub length: usize,
    /// Bytes in the capture.
    pub captured: usize,
    /// Who judged; empty when nobody did.
    pub host: &'a str,
    /// Seen from that host: `ingress`, `egress`, or `none`.
    pub direction: &'static str,
    /// What became of it.
    pub verdict: Verdict,
    /// Name of the drop reason; `none` for what policy allows.
    pub reason: &'a str,
    /// Name of the rule that decided; empty where none did.
    pub rule: &'a str,
    /// The tuple, where the frame is understood.
    #[serde(flatten)]
    pub tuple: Option<Tuple>,
    /// The addresses, for people.
    #[serde(skip)]
    pub ends: Option<(IpAddr, IpAddr)>,
    /// What else is to be said.
    #[serde(skip_serializing_if = "str::is_empty")]
    pub note: &'static str,
}

impl FrameLine<'_> {
    /// Of a frame that nobody has judged.
    #[must_use]
    pub(super) const fn new(number: u64, at_ns: i64, frame: &Frame<'_>) -> Self {
        Self {
            frame: number,
            at_ns,
            length: frame.original,
            captured: frame.bytes.len(),
            host: "",
            direction: "none",
            verdict: Verdict::None,
            reason: "",
            rule: "",
            tuple: None,
            ends: None,
            note: "",
        }
    }
}

/// Totals of a replay.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Summary {
    /// Frames in the capture, as far as it could be read.
    pub frames: u64,
    /// Verdicts "pass". A frame between two local hosts has two verdicts.
    pub passed: u64,
    /// Verdicts "drop".
    pub dropped: u64,
    /// Frames that no program was asked about.
    pub unjudged: u64,
    /// Of them those of a link type that is not supported.
    pub unsupported: u64,
    /// Frames that were judged without their end.
    pub shortened: u64,
    /// Flow records.
    pub records: u64,
    /// Packets and bytes by drop reason, as the datapath counted them outside flows.
    pub reasons: BTreeMap<String, [u64; 2]>,
    /// Lost records by cause; empty when none was lost.
    pub losses: BTreeMap<String, u64>,
}

impl Summary {
    pub(super) const fn count(&mut self, verdict: Verdict) {
        match verdict {
            Verdict::Pass => self.passed += 1,
            Verdict::Drop => self.dropped += 1,
            Verdict::None => self.unjudged += 1,
        }
    }
}

impl Line<'_> {
    /// The line as JSON.
    ///
    /// # Errors
    /// Never for these types; passed on all the same.
    pub fn json(&self) -> serde_json::Result<String> {
        serde_json::to_string(self)
    }

    /// The line for a person.
    #[must_use]
    pub fn text(&self) -> String {
        match self {
            Self::Frame(line) => frame_text(line),
            Self::Flow { host, record } => match serde_json::to_value(record) {
                Ok(value) => format!("flow {host}: {}", crate::flows::record::line_of(&value)),
                Err(error) => error.to_string(),
            },
            Self::Totals(summary) => totals_text(summary),
        }
    }
}

fn frame_text(line: &FrameLine<'_>) -> String {
    let at = OffsetDateTime::from_unix_timestamp_nanos(i128::from(line.at_ns))
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_default();
    let verdict = match line.verdict {
        Verdict::Pass => "pass",
        Verdict::Drop => "DROP",
        Verdict::None => "-",
    };
    let mut text = format!("{:>6} {at} {verdict:<4}", line.frame);
    if !line.host.is_empty() {
        text.push_str(&format!(" {} {}", line.host, line.direction));
    }
    match (line.tuple, line.ends) {
        (Some(tuple), _) => text.push_str(&format!(
            " {} {} -> {}",
            policy::ports::protocol_name(tuple.protocol),
            std::net::SocketAddr::new(tuple.source, tuple.source_port),
            std::net::SocketAddr::new(tuple.destination, tuple.destination_port),
        )),
        (None, Some((source, destination))) => {
            text.push_str(&format!(" {source} -> {destination}"));
        }
        (None, None) => {}
    }
    text.push_str(&format!(" {} bytes", line.length));
    if !line.rule.is_empty() {
        text.push_str(&format!(" rule {}", line.rule));
    }
    if !matches!(line.reason, "" | "none") {
        text.push_str(&format!(" ({})", line.reason));
    }
    if !line.note.is_empty() {
        text.push_str(&format!(": {}", line.note));
    }
    text
}

fn totals_text(summary: &Summary) -> String {
    let Summary {
        frames,
        passed,
        dropped,
        unjudged,
        unsupported,
        shortened,
        records,
        reasons,
        losses,
    } = summary;
    let mut text = format!(
        "{frames} frames: {passed} passed, {dropped} dropped, {unjudged} not judged ({unsupported} of an unsupported link type), {shortened} judged without their end; {records} records"
    );
    for (reason, [packets, bytes]) in reasons {
        text.push_str(&format!("\n  {reason}: {packets} packets, {bytes} bytes"));
    }
    for (cause, count) in losses {
        text.push_str(&format!("\n  LOST {cause}: {count}"));
    }
    text
}
