//! From a scenario's cost basis to the price of an hour, with a sentence that says how it was found and how far it fits.

use super::{CostError, Entry, Price, PriceBook};
use crate::{
    record::{CostBasis, Environment, Owned},
    units::{Bytes, UsdPerHour, three_figures},
};

/// Hours of a mean year, 365.25 days.
const HOURS_PER_YEAR: f64 = 8766.0;

/// The price of an hour on the machine of `environment`.
pub fn price(basis: &CostBasis, environment: &Environment, book: &PriceBook) -> Result<Price, CostError> {
    match basis {
        CostBasis::Auto => {
            let entry = nearest(environment, book).ok_or_else(|| CostError::NothingNear { machine: machine(environment) })?;
            let explanation = format!(
                "priced as {} ({}), the nearest entry to this machine ({}); another processor model will have another speed at that price",
                entry.name(),
                size(entry),
                machine(environment)
            );
            of_entry(entry, explanation, book)
        }
        CostBasis::Instance(name) => {
            let entry = book.find(name)?;
            let explanation = format!(
                "priced as {} ({}) in {}, on demand, as the scenario says; the speed is that of this machine ({})",
                entry.name(),
                size(entry),
                entry.region,
                machine(environment)
            );
            of_entry(entry, explanation, book)
        }
        CostBasis::Hourly(price) => {
            let price = UsdPerHour(at_least_zero("hourly_usd", price.0)?);
            let explanation = format!("{} an hour, as the scenario states", dollars(price.0));
            Ok(Price { usd_per_hour: price, instance: "stated".into(), explanation, source: None })
        }
        CostBasis::Owned(owned) => of_owned(owned),
    }
}

/// The catalogue entry nearest to the machine of a run: where candidates use GPUs one with the same, else one of the architecture that its instruction sets show, else that of this program.
pub fn nearest<'a>(environment: &Environment, book: &'a PriceBook) -> Option<&'a Entry> {
    if let Some(gpu) = environment.gpus.first() {
        let alike = environment.gpus.iter().filter(|other| other.name == gpu.name).count();
        return book.nearest_gpu(&gpu.name, gpu.memory, alike);
    }
    let has = |names: &[&str]| environment.instruction_sets.iter().any(|set| names.iter().any(|name| set.starts_with(name)));
    let architecture = match () {
        () if has(&["sse", "avx", "fma"]) => "x86_64",
        () if has(&["neon", "sve", "asimd"]) => "aarch64",
        () => std::env::consts::ARCH,
    };
    book.nearest_cpu(environment.logical_cores, environment.memory, architecture)
}

/// Share of its hours that an owned machine must work so that an hour costs `rent`; above it owning is cheaper. `None` when no share in
/// (0, 1] does: the power alone costs as much, or the purchase is not earned back even at full use.
pub fn break_even_utilisation(owned: &Owned, rent: UsdPerHour) -> Option<f64> {
    let share = owned.purchase_usd / (owned.years * HOURS_PER_YEAR * (rent.0 - power(owned)));
    (share > 0.0 && share <= 1.0).then_some(share)
}

fn of_entry(entry: &Entry, explanation: String, book: &PriceBook) -> Result<Price, CostError> {
    let hourly = entry.usd_per_hour_on_demand.ok_or_else(|| CostError::NoPrice { name: entry.name() })?;
    let commit = entry.source_commit.as_ref().map(|commit| format!(" at commit {commit}")).unwrap_or_default();
    let date = if book.date == "unknown" { String::new() } else { format!(", on or before {}", book.date) };
    Ok(Price {
        usd_per_hour: UsdPerHour(hourly),
        instance: entry.name(),
        explanation,
        source: Some(format!("{}{commit}, region {}{date}", entry.source_file, entry.region)),
    })
}

