//! The vendor's matrix products, opened at run time to be measured beside ours; nothing else in the program uses them.
//!
//! The six calls have had one signature since CUDA 11.

use super::{
    driver::Driver,
    library,
    machine::{Address, CudaError, Machine, Recording},
};
use crate::{stats::Generator, vocab::DType};
use half::{bf16, f16};
use libloading::Library;
use std::{
    ffi::{c_int, c_void},
    sync::Arc,
};

/// Names the library, or is `off`.
pub const CUBLAS: &str = "ADVISOR_CUBLAS";

const WHAT: &str = "cuBLAS";
const NAMES: [&str; 4] = ["libcublas.so.13", "libcublas.so.12", "libcublas.so.11", "libcublas.so"];

/// What the library asks for on GPUs of compute capability 9.0: below 32 MiB some of its kernels are not taken (cuBLAS documentation,
/// `cublasSetWorkspace`).
const WORKSPACE_BYTES: usize = 32 << 20;

type Handle = *mut c_void;
type Create = unsafe extern "C" fn(*mut Handle) -> c_int;
type OfHandle = unsafe extern "C" fn(Handle) -> c_int;
type GetVersion = unsafe extern "C" fn(Handle, *mut c_int) -> c_int;
type SetStream = unsafe extern "C" fn(Handle, *mut c_void) -> c_int;
type SetWorkspace = unsafe extern "C" fn(Handle, *mut c_void, usize) -> c_int;
/// handle, transpositions of a and b, m, n, k, alpha, a, its type and leading dimension, the same of b, beta, c, its type and leading
/// dimension, type of the arithmetic, algorithm.
type GemmEx = unsafe extern "C" fn(
    Handle,
    c_int,
    c_int,
    c_int,
    c_int,
    c_int,
    *const c_void,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    c_int,
    c_int,
    *const c_void,
    *mut c_void,
    c_int,
    c_int,
    c_int,
    c_int,
) -> c_int;

/// The library's handle on one device.
struct Calls {
    handle: Handle,
    destroy: OfHandle,
    gemm: GemmEx,
    // The functions above are of it.
    _library: Library,
}

// SAFETY: the handle is used by one thread at a time: every use goes through `&mut Cublas` or the one that opened it.
unsafe impl Send for Calls {}

impl Drop for Calls {
    fn drop(&mut self) {
        // SAFETY: the handle was created by this library and is used no more.
        let _ = unsafe { (self.destroy)(self.handle) };
    }
}

/// cuBLAS on a device.
pub struct Cublas {
    // Before the driver: its handle lives in the driver's context.
    calls: Calls,
    workspace: Address,
    version: String,
    driver: Arc<Driver>,
}

/// `C [M, N] = A B`, row-major, sums in fp32 (fp32 operands: without tf32).
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct VendorProduct {
    pub m: usize,
    pub n: usize,
    pub k: usize,
    /// A lies as `[K, M]`.
    pub transpose_a: bool,
    /// B lies as `[N, K]`.
    pub transpose_b: bool,
    /// Of all three: fp32, fp16 or bf16.
    pub dtype: DType,
}

fn answered(call: &'static str, status: c_int) -> Result<(), CudaError> {
    // CUBLAS_STATUS_SUCCESS
    if status == 0 { Ok(()) } else { Err(CudaError::Call { call, code: format!("status {status}") }) }
}

