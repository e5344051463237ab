//! Plain tables: upper-case head, two spaces between columns, no lines.

use std::io;

use comfy_table::{Attribute, Cell, Color, Table as Comfy, presets};

use super::{Screen, printable};

/// What a cell's content means, for those who see colour.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Tone {
    /// As it is.
    #[default]
    Plain,
    /// As it should be.
    Good,
    /// Worth a look.
    Warn,
    /// Wrong, or denied.
    Bad,
}

/// Head of a column and the width below which it never falls (for tables that are printed row by row).
pub(crate) type Column = (&'static str, usize);

/// A table of text.
pub(crate) struct Table {
    heads: Vec<Column>,
    rows: Vec<Vec<(String, Tone)>>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(heads: &[Column]) -> Self {
        Self {
            heads: heads.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; missing cells are empty.
    pub(crate) fn row<C: Into<TableCell>>(&mut self, cells: impl IntoIterator<Item = C>) {
        let row = cells
            .into_iter()
            .map(|cell| {
                let TableCell(text, tone) = cell.into();
                // A line end in a cell would tear the row apart.
                let text = printable(&text).replace('\n', " ");
                (if text.is_empty() { "-".into() } else { text }, tone)
            })
            .collect();
        self.rows.push(row);
    }

    /// Prints head and rows.
    pub(crate) fn print(&self, screen: &mut Screen) -> io::Result<()> {
        self.write(screen, true)
    }

    /// Prints the rows only, each cell at least as wide as its column says.
    pub(crate) fn print_rows(&self, screen: &mut Screen) -> io::Result<()> {
        self.write(screen, false)
    }

    /// Prints the head only.
    pub(crate) fn print_head(heads: &[Column], screen: &mut Screen) -> io::Result<()> {
        Self::new(heads).print(screen)
    }

    fn write(&self, screen: &mut Screen, head: bool) -> io::Result<()> {
        let mut table = Comfy::new();
        table.load_style(presets::NOTHING);
        if screen.colour() {
            table.enforce_styling();
        } else {
            table.force_no_tty();
        }
        if head {
            table.set_header(self.heads.iter().map(|(name, width)| {
                let cell = Cell::new(format!("{name:width$}"));
                if screen.colour() {
                    cell.add_attribute(Attribute::Bold)
                } else {
                    cell
                }
            }));
        }
        for row in &self.rows {
            table.add_row(row.iter().enumerate().map(|(index, (text, tone))| {
                let width = self.heads.get(index).map_or(0, |(_, width)| *width);
                let cell = Cell::new(format!("{text:width$}"));
                match tone {
                    _ if !screen.colour() => cell,
                    Tone::Plain => cell,
                    Tone::Good => cell.fg(Color::Green),
                    Tone::Warn => cell.fg(Color::Yellow),
                    Tone::Bad => cell.fg(Color::Red),
                }
            }));
        }
        for column in table.column_iter_mut() {
            column.set_padding((0, 2));
        }
        for line in table.to_string().lines() {
            screen.raw(line.trim_end())?;
            screen.raw("\n")?;
        }
        Ok(())
    }
}

/// Text and tone of a cell.
pub(crate) struct TableCell(String, Tone);

impl From<String> for TableCell {
    fn from(text: String) -> Self {
        Self(text, Tone::Plain)
    }
}

impl From<&str> for TableCell {
    fn from(text: &str) -> Self {
        Self(text.to_owned(), Tone::Plain)
    }
}

impl From<u64> for TableCell {
    fn from(number: u64) -> Self {
        Self(number.to_string(), Tone::Plain)
    }
}

impl<T: Into<String>> From<(T, Tone)> for TableCell {
    fn from((text, tone): (T, Tone)) -> Self {
        Self(text.into(), tone)
    }
}
