//! The catalogue of prices: reading it from CSV, finding an entry by name, and the entry nearest to a machine.
//!
//! Columns are found by name, because their order differs between providers. An empty cell means that the source gives no
//! figure; it never means zero.

use super::{CostError, csv};
use crate::units::Bytes;
use std::{collections::HashSet, path::Path};

/// One machine that can be rented.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    pub provider: String,
    pub instance: String,
    /// Absent for machines without one.
    pub accelerator: Option<String>,
    pub accelerator_count: Option<f64>,
    pub vcpus: Option<f64>,
    pub memory_gib: Option<f64>,
    pub region: String,
    pub usd_per_hour_on_demand: Option<f64>,
    /// Interruptible; differs between the zones of a region.
    pub usd_per_hour_spot: Option<f64>,
    pub source_file: String,
    /// Absent for imported files.
    pub source_commit: Option<String>,
}

impl Entry {
    /// `nebius/cpu-e2_2vcpu-8gb`.
    pub fn name(&self) -> String {
        format!("{}/{}", self.provider, self.instance)
    }

    /// As `std::env::consts::ARCH` names it.
    pub fn architecture(&self) -> &'static str {
        let by_series = ARM.iter().any(|(provider, is_arm)| *provider == self.provider && is_arm(&self.instance));
        let name = self.instance.to_ascii_lowercase();
        if by_series || GRACE.iter().any(|part| name.contains(part)) { "aarch64" } else { "x86_64" }
    }
}

/// All prices that are known.
#[derive(Clone, Debug, PartialEq)]
pub struct PriceBook {
    /// In the order of the file.
    pub entries: Vec<Entry>,
    /// Day by which the prices held (`2026-11-23`), `unknown` for imported files.
    pub date: &'static str,
}

/// Day on which the shipped prices were copied (data/prices/SOURCES.md).
const SHIPPED_DATE: &str = "2026-11-23";

/// Names offered when one is not found.
const SUGGESTIONS: usize = 3;

/// A difference in vCPUs counts this many times one in memory (as logarithms): both the price and the speed of a machine follow
/// its cores, while memory beyond what a model needs changes neither its speed nor, within a family, the price of a core.
const WEIGHT_OF_VCPUS: f64 = 2.0;

/// Instances with a 64-bit Arm processor, by provider; all others are x86-64. Catalogues name no architecture, but their names follow
/// the providers' rules: AWS a `g` after the generation (c7gd), and a1 and mac2; Azure a `p` among the features (D2pds_v5); Google the
/// series t2a, c4a, n4a; Oracle A1, A2, A4 (Ampere); Hetzner cax.
const ARM: &[(&str, IsArm)] = &[
    ("aws", |name| name.starts_with("a1.") || name.starts_with("mac2") || after_generation(name).contains('g')),
    ("azure", |name| name.strip_prefix("Standard_").is_some_and(|name| after_generation(name).contains('p'))),
    ("gcp", |name| ["t2a-", "c4a-", "n4a-"].iter().any(|series| name.starts_with(series))),
    ("oci", |name| ["Standard.A1", "Standard.A2", "Standard.A4"].iter().any(|series| name.contains(series))),
    ("hetzner", |name| name.starts_with("cax")),
];

/// Whether an instance of that name has an Arm processor.
type IsArm = fn(&str) -> bool;

/// Accelerators that are one part with an Arm processor (Grace), at whichever provider.
const GRACE: [&str; 3] = ["gh200", "gb200", "gb300"];

/// What stands behind the first number of a family's name: `gd` of `c7gd.large`, `pds` of `D2pds_v5`.
fn after_generation(name: &str) -> &str {
    let family = name.split(['.', '_']).next().unwrap_or_default();
    let features = family.trim_start_matches(|c: char| c.is_ascii_alphabetic()).trim_start_matches(|c: char| c.is_ascii_digit());
    features.split('-').next().unwrap_or_default()
}

/// Columns of one kind of file. The second name of a pair is SkyPilot's.
struct Columns<'a> {
    path: &'a Path,
    header: Vec<String>,
}

