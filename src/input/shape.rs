//! What a file may contain: tables of keys that the checker, the messages and the JSON Schema all read.

use std::fmt;

/// The keys of a table.
pub struct Shape {
    pub fields: &'static [Field],
    /// Keys of which only one may be given.
    pub exclusive: &'static [Exclusive],
}

/// One key.
pub struct Field {
    pub name: &'static str,
    /// One sentence for the schema, without a full stop.
    pub about: &'static str,
    pub kind: Kind,
    pub need: Need,
}

/// Whether a key must be there.
pub enum Need {
    /// With a line of TOML that a hint can propose.
    Required { example: &'static str },
    /// With what holds when it is left out, in words or TOML; empty when there is nothing to say.
    Optional { default: &'static str },
}

/// Keys that shut each other out.
pub struct Exclusive {
    pub keys: &'static [&'static str],
    /// True when one of them must be given.
    pub required: bool,
}

/// What a key may hold.
pub enum Kind {
    /// A string for which `fits` holds; `pattern` says the same as a regular expression, `says` in words.
    Text {
        fits: fn(&str) -> bool,
        pattern: &'static str,
        says: &'static str,
    },
    /// An integer from `low` to `high`.
    Whole {
        low: u64,
        high: u64,
    },
    /// A finite float or integer.
    Number(Interval),
    /// `true` or `false`.
    Flag,
    /// A word of a family; `what` names the family. `hint` may know better than the nearest name.
    Word {
        what: &'static str,
        choices: fn() -> Vec<Choice>,
        hint: fn(&str) -> Option<String>,
    },
    /// A word that may carry a number. `forms` pairs an example (`magnitude:0.8`) with its meaning; `canonical` is the one spelling.
    Form {
        what: &'static str,
        forms: &'static [(&'static str, &'static str)],
        canonical: fn(&str) -> Option<String>,
    },
    /// A list of `least` to `most` values. `bare`: one value may stand without brackets. `distinct`: no value twice.
    List {
        of: &'static Kind,
        least: usize,
        most: usize,
        bare: bool,
        distinct: bool,
    },
    Table(&'static Shape),
    /// A table whose key `tag` says which shape the other keys have: name, meaning, shape (without the tag).
    Tagged {
        tag: &'static str,
        shapes: &'static [(&'static str, &'static str, &'static Shape)],
    },
    /// The first kind that takes a value of the found type.
    Either(&'static [Kind]),
}

/// One word that a key may hold.
pub struct Choice {
    pub name: &'static str,
    pub aliases: &'static [&'static str],
    pub about: &'static str,
}

/// A range of numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Interval {
    pub low: f64,
    /// True when `low` itself is outside.
    pub above: bool,
    /// Infinite where only `low` binds.
    pub high: f64,
    /// True when `high` itself is outside.
    pub below: bool,
}

impl Interval {
    pub const fn from(low: f64, high: f64) -> Interval {
        Interval { low, above: false, high, below: false }
    }

    pub const fn above(low: f64, high: f64) -> Interval {
        Interval { low, above: true, high, below: false }
    }

    pub const fn between(low: f64, high: f64) -> Interval {
        Interval { low, above: true, high, below: true }
    }

    pub fn contains(&self, value: f64) -> bool {
        let low = if self.above { value > self.low } else { value >= self.low };
        let high = if self.below { value < self.high } else { value <= self.high };
        low && high
    }
}

impl fmt::Display for Interval {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.above, self.below) {
            (false, _) if self.high == f64::INFINITY => write!(f, "a number from {}", self.low),
            (true, _) if self.high == f64::INFINITY => write!(f, "a number above {}", self.low),
            (false, false) => write!(f, "a number from {} to {}", self.low, self.high),
            (true, false) => write!(f, "a number above {}, at most {}", self.low, self.high),
            (false, true) => write!(f, "a number from {}, below {}", self.low, self.high),
            (true, true) => write!(f, "a number above {} and below {}", self.low, self.high),
        }
    }
}

impl Kind {
    /// Any text that is not empty.
    pub const TEXT: Kind = Kind::Text { fits: |text| !text.trim().is_empty(), pattern: r"\S", says: "a text in quotes" };
}

/// What is expected where this kind stands: fits after "expected".
impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Kind::Text { says, .. } => f.write_str(says),
            Kind::Whole { low, high } if *high == i64::MAX as u64 => write!(f, "a whole number from {low}"),
            Kind::Whole { low, high } => write!(f, "a whole number from {low} to {high}"),
            Kind::Number(interval) => interval.fmt(f),
            Kind::Flag => f.write_str("`true` or `false`"),
            Kind::Word { choices, .. } => f.write_str(&one_of(choices().iter().map(|choice| choice.name))),
            Kind::Form { forms, .. } => f.write_str(&one_of(forms.iter().map(|(form, _)| *form))),
            Kind::List { of, bare: true, .. } => write!(f, "{of}, or a list of such"),
            Kind::List { of, least, most, .. } if least == most => write!(f, "a list of {least}, each {of}"),
            Kind::List { of, .. } => write!(f, "a list, each {of}"),
            Kind::Table(shape) => write!(f, "a table with {}", listed(shape.fields.iter().map(|field| field.name))),
            Kind::Tagged { tag, shapes } => {
                let words: Vec<String> = shapes.iter().map(|(name, ..)| format!("`{tag} = \"{name}\"`")).collect();
                write!(f, "a table with {}", words.join(" or "))
            }
            Kind::Either(kinds) => {
                let words: Vec<String> = kinds.iter().map(Kind::to_string).collect();
                f.write_str(&words.join(", or "))
            }
        }
    }
}

/// "`a`, `b`".
pub(super) fn listed<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    names.into_iter().map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ")
}

/// "one of `a`, `b`", or "`a`" alone.
pub(super) fn one_of<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names: Vec<&str> = names.into_iter().collect();
    if names.len() == 1 { format!("`{}`", names[0]) } else { format!("one of {}", listed(names)) }
}
