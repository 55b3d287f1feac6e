//! A small transformer encoder for texts (Vaswani et al. 2017), its norms before each part (Xiong et al. 2020).
//!
//! Filled-up places are words like any other: the model learns to look past them, and their share of the mean tells it a text's length.

use super::{Size, linear};
use crate::{
    graph::{Binary, Graph, GraphError, Op, Unary, ValueId},
    vocab::DType,
};

const WIDTH: usize = 64;
const HEADS: usize = 4;
const HIDDEN: usize = 128;
const BLOCKS: usize = 2;
const EPSILON: f64 = 1e-5;

/// Fans by which the initialisers draw the tables, which sum over nothing: words about 0.1 large, places about 0.02, so that a word
/// counts for more than where it stands until training says otherwise.
const WORD_FAN: usize = 200;
const PLACE_FAN: usize = 5000;

/// `x` i32 `[B, T]`.
pub fn build(size: &Size) -> Result<Graph, GraphError> {
    let (length, vocabulary) = size.tokens()?;
    let mut g = Graph::new();
    let x = g.input("x", &[size.batch, length], DType::I32);
    let table = g.weight("embedding.weight", &[vocabulary, WIDTH], WORD_FAN, WORD_FAN);
    let words = g.apply(Op::Embedding, &[table, x])?;
    let places = g.weight("positions.weight", &[length, WIDTH], PLACE_FAN, PLACE_FAN);
    let places = g.apply(Op::RepeatFirst { rows: size.batch }, &[places])?;
    let mut y = add(&mut g, words, places)?;
    for k in 1..=BLOCKS {
        let normed = norm(&mut g, &format!("block{k}.norm1"), y)?;
        let attended = attention(&mut g, &format!("block{k}.attention"), normed, [size.batch, length])?;
        y = add(&mut g, y, attended)?;
        let normed = norm(&mut g, &format!("block{k}.norm2"), y)?;
        let hidden = linear(&mut g, &format!("block{k}.fc1"), normed, WIDTH, HIDDEN)?;
        let hidden = g.apply(Op::Unary(Unary::Gelu), &[hidden])?;
        let back = linear(&mut g, &format!("block{k}.fc2"), hidden, HIDDEN, WIDTH)?;
        y = add(&mut g, y, back)?;
    }
    let y = norm(&mut g, "norm", y)?;
    let y = g.apply(Op::Mean { axis: 1 }, &[y])?;
    let logits = linear(&mut g, "classes", y, WIDTH, size.classes)?;
    g.mark_output("logits", logits);
    Ok(g)
}

fn add(g: &mut Graph, a: ValueId, b: ValueId) -> Result<ValueId, GraphError> {
    g.apply(Op::Binary(Binary::Add), &[a, b])
}

fn norm(g: &mut Graph, name: &str, x: ValueId) -> Result<ValueId, GraphError> {
    let gain = g.bias(&format!("{name}.gain"), WIDTH, WIDTH);
    let bias = g.bias(&format!("{name}.bias"), WIDTH, WIDTH);
    Ok(g.apply_all(Op::LayerNorm { epsilon: EPSILON }, &[x, gain, bias])?[0])
}

/// `softmax(q k^T / sqrt(d)) v` in each head, every word to every word of its text.
fn attention(g: &mut Graph, name: &str, x: ValueId, [batch, length]: [usize; 2]) -> Result<ValueId, GraphError> {
    let depth = WIDTH / HEADS;
    let mut project = |part: &str| -> Result<ValueId, GraphError> {
        let y = linear(g, &format!("{name}.{part}"), x, WIDTH, WIDTH)?;
        let y = g.apply(Op::Reshape { shape: vec![batch, length, HEADS, depth] }, &[y])?;
        g.apply(Op::Permute { axes: vec![0, 2, 1, 3] }, &[y])
    };
    let [q, k, v] = [project("query")?, project("key")?, project("value")?];
    let scores = g.apply(Op::MatMul { transpose_a: false, transpose_b: true }, &[q, k])?;
    let scores = g.apply(Op::Scale { factor: 1.0 / (depth as f64).sqrt() }, &[scores])?;
    let shares = g.apply(Op::Softmax, &[scores])?;
    let y = g.apply(Op::MatMul { transpose_a: false, transpose_b: false }, &[shares, v])?;
    let y = g.apply(Op::Permute { axes: vec![0, 2, 1, 3] }, &[y])?;
    let y = g.apply(Op::Reshape { shape: vec![batch, length, WIDTH] }, &[y])?;
    linear(g, &format!("{name}.out"), y, WIDTH, WIDTH)
}
