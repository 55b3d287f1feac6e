//! What the CUDA backend needs of a device: memory, launches, a recording of launches that is replayed as one. The driver is one
//! such machine; the tests have another that runs the same kernels on the CPU.

use crate::vocab::DType;
use std::sync::Arc;

/// An address in a machine's memory.
pub(super) type Address = u64;

/// What a device is, as far as kernels are chosen by it.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    pub name: String,
    /// Major and minor number, as in `sm_90`: (9, 0).
    pub capability: (u32, u32),
    pub multiprocessors: u32,
    /// Most shared memory that a block may ask for.
    pub shared_bytes_per_block: u32,
    pub memory_bytes: u64,
}

/// What a tensor map says of a dense tensor of 16-bit numbers, or of bytes (`U8`): where it lies and which boxes the tensor memory engine takes of it. Boxes
/// land in shared memory with the 128-byte swizzle; what of a box lies outside the tensor is zero.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct TensorMap {
    /// A multiple of 16.
    pub base: Address,
    pub dtype: DType,
    /// How many of the dimensions below there are: 2 to 4.
    pub rank: usize,
    /// The innermost first, whose numbers lie next to each other; that one takes a multiple of 16 bytes.
    pub extents: [usize; 4],
    /// Of a box: at most 128 bytes of the first dimension and 256 of others.
    pub tile: [u32; 4],
}

impl TensorMap {
    /// Boxes of `tile` rows and columns.
    pub fn matrix(base: Address, dtype: DType, [rows, columns]: [usize; 2], tile: [u32; 2]) -> TensorMap {
        TensorMap { base, dtype, rank: 2, extents: [columns, rows, 1, 1], tile: [tile[1], tile[0], 1, 1] }
    }

    /// Bytes from one element to the next of dimensions 1 to 3.
    pub fn strides(&self) -> [u64; 3] {
        let [x, y, z, _] = self.extents.map(|extent| extent as u64);
        let size = self.dtype.size() as u64;
        [size * x, size * x * y, size * x * y * z]
    }
}

/// A tensor map as the device reads it.
pub(super) type EncodedMap = [u8; 128];

/// One kernel with its grid and its argument struct.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Launch {
    pub kernel: String,
    pub grid: [u32; 3],
    pub block: u32,
    /// Dynamic shared memory.
    pub shared_bytes: u32,
    /// The struct that the kernel takes, as its bytes.
    pub arguments: Vec<u8>,
    /// Tensor maps of the struct that only the device's driver can encode, by the byte at which each stands.
    pub maps: Vec<(usize, TensorMap)>,
}

impl std::fmt::Display for Launch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "kernel `{}`, grid {:?}, {} threads, {} bytes shared", self.kernel, self.grid, self.block, self.shared_bytes)
    }
}

#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum CudaError {
    #[error("no CUDA driver was found (libcuda.so.1): install NVIDIA's driver, 525 or later")]
    NoDriver,
    #[error("the CUDA driver shows no device ({0})")]
    NoDevice(String),
    #[error("the CUDA driver is too old or broken: {0}; install NVIDIA's driver, 525 or later")]
    OldDriver(String),
    #[error("there is no CUDA device {ordinal}: the driver shows {count}")]
    Ordinal { ordinal: usize, count: usize },
    #[error("{what} cannot be opened: {reason}")]
    NoLibrary { what: &'static str, reason: String },
    #[error("`{call}` failed: {code}")]
    Call { call: &'static str, code: String },
    #[error("{launch}: {reason} (operands {shapes})")]
    Launch { launch: String, shapes: String, reason: String },
    #[error("device memory for {bytes} bytes: {reason}")]
    Memory { bytes: usize, reason: String },
    #[error("no image of kernel `{kernel}` runs on compute capability {}.{}", .capability.0, .capability.1)]
    NoImage { kernel: String, capability: (u32, u32) },
}

impl CudaError {
    /// Names the operands of the step that a failed launch belongs to.
    pub(super) fn on(self, shapes: String) -> CudaError {
        match self {
            CudaError::Launch { launch, reason, .. } => CudaError::Launch { launch, shapes, reason },
            other => other,
        }
    }
}

/// A device. Calls are queued in order; `synchronize` waits for them.
pub(super) trait Machine: Send + Sync {
    fn facts(&self) -> &Facts;
    /// Zeroed memory, aligned to 256 bytes.
    fn allocate(&self, bytes: usize) -> Result<Address, CudaError>;
    fn release(&self, address: Address);
    /// `data` may be changed once this returns.
    fn upload(&self, to: Address, data: &[u8]) -> Result<(), CudaError>;
    /// Waits for all that was queued, then copies.
    fn download(&self, from: Address, data: &mut [u8]) -> Result<(), CudaError>;
    /// Host memory of so many words of 32 bits, zero at first, from which uploads are queued.
    fn staging(&self, words: usize) -> Result<Box<dyn Staging>, CudaError>;
    fn copy(&self, from: Address, to: Address, bytes: usize) -> Result<(), CudaError>;
    /// Encodes a tensor map; `cuTensorMapEncodeTiled`.
    fn tensor_map(&self, map: &TensorMap) -> Result<EncodedMap, CudaError>;
    /// Every tensor map of the launch is encoded.
    fn launch(&self, launch: &Launch) -> Result<(), CudaError>;
    /// Makes one replayable piece of these launches; `None` where the machine has no such thing.
    fn record(&self, launches: &[&Launch]) -> Result<Option<Recording>, CudaError>;
    fn replay(&self, recording: &Recording) -> Result<(), CudaError>;
    fn forget(&self, recording: &Recording);
    fn synchronize(&self) -> Result<(), CudaError>;
    /// Seconds that the device took for each of the pieces, by events around them.
    fn time(&self, pieces: &[&[Launch]]) -> Result<Vec<f64>, CudaError>;
    /// Seconds that the device took to replay this once, by events around it.
    fn time_replay(&self, recording: &Recording) -> Result<f64, CudaError>;
    fn clock(&self) -> Box<dyn Clock>;
    /// What exchanges between devices without the host; an error says why there is no such thing.
    fn collectives(&self) -> Result<Box<dyn Collectives>, CudaError>;
}

/// Name of a group of devices, the same on all of them: `ncclUniqueId`.
pub(super) type GroupId = [u8; 128];

/// A library of exchanges between devices, on one of them.
pub(super) trait Collectives: Send {
    /// `NCCL 2.27.3`.
    fn name(&self) -> String;
    /// Of the device, as no other has it.
    fn device(&self) -> [u8; 16];
    fn new_id(&self) -> Result<GroupId, CudaError>;
    /// Joins the group, and waits for the others; `None` once `is_over` says that one of them will not come.
    fn join(
        &self,
        id: &GroupId,
        rank: usize,
        ranks: usize,
        is_over: &dyn Fn() -> bool,
    ) -> Result<Option<Arc<dyn DeviceGroup>>, CudaError>;
}

/// How numbers of several devices become one.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Merge {
    Sum,
    Least,
}

