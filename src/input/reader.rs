//! From text to a typed value: parse, hold against the shape, let the caller build, hand out the value or every mistake.

use super::{
    check::{Check, number, whole},
    diagnostic::Diagnostic,
    report::{Report, quoted},
    shape::{Kind, Need, Shape, listed},
    source::{Source, Span},
};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Reads `source` as a file of `shape`. `build` sees the file even when mistakes were found already, so that its own are told in the
/// same go; its value is returned only when nobody found any.
pub fn parse<T>(
    source: &Source,
    shape: &'static Shape,
    build: impl FnOnce(&Table, &mut Report) -> T,
) -> Result<T, Vec<Diagnostic>> {
    let (root, errors) = DeTable::parse_recoverable(&source.text);
    let mut report = Report::new(source);
    let root = root.get_ref();
    let whole = errors.is_empty();
    if whole && root.is_empty() {
        let needed = shape.fields.iter().filter(|field| matches!(field.need, Need::Required { .. })).map(|field| field.name);
        report.add(0..0, "the file has no keys").expected(format!("at least {}", listed(needed)));
        return Err(report.done());
    }
    Check { report: &mut report, root: shape, file: root, whole }.table("", root, &(0..0), shape, None);
    if !whole {
        // What stands before the first syntax error is surely what the user wrote; what follows may have been read wrongly.
        let first = errors.iter().filter_map(|error| error.span()).map(|span| span.start).min().unwrap_or(0);
        let line = source.text.get(..first).and_then(|before| before.rfind('\n')).map_or(0, |at| at + 1);
        report.keep_before(line);
        syntax(&errors, &mut report);
        return Err(report.done());
    }
    let value = build(&Table { table: root, shape, span: 0..0 }, &mut report);
    if report.is_empty() { Ok(value) } else { Err(report.done()) }
}

/// Most syntax errors that are told: a lost bracket makes one of every line that follows.
const MOST_SYNTAX: usize = 5;

/// The parser's errors, one a line, in our words where the parser's are terse.
fn syntax(errors: &[toml::de::Error], report: &mut Report) {
    let source = report.source();
    let mut told = 0;
    // Behind the last line that was told: one mistake makes many errors of its line.
    let mut next = 0;
    let mut errors: Vec<_> = errors.iter().collect();
    errors.sort_by_key(|error| error.span().map_or(0, |span| span.start));
    for error in errors {
        let span = error.span().unwrap_or(0..0);
        if told > 0 && span.start < next {
            continue;
        }
        if told == MOST_SYNTAX {
            break;
        }
        told += 1;
        let rest = source.text.get(span.start..).unwrap_or_default();
        next = span.start + rest.find('\n').map_or(rest.len() + 1, |end| end + 1);
        let (message, expected) = match error.message().split_once(", expected ") {
            Some((message, expected)) => (message, Some(expected)),
            None => (error.message(), None),
        };
        let written = source.text.get(span.clone()).unwrap_or_default();
        if message == "duplicate key" {
            report.add(span, format!("duplicate key {}", quoted(written))).expected("each key and each `[table]` once");
            continue;
        }
        // The parser looks for a string where nothing stands at all.
        if message.contains("must be quoted") && written.trim().is_empty() {
            report.add(span, "not TOML: key with no value").expected("a value after `=`");
            continue;
        }
        let diagnostic = report.add(span, format!("not TOML: {message}"));
        diagnostic.expected = expected.map(str::to_string);
        if message.contains("must be quoted") {
            diagnostic.hint(format!("write `\"{}\"`", written.trim()));
        }
    }
}

/// A view of one table of the file. Getters answer `None` where a key is left out or was found to be wrong already.
#[derive(Clone)]
pub struct Table<'d> {
    table: &'d DeTable<'d>,
    shape: &'static Shape,
    span: Span,
}

impl<'d> Table<'d> {
    fn get(&self, key: &str) -> Option<&'d Spanned<DeValue<'d>>> {
        debug_assert!(self.shape.fields.iter().any(|field| field.name == key), "`{key}` is not in the shape");
        self.table.get(key)
    }

