//! A small model and rows of three patterns for it, so that emulated devices are done with it soon.
#![allow(dead_code)]

use advisor::{
    data::{DataSet, Inputs, Part},
    graph::{Graph, GraphError, Op, Unary},
    models::{Model, Size},
    vocab::{DType, RowKind, RowShape},
};
use std::sync::Arc;

pub const MODEL: Model = Model { name: "small", about: "16 hidden units, ReLU, classes", reads: RowKind::Image, build: small };

/// One hidden layer. On their way from the loss the gradients are 64 times what they end as: fp16 does not hold that at the first scale.
fn small(size: &Size) -> Result<Graph, GraphError> {
    let mut g = Graph::new();
    let x = g.input("x", &[size.batch, 3, 4, 1], DType::F32);
    let mut y = g.apply(Op::Reshape { shape: vec![size.batch, 12] }, &[x])?;
    for (name, from, to) in [("fc1", 12, 16), ("fc2", 16, size.classes)] {
        let (w, b) = (g.weight(&format!("{name}.weight"), &[from, to], from, to), g.bias(&format!("{name}.bias"), to, from));
        y = g.apply(Op::MatMul { transpose_a: false, transpose_b: false }, &[y, w])?;
        y = g.apply(Op::AddBias, &[y, b])?;
        if name == "fc1" {
            y = g.apply(Op::Unary(Unary::Relu), &[y])?;
        }
    }
    for factor in [1.0 / 64.0, 64.0] {
        y = g.apply(Op::Scale { factor }, &[y])?;
    }
    g.mark_output("logits", y);
    Ok(g)
}

/// A pixel of a row, 0 to 9.
fn level(row: usize, k: usize) -> usize {
    if k % 3 == row % 3 { 6 + (row * 7 + k) % 4 } else { (row * 5 + k * 3) % 4 }
}

/// So many rows as a CSV file with a column `label`.
pub fn csv(rows: usize) -> String {
    let mut text = "a,b,c,d,e,f,g,h,i,j,k,l,label\n".to_string();
    for row in 0..rows {
        let pixels: Vec<String> = (0..12).map(|k| level(row, k).to_string()).collect();
        text += &format!("{},class{}\n", pixels.join(","), row % 3);
    }
    text
}

/// So many rows to train on.
pub fn rows(train: usize, test: usize) -> Arc<DataSet> {
    let part = |rows: usize| {
        let pixel = |at: usize| level(at / 12, at % 12) as f32 / 9.0;
        Part {
            inputs: Inputs::Images((0..12 * rows).map(pixel).collect()),
            labels: (0..rows).map(|row| (row % 3) as u32).collect(),
        }
    };
    Arc::new(DataSet {
        name: "patterns".into(),
        row: RowShape::Image([3, 4, 1]),
        classes: ["a", "b", "c"].map(String::from).to_vec(),
        train: part(train),
        test: part(test),
        content_hash: String::new(),
    })
}
