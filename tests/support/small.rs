//! A scenario of seconds, and what the program says of it.

/// Bytes that a program printed.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A perceptron on the 8x8 digits, trained and answering.
pub const SMALL: &str = r#"
name = "small"
[workload]
model = "mlp"
data = "digits-8x8"
phase = ["train", "infer"]
[train]
epochs = 2
batch_size = 32
[grid]
precision = ["fp32", "bf16"]
compression = ["none", "int8", "magnitude:0.5"]
batch_size = [32]
threads = [1]
"#;
