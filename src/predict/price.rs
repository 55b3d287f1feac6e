//! What an hour of a GPU costs: a stated price, an entry of the price book, or the cheapest entry that has this GPU. Where the book has none the
//! price is unknown, and nothing is put in its place.

use super::{
    plan_file::{Plan, PriceWords},
    training::gpus_per_machine,
};
use crate::{
    cost::{Entry, PriceBook},
    hardware::Gpu,
    units::UsdPerHour,
};

/// Prices of a GPU for an hour, US dollars; the rest of its machine is in them.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GpuPrice {
    pub on_demand: Option<UsdPerHour>,
    pub spot: Option<UsdPerHour>,
    /// How they came about, one sentence.
    pub explanation: String,
}

impl GpuPrice {
    /// Makes both prices so many times as high.
    pub fn scale(&mut self, factor: f64) {
        for usd in [&mut self.on_demand, &mut self.spot].into_iter().flatten() {
            usd.0 *= factor;
        }
    }
}

/// The names of a GPU.
#[derive(Clone, Copy, Debug)]
pub struct Names<'a> {
    /// Its own and its aliases, first the one that messages use; none of another form factor.
    pub own: &'a [&'a str],
    /// Names in catalogues that may leave the form factor out.
    pub catalogue: &'a [&'a str],
}

/// The prices of the GPUs of a plan's machines, in their order.
pub fn gpu_prices(plan: &Plan, gpus: &[Gpu], book: &PriceBook) -> Vec<GpuPrice> {
    let price = |(machine, gpu): (&super::MachineWords, &Gpu)| {
        let own: Vec<&str> = std::iter::once(gpu.name.as_str()).chain(gpu.aliases.iter().map(String::as_str)).collect();
        let catalogue: Vec<&str> = gpu.price_names.iter().map(String::as_str).collect();
        let names = Names { own: &own, catalogue: &catalogue };
        gpu_price(&machine.price, machine.spot_usd_per_gpu_hour, names, gpus_per_machine(&gpu.machine), book)
    };
    plan.machines.iter().zip(gpus).map(price).collect()
}

/// The price of one GPU of machines with `per_machine` GPUs.
pub fn gpu_price(words: &PriceWords, spot: Option<UsdPerHour>, names: Names, per_machine: u32, book: &PriceBook) -> GpuPrice {
    let mut price = match words {
        PriceWords::PerGpuHour(usd) => {
            GpuPrice { on_demand: Some(*usd), spot: None, explanation: format!("{usd} a GPU, as stated in the plan") }
        }
        PriceWords::Instance(name) => match book.find(name) {
            Ok(entry) => of_entry(entry, book, "as named in the plan"),
            Err(error) => GpuPrice { explanation: error.to_string(), ..GpuPrice::default() },
        },
        PriceWords::Cheapest => match cheapest(names, per_machine, book) {
            Some(entry) => of_entry(entry, book, "the cheapest entry of the price book with this GPU"),
            None => GpuPrice {
                explanation: format!("the price book has no machine with {}", names.own.first().copied().unwrap_or("this GPU")),
                ..GpuPrice::default()
            },
        },
    };
    if let Some(spot) = spot {
        price.spot = Some(spot);
        price.explanation += &format!("; spot {spot} a GPU, as stated in the plan");
    }
    price
}

fn of_entry(entry: &Entry, book: &PriceBook, why: &str) -> GpuPrice {
    let Some(count) = entry.accelerator_count.filter(|count| *count > 0.0) else {
        return GpuPrice { explanation: format!("`{}` has no GPU in the price book", entry.name()), ..GpuPrice::default() };
    };
    let of_gpu = |usd: Option<f64>| usd.map(|usd| UsdPerHour(usd / count));
    let date = if book.date == "unknown" { String::new() } else { format!(", on or before {}", book.date) };
    GpuPrice {
        on_demand: of_gpu(entry.usd_per_hour_on_demand),
        spot: of_gpu(entry.usd_per_hour_spot),
        explanation: format!("`{}` in {} ({count} GPUs), {why}{date}", entry.name(), entry.region),
    }
}

