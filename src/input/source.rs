//! A file's text and the way from a byte range back to line and column.

use super::{
    diagnostic::{Diagnostic, Place},
    nearest::nearest,
};
use std::{
    fs::File,
    io::{ErrorKind, Read},
    path::{Path, PathBuf},
};

/// A byte range of the text.
pub type Span = std::ops::Range<usize>;

/// 4 MiB: hundreds of times the longest file that a person writes, small enough to read `/dev/zero` by mistake.
const LARGEST: u64 = 4 << 20;

/// A text with the path by which messages name it.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    pub path: PathBuf,
    /// Without a byte order mark.
    pub text: String,
}

impl Source {
    /// `text` as if it stood at `path`; a byte order mark is taken off.
    pub fn new(path: impl Into<PathBuf>, text: &str) -> Source {
        Source { path: path.into(), text: text.strip_prefix('\u{feff}').unwrap_or(text).to_string() }
    }

    /// Whether the file has a key `name` at its top; false where it is no TOML.
    pub fn has_key(&self, name: &str) -> bool {
        self.text.parse::<toml::Table>().is_ok_and(|table| table.contains_key(name))
    }

    /// Reads a UTF-8 file of moderate size.
    #[expect(clippy::result_large_err, reason = "once a file, and the file's reading costs a thousand times the copy")]
    pub fn read(path: &Path) -> Result<Source, Diagnostic> {
        let fail = |message: String, hint: Option<String>| Diagnostic {
            path: path.to_path_buf(),
            place: None,
            message,
            expected: None,
            hint,
        };
        let mut bytes = Vec::new();
        let read = File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes));
        if let Err(error) = read {
            return Err(match error.kind() {
                ErrorKind::NotFound => fail("no such file".into(), neighbour(path)),
                ErrorKind::IsADirectory => fail("this is a folder, not a file".into(), None),
                ErrorKind::PermissionDenied => fail("no permission to read this file".into(), None),
                _ => fail(format!("cannot be read: {error}"), None),
            });
        }
        if bytes.len() as u64 > LARGEST {
            return Err(fail(format!("larger than {} MiB", LARGEST >> 20), None));
        }
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(Source::new(path, text)),
            Err(error) => {
                let lossy = String::from_utf8_lossy(&bytes).into_owned();
                // Up to the first bad byte the lossy text is the file's own.
                let at = error.valid_up_to();
                let source = Source { path: path.to_path_buf(), text: lossy };
                let mut diagnostic = source.diagnostic(at..at + 1, "not UTF-8 text".into());
                diagnostic.hint("save the file in UTF-8, the only encoding of TOML");
                Err(diagnostic)
            }
        }
    }

    pub(super) fn diagnostic(&self, span: Span, message: String) -> Diagnostic {
        Diagnostic { path: self.path.clone(), place: Some(self.place(span)), message, expected: None, hint: None }
    }

    /// Line and column of a byte range, cut to its first line; ranges off the text or inside a character move to the nearest one.
    pub fn place(&self, span: Span) -> Place {
        let start = self.boundary(span.start);
        let line_start = self.text[..start].rfind('\n').map_or(0, |at| at + 1);
        let line_end = self.text[start..].find('\n').map_or(self.text.len(), |at| start + at);
        let end = self.boundary(span.end).clamp(start, line_end);
        Place {
            line: self.text[..line_start].matches('\n').count() + 1,
            column: self.text[line_start..start].chars().count() + 1,
            text: self.text[line_start..line_end].trim_end_matches('\r').to_string(),
            length: self.text[start..end].chars().count().max(1),
        }
    }

    fn boundary(&self, at: usize) -> usize {
        let mut at = at.min(self.text.len());
        while !self.text.is_char_boundary(at) {
            at -= 1;
        }
        at
    }
}

/// The file of the same folder and ending whose name is nearest.
fn neighbour(path: &Path) -> Option<String> {
    let wanted = path.file_name()?.to_str()?;
    let folder = path.parent()?;
    let entries = std::fs::read_dir(if folder.as_os_str().is_empty() { Path::new(".") } else { folder }).ok()?;
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| Path::new(name).extension() == path.extension())
        .collect();
    names.sort();
    let name = nearest(wanted, names.iter().map(String::as_str))?;
    Some(format!("did you mean `{}`?", folder.join(name).display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_count_characters_and_stay_inside_the_text() {
        let source = Source::new("a.toml", "a = 1\r\nüb = \"ä\"\r\n");
        let place = source.place(13..17);
        assert_eq!((place.line, place.column, place.text.as_str()), (2, 6, "üb = \"ä\""));
        for start in 0..40 {
            for end in 0..40 {
                let place = source.place(start..end);
                assert!(place.length >= 1 && place.column >= 1);
            }
        }
        assert_eq!(Source::new("a", "").place(0..0).line, 1);
    }

    #[test]
    fn keys_at_the_top_are_seen_and_others_are_not() {
        let has = |text: &str, key: &str| Source::new("a.toml", text).has_key(key);
        assert!(has("a = 1\n[workload]\nb = 2", "workload"));
        assert!(!has("[a]\nworkload = 1", "workload") && !has("workload = ", "workload"));
    }

    #[test]
    fn a_file_that_cannot_be_read_is_one_clear_mistake() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mnist.toml");
        std::fs::write(&path, b"a = 1\nb = \"\xff\"\n").unwrap();
        let error = Source::read(&path).unwrap_err();
        assert_eq!((error.message.as_str(), error.place.unwrap().line), ("not UTF-8 text", 2));
        let error = Source::read(&dir.path().join("minst.toml")).unwrap_err();
        assert!(error.message == "no such file" && error.hint.unwrap().ends_with("mnist.toml`?"));
        assert_eq!(Source::read(dir.path()).unwrap_err().message, "this is a folder, not a file");
        std::fs::write(&path, vec![b' '; (LARGEST + 1) as usize]).unwrap();
        assert_eq!(Source::read(&path).unwrap_err().message, "larger than 4 MiB");
        std::fs::write(&path, "\u{feff}a = 1").unwrap();
        assert_eq!(Source::read(&path).unwrap().text, "a = 1");
    }
}
