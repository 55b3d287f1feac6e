//! Physical and monetary quantities as types, so that a second can never be added to a byte.
//!
//! Inside the house values carry their unit in the type; at its doors (TOML, JSON, CSV) in the name (`latency_s`).
//! `Display` prints for people (three significant figures, SI or binary prefix); serde writes the bare number.

use serde::{Deserialize, Serialize};
use std::fmt;

/// A duration or a point on a monotonic clock, seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seconds(pub f64);

/// An amount of memory or traffic, bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

/// Floating-point (or integer) arithmetic operations; a multiply-add counts two.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Flops(pub u64);

/// An energy, joules.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Joules(pub f64);

/// A sum of money, US dollars.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Usd(pub f64);

/// A price of machine time, US dollars an hour.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UsdPerHour(pub f64);

/// A rate of useful units (images, tokens, rows), units a second.
#[derive(Clone, Copy, Debug, Default, PartialEq, PartialOrd, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PerSecond(pub f64);

impl Seconds {
    pub fn since(start: std::time::Instant) -> Self {
        Seconds(start.elapsed().as_secs_f64())
    }

    pub fn as_ms(self) -> f64 {
        self.0 * 1e3
    }
}

impl UsdPerHour {
    /// What `time` on a machine of this price costs.
    pub fn times(self, time: Seconds) -> Usd {
        Usd(self.0 * time.0 / 3600.0)
    }
}

impl std::ops::Add for Flops {
    type Output = Flops;
    fn add(self, other: Flops) -> Flops {
        Flops(self.0 + other.0)
    }
}

impl std::ops::Add for Bytes {
    type Output = Bytes;
    fn add(self, other: Bytes) -> Bytes {
        Bytes(self.0 + other.0)
    }
}

impl std::iter::Sum for Flops {
    fn sum<I: Iterator<Item = Flops>>(values: I) -> Flops {
        Flops(values.map(|v| v.0).sum())
    }
}

impl std::iter::Sum for Bytes {
    fn sum<I: Iterator<Item = Bytes>>(values: I) -> Bytes {
        Bytes(values.map(|v| v.0).sum())
    }
}

/// `value` with three significant figures: `0.00123`, `12.3`, `12,300`.
pub fn three_figures(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return format!("{value}");
    }
    let digits = value.abs().log10().floor() as i32;
    if digits >= 3 {
        let step = 10f64.powi(digits - 2);
        return with_commas((value / step).round() * step);
    }
    format!("{value:.*}", (2 - digits).max(0) as usize)
}

fn with_commas(value: f64) -> String {
    let text = format!("{:.0}", value.abs());
    let mut out = String::new();
    for (i, digit) in text.chars().enumerate() {
        if i > 0 && (text.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    if value < 0.0 { format!("-{out}") } else { out }
}

fn with_prefix(f: &mut fmt::Formatter<'_>, value: f64, steps: &[(f64, &str)]) -> fmt::Result {
    let (factor, unit) = steps.iter().find(|(factor, _)| value.abs() >= *factor).or(steps.last()).copied().unwrap_or((1.0, ""));
    f.pad(&format!("{} {unit}", three_figures(value / factor)))
}

impl fmt::Display for Seconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0 >= 120.0 {
            let whole = self.0.round() as u64;
            let text = if whole >= 3600 {
                format!("{} h {:02} min", whole / 3600, whole % 3600 / 60)
            } else {
                format!("{} min {:02} s", whole / 60, whole % 60)
            };
            return f.pad(&text);
        }
        if self.0 == 0.0 {
            return f.pad("0 s");
        }
        with_prefix(f, self.0, &[(1.0, "s"), (1e-3, "ms"), (1e-6, "µs"), (1e-9, "ns")])
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (k, m, g) = (1024.0, 1024.0 * 1024.0, 1024.0 * 1024.0 * 1024.0);
        with_prefix(f, self.0 as f64, &[(g, "GiB"), (m, "MiB"), (k, "KiB"), (1.0, "B")])
    }
}

impl fmt::Display for Flops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        with_prefix(f, self.0 as f64, &[(1e12, "TFLOP"), (1e9, "GFLOP"), (1e6, "MFLOP"), (1e3, "kFLOP"), (1.0, "FLOP")])
    }
}

impl fmt::Display for Joules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        with_prefix(f, self.0, &[(1e3, "kJ"), (1.0, "J"), (1e-3, "mJ"), (1e-6, "µJ")])
    }
}

impl fmt::Display for Usd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("${}", three_figures(self.0)))
    }
}

impl fmt::Display for UsdPerHour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("${}/h", three_figures(self.0)))
    }
}

impl fmt::Display for PerSecond {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/s", three_figures(self.0)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_print_for_people() {
        assert_eq!(Seconds(0.001234).to_string(), "1.23 ms");
        assert_eq!(Seconds(150.0).to_string(), "2 min 30 s");
        assert_eq!(Seconds(0.0).to_string(), "0 s");
        assert_eq!(Bytes(3 << 20).to_string(), "3.00 MiB");
        assert_eq!(Bytes(12).to_string(), "12.0 B");
        assert_eq!(Flops(5_700_000).to_string(), "5.70 MFLOP");
        assert_eq!(PerSecond(12345.0).to_string(), "12,300/s");
        assert_eq!(Usd(0.000456).to_string(), "$0.000456");
        assert_eq!(UsdPerHour(0.0496).times(Seconds(3600.0)), Usd(0.0496));
    }
}