fn of_owned(owned: &Owned) -> Result<Price, CostError> {
    let Owned { purchase_usd, years, utilisation, watts, usd_per_kwh } = *owned;
    at_least_zero("purchase_usd", purchase_usd)?;
    at_least_zero("watts", watts)?;
    at_least_zero("usd_per_kwh", usd_per_kwh)?;
    if !(years > 0.0 && years.is_finite()) {
        return Err(CostError::Unusable { key: "years", value: years, expected: "a number above 0" });
    }
    if !(utilisation > 0.0 && utilisation <= 1.0) {
        return Err(CostError::Unusable { key: "utilisation", value: utilisation, expected: "a share above 0, at most 1" });
    }
    let hours = years * HOURS_PER_YEAR * utilisation;
    let capital = purchase_usd / hours;
    let total = capital + power(owned);
    let explanation = format!(
        "owned: {} written off over {} useful hours ({years} years, {} % of the time) is {} an hour; \
         {watts} W at ${usd_per_kwh} a kWh is {}; together {}",
        dollars(purchase_usd),
        three_figures(hours),
        three_figures(utilisation * 100.0),
        dollars(capital),
        dollars(power(owned)),
        dollars(total),
    );
    Ok(Price { usd_per_hour: UsdPerHour(total), instance: "owned".into(), explanation, source: None })
}

/// Dollars an hour for electricity.
fn power(owned: &Owned) -> f64 {
    owned.watts / 1000.0 * owned.usd_per_kwh
}

fn at_least_zero(key: &'static str, value: f64) -> Result<f64, CostError> {
    if value >= 0.0 && value.is_finite() {
        Ok(value)
    } else {
        Err(CostError::Unusable { key, value, expected: "a number of at least 0" })
    }
}

fn dollars(value: f64) -> String {
    format!("${}", three_figures(value))
}

/// `2 vCPUs, 8 GiB`.
fn size(entry: &Entry) -> String {
    let mut parts = Vec::new();
    if let Some(vcpus) = entry.vcpus {
        parts.push(if vcpus == 1.0 { "1 vCPU".to_string() } else { format!("{vcpus} vCPUs") });
    }
    if let Some(memory) = entry.memory_gib {
        parts.push(format!("{memory} GiB"));
    }
    if let Some(accelerator) = &entry.accelerator {
        parts.push(entry.accelerator_count.map_or(accelerator.clone(), |count| format!("{count} {accelerator}")));
    }
    if parts.is_empty() { "size not given".to_string() } else { parts.join(", ") }
}

