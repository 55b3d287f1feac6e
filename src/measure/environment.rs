//! The facts of a machine that a figure depends on, measured peaks among them.

use super::noise::load_average;
use crate::{
    backend::cpu::kernels::{Isa, multiply_add_rate},
    record::Environment,
    units::Bytes,
};
use std::time::Instant;
use sysinfo::{CpuRefreshKind, MemoryRefreshKind, RefreshKind, System};

/// Bytes of each thread's source and target: together far beyond any last-level cache share.
const COPIED: usize = 64 << 20;

/// Looks the machine over and measures its peaks; takes about half a second.
pub fn environment() -> Environment {
    let kinds = RefreshKind::nothing().with_cpu(CpuRefreshKind::nothing()).with_memory(MemoryRefreshKind::nothing().with_ram());
    // Without the system's word these facts stay empty; nothing depends on them but the record.
    let system = System::new_with_specifics(kinds).ok();
    let load_before = load_average();
    let logical_cores = std::thread::available_parallelism().map_or(1, usize::from);
    let physical = System::physical_core_count().unwrap_or(logical_cores);
    Environment {
        host: System::host_name().unwrap_or_default(),
        os: System::long_os_version().unwrap_or_default(),
        kernel: System::kernel_version().unwrap_or_default(),
        cpu: system.as_ref().and_then(|s| s.cpus().first()).map(|cpu| cpu.brand().trim().to_string()).unwrap_or_default(),
        physical_cores: physical.min(logical_cores),
        logical_cores,
        memory: Bytes(system.as_ref().map_or(0, System::total_memory)),
        instruction_sets: Isa::available().iter().map(|isa| format!("{isa:?}").to_lowercase()).collect(),
        governor: governor(),
        steal_share: None,
        load_before,
        peak_flops_per_core: Some(multiply_add_rate(Isa::best(), 0.1)),
        copy_bytes_per_s: Some(copy_rate(logical_cores)),
        gpus: Vec::new(),
        rates: Vec::new(),
        processes: None,
        advisor_version: env!("CARGO_PKG_VERSION").to_string(),
        rustc: env!("ADVISOR_RUSTC").to_string(),
        commit: option_env!("ADVISOR_COMMIT").map(str::to_string),
    }
}

fn governor() -> Option<String> {
    let text = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor").ok()?;
    Some(text.trim().to_string())
}

/// Bytes a second, read and written, of all threads copying at once; the best of three.
fn copy_rate(threads: usize) -> f64 {
    let mut buffers: Vec<(Vec<u8>, Vec<u8>)> = (0..threads).map(|_| (vec![1; COPIED], vec![0; COPIED])).collect();
    let mut best = 0.0f64;
    for _ in 0..3 {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for (from, to) in &mut buffers {
                scope.spawn(|| to.copy_from_slice(std::hint::black_box(from)));
            }
        });
        best = best.max((2 * COPIED * threads) as f64 / start.elapsed().as_secs_f64());
    }
    std::hint::black_box(&buffers);
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_is_described_with_its_peaks() {
        let environment = environment();
        assert!(environment.logical_cores >= 1 && environment.memory.0 > 1 << 28);
        assert!(environment.peak_flops_per_core.unwrap() > 1e8 && environment.copy_bytes_per_s.unwrap() > 1e8);
        assert!(environment.rustc.starts_with("rustc "), "{}", environment.rustc);
    }
}
