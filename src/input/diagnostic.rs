//! A mistake in a file, as data and as the text that a person reads.

use std::{fmt, path::PathBuf};

/// Something wrong with an input file: where, what, what was expected, what to do.
#[derive(Clone, Debug, PartialEq)]
pub struct Diagnostic {
    /// As the user gave it.
    pub path: PathBuf,
    /// Absent when the file itself is the trouble (not there, not readable).
    pub place: Option<Place>,
    pub message: String,
    pub expected: Option<String>,
    pub hint: Option<String>,
}

/// Where in the file, with the line to show.
#[derive(Clone, Debug, PartialEq)]
pub struct Place {
    /// From 1.
    pub line: usize,
    /// From 1, in characters.
    pub column: usize,
    /// The line without its end.
    pub text: String,
    /// Characters to underline from `column` on, at least 1.
    pub length: usize,
}

impl Diagnostic {
    pub fn expected(&mut self, text: impl Into<String>) -> &mut Self {
        self.expected = Some(text.into());
        self
    }

    pub fn hint(&mut self, text: impl Into<String>) -> &mut Self {
        self.hint = Some(text.into());
        self
    }

    /// Sets the hint where there is one to give.
    pub fn hint_if(&mut self, text: Option<String>) -> &mut Self {
        self.hint = text.or(self.hint.take());
        self
    }
}

/// Longest piece of a source line that is shown, characters; longer lines are cut around the mistake.
const WINDOW: usize = 120;

impl Place {
    /// The part of the line that is shown, and the column at which the underline starts in it (from 0).
    fn window(&self) -> (String, usize) {
        // A tab or an escape sequence would move the underline away from what it marks, or reach the terminal.
        let shown: Vec<char> = self.text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let start = self.column - 1;
        if shown.len() <= WINDOW {
            return (shown.into_iter().collect(), start);
        }
        let from = start.saturating_sub(WINDOW / 3).min(shown.len() - WINDOW);
        let mut text: String = shown[from..from + WINDOW].iter().collect();
        let mut column = start - from;
        if from > 0 {
            text.insert_str(0, "...");
            column += 3;
        }
        if from + WINDOW < shown.len() {
            text.push_str("...");
        }
        (text, column)
    }
}

impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.message)?;
        match &self.place {
            Some(place) => {
                let gutter = place.line.to_string().len();
                let (text, column) = place.window();
                let room = text.chars().count().saturating_sub(column).max(1);
                let underline = "^".repeat(place.length.clamp(1, room));
                write!(f, "\n{:gutter$} --> {}:{}:{}", "", self.path.display(), place.line, place.column)?;
                write!(f, "\n {} | {}", place.line, text.trim_end())?;
                write!(f, "\n {:gutter$} | {:column$}{underline}", "", "")?;
                if let Some(expected) = &self.expected {
                    write!(f, " expected {expected}")?;
                }
            }
            None => {
                write!(f, "\n  --> {}", self.path.display())?;
                if let Some(expected) = &self.expected {
                    write!(f, "\n   | expected {expected}")?;
                }
            }
        }
        if let Some(hint) = &self.hint {
            write!(f, "\nhint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostic {}

/// All mistakes of a file as one text, a blank line between two.
pub fn render(diagnostics: &[Diagnostic]) -> String {
    diagnostics.iter().map(Diagnostic::to_string).collect::<Vec<_>>().join("\n\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(line: usize, column: usize, text: &str, length: usize) -> Diagnostic {
        Diagnostic {
            path: "a.toml".into(),
            place: Some(Place { line, column, text: text.into(), length }),
            message: "unknown key `precison` in `[grid]`".into(),
            expected: Some("one of `precision`, `layout`".into()),
            hint: Some("did you mean `precision`?".into()),
        }
    }

    #[test]
    fn the_underline_stands_below_what_it_marks() {
        let text = at(9, 1, "precison = [\"fp32\"]", 8).to_string();
        assert_eq!(
            text,
            "error: unknown key `precison` in `[grid]`\n  --> a.toml:9:1\n 9 | precison = [\"fp32\"]\n   | ^^^^^^^^ expected one of \
             `precision`, `layout`\nhint: did you mean `precision`?"
        );
    }

    #[test]
    fn long_lines_are_cut_around_the_mistake() {
        let line = format!("{}WRONG{}", "a".repeat(500), "b".repeat(500));
        let text = at(1234, 501, &line, 5).to_string();
        let lines: Vec<&str> = text.lines().collect();
        let column = lines[3].find('^').unwrap();
        assert_eq!(&lines[2][column..column + 5], "WRONG");
        assert!(lines[2].len() < 140);
    }

    #[test]
    fn control_characters_of_the_file_do_not_reach_the_terminal() {
        assert!(!at(1, 2, "\u{1b}[31mred\tx", 3).to_string().contains(['\u{1b}', '\t']));
    }
}
