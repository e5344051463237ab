//! Reading files of recorded traffic: what `flows -o json`, `flows -f -o json` and `edges -o json`
//! print, perhaps compressed with gzip. A file is never held in memory as a whole.
//!
//! A file is either one JSON object a line, or documents that hold lists (`{"flows": […]}`), however
//! they are laid out.

use std::cell::Cell;
use std::fmt;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::rc::Rc;

use anyhow::Context as _;
use flate2::bufread::MultiGzDecoder;
use policy::plan::record::{Line, Record};
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::error::Failure;

/// Longest line: a record has some 1,500 bytes.
const MAX_LINE: u64 = 1 << 20;
/// How far the kind of a file is looked for.
const PEEK: usize = 64 << 10;
/// Bad records that are told one by one.
const TOLD: usize = 10;

/// A record that could not be read and was left out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Bad {
    /// File and line.
    pub(crate) place: String,
    pub(crate) message: String,
}

/// What was left out of some files, because the user said so.
#[derive(Clone, Debug, Default)]
pub(crate) struct Skipped {
    pub(crate) count: u64,
    /// The first of them.
    pub(crate) first: Vec<Bad>,
    /// A list in the files was cut short by its `--limit`.
    pub(crate) truncated: bool,
}

/// Where records go. An error ends the reading.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(Record) -> anyhow::Result<()>;

/// Reads one file (`-`: stdin) to its end. Unless `skip_bad`, the first bad record is an error.
pub(crate) fn read(
    path: &Path,
    skip_bad: bool,
    skipped: &mut Skipped,
    sink: Sink<'_>,
) -> anyhow::Result<()> {
    if path.as_os_str() == "-" {
        return read_from("<stdin>", std::io::stdin().lock(), skip_bad, skipped, sink);
    }
    let name = path.display().to_string();
    let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
    read_from(&name, file, skip_bad, skipped, sink)
}

fn read_from(
    name: &str,
    reader: impl Read,
    skip_bad: bool,
    skipped: &mut Skipped,
    sink: Sink<'_>,
) -> anyhow::Result<()> {
    let mut reader = BufReader::with_capacity(PEEK, reader);
    let mut file = Reading {
        name,
        skip_bad,
        skipped,
        sink,
        failed: None,
    };
    let head = (reader.fill_buf()).with_context(|| format!("cannot read {name}"))?;
    if head.starts_with(&[0x1f, 0x8b]) {
        file.plain(BufReader::with_capacity(PEEK, MultiGzDecoder::new(reader)))
    } else {
        file.plain(reader)
    }
}

/// One file on its way.
struct Reading<'a, 'b> {
    name: &'a str,
    skip_bad: bool,
    skipped: &'a mut Skipped,
    sink: Sink<'b>,
    /// What ended the reading inside a document.
    failed: Option<anyhow::Error>,
}

impl Reading<'_, '_> {
    fn plain(&mut self, mut reader: impl BufRead) -> anyhow::Result<()> {
        let head = (reader.fill_buf()).with_context(|| format!("cannot read {}", self.name))?;
        if is_lines(head) {
            self.lines(reader)
        } else {
            self.documents(reader)
        }
    }

    fn lines(&mut self, mut reader: impl BufRead) -> anyhow::Result<()> {
        let mut line = Vec::new();
        for number in 1_u64.. {
            line.clear();
            let read = (&mut reader)
                .take(MAX_LINE + 1)
                .read_until(b'\n', &mut line)
                .with_context(|| format!("cannot read {} from line {number} on", self.name))?;
            if read == 0 {
                break;
            }
            if line.len() as u64 > MAX_LINE {
                return Err(Failure::new(
                    format!("{}:{number}: this line is longer than a record", self.name),
                    "records stand one a line, as `cofferdam flows -f -o json` prints them",
                )
                .into());
            }
            let text = line.trim_ascii();
            if text.is_empty() {
                continue;
            }
            let record = std::str::from_utf8(text)
                .map_err(|_| "this line is not UTF-8".to_owned())
                .and_then(|text| Record::parse(text).map_err(|error| error.to_string()));
            match record {
                Ok(record) => (self.sink)(record)?,
                Err(message) => self.bad(number, message)?,
            }
        }
        Ok(())
    }

