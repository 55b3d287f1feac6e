//! Energy of the processor package, from the kernel's running-average-power counters (powercap).
//!
//! The counter measures the whole package, idle share included, in microjoules, and wraps. A machine that does not show one (most
//! virtual machines) has no energy figures at all: nothing is estimated from nominal watts.

use crate::units::Joules;
use std::path::{Path, PathBuf};

/// All package counters of a machine.
#[derive(Clone, Debug)]
pub struct EnergyCounter {
    packages: Vec<Package>,
}

#[derive(Clone, Debug)]
struct Package {
    energy: PathBuf,
    /// Microjoules at which the counter starts again.
    range: u64,
}

/// Microjoules of every package at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct Reading(Vec<u64>);

impl EnergyCounter {
    /// Opens the counters under `/sys/class/powercap`; `None` where there are none or they may not be read.
    pub fn open() -> Option<EnergyCounter> {
        Self::open_in(Path::new("/sys/class/powercap"))
    }

    fn open_in(folder: &Path) -> Option<EnergyCounter> {
        let mut packages = Vec::new();
        for entry in std::fs::read_dir(folder).ok()?.flatten() {
            let name = entry.file_name().to_string_lossy().into_owned();
            // `intel-rapl:0` is a package; `intel-rapl:0:1` is a part of it. AMD's driver uses the same names.
            if !name.starts_with("intel-rapl:") || name.matches(':').count() != 1 {
                continue;
            }
            let (energy, range) = (entry.path().join("energy_uj"), number(&entry.path().join("max_energy_range_uj")));
            if let (Some(range), Some(_)) = (range, number(&energy)) {
                packages.push(Package { energy, range });
            }
        }
        packages.sort_by(|a, b| a.energy.cmp(&b.energy));
        (!packages.is_empty()).then_some(EnergyCounter { packages })
    }

    /// What a record calls it.
    pub fn name(&self) -> String {
        format!("powercap, {} package{}", self.packages.len(), if self.packages.len() == 1 { "" } else { "s" })
    }

    pub fn read(&self) -> Option<Reading> {
        self.packages.iter().map(|p| number(&p.energy)).collect::<Option<Vec<u64>>>().map(Reading)
    }

    /// Energy between two readings that lie less than one turn of the counter apart (minutes).
    pub fn between(&self, before: &Reading, after: &Reading) -> Joules {
        let each = self.packages.iter().zip(before.0.iter().zip(&after.0));
        let microjoules: u64 =
            each.map(|(p, (before, after))| if after >= before { after - before } else { p.range - before + after }).sum();
        Joules(microjoules as f64 * 1e-6)
    }
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_summed_parts_are_not_and_a_turn_of_the_counter_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, energy: &str| {
            let folder = dir.path().join(name);
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(folder.join("energy_uj"), energy).unwrap();
            std::fs::write(folder.join("max_energy_range_uj"), "1000000\n").unwrap();
        };
        assert!(EnergyCounter::open_in(dir.path()).is_none());
        write("intel-rapl:0", "900000\n");
        write("intel-rapl:1", "100\n");
        write("intel-rapl:0:0", "5\n");
        let counter = EnergyCounter::open_in(dir.path()).unwrap();
        assert_eq!(counter.name(), "powercap, 2 packages");
        let before = counter.read().unwrap();
        write("intel-rapl:0", "100000\n");
        write("intel-rapl:1", "300100\n");
        assert_eq!(counter.between(&before, &counter.read().unwrap()), Joules(0.5));
    }
}
