//! The two 8-bit floating-point formats of the Open Compute Project (OFP8, revision 1.0; Micikevicius et al. 2022), bit for bit: what a number
//! becomes in them, and the power of two by which a tensor is scaled to fit.

use super::{Vocabulary, Word};
use serde::{Deserialize, Serialize};

/// Bits of exponent and fraction behind the sign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Fp8Format {
    E4m3,
    E5m2,
}

impl Vocabulary for Fp8Format {
    const KIND: &'static str = "8-bit float format";
    const WORDS: &'static [Word<Self>] = &[
        Word {
            value: Fp8Format::E4m3,
            name: "e4m3",
            aliases: &[],
            about: "4 exponent bits, 3 fraction bits, no infinities; up to 448",
        },
        Word { value: Fp8Format::E5m2, name: "e5m2", aliases: &[], about: "5 exponent bits, 2 fraction bits; up to 57344" },
    ];
}

/// Exponents of the powers of two by which tensors are scaled: far inside of those of fp32 and bf16, which hold the scaled numbers.
const MOST_EXPONENT: i32 = 100;

impl Fp8Format {
    /// Bits of the fraction.
    const fn fraction(self) -> u32 {
        match self {
            Fp8Format::E4m3 => 3,
            Fp8Format::E5m2 => 2,
        }
    }

    /// Exponent of the smallest normal number.
    const fn least_exponent(self) -> i32 {
        match self {
            Fp8Format::E4m3 => -6,
            Fp8Format::E5m2 => -14,
        }
    }

    /// The largest finite number.
    pub const fn largest(self) -> f32 {
        match self {
            Fp8Format::E4m3 => 448.0,
            Fp8Format::E5m2 => 57_344.0,
        }
    }

    /// The nearest number of the format, ties to the even fraction, subnormal numbers kept; beyond the largest, and infinite: the largest.
    /// NaN stays.
    #[inline(always)]
    pub fn round(self, x: f32) -> f32 {
        let magnitude = x.to_bits() & 0x7fff_ffff;
        let largest = self.largest().to_bits();
        // Adding 2^23 ulps of the format makes f32 round there; subnormal numbers share the ulp of the smallest normal one.
        let exponent = (magnitude & 0x7f80_0000).max(((self.least_exponent() + 127) as u32) << 23).min(largest);
        let magic = f32::from_bits((exponent & 0x7f80_0000) + ((23 - self.fraction()) << 23));
        let rounded = ((f32::from_bits(magnitude) + magic) - magic).to_bits();
        let made = if magnitude >= largest { largest } else { rounded };
        if magnitude > 0x7f80_0000 { x } else { f32::from_bits(made | x.to_bits() & 0x8000_0000) }
    }

    /// The code of the nearest number. NaN has one code here, the one with all bits set but the sign.
    pub fn encode(self, x: f32) -> u8 {
        let rounded = self.round(x);
        let sign = (rounded.to_bits() >> 24) as u8 & 0x80;
        if rounded.is_nan() {
            return 0x7f | sign;
        }
        let (fraction, least) = (self.fraction(), self.least_exponent());
        let magnitude = rounded.abs();
        let exponent = ((magnitude.to_bits() >> 23) as i32 - 127).max(least);
        // In ulps: below 2^fraction it is subnormal. Exact, as both are powers of two apart.
        let ulps = (magnitude * 2f32.powi(fraction as i32 - exponent)) as u32;
        let field = if ulps < 1 << fraction { 0 } else { (exponent - least + 1) as u32 };
        sign | (field << fraction) as u8 | (ulps & ((1 << fraction) - 1)) as u8
    }

    /// The number of a code.
    pub fn decode(self, code: u8) -> f32 {
        let fraction = self.fraction();
        let (field, ulps) = (u32::from(code & 0x7f) >> fraction, u32::from(code) & ((1 << fraction) - 1));
        let magnitude = match (self, field, ulps) {
            (Fp8Format::E4m3, 15, 7) => f32::NAN,
            (Fp8Format::E5m2, 31, 0) => f32::INFINITY,
            (Fp8Format::E5m2, 31, _) => f32::NAN,
            (_, 0, _) => ulps as f32 * 2f32.powi(self.least_exponent() - fraction as i32),
            _ => (ulps + (1 << fraction)) as f32 * 2f32.powi(self.least_exponent() + field as i32 - 1 - fraction as i32),
        };
        if code & 0x80 == 0 { magnitude } else { -magnitude }
    }

