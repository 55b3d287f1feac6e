//! Holds a parsed file against its shape and notes every difference.

use super::{
    nearest::nearest,
    report::{Report, quoted},
    shape::{Choice, Field, Interval, Kind, Need, Shape, listed, one_of},
    source::Span,
};
use std::collections::HashMap;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// A run over one file.
pub(super) struct Check<'r, 's> {
    pub report: &'r mut Report<'s>,
    pub root: &'static Shape,
    /// The file itself.
    pub file: &'r DeTable<'s>,
    /// False after a syntax error: a key may be missing only because its line could not be read.
    pub whole: bool,
}

impl Check<'_, '_> {
    /// `name` is the dotted path of the table, empty for the file itself; `span` is where missing keys are shown. `tag` is a key that
    /// the caller has judged already.
    pub fn table(&mut self, name: &str, table: &DeTable, span: &Span, shape: &'static Shape, tag: Option<&str>) {
        for (key, value) in table.iter() {
            let word = key.get_ref().as_ref();
            if tag == Some(word) {
                continue;
            }
            match shape.fields.iter().find(|field| field.name == word) {
                Some(field) => self.value(&join(name, word), value, &field.kind),
                None => self.unknown_key(name, word, key.span(), shape, tag),
            }
        }
        // A slip in a required key is told once, as the unknown key that it is.
        let aims: Vec<&str> = table
            .keys()
            .map(|key| key.get_ref().as_ref())
            .filter(|word| tag != Some(*word) && shape.fields.iter().all(|field| field.name != *word))
            .filter(|word| self.homes(word).is_empty())
            .filter_map(|word| nearest(word, names(shape, tag)))
            .collect();
        for group in shape.exclusive {
            let is_aimed_at = group.keys.iter().any(|key| aims.contains(key));
            self.exclusive(name, table, span, group.keys, group.required && !is_aimed_at);
        }
        for field in shape.fields {
            if let Need::Required { example } = field.need
                && !table.contains_key(field.name)
                && !aims.contains(&field.name)
                && self.whole
            {
                self.missing(name, field, example, span.clone());
            }
        }
    }

    /// Tables that know a key which stands in another; the top of the file is one, unless it has the key already.
    fn homes(&self, word: &str) -> Vec<String> {
        let mut homes = homes_of(self.root, "", word);
        homes.retain(|home| !home.is_empty() || !self.file.contains_key(word));
        homes
    }

    fn unknown_key(&mut self, name: &str, word: &str, span: Span, shape: &'static Shape, tag: Option<&str>) {
        let near = nearest(word, names(shape, tag)).map(|near| format!("did you mean `{near}`?"));
        let homes = self.homes(word);
        let home = match homes.iter().find(|home| home.is_empty()) {
            Some(_) => Some(format!("`{word}` belongs at the top of the file, before the first `[table]`")),
            None if homes.is_empty() => None,
            None => Some(format!("`{word}` belongs in {}", homes.join(" or "))),
        };
        self.report
            .add(span, format!("unknown key {}{}", quoted(word), inside(name)))
            .expected(one_of(names(shape, tag)))
            .hint_if(home.or(near));
    }

    fn missing(&mut self, name: &str, field: &Field, example: &str, span: Span) {
        let thing = match field.kind {
            Kind::Table(_) if name.is_empty() => format!("table `[{}]`", field.name),
            _ => format!("key `{}`", field.name),
        };
        self.report
            .add(span, format!("missing {thing}{}", inside(name)))
            .expected(field.kind.to_string())
            .hint(format!("add `{example}`"));
    }

