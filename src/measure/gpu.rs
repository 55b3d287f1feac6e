//! GPUs: what the CUDA driver says of them, what they reach, and what NVIDIA's management library (NVML) tells of clocks and energy.
//!
//! The library comes with the driver and is opened when it is first asked for; where it is missing, these facts stay unknown.

use crate::{
    backend::cuda,
    record::Gpu,
    units::{Bytes, Joules},
};
use nvml_wrapper::{Device, Nvml, bitmasks::device::ThrottleReasons, enum_wrappers::device::Clock};
use std::sync::OnceLock;

/// The library, opened once in the life of a process.
fn nvml() -> Option<&'static Nvml> {
    static LIBRARY: OnceLock<Option<Nvml>> = OnceLock::new();
    // The name with its version: the one without comes with development packages only.
    LIBRARY.get_or_init(|| Nvml::builder().lib_path("libnvidia-ml.so.1".as_ref()).init().ok()).as_ref()
}

/// All CUDA devices in the driver's order, without measured rates; empty where there is no driver.
pub fn gpus() -> Vec<Gpu> {
    (0..cuda::device_count().unwrap_or(0)).filter_map(|ordinal| gpu(ordinal).ok()).collect()
}

fn gpu(ordinal: usize) -> Result<Gpu, cuda::CudaError> {
    let facts = cuda::facts(ordinal)?;
    let uuid = cuda::uuid(ordinal);
    let device = uuid.as_deref().and_then(device);
    Ok(Gpu {
        name: facts.name,
        uuid,
        driver: nvml().and_then(|library| library.sys_driver_version().ok()),
        capability: format!("{}.{}", facts.capability.0, facts.capability.1),
        multiprocessors: facts.multiprocessors,
        memory: Bytes(facts.memory_bytes),
        kernels: cuda::image_for(facts.capability).map(str::to_string),
        max_clock_mhz: device.as_ref().and_then(|d| d.max_clock_info(Clock::SM).ok()),
        power_limit_w: device.as_ref().and_then(|d| d.enforced_power_limit().ok()).map(|milliwatts| f64::from(milliwatts) / 1e3),
        copy_bytes_per_s: None,
        fp32_flops_per_s: None,
        tf32_flops_per_s: None,
        bf16_flops_per_s: None,
    })
}

/// Fills in the measured rates of the device of this number.
///
/// # Errors
/// The reason why the device cannot be used.
pub fn measure_gpu(gpu: &mut Gpu, ordinal: usize) -> Result<(), String> {
    let peaks = cuda::peaks(ordinal).map_err(|error| error.to_string())?;
    gpu.copy_bytes_per_s = Some(peaks.copy_bytes_per_s);
    gpu.fp32_flops_per_s = Some(peaks.fp32_flops_per_s);
    gpu.tf32_flops_per_s = Some(peaks.tf32_flops_per_s);
    gpu.bf16_flops_per_s = Some(peaks.bf16_flops_per_s);
    Ok(())
}

fn device(uuid: &str) -> Option<Device<'static>> {
    nvml()?.device_by_uuid(uuid).ok()
}

/// NVML's view of the devices of one candidate.
pub struct GpuSensor {
    devices: Vec<Device<'static>>,
    /// Processes of the candidate.
    ours: Vec<u32>,
}

impl GpuSensor {
    /// Of CUDA devices by their names, on which the processes `ours` compute; `None` where NVML does not know one of them.
    pub fn open(uuids: &[String], ours: Vec<u32>) -> Option<GpuSensor> {
        let devices = uuids.iter().map(|uuid| device(uuid)).collect::<Option<Vec<_>>>()?;
        (!devices.is_empty()).then_some(GpuSensor { devices, ours })
    }

    /// What a record calls it.
    pub fn name(&self) -> String {
        format!("NVML, {} device{}", self.devices.len(), if self.devices.len() == 1 { "" } else { "s" })
    }

    /// Energy counters of the devices since the driver was loaded; `None` where a device has none (before Volta).
    pub fn energy(&self) -> Option<Joules> {
        let millijoules = self.devices.iter().map(|d| d.total_energy_consumption().ok()).collect::<Option<Vec<u64>>>()?;
        Some(Joules(millijoules.iter().sum::<u64>() as f64 / 1e3))
    }

    /// Lowest present clock of the devices' multiprocessors over the highest that they may run at.
    pub fn clock_share(&self) -> Option<f64> {
        let share = |d: &Device| Some(f64::from(d.clock_info(Clock::SM).ok()?) / f64::from(d.max_clock_info(Clock::SM).ok()?));
        self.devices.iter().map(share).collect::<Option<Vec<f64>>>()?.into_iter().min_by(f64::total_cmp)
    }

    /// What holds the clocks down now, in words; empty where nothing does.
    pub fn throttles(&self) -> Vec<&'static str> {
        let all = self.devices.iter().filter_map(|d| d.current_throttle_reasons().ok());
        throttle_words(all.fold(ThrottleReasons::empty(), |all, one| all | one))
    }

    /// Other processes that compute on the devices.
    pub fn strangers(&self) -> usize {
        let processes = self.devices.iter().filter_map(|d| d.running_compute_processes().ok()).flatten();
        processes.filter(|process| !self.ours.contains(&process.pid)).count()
    }
}

/// Reasons that make a figure lower than the device could reach; an idle device or clocks set by its owner are none.
fn throttle_words(reasons: ThrottleReasons) -> Vec<&'static str> {
    [
        (ThrottleReasons::SW_POWER_CAP, "power limit"),
        (ThrottleReasons::HW_SLOWDOWN, "hardware slowdown"),
        (ThrottleReasons::SW_THERMAL_SLOWDOWN, "temperature"),
        (ThrottleReasons::HW_THERMAL_SLOWDOWN, "temperature, by hardware"),
        (ThrottleReasons::HW_POWER_BRAKE_SLOWDOWN, "power brake"),
    ]
    .into_iter()
    .filter(|(reason, _)| reasons.contains(*reason))
    .map(|(_, word)| word)
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_slows_a_device_is_named() {
        assert!(throttle_words(ThrottleReasons::GPU_IDLE | ThrottleReasons::APPLICATIONS_CLOCKS_SETTING).is_empty());
        let both = ThrottleReasons::SW_POWER_CAP | ThrottleReasons::HW_SLOWDOWN;
        assert_eq!(throttle_words(both), ["power limit", "hardware slowdown"]);
    }

    #[test]
    fn a_machine_without_gpus_has_none_and_no_sensor() {
        if cuda::device_count().is_err() {
            assert_eq!(gpus(), []);
            assert!(GpuSensor::open(&["GPU-0".into()], Vec::new()).is_none());
        }
    }
}