    /// Where the key's value stands; the table itself where it is left out.
    pub fn span(&self, key: &str) -> Span {
        self.get(key).map_or(self.span.clone(), Spanned::span)
    }

    /// Where the key itself stands; the table where it is left out.
    pub fn key_span(&self, key: &str) -> Span {
        self.table.get_key_value(key).map_or(self.span.clone(), |(key, _)| key.span())
    }

    pub fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    pub fn text(&self, key: &str) -> Option<&'d str> {
        self.get(key)?.get_ref().as_str()
    }

    pub fn whole(&self, key: &str) -> Option<u64> {
        whole(self.get(key)?.get_ref())
    }

    /// `whole` for counts.
    pub fn count(&self, key: &str) -> Option<usize> {
        usize::try_from(self.whole(key)?).ok()
    }

    pub fn number(&self, key: &str) -> Option<f64> {
        number(self.get(key)?.get_ref())
    }

    pub fn flag(&self, key: &str) -> Option<bool> {
        self.get(key)?.get_ref().as_bool()
    }

    /// A string that `read` understands.
    pub fn word<T>(&self, key: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
        read(self.text(key)?)
    }

    /// One or many strings that `read` understands.
    pub fn words<T>(&self, key: &str, read: impl Fn(&str) -> Option<T>) -> Option<Vec<T>> {
        let items = self.items(key)?;
        Some(items.into_iter().filter_map(|item| read(item.get_ref().as_str()?)).collect())
    }

    /// One or many counts.
    pub fn counts(&self, key: &str) -> Option<Vec<usize>> {
        let items = self.items(key)?;
        Some(items.into_iter().filter_map(|item| usize::try_from(whole(item.get_ref())?).ok()).collect())
    }

    /// One or many numbers.
    pub fn numbers(&self, key: &str) -> Option<Vec<f64>> {
        Some(self.items(key)?.into_iter().filter_map(|item| number(item.get_ref())).collect())
    }

    fn items(&self, key: &str) -> Option<Vec<&'d Spanned<DeValue<'d>>>> {
        let value = self.get(key)?;
        Some(match value.get_ref() {
            DeValue::Array(items) => items.iter().collect(),
            _ => vec![value],
        })
    }

    /// A nested table, by its own shape (for a tagged table: the one that its tag names).
    pub fn table(&self, key: &str) -> Option<Table<'d>> {
        let value = self.get(key)?;
        let table = value.get_ref().as_table()?;
        let kind = &self.shape.fields.iter().find(|field| field.name == key)?.kind;
        Some(Table { table, shape: shape_of(kind, table)?, span: value.span() })
    }

    /// The tables of a list, by their own shape.
    pub fn tables(&self, key: &str) -> Option<Vec<Table<'d>>> {
        let Kind::List { of, .. } = &self.shape.fields.iter().find(|field| field.name == key)?.kind else { return None };
        let read = |item: &'d Spanned<DeValue<'d>>| {
            let table = item.get_ref().as_table()?;
            Some(Table { table, shape: shape_of(of, table)?, span: item.span() })
        };
        Some(self.items(key)?.into_iter().filter_map(read).collect())
    }

    /// The tag of this table, where it is a tagged one.
    pub fn tag(&self, tag: &str) -> Option<&'d str> {
        self.table.get(tag)?.get_ref().as_str()
    }
}