    fn exclusive(&mut self, name: &str, table: &DeTable, span: &Span, keys: &[&'static str], required: bool) {
        let mut given: Vec<(&str, Span)> =
            table.keys().filter_map(|key| keys.iter().find(|k| **k == key.get_ref()).map(|k| (*k, key.span()))).collect();
        given.sort_by_key(|(_, span)| span.start);
        if let [(first, _), (second, at), ..] = given.as_slice() {
            self.report
                .add(at.clone(), format!("both `{first}` and `{second}`{}", inside(name)))
                .expected(format!("only one of {}", listed(keys.iter().copied())))
                .hint("remove one of them");
        }
        if given.is_empty() && required && self.whole {
            self.report
                .add(span.clone(), format!("nothing chosen{}", inside(name)))
                .expected(format!("exactly one of {}", listed(keys.iter().copied())));
        }
    }

    fn value(&mut self, key: &str, value: &Spanned<DeValue>, kind: &'static Kind) {
        let span = value.span();
        match (kind, value.get_ref()) {
            (Kind::Either(kinds), found) => match kinds.iter().find(|kind| takes(kind, found)) {
                Some(kind) => self.value(key, value, kind),
                None => self.wrong_type(key, value, kind),
            },
            (Kind::Text { fits, .. }, DeValue::String(text)) => {
                if !fits(text) {
                    self.report.add(span, format!("`{}` cannot be {}", last(key), quoted(text))).expected(kind.to_string());
                }
            }
            (Kind::Word { what, choices, hint }, DeValue::String(text)) => self.word(span, text, what, choices(), *hint),
            (Kind::Form { what, forms, canonical }, DeValue::String(text)) => {
                if canonical(text).is_none() {
                    let names: Vec<&str> = forms.iter().map(|(form, _)| *form).collect();
                    let head = |form: &str| form.split([':', '=']).next().unwrap_or_default().to_string();
                    let same = names.iter().find(|form| form.contains([':', '=']) && head(form) == head(text));
                    let near = same.map(|form| format!("write it like `{form}`"));
                    self.report.unknown(span, what, text, &names).hint_if(near);
                }
            }
            (Kind::Whole { low, high }, DeValue::Integer(_)) => {
                let fits = whole(value.get_ref()).is_some_and(|found| (*low..=*high).contains(&found));
                if !fits {
                    self.out_of_range(key, value, kind);
                }
            }
            (Kind::Number(interval), DeValue::Integer(_) | DeValue::Float(_)) => self.number(key, value, kind, interval),
            (Kind::Flag, DeValue::Boolean(_)) => {}
            (Kind::List { of, least, most, distinct, .. }, DeValue::Array(items)) => {
                for item in items.iter() {
                    self.value(key, item, of);
                }
                if items.len() < *least || items.len() > *most {
                    let wanted = match (least, most) {
                        (least, most) if least == most => format!("{least} values"),
                        (1, most) if items.is_empty() => format!("1 to {most} values"),
                        (least, most) => format!("{least} to {most} values"),
                    };
                    self.report.add(span, format!("`{}` has {} values", last(key), items.len())).expected(wanted);
                }
                if *distinct {
                    self.distinct(key, items.iter(), of);
                }
            }
            (Kind::List { of, bare: true, .. }, found) if takes(of, found) => self.value(key, value, of),
            (Kind::Table(shape), DeValue::Table(table)) => self.table(key, table, &span, shape, None),
            (Kind::Tagged { tag, shapes }, DeValue::Table(table)) => {
                let names: Vec<&str> = shapes.iter().map(|(name, ..)| *name).collect();
                match table.get(*tag).map(|value| (value, value.get_ref())) {
                    Some((at, DeValue::String(text))) => match shapes.iter().find(|(name, ..)| *name == text) {
                        Some((_, _, shape)) => self.table(key, table, &span, shape, Some(tag)),
                        None => drop(self.report.unknown(at.span(), tag, text, &names)),
                    },
                    Some((at, _)) => {
                        self.report.add(at.span(), format!("`{tag}` is not a string")).expected(one_of(names));
                    }
                    None => {
                        self.report.add(span, format!("missing key `{tag}`{}", inside(key))).expected(kind.to_string());
                    }
                }
            }
            _ => self.wrong_type(key, value, kind),
        }
    }

    fn word(&mut self, span: Span, text: &str, what: &str, choices: Vec<Choice>, hint: fn(&str) -> Option<String>) {
        if choices.iter().any(|choice| choice.name == text || choice.aliases.contains(&text)) {
            return;
        }
        let names: Vec<&str> = choices.iter().map(|choice| choice.name).collect();
        // A slip in an alias leads to the word itself.
        let alias = nearest(text, choices.iter().flat_map(|choice| choice.aliases.iter().copied()));
        let near = choices.iter().find(|choice| alias.is_some_and(|alias| choice.aliases.contains(&alias)));
        let diagnostic = self.report.unknown(span, what, text, &names);
        if diagnostic.hint.is_none() {
            diagnostic.hint_if(near.map(|choice| format!("did you mean `{}`?", choice.name)));
        }
        diagnostic.hint_if(hint(text));
    }

    fn number(&mut self, key: &str, value: &Spanned<DeValue>, kind: &Kind, interval: &Interval) {
        if !number(value.get_ref()).is_some_and(|found| found.is_finite() && interval.contains(found)) {
            self.out_of_range(key, value, kind);
        }
    }

    fn distinct<'v>(&mut self, key: &str, items: impl Iterator<Item = &'v Spanned<DeValue<'v>>>, of: &Kind) {
        let mut seen: HashMap<String, String> = HashMap::new();
        for item in items {
            let Some((meaning, written)) = meaning(item.get_ref(), of) else { continue };
            match seen.get(&meaning) {
                Some(first) => {
                    let same = (*first != written).then(|| format!("{} and {} mean the same", quoted(first), quoted(&written)));
                    self.report
                        .add(item.span(), format!("{} stands twice in `{}`", quoted(&written), last(key)))
                        .expected("each value once")
                        .hint_if(same);
                }
                None => drop(seen.insert(meaning, written)),
            }
        }
    }

    fn out_of_range(&mut self, key: &str, value: &Spanned<DeValue>, kind: &Kind) {
        let written = self.written(value);
        self.report.add(value.span(), format!("`{}` cannot be {}", last(key), quoted(&written))).expected(kind.to_string());
    }

