//! Dynamic loss scaling for fp16 (Micikevicius et al. 2018): gradients are multiplied so that small ones survive 11 bits; after an
//! overflow the step is skipped and the factor halved, after a run of good steps doubled.

/// The factor now, and how it came to it.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct LossScale {
    scale: f32,
    good_steps: u32,
    skipped: u64,
}

/// 2^15: PyTorch starts at 2^16; half of it saves the first skipped step on the models here.
const START: f32 = 32_768.0;
const LARGEST: f32 = 16_777_216.0;
/// Good steps before the factor doubles. Runs here are some hundred steps long, a tenth of what PyTorch's 2,000 assume.
const PATIENCE: u32 = 200;

impl Default for LossScale {
    fn default() -> Self {
        LossScale { scale: START, good_steps: 0, skipped: 0 }
    }
}

impl LossScale {
    pub fn factor(&self) -> f32 {
        self.scale
    }

    /// Steps that were skipped so far.
    pub fn skipped(&self) -> u64 {
        self.skipped
    }

    /// Takes the outcome of a step; false when the factor has sunk below 1, where scaling cannot be what is wrong.
    pub fn observe(&mut self, finite: bool) -> bool {
        if !finite {
            self.skipped += 1;
            self.good_steps = 0;
            self.scale /= 2.0;
            return self.scale >= 1.0;
        }
        self.good_steps += 1;
        if self.good_steps == PATIENCE {
            self.good_steps = 0;
            self.scale = (self.scale * 2.0).min(LARGEST);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overflow_halves_and_patience_doubles() {
        let mut scale = LossScale::default();
        assert!(scale.observe(false));
        assert_eq!((scale.factor(), scale.skipped()), (START / 2.0, 1));
        (0..PATIENCE).for_each(|_| assert!(scale.observe(true)));
        assert_eq!(scale.factor(), START);
        assert!(!(0..100).all(|_| scale.observe(false)), "endless overflow must end");
    }
}