impl Columns<'_> {
    fn find(&self, names: [&'static str; 2]) -> Option<usize> {
        self.header.iter().position(|cell| names.contains(&cell.trim()))
    }

    fn require(&self, names: [&'static str; 2]) -> Result<usize, CostError> {
        self.find(names).ok_or_else(|| CostError::MissingColumn { path: self.path.to_path_buf(), column: names[0] })
    }
}

impl PriceBook {
    /// The prices that come with the program.
    pub fn shipped() -> PriceBook {
        let path = Path::new("data/prices/prices.csv");
        let book = Self::read(include_str!("../../data/prices/prices.csv"), path).expect("the shipped price book reads: tested");
        PriceBook { date: SHIPPED_DATE, ..book }
    }

    /// Reads a price book, or a SkyPilot catalogue (`catalogs/v7/<provider>/vms.csv`) whose folder names the provider.
    pub fn read(text: &str, path: &Path) -> Result<PriceBook, CostError> {
        let provider = path.parent().and_then(Path::file_name).map(|name| name.to_string_lossy().into_owned());
        Self::read_of(text, path, provider.as_deref())
    }

    /// Like `read`; `provider` is that of the rows of a file without a column `provider`.
    pub fn read_of(text: &str, path: &Path, provider: Option<&str>) -> Result<PriceBook, CostError> {
        let broken = |line: usize, reason: String| CostError::Broken { path: path.to_path_buf(), line, reason };
        let mut rows = csv::rows(text).map_err(|(line, reason)| broken(line, reason))?.into_iter();
        let columns = Columns { path, header: rows.next().map(|(_, cells)| cells).unwrap_or_default() };
        let instance = columns.require(["instance", "InstanceType"])?;
        let on_demand = columns.require(["usd_per_hour_on_demand", "Price"])?;
        let region = columns.require(["region", "Region"])?;
        let vcpus = columns.require(["vcpus", "vCPUs"])?;
        let memory = columns.require(["memory_gib", "MemoryGiB"])?;
        let accelerator = columns.require(["accelerator", "AcceleratorName"])?;
        let count = columns.require(["accelerator_count", "AcceleratorCount"])?;
        let spot = columns.require(["usd_per_hour_spot", "SpotPrice"])?;
        let (own_provider, file, commit) =
            (columns.find(["provider"; 2]), columns.find(["source_file"; 2]), columns.find(["source_commit"; 2]));
        if own_provider.is_none() && provider.is_none() {
            return Err(CostError::MissingColumn { path: path.to_path_buf(), column: "provider" });
        }

        let mut entries = Vec::new();
        for (line, cells) in rows {
            if cells.len() != columns.header.len() {
                return Err(broken(line, format!("{} cells where the header has {}", cells.len(), columns.header.len())));
            }
            let text = |column: usize| Some(cells[column].trim()).filter(|cell| !cell.is_empty()).map(str::to_string);
            let number = |column: usize| {
                text(column)
                    .map(|cell| match cell.parse::<f64>() {
                        Ok(value) if value.is_finite() && value >= 0.0 => Ok(value),
                        _ => Err(broken(line, format!("`{}` is `{cell}`, expected a number", columns.header[column]))),
                    })
                    .transpose()
            };
            let provider = own_provider.and_then(text).or(provider.map(str::to_string));
            entries.push(Entry {
                provider: provider.ok_or_else(|| broken(line, "no provider".into()))?,
                // Offers that a provider sells only with other parts (GPUs on their own) have no instance name.
                instance: match text(instance) {
                    Some(name) => name,
                    None => continue,
                },
                accelerator: text(accelerator),
                accelerator_count: number(count)?,
                vcpus: number(vcpus)?,
                memory_gib: number(memory)?,
                region: text(region).unwrap_or_default(),
                usd_per_hour_on_demand: number(on_demand)?,
                usd_per_hour_spot: number(spot)?,
                source_file: file.and_then(text).unwrap_or_else(|| path.display().to_string()),
                source_commit: commit.and_then(text),
            });
        }
        Ok(PriceBook { entries, date: "unknown" })
    }

    /// The entry of that name; of several regions the one listed first, unless the name ends in `@region`.
    pub fn find(&self, name: &str) -> Result<&Entry, CostError> {
        let (plain, region) = name.split_once('@').map_or((name, None), |(plain, region)| (plain, Some(region)));
        let fits = |entry: &&Entry| entry.name() == plain && region.is_none_or(|region| entry.region == region);
        self.entries.iter().find(fits).ok_or_else(|| {
            let mut names: Vec<_> = self.names().into_iter().map(|n| (strsim::jaro_winkler(plain, &n), n)).collect();
            names.sort_by(|a, b| b.0.total_cmp(&a.0));
            let nearest = names.into_iter().filter(|(likeness, _)| *likeness > 0.7).take(SUGGESTIONS).map(|(_, n)| n);
            CostError::Unknown { name: name.to_string(), nearest: nearest.collect() }
        })
    }

    /// Every name once, in the order of the book.
    pub fn names(&self) -> Vec<String> {
        let mut seen = HashSet::new();
        self.entries.iter().map(Entry::name).filter(|name| seen.insert(name.clone())).collect()
    }

    /// The entry with `count` or, where none has, the next larger number of accelerators that a device of this name and memory is; of those
    /// the cheapest.
    pub fn nearest_gpu(&self, device: &str, memory: Bytes, count: usize) -> Option<&Entry> {
        let enough = |entry: &&Entry| {
            let fits = entry.accelerator.as_deref().is_some_and(|name| is_accelerator(name, device, memory));
            fits && entry.accelerator_count.is_some_and(|of_entry| of_entry >= count as f64)
        };
        let priced =
            self.entries.iter().filter(enough).filter_map(|e| Some((e.accelerator_count?, e.usd_per_hour_on_demand?, e)));
        priced.min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1))).map(|(.., entry)| entry)
    }

    /// The entry without accelerator and of the same architecture that is nearest to a machine: least `2 |ln(vCPUs / cores)| + |ln(GiB / GiB)|`, then the cheaper,
    /// then the first. `None` where the book has none, or the machine's size is unknown.
    pub fn nearest_cpu(&self, logical_cores: usize, memory: Bytes, architecture: &str) -> Option<&Entry> {
        if logical_cores == 0 || memory.0 == 0 {
            return None;
        }
        let gib = memory.0 as f64 / f64::from(1 << 30);
        let apart = |a: f64, b: f64| (a / b).ln().abs();
        let distance = |entry: &Entry| {
            let (vcpus, entry_gib) = (entry.vcpus.filter(|v| *v > 0.0)?, entry.memory_gib.filter(|m| *m > 0.0)?);
            Some(WEIGHT_OF_VCPUS * apart(vcpus, logical_cores as f64) + apart(entry_gib, gib))
        };
        let fits = |entry: &&Entry| entry.accelerator.is_none() && entry.architecture() == architecture;
        let candidates = self.entries.iter().filter(fits);
        candidates
            .filter_map(|entry| Some((distance(entry)?, entry.usd_per_hour_on_demand?, entry)))
            .min_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)))
            .map(|(.., entry)| entry)
    }
}