    fn wrong_type(&mut self, key: &str, value: &Spanned<DeValue>, kind: &Kind) {
        let found = value.get_ref();
        let number =
            matches!(kind, Kind::Whole { .. } | Kind::Number(_) | Kind::List { of: Kind::Whole { .. } | Kind::Number(_), .. });
        let hint = match found {
            DeValue::String(text) if number && text.parse::<f64>().is_ok() => Some(format!("remove the quotes: `{text}`")),
            DeValue::Array(items) if items.len() == 1 && matches!(kind, Kind::Table(_)) => {
                Some(format!("write `[{key}]` with single brackets"))
            }
            DeValue::Integer(_) | DeValue::Float(_) | DeValue::Boolean(_)
                if matches!(kind, Kind::Text { .. } | Kind::Word { .. }) =>
            {
                Some(format!("put it in quotes: `\"{}\"`", self.written(value)))
            }
            _ => None,
        };
        let name = match found {
            DeValue::Array(_) => "a list",
            DeValue::Integer(_) => "an integer",
            DeValue::Boolean(_) => "a boolean",
            DeValue::Datetime(_) => "a date",
            DeValue::String(_) => "a string",
            DeValue::Float(_) => "a float",
            DeValue::Table(_) => "a table",
        };
        self.report.add(value.span(), format!("`{}` cannot be {name}", last(key))).expected(kind.to_string()).hint_if(hint);
    }

    /// A value as it stands in the file.
    fn written(&self, value: &Spanned<DeValue>) -> String {
        self.report.source().text.get(value.span()).unwrap_or_default().to_string()
    }
}

/// Whether a value's TOML type is one that `kind` judges itself.
fn takes(kind: &Kind, found: &DeValue) -> bool {
    match kind {
        Kind::Text { .. } | Kind::Word { .. } | Kind::Form { .. } => found.is_str(),
        Kind::Whole { .. } => found.is_integer(),
        Kind::Number(_) => found.is_integer() || found.is_float(),
        Kind::Flag => found.is_bool(),
        Kind::List { of, bare, .. } => found.is_array() || (*bare && takes(of, found)),
        Kind::Table(_) | Kind::Tagged { .. } => found.is_table(),
        Kind::Either(kinds) => kinds.iter().any(|kind| takes(kind, found)),
    }
}

/// An integer that fits; `None` for a negative or a huge one.
pub(super) fn whole(value: &DeValue) -> Option<u64> {
    let integer = value.as_integer()?;
    u64::from_str_radix(integer.as_str(), integer.radix()).ok()
}

/// An integer or float; `None` for one that no f64 holds.
pub(super) fn number(value: &DeValue) -> Option<f64> {
    match value {
        DeValue::Integer(integer) => i128::from_str_radix(integer.as_str(), integer.radix()).ok().map(|found| found as f64),
        DeValue::Float(float) => float.as_str().parse().ok(),
        _ => None,
    }
}

/// One spelling for all values that mean the same, and the value as a person would call it.
fn meaning(value: &DeValue, kind: &Kind) -> Option<(String, String)> {
    match (kind, value) {
        (Kind::Word { choices, .. }, DeValue::String(text)) => {
            let choice = choices().into_iter().find(|choice| choice.name == text || choice.aliases.contains(&text.as_ref()))?;
            Some((choice.name.to_string(), text.to_string()))
        }
        (Kind::Form { canonical, .. }, DeValue::String(text)) => Some((canonical(text)?, text.to_string())),
        (_, DeValue::String(text)) => Some((text.to_string(), text.to_string())),
        (_, DeValue::Integer(_) | DeValue::Float(_)) => number(value).map(|found| (found.to_string(), found.to_string())),
        _ => None,
    }
}

/// The keys of a table, its tag first.
fn names<'n>(shape: &'static Shape, tag: Option<&'n str>) -> impl Iterator<Item = &'n str> {
    tag.into_iter().chain(shape.fields.iter().map(|field| field.name))
}

/// The dotted paths, as they are written, of the tables that have a key `word`; an empty one is the top of the file.
fn homes_of(shape: &'static Shape, name: &str, word: &str) -> Vec<String> {
    let mut homes = Vec::new();
    for field in shape.fields {
        if field.name == word {
            homes.push(if name.is_empty() { String::new() } else { format!("`[{name}]`") });
        }
        for inner in shapes_in(&field.kind) {
            homes.extend(homes_of(inner, &join(name, field.name), word));
        }
    }
    homes.dedup();
    homes
}

/// The shapes of tables without a tag that a kind may hold.
fn shapes_in(kind: &'static Kind) -> Vec<&'static Shape> {
    match kind {
        Kind::Table(shape) => vec![shape],
        Kind::List { of, .. } => shapes_in(of),
        _ => Vec::new(),
    }
}

fn join(table: &str, key: &str) -> String {
    if table.is_empty() { key.to_string() } else { format!("{table}.{key}") }
}

fn last(key: &str) -> &str {
    key.rsplit('.').next().unwrap_or(key)
}

fn inside(table: &str) -> String {
    if table.is_empty() { String::new() } else { format!(" in `[{table}]`") }
}