/// `2 cores, 24 GiB`.
fn machine(environment: &Environment) -> String {
    let cores = match environment.logical_cores {
        0 => "cores unknown".to_string(),
        1 => "1 core".to_string(),
        cores => format!("{cores} cores"),
    };
    let memory = match environment.memory {
        Bytes(0) => "memory unknown".to_string(),
        memory => {
            let gib = memory.0 as f64 / f64::from(1 << 30);
            if gib >= 10.0 { format!("{gib:.0} GiB") } else { format!("{} GiB", (gib * 10.0).round() / 10.0) }
        }
    };
    match &environment.gpus[..] {
        [] => format!("{cores}, {memory}"),
        [one] => format!("{cores}, {memory}, {}", one.name),
        [first, ..] => format!("{cores}, {memory}, {} {}", environment.gpus.len(), first.name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn machine_of(cores: usize, gib: u64) -> Environment {
        let instruction_sets = vec!["avx2".to_string()];
        Environment { logical_cores: cores, memory: Bytes(gib << 30), instruction_sets, ..Environment::default() }
    }

    #[test]
    fn auto_names_the_nearest_entry_and_both_sizes() {
        let price = price(&CostBasis::Auto, &machine_of(2, 24), &PriceBook::shipped()).unwrap();
        assert_eq!(price.usd_per_hour, UsdPerHour(0.0496));
        assert_eq!(
            price.explanation,
            "priced as nebius/cpu-e2_2vcpu-8gb (2 vCPUs, 8 GiB), the nearest entry to this machine (2 cores, 24 GiB); \
             another processor model will have another speed at that price"
        );
        assert_eq!(
            price.source.unwrap(),
            "catalogs/v7/nebius/vms.csv at commit 22fd1feab9aa97a155f0f5a9d39351d9aa8ae9be, region eu-north1, on or before 2026-11-23"
        );
    }

    #[test]
    fn auto_never_prices_one_architecture_by_another() {
        let mut environment = machine_of(2, 4);
        let name = |environment: &Environment| nearest(environment, &PriceBook::shipped()).unwrap().name();
        assert_eq!(name(&environment), "aws/c3.large");
        environment.instruction_sets = vec!["neon".into()];
        assert_eq!(name(&environment), "aws/a1.large");
    }

    #[test]
    fn owned_hardware_costs_its_write_off_and_its_power() {
        // 8,766 / (2 x 8,766 x 0.5) = 1 $/h, and 0.5 kW x 0.2 $/kWh = 0.1 $/h.
        let owned = Owned { purchase_usd: 8766.0, years: 2.0, utilisation: 0.5, watts: 500.0, usd_per_kwh: 0.2 };
        let price = price(&CostBasis::Owned(owned), &machine_of(2, 24), &PriceBook::shipped()).unwrap();
        assert!((price.usd_per_hour.0 - 1.1).abs() < 1e-12);
        assert_eq!(price.instance, "owned");
        for part in ["$8,770", "8,770 useful hours", "50.0 %", "500 W", "$0.100", "$1.10"] {
            assert!(price.explanation.contains(part), "{part}: {}", price.explanation);
        }
        // At 1.1 $/h of rent the break-even is the utilisation itself; at 0.1 $/h power alone costs as much.
        assert!((break_even_utilisation(&owned, UsdPerHour(1.1)).unwrap() - 0.5).abs() < 1e-12);
        assert_eq!(break_even_utilisation(&owned, UsdPerHour(0.1)), None);
        assert_eq!(break_even_utilisation(&owned, UsdPerHour(0.3)), None, "not earned back even at full use");
    }

    #[test]
    fn stated_and_named_prices_are_taken_as_they_are() {
        let book = PriceBook::shipped();
        let stated = price(&CostBasis::Hourly(UsdPerHour(0.9)), &Environment::default(), &book).unwrap();
        assert_eq!((stated.usd_per_hour, stated.instance.as_str(), &stated.source), (UsdPerHour(0.9), "stated", &None));
        let named = price(&CostBasis::Instance("aws/c3.large".into()), &machine_of(2, 24), &book).unwrap();
        assert_eq!(named.usd_per_hour, UsdPerHour(0.105));
        assert!(named.explanation.contains("aws/c3.large (2 vCPUs, 3.75 GiB) in us-east-1"), "{}", named.explanation);
    }

    #[test]
    fn nothing_is_made_up_where_a_fact_is_missing() {
        let book = PriceBook::shipped();
        assert!(matches!(price(&CostBasis::Auto, &Environment::default(), &book), Err(CostError::NothingNear { .. })));
        let missing = price(&CostBasis::Instance("aws/none".into()), &machine_of(2, 24), &book);
        assert!(matches!(missing, Err(CostError::Unknown { .. })));
        let owned = Owned { purchase_usd: 1.0, years: 0.0, utilisation: 0.5, watts: 0.0, usd_per_kwh: 0.0 };
        assert!(matches!(
            price(&CostBasis::Owned(owned), &machine_of(2, 24), &book),
            Err(CostError::Unusable { key: "years", .. })
        ));
        let owned = Owned { years: 1.0, utilisation: 1.5, ..owned };
        assert!(price(&CostBasis::Owned(owned), &machine_of(2, 24), &book).is_err());
        assert!(price(&CostBasis::Hourly(UsdPerHour(-1.0)), &machine_of(2, 24), &book).is_err());
    }
}