/// The entry with the lowest price of a GPU: of whole machines where the book has some, of smaller ones where not.
fn cheapest<'b>(names: Names, per_machine: u32, book: &'b PriceBook) -> Option<&'b Entry> {
    let fitting = book.entries.iter().filter(|entry| entry.accelerator.as_deref().is_some_and(|name| is_named(name, names)));
    let priced =
        fitting.filter_map(|entry| Some((entry.accelerator_count.filter(|c| *c > 0.0)?, entry.usd_per_hour_on_demand?, entry)));
    let smaller = |count: f64| count < f64::from(per_machine);
    priced
        .min_by(|a, b| {
            // The most GPUs below a whole machine; from a whole machine on the price decides.
            let size = |count: f64| count.min(f64::from(per_machine));
            size(b.0).total_cmp(&size(a.0)).then((a.1 / a.0).total_cmp(&(b.1 / b.0))).then(smaller(a.0).cmp(&smaller(b.0)))
        })
        .map(|(.., entry)| entry)
}

/// Whether a catalogue's name is one of a GPU's: letters and digits decide, and `SXM`, the usual form, may be left out of its own names.
fn is_named(catalogue: &str, names: Names) -> bool {
    fn plain(name: &str) -> String {
        let name: String = name.chars().filter(char::is_ascii_alphanumeric).map(|c| c.to_ascii_lowercase()).collect();
        name.strip_suffix("sxm").map_or(name.clone(), str::to_string)
    }
    names.own.iter().any(|name| plain(name) == plain(catalogue))
        || names.catalogue.iter().any(|name| name.eq_ignore_ascii_case(catalogue))
}

#[cfg(test)]
mod tests {
    use super::*;

    const H100: Names = Names { own: &["H100"], catalogue: &["H100"] };

    fn of(own: &[&str], per_machine: u32) -> GpuPrice {
        let names = Names { own, catalogue: &["A100-80GB"] };
        gpu_price(&PriceWords::Cheapest, None, names, per_machine, &PriceBook::shipped())
    }

    #[test]
    fn a_gpu_costs_its_share_of_the_cheapest_whole_machine() {
        let h100 = of(&["H100", "H100-SXM"], 8);
        assert_eq!((h100.on_demand, h100.spot), (Some(UsdPerHour(2.95)), Some(UsdPerHour(1.25))));
        assert!(h100.explanation.contains("gpu-h100-sxm_8gpu"), "{}", h100.explanation);
        assert_eq!(of(&["A100-80GB"], 8).on_demand, Some(UsdPerHour(1.89)), "not the PCIe part, which is cheaper");
        assert_eq!(of(&["A100-80GB-PCIe"], 8).on_demand, Some(UsdPerHour(1.62)));
        assert_eq!(of(&["L40S"], 8).on_demand, Some(UsdPerHour(9.1376 / 4.0)), "the largest that there is");
    }

    #[test]
    fn a_gpu_that_the_book_does_not_have_has_no_price() {
        let none = of(&["GB200"], 4);
        assert_eq!((none.on_demand, none.spot), (None, None));
        assert_eq!(none.explanation, "the price book has no machine with GB200");
        let named = PriceWords::Instance("nebius/cpu-e2_2vcpu-8gb".into());
        assert_eq!(gpu_price(&named, None, H100, 8, &PriceBook::shipped()).on_demand, None);
    }

    #[test]
    fn stated_prices_stand() {
        let stated = PriceWords::PerGpuHour(UsdPerHour(2.0));
        let price = gpu_price(&stated, Some(UsdPerHour(1.0)), H100, 8, &PriceBook::shipped());
        assert_eq!((price.on_demand, price.spot), (Some(UsdPerHour(2.0)), Some(UsdPerHour(1.0))));
    }
}