/// Whether a catalogue's `A100-80GB-SXM` is the device that the driver calls `NVIDIA A100-SXM4-80GB`.
fn is_accelerator(catalogue: &str, device: &str, memory: Bytes) -> bool {
    let words: Vec<&str> = device.split([' ', '-']).collect();
    let is_pcie = words.iter().any(|word| word.eq_ignore_ascii_case("PCIe"));
    let mut parts = catalogue.split('-');
    parts.next().is_some_and(|model| words.contains(&model))
        && parts.all(|part| match part.strip_suffix("GB").and_then(|gb| gb.parse::<f64>().ok()) {
            // Drivers show a little less or more than the round number of a name.
            Some(gb) => (memory.0 as f64 / 1e9 / gb - 1.0).abs() < 0.15,
            None => (part == "PCIe") == is_pcie,
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 1 << 30;

    #[test]
    fn the_shipped_book_reads_and_names_a_source_for_every_price() {
        let book = PriceBook::shipped();
        assert_eq!(book.entries.len(), 50);
        assert_eq!(book.date, "2026-11-23");
        let entry = book.find("nebius/cpu-e2_2vcpu-8gb").unwrap();
        assert_eq!((entry.vcpus, entry.memory_gib, entry.usd_per_hour_on_demand), (Some(2.0), Some(8.0), Some(0.0496)));
        assert_eq!((&entry.accelerator, entry.usd_per_hour_spot), (&None, None));
        assert!(book.entries.iter().all(|e| e.source_commit.as_ref().is_some_and(|c| c.len() == 40)));
        assert!(book.names().len() < book.entries.len(), "two regions share a name");
    }

    #[test]
    fn a_device_is_found_in_the_book_by_what_the_driver_calls_it() {
        let book = PriceBook::shipped();
        let nearest = |device: &str, gb: u64, count: usize| {
            let entry = book.nearest_gpu(device, Bytes(gb * 1_000_000_000), count)?;
            Some((entry.accelerator.clone().unwrap(), entry.accelerator_count.unwrap()))
        };
        let found = |name: &str, count: f64| Some((name.to_string(), count));
        assert_eq!(nearest("NVIDIA H100 80GB HBM3", 85, 1), found("H100-SXM", 1.0));
        assert_eq!(nearest("NVIDIA H200", 150, 1), found("H200-SXM", 1.0));
        assert_eq!(nearest("NVIDIA L4", 24, 1), found("L4", 1.0));
        assert_eq!(nearest("NVIDIA A100-SXM4-80GB", 85, 3).map(|(name, _)| name), Some("A100-80GB-SXM".into()));
        assert_eq!(nearest("NVIDIA A100 80GB PCIe", 85, 1).map(|(name, _)| name), Some("A100-80GB-PCIe".into()));
        assert_eq!(nearest("NVIDIA H100 PCIe", 85, 1), None);
        assert_eq!(nearest("NVIDIA GeForce RTX 4090", 24, 1), None);
    }

    #[test]
    fn a_region_is_chosen_by_its_name() {
        let book = PriceBook::shipped();
        assert_eq!(book.find("aws/g6e.xlarge").unwrap().usd_per_hour_on_demand, Some(1.861));
        assert_eq!(book.find("aws/g6e.xlarge@eu-north-1").unwrap().usd_per_hour_on_demand, Some(1.974));
        assert!(book.find("aws/g6e.xlarge@moon").is_err());
    }

    #[test]
    fn an_unknown_name_is_answered_with_the_nearest() {
        let error = PriceBook::shipped().find("aws/c3.larg").unwrap_err();
        let CostError::Unknown { nearest, .. } = &error else { panic!("{error}") };
        assert_eq!(nearest[0], "aws/c3.large");
        assert!(error.to_string().contains("did you mean `aws/c3.large`"), "{error}");
    }

    #[test]
    fn the_nearest_entry_has_the_cores_before_the_memory() {
        let book = PriceBook::shipped();
        let nearest = |cores, gib| book.nearest_cpu(cores, Bytes(gib * GIB), "x86_64").unwrap().name();
        assert_eq!(nearest(2, 24), "nebius/cpu-e2_2vcpu-8gb");
        assert_eq!(nearest(2, 4), "aws/c3.large");
        assert_eq!(nearest(128, 512), "nebius/cpu-d3_128vcpu-512gb");
        // Two entries are equally near and equally dear: the first stands.
        assert_eq!(nearest(4, 16), "nebius/cpu-e2_4vcpu-16gb");
        assert!(book.nearest_cpu(0, Bytes(GIB), "x86_64").is_none());
        assert!(PriceBook { entries: vec![], date: "" }.nearest_cpu(1, Bytes(GIB), "x86_64").is_none());
    }

    #[test]
    fn a_machine_is_priced_as_one_of_its_own_architecture() {
        let book = PriceBook::shipped();
        assert_eq!(book.nearest_cpu(2, Bytes(4 * GIB), "aarch64").unwrap().name(), "aws/a1.large");
        assert!(book.nearest_cpu(2, Bytes(4 * GIB), "riscv64").is_none());
        let architecture = |provider: &str, instance: &str| {
            Entry { provider: provider.into(), instance: instance.into(), ..book.entries[0].clone() }.architecture()
        };
        let arm = [
            ("aws", "a1.large"),
            ("aws", "c7gd.2xlarge"),
            ("aws", "im4gn.large"),
            ("aws", "t4g.nano"),
            ("azure", "Standard_D2pds_v5"),
            ("gcp", "t2a-standard-4"),
            ("gcp", "c4a-standard-4"),
            ("oci", "VM.Standard.A1.Flex$_2_8"),
            ("hetzner", "cax11"),
            ("lambda", "gpu_1x_gh200"),
        ];
        let x86 = [
            ("aws", "g6e.xlarge"),
            ("aws", "gr6.4xlarge"),
            ("aws", "c7i.large"),
            ("aws", "p5.48xlarge"),
            ("azure", "Standard_NP10s"),
            ("azure", "Standard_D2ads_v5"),
            ("gcp", "g2-standard-4"),
            ("gcp", "a2-highgpu-1g"),
            ("oci", "VM.Standard.E4.Flex$_2_8"),
            ("hetzner", "cx22"),
            ("nebius", "cpu-d3_4vcpu-16gb"),
        ];
        for (cases, expected) in [(&arm[..], "aarch64"), (&x86[..], "x86_64")] {
            for (provider, instance) in cases {
                assert_eq!(architecture(provider, instance), expected, "{provider}/{instance}");
            }
        }
    }

    #[test]
    fn a_skypilot_catalogue_is_read_by_the_names_of_its_columns() {
        let text = "InstanceType,vCPUs,MemoryGiB,AcceleratorName,AcceleratorCount,GpuInfo,Price,SpotPrice,Region,AvailabilityZone\n\
                    m1,2.0,8.0,,,,0.1,,r1,z\n\
                    g1,8.0,32.0,T4,1.0,\"{'Gpus': [{'Name': 'T4', 'Count': 1}]}\",0.5,0.2,r1,z\n\
                    ,,,V100,8.0,,,1.0,r2,z\n";
        let book = PriceBook::read(text, Path::new("catalogs/v7/acme/vms.csv")).unwrap();
        assert_eq!(book.names(), ["acme/m1", "acme/g1"]);
        let entry = book.find("acme/g1").unwrap();
        assert_eq!((entry.accelerator.as_deref(), entry.accelerator_count), (Some("T4"), Some(1.0)));
        assert_eq!(entry.usd_per_hour_spot, Some(0.2));
        assert_eq!(entry.source_file, "catalogs/v7/acme/vms.csv");
        assert_eq!(PriceBook::read_of(text, Path::new("x.csv"), Some("other")).unwrap().names()[0], "other/m1");
        assert!(PriceBook::read(text, Path::new("vms.csv")).is_err(), "nothing names the provider");
    }

    #[test]
    fn a_broken_file_is_named_by_line_and_reason() {
        let path = Path::new("p.csv");
        let header =
            "provider,instance,accelerator,accelerator_count,vcpus,memory_gib,region,usd_per_hour_on_demand,usd_per_hour_spot\n";
        let error = PriceBook::read(&format!("{header}a,b,,,2,8,r,cheap,\n"), path).unwrap_err();
        assert_eq!(error.to_string(), "`p.csv` line 2: `usd_per_hour_on_demand` is `cheap`, expected a number");
        assert!(matches!(PriceBook::read(&format!("{header}a,b\n"), path), Err(CostError::Broken { line: 2, .. })));
        assert!(matches!(PriceBook::read("", path), Err(CostError::MissingColumn { column: "instance", .. })));
    }
}