    /// The largest power of two by which numbers up to `most` can be multiplied, with `margin` doublings left below the largest number of
    /// the format. `None` for a `most` of which nothing follows: zero, infinite or not a number.
    pub fn scale(self, most: f32, margin: u32) -> Option<f32> {
        if !(most > 0.0 && most.is_finite()) {
            return None;
        }
        let exponent = ((self.largest() / most).to_bits() >> 23) as i32 - 127 - margin as i32;
        Some(f32::from_bits(((exponent.clamp(-MOST_EXPONENT, MOST_EXPONENT) + 127) as u32) << 23))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FORMATS: [Fp8Format; 2] = [Fp8Format::E4m3, Fp8Format::E5m2];

    /// The positive finite numbers in order, from the standard's formula: (-1)^s 2^(e - bias) (1 + m / 2^f), and 2^(1 - bias) m / 2^f for
    /// an exponent of 0; the bias is 7 or 15. Each with its code.
    fn numbers(format: Fp8Format) -> Vec<(u8, f64)> {
        let (bits, bias, codes) = if format == Fp8Format::E4m3 { (3, 7, 0x7f) } else { (2, 15, 0x7c) };
        let number = |code: i32| {
            let (exponent, fraction) = (code >> bits, f64::from(code & ((1 << bits) - 1)) / f64::from(1 << bits));
            if exponent == 0 { 2f64.powi(1 - bias) * fraction } else { 2f64.powi(exponent - bias) * (1.0 + fraction) }
        };
        (0..codes).map(|code| (code as u8, number(code))).collect()
    }

    #[test]
    fn all_256_codes_are_those_of_the_standard() {
        for format in FORMATS {
            let table = numbers(format);
            assert_eq!(table.last().unwrap().1, f64::from(format.largest()));
            for (code, number) in &table {
                for (code, number) in [(*code, *number as f32), (*code | 0x80, -(*number as f32))] {
                    assert_eq!(format.decode(code).to_bits(), number.to_bits(), "{format:?} {code:#x}");
                    assert_eq!(format.encode(number), code, "{format:?} {number}");
                    assert_eq!(format.round(number).to_bits(), number.to_bits());
                }
            }
            let special = (0..=255u8).filter(|code| table.iter().all(|(finite, _)| finite != &(code & 0x7f)));
            let special: Vec<(u8, f32)> = special.map(|code| (code, format.decode(code))).collect();
            match format {
                Fp8Format::E4m3 => assert!(special.len() == 2 && special.iter().all(|(_, x)| x.is_nan()), "{special:?}"),
                Fp8Format::E5m2 => {
                    assert_eq!(special.len(), 8);
                    for (code, x) in special {
                        let infinite = if code & 0x80 == 0 { f32::INFINITY } else { f32::NEG_INFINITY };
                        assert!(if code & 3 == 0 { x == infinite } else { x.is_nan() }, "{code:#x} {x}");
                    }
                }
            }
        }
        assert_eq!([Fp8Format::E4m3.decode(0x7e), Fp8Format::E4m3.decode(1)], [448.0, 2f32.powi(-9)]);
        assert_eq!([Fp8Format::E5m2.decode(0x7b), Fp8Format::E5m2.decode(1)], [57_344.0, 2f32.powi(-16)]);
    }

    /// Nearest of the table by search; of two equally near the one of the even code; saturating.
    fn nearest(table: &[(u8, f64)], x: f64) -> f64 {
        let x_abs = x.abs();
        let at = table.partition_point(|(_, number)| *number < x_abs);
        let found = match (at.checked_sub(1).map(|k| table[k]), table.get(at)) {
            (_, None) => table[table.len() - 1].1,
            (None, Some((_, number))) => *number,
            (Some((code, below)), Some((_, above))) => {
                let (down, up) = (x_abs - below, above - x_abs);
                if down < up || (down == up && code % 2 == 0) { below } else { *above }
            }
        };
        found.copysign(x)
    }

    #[test]
    fn every_fp16_number_and_its_neighbours_are_rounded_to_the_nearest_even() {
        for format in FORMATS {
            let table = numbers(format);
            for bits in 0..=u16::MAX {
                let half = half::f16::from_bits(bits).to_f32();
                // Also a last place of f32 beside it, where ties are decided.
                for x in [half, f32::from_bits(half.to_bits().wrapping_add(1)), f32::from_bits(half.to_bits().wrapping_sub(1))] {
                    let got = format.round(x);
                    if x.is_nan() {
                        assert!(got.is_nan());
                    } else {
                        assert_eq!(f64::from(got), nearest(&table, f64::from(x)), "{format:?} {x:e}");
                        assert_eq!(got.is_sign_negative(), x.is_sign_negative());
                        // bf16 holds it exactly, and so does it times a power of two.
                        assert_eq!(half::bf16::from_f32(got).to_f32(), got);
                    }
                }
            }
            for (x, wanted) in
                [(1e30, format.largest()), (f32::NEG_INFINITY, -format.largest()), (f32::MIN_POSITIVE, 0.0), (1e-40, 0.0)]
            {
                assert_eq!(format.round(x), wanted);
            }
        }
    }

    #[test]
    fn a_scale_is_the_largest_power_of_two_that_fits() {
        for format in FORMATS {
            for most in [1e-20f32, 3e-5, 0.9999, 1.0, 1.75, 448.0, 449.0, 57_344.0, 1e20] {
                for margin in [0, 1] {
                    let scale = format.scale(most, margin).unwrap();
                    let room = format.largest() / (most * scale * 2f32.powi(margin as i32));
                    assert!((1.0..2.0).contains(&room) && scale.to_bits() & 0x007f_ffff == 0, "{format:?} {most} {scale}");
                }
            }
            for nothing in [0.0, f32::NAN, f32::INFINITY, -1.0] {
                assert_eq!(format.scale(nothing, 0), None);
            }
            assert_eq!(format.scale(1e-38, 0), Some(2f32.powi(100)));
        }
    }
}