/// Devices that exchange. Every member queues the same calls in the same order, of messages each its end; a call is done when all members'
/// queues have got there.
pub(super) trait DeviceGroup: Send + Sync {
    fn ranks(&self) -> usize;
    fn rank(&self) -> usize;
    /// Each of `buffers` (address, numbers), in place.
    fn all_reduce(&self, buffers: &[(Address, usize)], dtype: DType, merge: Merge) -> Result<(), CudaError>;
    /// The largest of f32 that are not negative, in place, by their bits: what is not a number is larger than all.
    fn largest(&self, buffers: &[(Address, usize)]) -> Result<(), CudaError>;
    /// Starts sums of f32 beside what the device is asked for next; `finish` comes before their use.
    fn start_sums(&self, buffers: &[(Address, usize)]) -> Result<(), CudaError>;
    /// Starts a message beside what the device is asked for next; `finish` comes before its memory is written anew.
    fn start_send(&self, from: Address, bytes: usize, to: usize) -> Result<(), CudaError>;
    /// What comes behind this waits for all that was started.
    fn finish(&self) -> Result<(), CudaError>;
    /// A message of rank `from`, in the order of sending.
    fn receive(&self, to: Address, bytes: usize, from: usize) -> Result<(), CudaError>;
    /// `from` has `part` numbers for every rank, of whose sums each gets its own to `to`; f32.
    fn reduce_scatter(&self, from: Address, to: Address, part: usize) -> Result<(), CudaError>;
    /// `part` numbers of every rank, one rank behind the other; f32.
    fn all_gather(&self, from: Address, to: Address, part: usize) -> Result<(), CudaError>;
    /// Whether what was queued goes well so far. From any thread.
    fn check(&self) -> Result<(), CudaError>;
    /// Ends what is under way, wherever it is, and the group with it. From any thread; what was exchanged is then worth nothing.
    fn give_up(&self);
}

/// Writes the tensor maps of launches into their structs.
pub(super) fn encode_maps<'a>(machine: &dyn Machine, launches: impl Iterator<Item = &'a mut Launch>) -> Result<(), CudaError> {
    for launch in launches {
        for (at, map) in std::mem::take(&mut launch.maps) {
            launch.arguments[at..at + size_of::<EncodedMap>()].copy_from_slice(&machine.tensor_map(&map)?);
        }
    }
    Ok(())
}

/// The time at which a device gets to points of its queue.
pub(super) trait Clock: Send {
    /// Queues a point.
    fn mark(&mut self) -> Result<(), CudaError>;
    /// Waits for all points and forgets them; seconds from each to the next.
    fn take(&mut self) -> Result<Vec<f64>, CudaError>;
}

/// Page-locked memory of the host: the device copies from it when its queue gets there, and nobody waits.
pub(super) trait Staging: Send {
    /// What is uploaded next. Waits until the upload that was queued last has read it.
    fn words(&mut self) -> Result<&mut [u32], CudaError>;
    /// Queues a copy of all of it.
    fn upload(&mut self, to: Address) -> Result<(), CudaError>;
}

/// Handle of a recorded piece.
#[derive(Debug, PartialEq)]
pub(super) struct Recording(pub usize);
