//! Weights that a device keeps in another form than the program's, from when they are loaded: 8-bit codes, or two of four.

use super::{
    fp8,
    machine::Facts,
    two_four::{self, TwoFourWeight},
};
use crate::graph::{Program, ValueId};
use std::collections::HashMap;

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum KeptWeight {
    /// `[K, N]` numbers of e4m3, with their scale.
    Codes([usize; 2]),
    TwoFour(TwoFourWeight),
}

/// Those of a program: `codes` of 8 bits, and what sparse tensor cores read.
pub(super) fn kept_weights(
    program: &Program,
    facts: &Facts,
    codes: &HashMap<ValueId, [usize; 2]>,
) -> HashMap<ValueId, KeptWeight> {
    let two_four = two_four::weights(program, facts).into_iter().map(|(id, one)| (id, KeptWeight::TwoFour(one)));
    codes.iter().map(|(id, extents)| (*id, KeptWeight::Codes(*extents))).chain(two_four).collect()
}

impl KeptWeight {
    pub fn bytes(&self) -> usize {
        match self {
            KeptWeight::Codes(extents) => fp8::weight_bytes(*extents),
            KeptWeight::TwoFour(one) => one.bytes(),
        }
    }

    /// As the device reads it; `None` where it is none of what it was said to be.
    pub fn encode(&self, data: &[f32]) -> Option<Vec<u8>> {
        match self {
            KeptWeight::Codes(extents) => fp8::encode_weight(data, *extents),
            KeptWeight::TwoFour(one) => Some(one.encode(data)),
        }
    }

    pub fn decode(&self, bytes: &[u8]) -> Vec<f32> {
        match self {
            KeptWeight::Codes(extents) => fp8::decode_weight(bytes, *extents),
            KeptWeight::TwoFour(one) => one.decode(bytes),
        }
    }
}
