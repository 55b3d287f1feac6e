//! Rows of a part into a session's input, without a copy where the session's memory is the host's.

use super::TrainError;
use crate::{
    backend::Session,
    data::{Augmenter, Inputs, Part, gather, gather_tokens},
    graph::ValueId,
};

/// Writes `rows` of `part` into `x`, images changed as an augmenter, seed and epoch say.
pub(super) fn feed(
    session: &mut dyn Session,
    x: ValueId,
    part: &Part,
    rows: &[u32],
    augment: Option<(&Augmenter, u64, u64)>,
) -> Result<(), TrainError> {
    let elements = session.program().value(x).elements() / rows.len().max(1);
    match &part.inputs {
        Inputs::Images(images) => match session.host_f32(x) {
            Some(batch) => gather(images, elements, rows, augment, batch),
            None => {
                let mut batch = vec![0.0; rows.len() * elements];
                gather(images, elements, rows, augment, &mut batch);
                session.upload_f32(x, &batch)?;
            }
        },
        Inputs::Tokens(tokens) => match session.host_i32(x) {
            Some(batch) => gather_tokens(tokens, elements, rows, batch),
            None => {
                let mut batch = vec![0; rows.len() * elements];
                gather_tokens(tokens, elements, rows, &mut batch);
                session.upload_i32(x, &batch)?;
            }
        },
    }
    Ok(())
}

/// The classes of `rows`.
pub(super) fn take_labels(part: &Part, rows: &[u32], labels: &mut [i32]) {
    labels.iter_mut().zip(rows).for_each(|(label, row)| *label = part.labels[*row as usize] as i32);
}