impl Cublas {
    /// # Errors
    /// Where there is no library, no such device, or one of its calls fails.
    pub fn open(ordinal: usize) -> Result<Cublas, CudaError> {
        let driver = Arc::new(Driver::open(ordinal)?);
        let library = library::open(WHAT, CUBLAS, &NAMES)?;
        // SAFETY: the types above are those of cublas_api.h.
        let (create, destroy, get_version, set_stream, set_workspace, gemm) = unsafe {
            (
                library::function::<Create>(&library, WHAT, "cublasCreate_v2")?,
                library::function::<OfHandle>(&library, WHAT, "cublasDestroy_v2")?,
                library::function::<GetVersion>(&library, WHAT, "cublasGetVersion_v2")?,
                library::function::<SetStream>(&library, WHAT, "cublasSetStream_v2")?,
                library::function::<SetWorkspace>(&library, WHAT, "cublasSetWorkspace_v2")?,
                library::function::<GemmEx>(&library, WHAT, "cublasGemmEx")?,
            )
        };
        let (calls, version) = driver.with_stream(|stream| {
            let mut handle: Handle = std::ptr::null_mut();
            // SAFETY: the context is current and the pointer is to a handle of ours.
            answered("cublasCreate", unsafe { create(&mut handle) })?;
            let calls = Calls { handle, destroy, gemm, _library: library };
            let mut version = 0;
            // SAFETY: the handle was just created; the stream is of the same context and outlives it.
            answered("cublasGetVersion", unsafe { get_version(handle, &mut version) })?;
            // SAFETY: as above.
            answered("cublasSetStream", unsafe { set_stream(handle, stream) })?;
            Ok((calls, version))
        })?;
        let workspace = driver.allocate(WORKSPACE_BYTES)?;
        // SAFETY: so much was just allocated, and it is released after the handle is destroyed.
        let set = unsafe { set_workspace(calls.handle, workspace as *mut c_void, WORKSPACE_BYTES) };
        answered("cublasSetWorkspace", set)?;
        // 12.9.1 is 120901, 11.8.0 is 11800.
        let base = if version >= 100_000 { 10_000 } else { 1_000 };
        let version = format!("cuBLAS {}.{}.{}", version / base, version % base / 100, version % 100);
        Ok(Cublas { calls, workspace, version, driver })
    }

    /// `cuBLAS 12.9.1`.
    pub fn name(&self) -> &str {
        &self.version
    }

    /// `calls` products on operands of their own, random between -1/2 and 1/2, recorded as one piece.
    ///
    /// # Errors
    /// Where the device has not the memory or the library refuses the call.
    pub fn product(&mut self, product: &VendorProduct, calls: usize) -> Result<ProductBench<'_>, CudaError> {
        let size = product.dtype.size();
        let mut bench = ProductBench { driver: &self.driver, memory: Vec::new(), recording: None };
        let mut generator = Generator::new(1);
        for _ in 0..calls {
            for elements in [product.m * product.k, product.k * product.n, product.m * product.n] {
                bench.memory.push(self.driver.allocate(elements * size)?);
            }
            let [.., a, b, _] = bench.memory[..] else { unreachable!("three were just pushed") };
            for (to, elements) in [(a, product.m * product.k), (b, product.k * product.n)] {
                self.driver.upload(to, &random(&mut generator, elements, product.dtype))?;
            }
        }
        let (handle, gemm) = (self.calls.handle, self.calls.gemm);
        let queue_all = |_: *mut c_void| bench.memory.chunks_exact(3).try_for_each(|abc| multiply(gemm, handle, product, abc));
        // Once outside of the recording: the library loads its kernels.
        self.driver.with_stream(queue_all)?;
        let recording = self.driver.record_calls(queue_all)?;
        bench.recording = Some(recording);
        Ok(bench)
    }
}

impl Drop for Cublas {
    fn drop(&mut self) {
        let _ = self.driver.synchronize();
        self.driver.release(self.workspace);
    }
}

/// Queues one product. The library's matrices are column-major, so that it is asked for `C^T = B^T A^T`.
fn multiply(gemm: GemmEx, handle: Handle, product: &VendorProduct, abc: &[Address]) -> Result<(), CudaError> {
    // CUBLAS_COMPUTE_32F, whose default mathematics is fp32 for fp32 operands, and CUBLAS_GEMM_DEFAULT.
    const ARITHMETIC: c_int = 68;
    const ALGORITHM: c_int = -1;
    // CUDA_R_32F, CUDA_R_16F, CUDA_R_16BF
    let dtype = match product.dtype {
        DType::F16 => 2,
        DType::Bf16 => 14,
        _ => 0,
    };
    let [m, n, k] = [product.m, product.n, product.k].map(|extent| extent as c_int);
    let (lead_a, lead_b) = (if product.transpose_a { m } else { k }, if product.transpose_b { k } else { n });
    let (one, zero) = (1.0f32, 0.0f32);
    let number = |x: &f32| std::ptr::from_ref(x).cast::<c_void>();
    let at = |place: usize| abc[place] as *mut c_void;
    // SAFETY: the handle is of the current context; the operands have the extents that they are said to have (`Cublas::product`
    // allocated them so); the factors are read before the call returns, since they lie with the host.
    let status = unsafe {
        gemm(
            handle,
            c_int::from(product.transpose_b),
            c_int::from(product.transpose_a),
            n,
            m,
            k,
            number(&one),
            at(1),
            dtype,
            lead_b,
            at(0),
            dtype,
            lead_a,
            number(&zero),
            at(2),
            dtype,
            n,
            ARITHMETIC,
            ALGORITHM,
        )
    };
    answered("cublasGemmEx", status)
}

