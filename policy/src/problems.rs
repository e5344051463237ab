//! What is wrong with a text: every problem with its place and, where one is known, its fix.

use std::fmt;

use crate::source::Place;

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Name of the source.
    pub file: String,
    /// From 1; 0 when the problem is about the whole set.
    pub line: u64,
    /// From 1, in characters.
    pub column: u64,
    /// What is wrong, without a full stop.
    pub message: String,
    /// What to do about it.
    pub suggestion: Option<String>,
}

impl Problem {
    /// A problem at a place.
    #[must_use]
    pub fn at(place: &Place, message: impl Into<String>) -> Self {
        Self {
            file: place.file.to_string(),
            line: place.line,
            column: place.column,
            message: shortened(message.into()),
            suggestion: None,
        }
    }

    /// The same with a suggestion.
    #[must_use]
    pub fn suggest(mut self, suggestion: impl Into<String>) -> Self {
        self.suggestion = Some(shortened(suggestion.into()));
        self
    }

    /// The same with a suggestion, if there is one.
    #[must_use]
    pub fn maybe_suggest(mut self, suggestion: Option<String>) -> Self {
        self.suggestion = suggestion.map(shortened).or(self.suggestion);
        self
    }
}

/// Messages repeat what the text says, and that may be very long.
fn shortened(text: String) -> String {
    const LONGEST: usize = 2_000;
    if text.len() <= LONGEST {
        return text;
    }
    let end = (0..=LONGEST / 2)
        .rev()
        .find(|end| text.is_char_boundary(*end))
        .unwrap_or(0);
    let start = (text.len() - LONGEST / 4..text.len())
        .find(|start| text.is_char_boundary(*start))
        .unwrap_or(text.len());
    format!(
        "{} … {}",
        text.get(..end).unwrap_or_default(),
        text.get(start..).unwrap_or_default()
    )
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.line == 0 {
            write!(f, "{}: error: {}", self.file, self.message)?;
        } else {
            write!(
                f,
                "{}:{}:{}: error: {}",
                self.file, self.line, self.column, self.message
            )?;
        }
        match &self.suggestion {
            Some(suggestion) => write!(f, "; {suggestion}"),
            None => Ok(()),
        }
    }
}

/// More problems of one reading are not listed.
pub const MAX_PROBLEMS: usize = 1_000;

/// Every problem that was found, in the order of the text. Never empty when it is an error.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Problems(pub Vec<Problem>);

impl Problems {
    /// `Ok(value)` when nothing is wrong.
    pub fn into_result<T>(self, value: T) -> Result<T, Self> {
        if self.0.is_empty() {
            Ok(value)
        } else {
            Err(self)
        }
    }

    /// Adds a problem. After [`MAX_PROBLEMS`] one more says that there are others, and no more are kept:
    /// a text can have a mistake in every second character.
    pub fn push(&mut self, problem: Problem) {
        match self.0.len() {
            0..MAX_PROBLEMS => self.0.push(problem),
            MAX_PROBLEMS => self.0.push(Problem {
                message: "there are more problems, which are not listed".to_owned(),
                suggestion: Some("mend these first".to_owned()),
                ..problem
            }),
            _ => {}
        }
    }
}

impl From<Problem> for Problems {
    fn from(problem: Problem) -> Self {
        Self(vec![problem])
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Problems {}

/// `did you mean "x"?` for the candidate that is closest to `word`, if one is close enough.
#[must_use]
pub fn did_you_mean<'a>(
    word: &str,
    candidates: impl IntoIterator<Item = &'a str>,
) -> Option<String> {
    let limit = match word.chars().count() {
        0..=3 => 1,
        4..=6 => 2,
        _ => 3,
    };
    candidates
        .into_iter()
        .map(|candidate| (distance(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= limit)
        .min()
        .map(|(_, candidate)| format!("did you mean \"{candidate}\"?"))
}

/// Levenshtein distance, without regard to case; words of more than 64 characters are never close.
fn distance(left: &str, right: &str) -> usize {
    let left: Vec<char> = left.to_lowercase().chars().take(65).collect();
    let right: Vec<char> = right.to_lowercase().chars().take(65).collect();
    if left.len() > 64 || right.len() > 64 {
        return usize::MAX;
    }
    let mut row: Vec<usize> = (0..=right.len()).collect();
    for (i, a) in left.iter().enumerate() {
        let mut next = vec![i + 1];
        for (j, b) in right.iter().enumerate() {
            let substitute = row.get(j).copied().unwrap_or_default() + usize::from(a != b);
            let delete = row.get(j + 1).copied().unwrap_or_default() + 1;
            let insert = next.last().copied().unwrap_or_default() + 1;
            next.push(substitute.min(delete).min(insert));
        }
        row = next;
    }
    row.last().copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn suggests_only_what_is_close() {
        assert_eq!(
            did_you_mean("portz", ["peers", "ports"]).as_deref(),
            Some("did you mean \"ports\"?")
        );
        assert_eq!(did_you_mean("x", ["peers", "ports"]), None);
        assert_eq!(
            did_you_mean(&"a".repeat(1000), ["a"]),
            None,
            "long words are not compared"
        );
    }

    #[test]
    fn shows_place_and_suggestion() {
        let problem = Problem::at(&Place::new("policy.yaml", 12, 7), "unknown field \"portz\"")
            .suggest("did you mean \"ports\"?");
        assert_eq!(
            problem.to_string(),
            "policy.yaml:12:7: error: unknown field \"portz\"; did you mean \"ports\"?"
        );
    }
}
