//! From the price of an hour to the price of a unit, and back: dollars per million = dollars an hour / 3,600 / units a second x 10^6.

use crate::units::{PerSecond, Usd, UsdPerHour};

const SECONDS_PER_HOUR: f64 = 3600.0;
const MILLION: f64 = 1e6;

/// What a million units cost at this price and throughput.
pub fn usd_per_million(price: UsdPerHour, throughput: PerSecond) -> Usd {
    Usd(price.0 / SECONDS_PER_HOUR / throughput.0 * MILLION)
}

/// Throughput that a machine of price `other` needs so that a unit costs there what it costs at `price` and `throughput`.
pub fn throughput_to_tie(price: UsdPerHour, throughput: PerSecond, other: UsdPerHour) -> PerSecond {
    PerSecond(throughput.0 * other.0 / price.0)
}

/// Price of an hour at which a machine of throughput `other` makes a unit as cheap as `price` and `throughput` do.
pub fn price_to_tie(price: UsdPerHour, throughput: PerSecond, other: PerSecond) -> UsdPerHour {
    UsdPerHour(price.0 * other.0 / throughput.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_machine_of_three_dollars_sixty_at_a_thousand_a_second_costs_a_dollar_a_million() {
        assert!((usd_per_million(UsdPerHour(3.6), PerSecond(1000.0)).0 - 1.0).abs() < 1e-12);
        // 0.0496 / 3600 / 12,000 x 10^6 = 0.001148148...
        assert!((usd_per_million(UsdPerHour(0.0496), PerSecond(12_000.0)).0 - 0.001_148_148_148).abs() < 1e-12);
        assert_eq!(throughput_to_tie(UsdPerHour(1.0), PerSecond(100.0), UsdPerHour(2.5)), PerSecond(250.0));
        assert_eq!(price_to_tie(UsdPerHour(1.0), PerSecond(100.0), PerSecond(40.0)), UsdPerHour(0.4));
    }

    proptest! {
        #[test]
        fn a_unit_is_cheaper_the_faster_and_the_cheaper_the_machine(
            price in 1e-3f64..100.0, rate in 1e-2f64..1e9, factor in 1.001f64..100.0,
        ) {
            let cost = usd_per_million(UsdPerHour(price), PerSecond(rate)).0;
            prop_assert!(usd_per_million(UsdPerHour(price), PerSecond(rate * factor)).0 < cost);
            prop_assert!(usd_per_million(UsdPerHour(price * factor), PerSecond(rate)).0 > cost);
        }

        #[test]
        fn machines_that_tie_cost_the_same_a_unit(
            price in 1e-3f64..100.0, rate in 1e-2f64..1e9, other in 1e-3f64..100.0,
        ) {
            let (price, rate) = (UsdPerHour(price), PerSecond(rate));
            let cost = usd_per_million(price, rate).0;
            let near = |value: f64| (value / cost - 1.0).abs() < 1e-9;
            prop_assert!(near(usd_per_million(UsdPerHour(other), throughput_to_tie(price, rate, UsdPerHour(other))).0));
            prop_assert!(near(usd_per_million(price_to_tie(price, rate, PerSecond(other)), PerSecond(other)).0));
        }
    }
}
