//! What a row of a data set is.

/// Kinds of rows, by which models and data sets find together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowKind {
    Image,
    Text,
}

impl RowKind {
    /// In a sentence: "reads images".
    pub const fn plural(self) -> &'static str {
        match self {
            RowKind::Image => "images",
            RowKind::Text => "text",
        }
    }
}

/// One row as a model reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowShape {
    /// `[height, width, channels]` of pixels, f32 from 0 to 1.
    Image([usize; 3]),
    /// `length` numbers of words (i32), each below `vocabulary`; shorter texts are filled up with 0.
    Tokens { length: usize, vocabulary: usize },
}

impl RowShape {
    pub const fn kind(&self) -> RowKind {
        match self {
            RowShape::Image(_) => RowKind::Image,
            RowShape::Tokens { .. } => RowKind::Text,
        }
    }

    /// Numbers in a row.
    pub fn elements(&self) -> usize {
        match self {
            RowShape::Image(shape) => shape.iter().product(),
            RowShape::Tokens { length, .. } => *length,
        }
    }
}