fn shape_of(kind: &'static Kind, table: &DeTable) -> Option<&'static Shape> {
    match kind {
        Kind::Table(shape) => Some(shape),
        Kind::Tagged { tag, shapes } => {
            let word = table.get(*tag)?.get_ref().as_str()?;
            shapes.iter().find(|(name, ..)| *name == word).map(|(_, _, shape)| *shape)
        }
        Kind::Either(kinds) => kinds.iter().find_map(|kind| shape_of(kind, table)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input::{Exclusive, Field, Interval, render};

    static SHAPE: Shape = Shape {
        fields: &[
            Field { name: "name", about: "Its name", kind: Kind::TEXT, need: Need::Required { example: "name = \"a\"" } },
            Field {
                name: "sizes",
                about: "Sizes",
                kind: Kind::List { of: &Kind::Whole { low: 1, high: 100 }, least: 1, most: 3, bare: true, distinct: true },
                need: Need::Optional { default: "1" },
            },
            Field { name: "price", about: "Price", kind: Kind::Table(&PRICE), need: Need::Optional { default: "" } },
        ],
        exclusive: &[],
    };

    static PRICE: Shape = Shape {
        fields: &[
            Field {
                name: "usd",
                about: "Dollars",
                kind: Kind::Number(Interval::above(0.0, f64::INFINITY)),
                need: Need::Optional { default: "" },
            },
            Field { name: "free", about: "Who pays", kind: Kind::TEXT, need: Need::Optional { default: "" } },
        ],
        exclusive: &[Exclusive { keys: &["usd", "free"], required: true }],
    };

    fn messages(text: &str) -> Vec<String> {
        let found = parse(&Source::new("a.toml", text), &SHAPE, |_, _| ()).unwrap_err();
        found.into_iter().map(|diagnostic| diagnostic.message).collect()
    }

    #[test]
    fn a_good_file_is_handed_to_the_builder() {
        let source = Source::new("a.toml", "name = 'x'\nsizes = 0x10\nprice = { usd = 2 }\n");
        let value = parse(&source, &SHAPE, |file, _| {
            let price = file.table("price").unwrap();
            (file.text("name").unwrap().to_string(), file.counts("sizes").unwrap(), price.number("usd"), price.has("free"))
        });
        assert_eq!(value.unwrap(), ("x".to_string(), vec![16], Some(2.0), false));
    }

    #[test]
    fn what_the_builder_finds_comes_with_the_rest_in_the_order_of_the_file() {
        let source = Source::new("a.toml", "nmae = 'x'\nname = 'y'\nsizes = [0]\n");
        let found = parse(&source, &SHAPE, |file, report| {
            report.unknown(file.span("name"), "name", "y", &["z"]);
        });
        let messages: Vec<String> = found.unwrap_err().into_iter().map(|diagnostic| diagnostic.message).collect();
        assert_eq!(messages, ["unknown key `nmae`", "unknown name `y`", "`sizes` cannot be `0`"]);
    }

    #[test]
    fn a_slip_in_a_required_key_is_told_once() {
        assert_eq!(messages("nmae = 'x'\n"), ["unknown key `nmae`"]);
        assert_eq!(messages("zebra = 'x'\n"), ["unknown key `zebra`", "missing key `name`"]);
    }

    #[test]
    fn exclusive_keys_shut_each_other_out() {
        assert_eq!(messages("name = 'x'\n[price]\n"), ["nothing chosen in `[price]`"]);
        assert_eq!(messages("name = 'x'\n[price]\nfree = 'me'\nusd = 1\n"), ["both `free` and `usd` in `[price]`"]);
    }

    #[test]
    fn behind_a_syntax_error_nothing_is_judged() {
        assert_eq!(messages("sizes = 0\nname = \n[price]\nusd = -1\n"), ["`sizes` cannot be `0`", "not TOML: key with no value"]);
        let many = "= 1\n".repeat(50);
        assert_eq!(messages(&many).len(), MOST_SYNTAX);
    }

    #[test]
    fn a_file_of_nothing_but_mistakes_is_told_in_short_and_in_time() {
        let many = format!("name = 'x'\nsizes = [{}]\n", vec!["0"; 50_000].join(", "));
        let found = messages(&many);
        assert!(found.len() == 51 && found[50].ends_with(" more mistakes from here on"), "{:?}", found.last());
        assert_eq!(messages(&format!("a = {}", "= ".repeat(50_000))).len(), 1);
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[a-z=\\[\\]{}\"'.,:#0-9\n \t\u{e9}-]{0,80}", cut in 0usize..60) {
            let whole = "name = \"x\"\nsizes = [1, 2, 3]\n[price]\nusd = 1.5\nfree = \"y\"\n";
            let text = format!("{}{text}{}", &whole[..cut.min(whole.len())], &whole[cut.min(whole.len())..]);
            if let Err(found) = parse(&Source::new("a.toml", &text), &SHAPE, |file, _| (file.counts("sizes"), file.text("name").is_some())) {
                proptest::prop_assert!(!found.is_empty() && !render(&found).is_empty());
            }
        }
    }
}
