//! Printing: tables for people; JSON, YAML and names for machines.

mod table;
mod units;

use std::io::{self, BufWriter, IsTerminal as _, Stdout, Write as _};

use serde::Serialize;

pub(crate) use policy::yaml::to_string as to_yaml;
pub(crate) use table::{Column, Table, Tone};
pub(crate) use units::{
    bytes, counted, labels, milliseconds, moment, moment_or_empty, port, protocol, seconds, waited,
};

use crate::error::Failure;

/// How to print.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// For people; may change from version to version.
    #[default]
    Table,
    /// One JSON document; streams print one document a line.
    Json,
    /// The same document as YAML; `get` prints objects as they were applied.
    Yaml,
    /// Names only, one a line.
    Name,
    /// For a merge request (`plan`).
    Markdown,
    /// SARIF 2.1.0, for code hosts; `policy lint` only.
    Sarif,
}

/// A document that can be shown to people and machines. Its serialised form is stable.
pub(crate) trait Document: Serialize {
    /// For people.
    fn table(&self, screen: &mut Screen) -> io::Result<()>;

    /// Names of what it lists; `None` when it lists nothing that has a name.
    fn names(&self) -> Option<Vec<String>> {
        None
    }

    /// For a merge request; `None` when it has no such form.
    fn markdown(&self) -> Option<String> {
        None
    }
}

/// Standard output.
pub(crate) struct Screen {
    format: Format,
    colour: bool,
    out: BufWriter<Stdout>,
}

impl Screen {
    /// Colour only where a terminal shows it and `NO_COLOR` does not forbid it.
    pub(crate) fn new(format: Format) -> Self {
        let stdout = io::stdout();
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self {
            format,
            colour: wanted && stdout.is_terminal(),
            out: BufWriter::new(stdout),
        }
    }

    /// What the user asked for.
    pub(crate) const fn format(&self) -> Format {
        self.format
    }

    /// Whether a person reads along.
    pub(crate) fn is_table(&self) -> bool {
        self.format == Format::Table
    }

    /// Whether escape sequences may be written.
    pub(crate) const fn colour(&self) -> bool {
        self.colour
    }

    /// Prints a document as asked.
    pub(crate) fn show(&mut self, document: &impl Document) -> anyhow::Result<()> {
        match self.format {
            Format::Table => document.table(self)?,
            Format::Json => {
                let text = serde_json::to_string_pretty(document)?;
                writeln!(self.out, "{text}")?;
            }
            Format::Yaml => {
                let text = to_yaml(&serde_json::to_value(document)?);
                self.out.write_all(text.as_bytes())?;
            }
            Format::Name => {
                let names = document
                    .names()
                    .ok_or_else(|| self.unsupported("-o name", "-o json"))?;
                for name in names {
                    self.line(&name)?;
                }
            }
            Format::Markdown => {
                let text = document
                    .markdown()
                    .ok_or_else(|| self.unsupported("-o markdown", "-o table"))?;
                self.out.write_all(printable(&text).as_bytes())?;
            }
            Format::Sarif => return Err(self.unsupported("-o sarif", "-o json").into()),
        }
        self.out.flush()?;
        Ok(())
    }

    /// Prints one document of a stream: JSON in one line.
    pub(crate) fn show_streamed(&mut self, document: &impl Document) -> anyhow::Result<()> {
        match self.format {
            Format::Json => {
                let text = serde_json::to_string(document)?;
                writeln!(self.out, "{text}")?;
                self.out.flush()?;
                Ok(())
            }
            Format::Yaml => {
                self.out.write_all(b"---\n")?;
                self.show(document)
            }
            Format::Table | Format::Name | Format::Markdown | Format::Sarif => self.show(document),
        }
    }

    /// One line; control characters in it are made visible.
    pub(crate) fn line(&mut self, line: &str) -> io::Result<()> {
        writeln!(self.out, "{}", printable(line))
    }

    /// A word in the colour of what it means, without a line end.
    pub(crate) fn toned(&mut self, word: &str, tone: Tone) -> io::Result<()> {
        let code = match tone {
            _ if !self.colour => None,
            Tone::Plain => None,
            Tone::Good => Some(32),
            Tone::Warn => Some(33),
            Tone::Bad => Some(31),
        };
        match code {
            Some(code) => write!(self.out, "\u{1b}[{code}m{}\u{1b}[0m", printable(word)),
            None => write!(self.out, "{}", printable(word)),
        }
    }

    /// Text of our own making or the user's own file, as it is.
    pub(crate) fn raw(&mut self, text: &str) -> io::Result<()> {
        self.out.write_all(text.as_bytes())
    }

    /// A remark for people; stdout keeps the answer only.
    pub(crate) fn remark(&mut self, text: &str) -> io::Result<()> {
        if self.is_table() {
            self.out.flush()?;
            crate::error::complain(text);
        }
        Ok(())
    }

    /// Writes out what is buffered.
    pub(crate) fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }

    /// This verb cannot print like that.
    pub(crate) fn unsupported(&self, what: &str, instead: &str) -> Failure {
        Failure::new(
            format!("this verb has no {what} output"),
            format!("use {instead}"),
        )
    }
}

/// Makes control characters visible: names and reasons come from hosts that may be hostile, and an
/// escape sequence in one must not move the operator's cursor. Line ends stay.
pub(crate) fn printable(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for character in text.chars() {
        let turns_text = matches!(character, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if (character.is_control() && character != '\n' && character != '\t') || turns_text {
            clean.extend(character.escape_unicode());
        } else {
            clean.push(character);
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn escape_sequences_become_visible() {
        assert_eq!(printable("web\u{1b}[2J"), "web\\u{1b}[2J");
        assert_eq!(printable("a\u{202e}b\r"), "a\\u{202e}b\\u{d}");
        assert_eq!(printable("zwei\nZeilen ü"), "zwei\nZeilen ü");
    }
}
