//! Tells code from comments in Rust text, line by line, and blanks the contents of literals, so
//! that the rules can look for words without being fooled by them.

/// One line of a file.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Line {
    /// The code, with the contents of literals and comments left out.
    pub(super) code: String,
    /// The text of comments.
    pub(super) comment: String,
}

/// What the scanner is inside of.
enum Inside {
    Code,
    LineComment,
    /// Block comments nest.
    BlockComment(usize),
    Text,
    /// A raw string, ended by a quote and this many `#`.
    Raw(usize),
}

/// Splits a file.
pub(super) fn lines(text: &str) -> Vec<Line> {
    let mut lines = Vec::new();
    let mut inside = Inside::Code;
    for line in text.lines() {
        let mut out = Line::default();
        let mut rest = line;
        while let Some(first) = rest.chars().next() {
            let mut length = first.len_utf8();
            match &mut inside {
                Inside::LineComment => out.comment.push(first),
                Inside::BlockComment(depth) => {
                    if rest.starts_with("/*") {
                        *depth += 1;
                        length = 2;
                    } else if rest.starts_with("*/") {
                        length = 2;
                        *depth -= 1;
                        if *depth == 0 {
                            inside = Inside::Code;
                        }
                    } else {
                        out.comment.push(first);
                    }
                }
                Inside::Text => {
                    if first == '\\' {
                        length += rest[1..].chars().next().map_or(0, char::len_utf8);
                    } else if first == '"' {
                        out.code.push('"');
                        inside = Inside::Code;
                    }
                }
                Inside::Raw(hashes) => {
                    if first == '"' && rest[1..].starts_with(&"#".repeat(*hashes)) {
                        length += *hashes;
                        out.code.push('"');
                        inside = Inside::Code;
                    }
                }
                Inside::Code => {
                    (inside, length) = code(rest, first, &mut out.code);
                }
            }
            rest = &rest[length..];
        }
        if matches!(inside, Inside::LineComment) {
            inside = Inside::Code;
        }
        lines.push(out);
    }
    lines
}

/// One step in code: what follows, and how many bytes were used.
fn code(rest: &str, first: char, out: &mut String) -> (Inside, usize) {
    if rest.starts_with("//") {
        return (Inside::LineComment, 2);
    }
    if rest.starts_with("/*") {
        return (Inside::BlockComment(1), 2);
    }
    if first == '"' {
        out.push('"');
        return (Inside::Text, 1);
    }
    let in_word = out
        .chars()
        .last()
        .is_some_and(|c| c.is_alphanumeric() || c == '_');
    if first == 'r' && (!in_word || out.ends_with(['b', 'c'])) {
        let hashes = rest[1..].len() - rest[1..].trim_start_matches('#').len();
        if rest[1 + hashes..].starts_with('"') {
            out.push('"');
            return (Inside::Raw(hashes), hashes + 2);
        }
    }
    if first == '\''
        && let Some(length) = char_literal(rest)
    {
        out.push_str("''");
        return (Inside::Code, length);
    }
    out.push(first);
    (Inside::Code, first.len_utf8())
}

/// The length of a character literal; `None` for a lifetime.
fn char_literal(rest: &str) -> Option<usize> {
    let mut characters = rest[1..].char_indices();
    let (_, first) = characters.next()?;
    if first == '\\' {
        characters.next()?;
        let (end, _) = characters.find(|(_, c)| *c == '\'')?;
        return Some(end + 2);
    }
    let (end, second) = characters.next()?;
    (second == '\'').then_some(end + 2)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code_of(text: &str) -> String {
        lines(text)
            .iter()
            .map(|line| line.code.as_str())
            .collect::<Vec<_>>()
            .join("\n")
    }

    #[test]
    fn comments_are_told_from_code() {
        let scanned = lines("let a = 1; // note\n/* b\n/* c */ d */ e\n/// doc");
        assert_eq!(
            scanned[0],
            Line {
                code: "let a = 1; ".into(),
                comment: " note".into()
            }
        );
        assert_eq!(
            scanned[1],
            Line {
                code: String::new(),
                comment: " b".into()
            }
        );
        assert_eq!(scanned[2].code, " e");
        assert_eq!(scanned[3].comment, "/ doc");
    }

    #[test]
    fn literals_are_blanked() {
        assert_eq!(
            code_of(r#"f("a // \" b", 'x', '\'', '"')"#),
            r#"f("", '', '', '')"#
        );
        assert_eq!(code_of("f(r#\"a \" b\"#, br\"c\")"), "f(\"\", b\"\")");
        assert_eq!(code_of("f(\"a\nunsafe {\n\")"), "f(\"\n\n\")");
        assert_eq!(code_of(r"f('\u{41}', 'é')"), "f('', '')");
    }

    #[test]
    fn lifetimes_are_code() {
        assert_eq!(
            code_of("fn f<'a>(x: &'a str, y: &'static str)"),
            "fn f<'a>(x: &'a str, y: &'static str)"
        );
    }

    #[test]
    fn identifiers_that_end_in_r_are_code() {
        assert_eq!(code_of("for r in var { r }"), "for r in var { r }");
    }
}
