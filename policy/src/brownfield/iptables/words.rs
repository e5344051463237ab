//! Words of a line, with quotes and escapes as iptables-save writes them.

/// Most characters of one line.
const MAX_LINE: usize = 64 * 1024;

/// The words of a line and where they begin.
pub(super) struct Words {
    words: Vec<(usize, String)>,
    next: usize,
    end: usize,
}

impl Words {
    /// Splits a line; the error is column and message.
    pub(super) fn split(line: &str) -> Result<Self, (usize, String)> {
        if line.len() > MAX_LINE {
            return Err((1, format!("the line is longer than {MAX_LINE} bytes")));
        }
        let mut words = Vec::new();
        let mut word: Option<(usize, String)> = None;
        let mut quoted: Option<usize> = None;
        let mut characters = line.chars().enumerate();
        while let Some((index, character)) = characters.next() {
            let column = index + 1;
            match character {
                '"' => {
                    word.get_or_insert_with(|| (column, String::new()));
                    quoted = if quoted.is_some() { None } else { Some(column) };
                }
                '\\' if quoted.is_some() => {
                    let escaped = characters.next().map_or('\\', |(_, escaped)| escaped);
                    if let Some((_, text)) = &mut word {
                        text.push(escaped);
                    }
                }
                c if c.is_whitespace() && quoted.is_none() => words.extend(word.take()),
                c => word
                    .get_or_insert_with(|| (column, String::new()))
                    .1
                    .push(c),
            }
        }
        if let Some(column) = quoted {
            return Err((column, "this quote is not closed".to_owned()));
        }
        words.extend(word);
        Ok(Self {
            words,
            next: 0,
            end: line.chars().count() + 1,
        })
    }

    /// The next word.
    pub(super) fn next(&mut self) -> Option<&str> {
        let (_, word) = self.words.get(self.next)?;
        self.next += 1;
        Some(word)
    }

    /// The next word, which stays.
    pub(super) fn peek(&self) -> Option<&str> {
        self.words.get(self.next).map(|(_, word)| word.as_str())
    }

    /// Column of the next word, or of the end of the line.
    pub(super) fn column(&self) -> usize {
        self.words
            .get(self.next)
            .map_or(self.end, |(column, _)| *column)
    }

    /// Everything that is left.
    pub(super) fn rest(&mut self) -> String {
        let words: Vec<&str> = self
            .words
            .iter()
            .skip(self.next)
            .map(|(_, word)| word.as_str())
            .collect();
        self.next = self.words.len();
        words.join(" ")
    }
}
