//! Rows of a part into a session's inputs, without a copy where the session's memory is the host's.

use super::TrainError;
use crate::{
    backend::Session,
    data::{Inputs, Part, gather, gather_tokens},
    graph::ValueId,
};

/// Writes `rows` of `part` into `x`.
pub(super) fn feed(session: &mut dyn Session, x: ValueId, part: &Part, rows: &[u32]) -> Result<(), TrainError> {
    let elements = session.program().value(x).elements() / rows.len().max(1);
    match &part.inputs {
        Inputs::Images(images) => feed_f32(session, x, |batch| gather(images, elements, rows, batch)),
        Inputs::Tokens(tokens) => match session.host_i32(x) {
            Some(batch) => {
                gather_tokens(tokens, elements, rows, batch);
                Ok(())
            }
            None => {
                let mut batch = vec![0; rows.len() * elements];
                gather_tokens(tokens, elements, rows, &mut batch);
                Ok(session.upload_i32(x, &batch)?)
            }
        },
    }
}

/// Writes what `fill` makes into an fp32 input.
pub(super) fn feed_f32(session: &mut dyn Session, id: ValueId, fill: impl FnOnce(&mut [f32])) -> Result<(), TrainError> {
    match session.host_f32(id) {
        Some(places) => fill(places),
        None => {
            let mut numbers = vec![0.0; session.program().value(id).elements()];
            fill(&mut numbers);
            session.upload_f32(id, &numbers)?;
        }
    }
    Ok(())
}

/// The classes of `rows`.
pub(super) fn take_labels(part: &Part, rows: &[u32], labels: &mut [i32]) {
    labels.iter_mut().zip(rows).for_each(|(label, row)| *label = part.labels[*row as usize] as i32);
}
