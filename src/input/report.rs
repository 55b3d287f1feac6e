//! The mistakes found so far in one file.

use super::{
    diagnostic::Diagnostic,
    nearest::nearest,
    shape::one_of,
    source::{Source, Span},
};

/// Collects mistakes; `Report::done` hands them out in the order of the file.
pub struct Report<'s> {
    source: &'s Source,
    found: Vec<(Span, Diagnostic)>,
}

/// Most names listed after "expected"; beyond that only the nearest helps.
const LISTED: usize = 24;

/// Most mistakes that are told: a file with more is not what it should be, and each one carries a line of it.
const TOLD: usize = 50;

impl<'s> Report<'s> {
    pub(super) fn new(source: &'s Source) -> Self {
        Report { source, found: Vec::new() }
    }

    /// Notes a mistake; the returned reference takes what was expected and the hint.
    pub fn add(&mut self, span: Span, message: impl Into<String>) -> &mut Diagnostic {
        let path = self.source.path.clone();
        let diagnostic = Diagnostic { path, place: None, message: message.into(), expected: None, hint: None };
        self.found.push((span, diagnostic));
        &mut self.found.last_mut().expect("pushed above").1
    }

    /// Notes a name that is none of `names`: `what` says of which family.
    pub fn unknown(&mut self, span: Span, what: &str, found: &str, names: &[&str]) -> &mut Diagnostic {
        let near = nearest(found, names.iter().copied()).map(|name| format!("did you mean `{name}`?"));
        let diagnostic = self.add(span, format!("unknown {what} {}", quoted(found))).hint_if(near);
        // Of very many, those that are made of others go without saying.
        let plain: Vec<&str> = names.iter().copied().filter(|name| !name.contains('+')).collect();
        match (names.len(), plain.len()) {
            (0, _) => diagnostic,
            (1..=LISTED, _) => diagnostic.expected(one_of(names.iter().copied())),
            (many, 1..=LISTED) if plain.len() < many => {
                diagnostic.expected(format!("{}, or some of them joined by `+`", one_of(plain)))
            }
            (many, _) => diagnostic.expected(format!("one of {many} names like `{}`", names[0])),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.found.is_empty()
    }

    pub(super) fn source(&self) -> &'s Source {
        self.source
    }

    /// Forgets what stands at or behind byte `at`.
    pub(super) fn keep_before(&mut self, at: usize) {
        self.found.retain(|(span, _)| span.start < at);
    }

    /// All mistakes in the order of the file; of very many the first, and how many follow.
    pub(super) fn done(mut self) -> Vec<Diagnostic> {
        self.found.sort_by_key(|(span, _)| span.start);
        if self.found.len() > TOLD {
            let more = self.found.len() - TOLD;
            let (span, _) = self.found.swap_remove(TOLD);
            self.found.truncate(TOLD);
            self.add(span, format!("{more} more mistakes from here on"));
        }
        let place = |(span, diagnostic)| Diagnostic { place: Some(self.source.place(span)), ..diagnostic };
        self.found.into_iter().map(place).collect()
    }
}

/// `found` between backticks, on one line and of readable length.
pub(super) fn quoted(found: &str) -> String {
    let mut text: String = found.chars().take(60).flat_map(char::escape_debug).collect();
    if found.chars().count() > 60 {
        text.push_str("...");
    }
    // escape_debug also escapes quotes, which need none between backticks.
    format!("`{}`", text.replace("\\\"", "\"").replace("\\'", "'"))
}
