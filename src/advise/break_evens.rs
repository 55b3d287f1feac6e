//! Where two choices cost the same: the price of an hour for the runner-up's speed, the speed that the catalogue's machine would need, the
//! share of its hours that an owned machine has to work.

use super::{
    BreakEven, Field,
    objective::{Figure, Figures},
    phrase,
    pick::Found,
};
use crate::{
    cost::{self, PriceBook},
    record::CostBasis,
    units::{PerSecond, UsdPerHour},
};

pub(super) fn of(field: &Field<'_>, figures: &Figures, found: &Found, book: &PriceBook) -> Vec<BreakEven> {
    let all = [runner_up(field, figures, found), catalogue(field, found.row, book), utilisation(field, book)];
    all.into_iter().flatten().filter(|even| even.value.is_finite() && even.value > 0.0).collect()
}

/// The price of an hour at which the second row, at its measured speed, costs what the pick costs.
fn runner_up(field: &Field<'_>, figures: &Figures, found: &Found) -> Option<BreakEven> {
    let row = *found.others.first()?;
    let price = field.price.usd_per_hour;
    let (best, second) = (figures.values[found.row]?, figures.values[row]?);
    let tie = match figures.figure {
        Figure::UsdPerMillion => {
            let rate = |row: usize| field.judged[row].row.throughput();
            cost::price_to_tie(price, rate(found.row)?, rate(row)?)
        }
        Figure::UsdToTarget => UsdPerHour(price.0 * best / second),
        _ => return None,
    };
    let text = format!(
        "`{}` costs what `{}` costs at {price} on a machine as fast as this one at {tie}.",
        field.title(row),
        field.title(found.row)
    );
    Some(BreakEven { quantity: "runner_up_usd_per_hour", value: tie.0, text })
}

/// The throughput at which the pick costs as much a unit on the nearest catalogue entry, where the run is priced otherwise.
fn catalogue(field: &Field<'_>, row: usize, book: &PriceBook) -> Option<BreakEven> {
    let entry = cost::nearest(&field.run.header.environment, book).filter(|entry| entry.name() != field.price.instance)?;
    let hourly = UsdPerHour(entry.usd_per_hour_on_demand?);
    let needed: PerSecond = cost::throughput_to_tie(field.price.usd_per_hour, field.judged[row].row.throughput()?, hourly);
    let units = phrase::plural(&field.run.header.unit);
    let text = format!(
        "On `{}` at {hourly}, `{}` costs the same per million {units} if it does {} {units} a second there; that speed was not measured.",
        entry.name(),
        field.title(row),
        needed.to_string().trim_end_matches("/s")
    );
    Some(BreakEven { quantity: "catalogue_throughput_per_s", value: needed.0, text })
}

/// The share of its hours above which owning costs less than renting the nearest catalogue entry.
fn utilisation(field: &Field<'_>, book: &PriceBook) -> Option<BreakEven> {
    let CostBasis::Owned(owned) = &field.run.header.cost else { return None };
    let entry = cost::nearest(&field.run.header.environment, book)?;
    let hourly = UsdPerHour(entry.usd_per_hour_on_demand?);
    let share = cost::break_even_utilisation(owned, hourly)?;
    let text = format!(
        "An hour of the owned machine costs what `{}` costs ({hourly}) when it works {} of its hours; the scenario says {}.",
        entry.name(),
        phrase::percent(share),
        phrase::percent(owned.utilisation)
    );
    Some(BreakEven { quantity: "owned_utilisation", value: share, text })
}
