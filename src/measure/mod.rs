//! What the machine is, what it can do at most, and what a process used of it. Clocks of candidates live with their loops (`train`).

mod communication;
mod energy;
mod environment;
mod gpu;
mod kernels;
mod memory;
mod noise;
mod rates;
mod sparsity;
mod speed;

pub use communication::{measure_exchanges, measure_thread_exchanges};
pub use energy::EnergyCounter;
pub use environment::environment;
pub use gpu::{GpuSensor, gpus, measure_gpu};
pub use kernels::{KernelBench, KernelCase, kernel_cases};
pub use memory::{forget_peak_resident, peak_resident};
pub use noise::{CpuTimes, load_average};
pub use rates::{RateCase, RateError, extend_rates, measure_rates, rate_cases};
pub use sparsity::{SparseProduct, measure_sparse, measure_two_four};
pub use speed::SpeedProbe;