/// A recorded series of products, ready for the clock.
pub struct ProductBench<'a> {
    driver: &'a Driver,
    /// A, B and C of every call.
    memory: Vec<Address>,
    recording: Option<Recording>,
}

impl ProductBench<'_> {
    /// Queues the series.
    pub fn execute(&mut self) -> Result<(), CudaError> {
        self.recording.as_ref().map_or(Ok(()), |recording| self.driver.replay(recording))
    }

    pub fn synchronize(&mut self) -> Result<(), CudaError> {
        self.driver.synchronize()
    }
}

impl Drop for ProductBench<'_> {
    fn drop(&mut self) {
        if let Some(recording) = &self.recording {
            self.driver.forget(recording);
        }
        let _ = self.driver.synchronize();
        self.memory.iter().for_each(|address| self.driver.release(*address));
    }
}

fn random(generator: &mut Generator, elements: usize, dtype: DType) -> Vec<u8> {
    let mut numbers = (0..elements).map(|_| generator.unit() as f32 - 0.5);
    match dtype {
        DType::F16 => bytemuck::cast_slice(&numbers.map(f16::from_f32).collect::<Vec<_>>()).to_vec(),
        DType::Bf16 => bytemuck::cast_slice(&numbers.map(bf16::from_f32).collect::<Vec<_>>()).to_vec(),
        _ => numbers.by_ref().flat_map(f32::to_le_bytes).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Only with the stand-in, whose library reads column-major matrices as the vendor's manual says.
    #[test]
    fn the_vendors_products_are_those_that_were_asked_for() {
        if std::env::var_os(super::super::THROUGH_THE_DRIVER).is_none() {
            return;
        }
        let mut library = Cublas::open(0).unwrap();
        assert_eq!(library.name(), "cuBLAS 12.9.1");
        let driver = library.driver.clone();
        for dtype in [DType::F32, DType::F16, DType::Bf16] {
            for [transpose_a, transpose_b] in [[false, false], [false, true], [true, false], [true, true]] {
                let product = VendorProduct { m: 3, n: 5, k: 7, transpose_a, transpose_b, dtype };
                let mut bench = library.product(&product, 2).unwrap();
                bench.execute().unwrap();
                bench.execute().unwrap();
                let read = |address: Address, elements: usize| -> Vec<f32> {
                    let mut bytes = vec![0; elements * dtype.size()];
                    driver.download(address, &mut bytes).unwrap();
                    let words = |two: &[u8]| u16::from_le_bytes([two[0], two[1]]);
                    match dtype {
                        DType::F16 => bytes.chunks(2).map(|two| f16::from_bits(words(two)).to_f32()).collect(),
                        DType::Bf16 => bytes.chunks(2).map(|two| bf16::from_bits(words(two)).to_f32()).collect(),
                        _ => bytes.chunks(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect(),
                    }
                };
                for abc in bench.memory.chunks_exact(3) {
                    let (a, b, c) = (read(abc[0], 21), read(abc[1], 35), read(abc[2], 15));
                    for (at, found) in c.iter().enumerate() {
                        let (row, column) = (at / 5, at % 5);
                        let term = |k: usize| {
                            let a = if transpose_a { a[k * 3 + row] } else { a[row * 7 + k] };
                            a * if transpose_b { b[column * 7 + k] } else { b[k * 5 + column] }
                        };
                        let expected: f32 = (0..7).map(term).sum();
                        assert!((found - expected).abs() < 0.01, "{product:?} {at}: {found}, not {expected}");
                    }
                    assert!(c.iter().any(|c| c.abs() > 0.05));
                }
            }
        }
    }
}
