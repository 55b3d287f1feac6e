//! One way to read a TOML file into types, with every mistake of the file told at once.
//!
//! A file's shape is a `Shape`: a table of keys with what each may hold. `parse` holds the file against it, hands a `Table` view to the
//! code that builds the type, and returns either that value or all `Diagnostic`s. `schema` prints the same tables as JSON Schema.
//! What a value means beyond its shape (does this model exist?) is the builder's to judge, with `Report`. Nothing here prints.

mod check;
mod diagnostic;
mod nearest;
mod reader;
mod report;
mod schema;
mod shape;
mod source;

pub use diagnostic::{Diagnostic, Place, render};
pub use nearest::nearest;
pub use reader::{Table, parse};
pub use report::Report;
pub use schema::schema;
pub use shape::{Choice, Exclusive, Field, Interval, Kind, Need, Shape};
pub use source::{Source, Span};