    fn documents(&mut self, reader: impl BufRead) -> anyhow::Result<()> {
        let line = Rc::new(Cell::new(1));
        let counted = Counting {
            inner: reader,
            line: Rc::clone(&line),
        };
        let mut documents = serde_json::Deserializer::from_reader(counted);
        loop {
            match documents.end() {
                Ok(()) => return Ok(()),
                Err(error) if error.is_io() => {
                    return Err(error).with_context(|| format!("cannot read {}", self.name));
                }
                // Something follows: another document.
                Err(_) => {}
            }
            let document = Document {
                reading: self,
                line: &line,
            };
            if let Err(error) = document.deserialize(&mut documents) {
                return Err(match self.failed.take() {
                    Some(failed) => failed,
                    // Past broken JSON there is no telling where the next record begins.
                    None => Failure::new(
                        format!("{}: {error}", self.name),
                        "name files that `cofferdam flows -o json` or `cofferdam edges -o json` wrote",
                    )
                    .into(),
                });
            }
        }
    }

    fn take(&mut self, line: Line, number: u64) -> anyhow::Result<()> {
        match Record::from_line(line) {
            Ok(record) => (self.sink)(record),
            Err(error) => self.bad(number, error.to_string()),
        }
    }

    fn bad(&mut self, line: u64, message: String) -> anyhow::Result<()> {
        let place = format!("{}:{line}", self.name);
        if !self.skip_bad {
            return Err(Failure::new(
                format!("{place}: {message}"),
                "repair the file, or leave such records out with --skip-bad",
            )
            .into());
        }
        self.skipped.count += 1;
        if self.skipped.first.len() < TOLD {
            self.skipped.first.push(Bad { place, message });
        }
        Ok(())
    }
}

/// Whether the first line is a whole record, or none at all.
fn is_lines(head: &[u8]) -> bool {
    let mut lines = head.split_inclusive(|byte| *byte == b'\n');
    let Some(first) = lines.find(|line| !line.trim_ascii().is_empty()) else {
        return true;
    };
    let whole = first.ends_with(b"\n") || first.len() < PEEK / 2;
    let starts = first.trim_ascii();
    // A list begins so, be it in one line or in many.
    let document = starts == b"{"
        || starts == b"["
        || ["flows", "edges", "truncated"].iter().any(|key| {
            let mut rest = starts.strip_prefix(b"{").unwrap_or_default().trim_ascii();
            rest = rest.strip_prefix(b"\"").unwrap_or_default();
            rest = rest.strip_prefix(key.as_bytes()).unwrap_or_default();
            rest.strip_prefix(b"\"")
                .map(<[u8]>::trim_ascii)
                .and_then(|rest| rest.strip_prefix(b":"))
                .is_some_and(|value| matches!(value.trim_ascii().first(), Some(b'[' | b't' | b'f')))
        });
    whole && !document
}

/// `{"flows": […], "truncated": false}`, read record by record.
struct Document<'r, 'a, 'b> {
    reading: &'r mut Reading<'a, 'b>,
    line: &'r Cell<u64>,
}

impl<'de> DeserializeSeed<'de> for Document<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Document<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(
            "flows or edges as `cofferdam flows -o json` and `cofferdam edges -o json` print them",
        )
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let mut lists = 0;
        while let Some(key) = map.next_key::<String>()? {
            match key.as_str() {
                "flows" | "edges" => {
                    lists += 1;
                    map.next_value_seed(List {
                        reading: &mut *self.reading,
                        line: self.line,
                    })?;
                }
                "truncated" => self.reading.skipped.truncated |= map.next_value::<bool>()?,
                _ => {
                    map.next_value::<IgnoredAny>()?;
                }
            }
        }
        if lists == 0 {
            return Err(serde::de::Error::custom(
                "this document has neither \"flows\" nor \"edges\"",
            ));
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, sequence: A) -> Result<(), A::Error> {
        let list = List {
            reading: self.reading,
            line: self.line,
        };
        list.visit_seq(sequence)
    }
}

/// The records of a document.
struct List<'r, 'a, 'b> {
    reading: &'r mut Reading<'a, 'b>,
    line: &'r Cell<u64>,
}

impl<'de> DeserializeSeed<'de> for List<'_, '_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for List<'_, '_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list of flows or edges")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<(), A::Error> {
        while let Some(value) = sequence.next_element::<serde_json::Value>()? {
            let number = self.line.get();
            let taken = match serde_json::from_value::<Line>(value) {
                Ok(line) => self.reading.take(line, number),
                Err(error) => self.reading.bad(number, error.to_string()),
            };
            if let Err(failed) = taken {
                self.reading.failed = Some(failed);
                return Err(serde::de::Error::custom("stopped"));
            }
        }
        Ok(())
    }
}

/// Counts lines as they are read, byte by byte.
struct Counting<R> {
    inner: R,
    line: Rc<Cell<u64>>,
}

impl<R: BufRead> Read for Counting<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.inner.read(buffer)?;
        let new = buffer.iter().take(read).filter(|byte| **byte == b'\n');
        self.line.set(self.line.get() + new.count() as u64);
        Ok(read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    const EDGE: &str = r#"{"from": "web-1", "to": "db-1", "protocol": "tcp", "port": 5432}"#;

    fn gather(bytes: &[u8], skip_bad: bool) -> (anyhow::Result<usize>, Skipped) {
        let (mut skipped, mut count) = (Skipped::default(), 0);
        let result = read_from("f", bytes, skip_bad, &mut skipped, &mut |_| {
            count += 1;
            Ok(())
        });
        (result.map(|()| count), skipped)
    }

    fn count(text: &str) -> usize {
        gather(text.as_bytes(), false).0.unwrap()
    }

    fn message(text: &str) -> String {
        format!("{:#}", gather(text.as_bytes(), false).0.unwrap_err())
    }

    #[test]
    fn lines_and_documents_are_told_apart() {
        assert_eq!(count(""), 0);
        assert_eq!(count(" \n\n"), 0);
        assert_eq!(count(&format!("\n{EDGE}\n\n{EDGE}")), 2);
        let one = format!("{{\"edges\":[{EDGE},{EDGE}],\"truncated\":false}}");
        assert_eq!(count(&one), 2);
        assert_eq!(
            count(&format!("{one}\n{one}")),
            4,
            "two outputs in one file"
        );
        let many = serde_json::from_str::<serde_json::Value>(&one).unwrap();
        assert_eq!(count(&serde_json::to_string_pretty(&many).unwrap()), 2);
        assert_eq!(count(&format!("[\n{EDGE}\n]")), 1);
        assert_eq!(count("{\"edges\":[]}"), 0);
    }

    #[test]
    fn a_compressed_file_is_read_too() {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        writeln!(writer, "{EDGE}\n{EDGE}").unwrap();
        let mut bytes = writer.finish().unwrap();
        assert_eq!(gather(&bytes, false).0.unwrap(), 2);
        bytes.truncate(bytes.len() - 9);
        assert!(gather(&bytes, true).0.is_err(), "cut short");
    }

    #[test]
    fn bad_records_name_their_line() {
        let lines = format!("{EDGE}\n{}\nno\n{EDGE}\n", EDGE.replace("tcp", "tpc"));
        assert_eq!(message(&lines), "f:2: protocol: unknown protocol \"tpc\"");
        let (read, skipped) = gather(lines.as_bytes(), true);
        assert_eq!((read.unwrap(), skipped.count), (2, 2));
        assert_eq!(skipped.first[1].place, "f:3");
        let document = format!(
            "{{\n\"edges\": [\n{EDGE},\n{}\n],\n\"truncated\": true}}",
            EDGE.replace("5432", "70000")
        );
        assert!(
            message(&document).starts_with("f:4: "),
            "{}",
            message(&document)
        );
        let (read, skipped) = gather(document.as_bytes(), true);
        assert_eq!((read.unwrap(), skipped.count), (1, 1));
        assert!(skipped.truncated);
        assert!(message("{\n\"a\": 1}").contains("neither \"flows\" nor \"edges\""));
        assert!(message("{\n\"edges\": [{]").starts_with("f: "));
        assert!(message("[1").contains("EOF"), "{}", message("[1"));
        let long = format!("{EDGE}\n\"{}\"", "x".repeat(2 << 20));
        assert!(message(&long).starts_with("f:2: this line is longer"));
        let mut latin = EDGE.as_bytes().to_vec();
        latin.extend(b"\n\xe4\n");
        assert_eq!(gather(&latin, true).1.count, 1);
    }

    #[test]
    fn what_the_sink_says_ends_the_reading() {
        let mut skipped = Skipped::default();
        for text in [EDGE.to_owned(), format!("{{\"edges\":[{EDGE}]}}")] {
            let result = read_from("f", text.as_bytes(), true, &mut skipped, &mut |_| {
                anyhow::bail!("full")
            });
            assert_eq!(result.unwrap_err().to_string(), "full");
        }
    }
}
