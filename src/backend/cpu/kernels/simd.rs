//! The instruction sets and the vector type every f32 kernel is written in once.
//! [`Isa`] is found at run time; `simd!` enters a function compiled for it; [`Element`] loads and stores f32, bf16, f16.
//! Rounding to bf16 and f16 is to nearest even on every path. Not here: int8 and bf16 dot products (`int8`, `gemm`).

use half::{bf16, f16};
use std::arch::x86_64::*;
use std::fmt::Debug;

/// An instruction set the kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Portable Rust, no intrinsics.
    Scalar,
    /// AVX2, FMA and F16C.
    Avx2,
    /// AVX-512 F, BW, DQ and VL besides.
    Avx512,
}

impl Isa {
    /// Those this machine has, slowest first.
    pub fn available() -> Vec<Isa> {
        let mut found = vec![Isa::Scalar];
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") && is_x86_feature_detected!("f16c") {
            found.push(Isa::Avx2);
            if is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
            {
                found.push(Isa::Avx512);
            }
        }
        found
    }

    /// The fastest this machine has.
    pub fn best() -> Isa {
        *Isa::available().last().expect("scalar is always there")
    }

    /// Whether AVX-512 VNNI can be used besides this set.
    pub(super) fn has_vnni(self) -> bool {
        self == Isa::Avx512 && is_x86_feature_detected!("avx512vnni")
    }

    /// Whether AVX-512 BF16 can be used besides this set.
    pub fn has_bf16(self) -> bool {
        self == Isa::Avx512 && is_x86_feature_detected!("avx512bf16")
    }
}

/// Runs `f` compiled with AVX-512.
///
/// # Safety
/// The machine must have it.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c,bmi1,bmi2")]
pub(super) unsafe fn with_avx512<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// Runs `f` compiled with AVX2, FMA and F16C.
///
/// # Safety
/// The machine must have them.
#[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2")]
pub(super) unsafe fn with_avx2<R>(f: impl FnOnce() -> R) -> R {
    f()
}

/// `simd!(isa, body, [T, U](args))` calls `body::<S, T, U>(args)` compiled for `isa`, with `S` its vector type.
/// `body` and all it calls must be `#[inline(always)] unsafe fn`, and closures in it used once only: what is not inlined
/// lacks the instruction set, and each of its intrinsics becomes a call (fifty times slower, though still right).
/// Call sites import everything from this module and stand in an
/// `unsafe` block: that the machine has `isa` is [`super::Context`]'s promise, the rest is the body's own contract.
macro_rules! simd {
    ($isa:expr, $f:ident, [$($t:tt),*]($($arg:expr),* $(,)?)) => {
        match $isa {
            Isa::Avx512 => with_avx512(#[inline(always)] || $f::<V16 $(, $t)*>($($arg),*)),
            Isa::Avx2 => with_avx2(#[inline(always)] || $f::<V8 $(, $t)*>($($arg),*)),
            Isa::Scalar => $f::<V4 $(, $t)*>($($arg),*),
        }
    };
}
pub(super) use simd;

/// A vector of f32. Every method needs the instruction set of its implementor; pointers must be valid for `LANES`.
#[allow(clippy::missing_safety_doc)]
pub trait Simd: Copy + 'static {
    type V: Copy;
    type M: Copy;
    const LANES: usize;
    /// Rows of the matrix tile that fit the registers beside two vectors of B.
    const TILE_ROWS: usize;
    const ISA: Isa;

    unsafe fn splat(x: f32) -> Self::V;
    unsafe fn load(p: *const f32) -> Self::V;
    unsafe fn store(p: *mut f32, v: Self::V);
    unsafe fn load_bf16(p: *const bf16) -> Self::V;
    unsafe fn store_bf16(p: *mut bf16, v: Self::V);
    unsafe fn load_f16(p: *const f16) -> Self::V;
    unsafe fn store_f16(p: *mut f16, v: Self::V);
    /// Bytes as numbers 0..=255.
    unsafe fn load_u8(p: *const u8) -> Self::V;
    /// `LANES` words of eight signed 4-bit numbers each: vector l holds number l of every word, the lowest bits first.
    unsafe fn load_nibbles(p: *const u32) -> [Self::V; 8];
    /// Whole numbers 0..=127 as bytes.
    unsafe fn store_u8(p: *mut u8, v: Self::V);
    /// The first `n < LANES` lanes, zero elsewhere; touches no other memory.
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V {
        unsafe {
            let mut pad = [0.0; 16];
            for (i, slot) in pad.iter_mut().enumerate().take(n) {
                *slot = *p.add(i);
            }
            Self::load(pad.as_ptr())
        }
    }
    /// Stores the first `n < LANES` lanes.
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: Self::V, n: usize) {
        unsafe {
            let pad = Self::to_array(v);
            for (i, x) in pad.iter().enumerate().take(n) {
                *p.add(i) = *x;
            }
        }
    }
    /// Whole numbers -127..=127 as bytes.
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, v: Self::V) {
        unsafe {
            let a = Self::to_array(v);
            for (i, x) in a.into_iter().enumerate().take(Self::LANES) {
                *p.add(i) = x as i8;
            }
        }
    }
    /// For codes a + 4 b: lanes of `four[a]` and of `four[b]`.
    #[inline(always)]
    unsafe fn pick4(four: &[f32; 4], code: Self::V) -> (Self::V, Self::V) {
        unsafe {
            // Exact: code / 4 - 3/8 is within 3/8 of b.
            let b = Self::round(Self::fma(code, Self::splat(0.25), Self::splat(-0.375)));
            let a = Self::fma(b, Self::splat(-4.0), code);
            let (mut first, mut second) = (Self::splat(four[0]), Self::splat(four[0]));
            for (i, &x) in four.iter().enumerate().skip(1) {
                let (place, x) = (Self::splat(i as f32), Self::splat(x));
                first = Self::select(Self::eq(a, place), x, first);
                second = Self::select(Self::eq(b, place), x, second);
            }
            (first, second)
        }
    }
    /// a b + c, in one rounding where the machine has it.
    unsafe fn fma(a: Self::V, b: Self::V, c: Self::V) -> Self::V;
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sub(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// The larger; b when either is not a number.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// The smaller; b when either is not a number.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    unsafe fn sqrt(a: Self::V) -> Self::V;
    unsafe fn round(a: Self::V) -> Self::V;
    unsafe fn gt(a: Self::V, b: Self::V) -> Self::M;
    unsafe fn eq(a: Self::V, b: Self::V) -> Self::M;
    /// a where m, else b.
    unsafe fn select(m: Self::M, a: Self::V, b: Self::V) -> Self::V;
    /// a 2^n for whole n in -126..=127.
    unsafe fn scale_exp2(a: Self::V, n: Self::V) -> Self::V;

    /// Transposes 8 x 8 values: `to[8 rows of to_row]` from `from[8 rows of from_row]`.
    #[inline(always)]
    unsafe fn transpose8(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        unsafe {
            for i in 0..8 {
                for j in 0..8 {
                    *to.add(j * to_row + i) = *from.add(i * from_row + j);
                }
            }
        }
    }
    /// Asks for the cache line at `p`, to be written soon. Any address will do.
    #[inline(always)]
    unsafe fn prefetch(p: *const f32) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(p.cast()) }
    }
    #[inline(always)]
    unsafe fn zero() -> Self::V {
        unsafe { Self::splat(0.0) }
    }
    #[inline(always)]
    unsafe fn neg(a: Self::V) -> Self::V {
        unsafe { Self::sub(Self::zero(), a) }
    }
    #[inline(always)]
    unsafe fn to_array(v: Self::V) -> [f32; 16] {
        let mut out = [0.0; 16];
        unsafe { Self::store(out.as_mut_ptr(), v) };
        out
    }
    /// Sum over the lanes, pairwise, so that it is the same every time.
    #[inline(always)]
    unsafe fn sum(v: Self::V) -> f32 {
        let mut a = unsafe { Self::to_array(v) };
        let mut n = Self::LANES;
        while n > 1 {
            n /= 2;
            for i in 0..n {
                a[i] += a[i + n];
            }
        }
        a[0]
    }
    #[inline(always)]
    unsafe fn max_lane(v: Self::V) -> f32 {
        let a = unsafe { Self::to_array(v) };
        a[..Self::LANES].iter().copied().fold(f32::NEG_INFINITY, |m, x| if x > m || x.is_nan() { x } else { m })
    }
}

/// 16 lanes: AVX-512.
#[derive(Clone, Copy)]
pub struct V16;
/// 8 lanes: AVX2 and FMA.
#[derive(Clone, Copy)]
pub struct V8;
/// 4 lanes in plain Rust.
#[derive(Clone, Copy)]
pub struct V4;

impl Simd for V16 {
    type V = __m512;
    type M = __mmask16;
    const LANES: usize = 16;
    const TILE_ROWS: usize = 8;
    const ISA: Isa = Isa::Avx512;

    #[inline(always)]
    unsafe fn transpose8(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        unsafe { transpose8_avx(from, from_row, to, to_row) }
    }
    #[inline(always)]
    unsafe fn store_i8(p: *mut i8, v: __m512) {
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v))) }
    }
    #[inline(always)]
    unsafe fn pick4(four: &[f32; 4], code: __m512) -> (__m512, __m512) {
        unsafe {
            // In-lane lookups use the two lowest bits of each index.
            let table = _mm512_broadcast_f32x4(_mm_loadu_ps(four.as_ptr()));
            let code = _mm512_cvtps_epi32(code);
            (_mm512_permutevar_ps(table, code), _mm512_permutevar_ps(table, _mm512_srli_epi32::<2>(code)))
        }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> __m512 {
        unsafe { _mm512_maskz_loadu_ps((1 << n) - 1, p) }
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: __m512, n: usize) {
        unsafe { _mm512_mask_storeu_ps(p, (1 << n) - 1, v) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m512 {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m512 {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m512) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> __m512 {
        unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: __m512) {
        unsafe {
            let u = _mm512_castps_si512(v);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(u), _mm512_set1_epi32(1));
            let r = _mm512_add_epi32(u, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let r = _mm512_mask_or_epi32(r, nan, u, _mm512_set1_epi32(0x40_0000));
            _mm256_storeu_si256(p.cast(), _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(r)));
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> __m512 {
        unsafe { _mm512_cvtph_ps(_mm256_loadu_si256(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut f16, v: __m512) {
        unsafe { _mm256_storeu_si256(p.cast(), _mm512_cvtps_ph::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(v)) }
    }
    #[inline(always)]
    unsafe fn load_nibbles(p: *const u32) -> [__m512; 8] {
        unsafe {
            // A look-up reads the four lowest bits of each lane.
            let table = _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., -8., -7., -6., -5., -4., -3., -2., -1.);
            let w = _mm512_loadu_si512(p.cast());
            [
                _mm512_permutexvar_ps(w, table),
                _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(w), table),
                _mm512_permutexvar_ps(_mm512_srli_epi32::<8>(w), table),
                _mm512_permutexvar_ps(_mm512_srli_epi32::<12>(w), table),
                _mm512_permutexvar_ps(_mm512_srli_epi32::<16>(w), table),
                _mm512_permutexvar_ps(_mm512_srli_epi32::<20>(w), table),
                _mm512_permutexvar_ps(_mm512_srli_epi32::<24>(w), table),
                _mm512_permutexvar_ps(_mm512_srli_epi32::<28>(w), table),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> __m512 {
        unsafe { _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_u8(p: *mut u8, v: __m512) {
        unsafe { _mm_storeu_si128(p.cast(), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(v))) }
    }
    #[inline(always)]
    unsafe fn fma(a: __m512, b: __m512, c: __m512) -> __m512 {
        unsafe { _mm512_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn add(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sqrt(a: __m512) -> __m512 {
        unsafe { _mm512_sqrt_ps(a) }
    }
    #[inline(always)]
    unsafe fn round(a: __m512) -> __m512 {
        unsafe { _mm512_roundscale_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn gt(a: __m512, b: __m512) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_GT_OQ>(a, b) }
    }
    #[inline(always)]
    unsafe fn eq(a: __m512, b: __m512) -> __mmask16 {
        unsafe { _mm512_cmp_ps_mask::<_CMP_EQ_OQ>(a, b) }
    }
    #[inline(always)]
    unsafe fn select(m: __mmask16, a: __m512, b: __m512) -> __m512 {
        unsafe { _mm512_mask_blend_ps(m, b, a) }
    }
    #[inline(always)]
    unsafe fn scale_exp2(a: __m512, n: __m512) -> __m512 {
        unsafe { _mm512_scalef_ps(a, n) }
    }
    #[inline(always)]
    unsafe fn sum(v: __m512) -> f32 {
        unsafe {
            let h = _mm256_add_ps(_mm512_castps512_ps256(v), _mm512_extractf32x8_ps::<1>(v));
            <V8 as Simd>::sum(h)
        }
    }
}

impl Simd for V8 {
    type V = __m256;
    type M = __m256;
    const LANES: usize = 8;
    const TILE_ROWS: usize = 6;
    const ISA: Isa = Isa::Avx2;

    #[inline(always)]
    unsafe fn transpose8(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
        unsafe { transpose8_avx(from, from_row, to, to_row) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> __m256 {
        unsafe { _mm256_maskload_ps(p, first_lanes(n)) }
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: __m256, n: usize) {
        unsafe { _mm256_maskstore_ps(p, first_lanes(n), v) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> __m256 {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> __m256 {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: __m256) {
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> __m256 {
        unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(_mm_loadu_si128(p.cast())))) }
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: __m256) {
        unsafe {
            let u = _mm256_castps_si256(v);
            let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(u), _mm256_set1_epi32(1));
            let r = _mm256_add_epi32(u, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
            let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(v, v));
            let r = _mm256_blendv_epi8(r, _mm256_or_si256(u, _mm256_set1_epi32(0x40_0000)), nan);
            let r = _mm256_srli_epi32::<16>(r);
            let packed = _mm256_permute4x64_epi64::<0b1000>(_mm256_packus_epi32(r, r));
            _mm_storeu_si128(p.cast(), _mm256_castsi256_si128(packed));
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> __m256 {
        unsafe { _mm256_cvtph_ps(_mm_loadu_si128(p.cast())) }
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut f16, v: __m256) {
        unsafe { _mm_storeu_si128(p.cast(), _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v)) }
    }
    #[inline(always)]
    unsafe fn load_nibbles(p: *const u32) -> [__m256; 8] {
        unsafe {
            let w = _mm256_loadu_si256(p.cast());
            // To the top, and back with the sign.
            let number = |top: __m256i| _mm256_cvtepi32_ps(_mm256_srai_epi32::<28>(top));
            [
                number(_mm256_slli_epi32::<28>(w)),
                number(_mm256_slli_epi32::<24>(w)),
                number(_mm256_slli_epi32::<20>(w)),
                number(_mm256_slli_epi32::<16>(w)),
                number(_mm256_slli_epi32::<12>(w)),
                number(_mm256_slli_epi32::<8>(w)),
                number(_mm256_slli_epi32::<4>(w)),
                number(w),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> __m256 {
        unsafe { _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(p.cast()))) }
    }
    #[inline(always)]
    unsafe fn store_u8(p: *mut u8, v: __m256) {
        unsafe {
            let u = _mm256_cvtps_epi32(v);
            let w = _mm_packus_epi32(_mm256_castsi256_si128(u), _mm256_extracti128_si256::<1>(u));
            _mm_storel_epi64(p.cast(), _mm_packus_epi16(w, w));
        }
    }
    #[inline(always)]
    unsafe fn fma(a: __m256, b: __m256, c: __m256) -> __m256 {
        unsafe { _mm256_fmadd_ps(a, b, c) }
    }
    #[inline(always)]
    unsafe fn add(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sub(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_sub_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn div(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn sqrt(a: __m256) -> __m256 {
        unsafe { _mm256_sqrt_ps(a) }
    }
    #[inline(always)]
    unsafe fn round(a: __m256) -> __m256 {
        unsafe { _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(a) }
    }
    #[inline(always)]
    unsafe fn gt(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_cmp_ps::<_CMP_GT_OQ>(a, b) }
    }
    #[inline(always)]
    unsafe fn eq(a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_cmp_ps::<_CMP_EQ_OQ>(a, b) }
    }
    #[inline(always)]
    unsafe fn select(m: __m256, a: __m256, b: __m256) -> __m256 {
        unsafe { _mm256_blendv_ps(b, a, m) }
    }
    #[inline(always)]
    unsafe fn scale_exp2(a: __m256, n: __m256) -> __m256 {
        unsafe {
            let e = _mm256_slli_epi32::<23>(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)));
            _mm256_mul_ps(a, _mm256_castsi256_ps(e))
        }
    }
    #[inline(always)]
    unsafe fn sum(v: __m256) -> f32 {
        unsafe {
            let q = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
            let d = _mm_add_ps(q, _mm_movehl_ps(q, q));
            _mm_cvtss_f32(_mm_add_ss(d, _mm_movehdup_ps(d)))
        }
    }
}

/// All ones in the first `n` of 8 lanes.
#[inline(always)]
unsafe fn first_lanes(n: usize) -> __m256i {
    unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
}

/// Halves of rows come in by loads, so that only 16 shuffles are left.
#[inline(always)]
unsafe fn transpose8_avx(from: *const f32, from_row: usize, to: *mut f32, to_row: usize) {
    unsafe {
        for half in 0..2 {
            let row = |i: usize| {
                let low = _mm256_castps128_ps256(_mm_loadu_ps(from.add(i * from_row + half * 4)));
                _mm256_insertf128_ps::<1>(low, _mm_loadu_ps(from.add((i + 4) * from_row + half * 4)))
            };
            let (r0, r1, r2, r3) = (row(0), row(1), row(2), row(3));
            let (a, b) = (_mm256_unpacklo_ps(r0, r1), _mm256_unpackhi_ps(r0, r1));
            let (c, d) = (_mm256_unpacklo_ps(r2, r3), _mm256_unpackhi_ps(r2, r3));
            let to = to.add(half * 4 * to_row);
            _mm256_storeu_ps(to, _mm256_shuffle_ps::<0x44>(a, c));
            _mm256_storeu_ps(to.add(to_row), _mm256_shuffle_ps::<0xee>(a, c));
            _mm256_storeu_ps(to.add(2 * to_row), _mm256_shuffle_ps::<0x44>(b, d));
            _mm256_storeu_ps(to.add(3 * to_row), _mm256_shuffle_ps::<0xee>(b, d));
        }
    }
}

/// One `V4` method, lane by lane.
macro_rules! lanes {
    ($i:ident => $e:expr) => {{
        let mut out = [0.0f32; 4];
        for ($i, o) in out.iter_mut().enumerate() {
            *o = $e;
        }
        out
    }};
}

impl Simd for V4 {
    type V = [f32; 4];
    type M = [bool; 4];
    const LANES: usize = 4;
    const TILE_ROWS: usize = 4;
    const ISA: Isa = Isa::Scalar;

    #[inline(always)]
    unsafe fn splat(x: f32) -> [f32; 4] {
        [x; 4]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> [f32; 4] {
        unsafe { p.cast::<[f32; 4]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: [f32; 4]) {
        unsafe { p.cast::<[f32; 4]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn load_bf16(p: *const bf16) -> [f32; 4] {
        lanes!(i => unsafe { *p.add(i) }.to_f32())
    }
    #[inline(always)]
    unsafe fn store_bf16(p: *mut bf16, v: [f32; 4]) {
        for (i, x) in v.into_iter().enumerate() {
            unsafe { *p.add(i) = bf16::from_f32(x) };
        }
    }
    #[inline(always)]
    unsafe fn load_f16(p: *const f16) -> [f32; 4] {
        lanes!(i => unsafe { *p.add(i) }.to_f32_const())
    }
    #[inline(always)]
    unsafe fn store_f16(p: *mut f16, v: [f32; 4]) {
        for (i, x) in v.into_iter().enumerate() {
            unsafe { *p.add(i) = f16::from_f32_const(x) };
        }
    }
    #[inline(always)]
    unsafe fn load_nibbles(p: *const u32) -> [[f32; 4]; 8] {
        let mut out = [[0.0; 4]; 8];
        for (l, lanes) in out.iter_mut().enumerate() {
            *lanes = lanes!(i => ((unsafe { *p.add(i) } << (28 - 4 * l)) as i32 >> 28) as f32);
        }
        out
    }
    #[inline(always)]
    unsafe fn load_u8(p: *const u8) -> [f32; 4] {
        lanes!(i => unsafe { *p.add(i) } as f32)
    }
    #[inline(always)]
    unsafe fn store_u8(p: *mut u8, v: [f32; 4]) {
        for (i, x) in v.into_iter().enumerate() {
            unsafe { *p.add(i) = x as u8 };
        }
    }
    #[inline(always)]
    unsafe fn fma(a: [f32; 4], b: [f32; 4], c: [f32; 4]) -> [f32; 4] {
        lanes!(i => a[i] * b[i] + c[i])
    }
    #[inline(always)]
    unsafe fn add(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        lanes!(i => a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn sub(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        lanes!(i => a[i] - b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        lanes!(i => a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn div(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        lanes!(i => a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn max(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        lanes!(i => if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn min(a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        lanes!(i => if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn sqrt(a: [f32; 4]) -> [f32; 4] {
        lanes!(i => a[i].sqrt())
    }
    #[inline(always)]
    unsafe fn round(a: [f32; 4]) -> [f32; 4] {
        lanes!(i => a[i].round_ties_even())
    }
    #[inline(always)]
    unsafe fn gt(a: [f32; 4], b: [f32; 4]) -> [bool; 4] {
        [a[0] > b[0], a[1] > b[1], a[2] > b[2], a[3] > b[3]]
    }
    #[inline(always)]
    unsafe fn eq(a: [f32; 4], b: [f32; 4]) -> [bool; 4] {
        [a[0] == b[0], a[1] == b[1], a[2] == b[2], a[3] == b[3]]
    }
    #[inline(always)]
    unsafe fn select(m: [bool; 4], a: [f32; 4], b: [f32; 4]) -> [f32; 4] {
        lanes!(i => if m[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn scale_exp2(a: [f32; 4], n: [f32; 4]) -> [f32; 4] {
        lanes!(i => a[i] * f32::from_bits(((n[i] as i32 + 127) as u32) << 23))
    }
}

/// A storage type of tensors: `f32`, `bf16` or `f16`. Sealed by its private vector methods.
#[allow(clippy::missing_safety_doc)]
pub trait Element: Copy + Send + Sync + Default + PartialEq + Debug + 'static {
    /// Its name in records: `f32`, `bf16`, `f16`.
    const NAME: &'static str;
    /// Whether storage is f32 itself.
    const IS_F32: bool;
    fn to_f32(self) -> f32;
    /// Rounds to nearest even.
    fn from_f32(x: f32) -> Self;
    #[doc(hidden)]
    unsafe fn load<S: Simd>(p: *const Self) -> S::V;
    #[doc(hidden)]
    unsafe fn store<S: Simd>(p: *mut Self, v: S::V);

    /// The first `n` lanes, zero elsewhere.
    #[doc(hidden)]
    #[inline(always)]
    unsafe fn load_part<S: Simd>(p: *const Self, n: usize) -> S::V {
        unsafe {
            if n >= S::LANES {
                return Self::load::<S>(p);
            }
            let mut pad = [Self::default(); 16];
            for (i, slot) in pad.iter_mut().enumerate().take(n) {
                *slot = *p.add(i);
            }
            Self::load::<S>(pad.as_ptr())
        }
    }
    /// Stores the first `n` lanes.
    #[doc(hidden)]
    #[inline(always)]
    unsafe fn store_part<S: Simd>(p: *mut Self, v: S::V, n: usize) {
        unsafe {
            if n >= S::LANES {
                return Self::store::<S>(p, v);
            }
            let mut pad = [Self::default(); 16];
            Self::store::<S>(pad.as_mut_ptr(), v);
            for (i, slot) in pad.iter().enumerate().take(n) {
                *p.add(i) = *slot;
            }
        }
    }
}

impl Element for f32 {
    const NAME: &'static str = "f32";
    const IS_F32: bool = true;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn from_f32(x: f32) -> f32 {
        x
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f32) -> S::V {
        unsafe { S::load(p) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut f32, v: S::V) {
        unsafe { S::store(p, v) }
    }
    #[inline(always)]
    unsafe fn load_part<S: Simd>(p: *const f32, n: usize) -> S::V {
        unsafe { if n >= S::LANES { S::load(p) } else { S::load_first(p, n) } }
    }
    #[inline(always)]
    unsafe fn store_part<S: Simd>(p: *mut f32, v: S::V, n: usize) {
        unsafe { if n >= S::LANES { S::store(p, v) } else { S::store_first(p, v, n) } }
    }
}

impl Element for bf16 {
    const NAME: &'static str = "bf16";
    const IS_F32: bool = false;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits((self.to_bits() as u32) << 16)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> bf16 {
        bf16::from_f32(x)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const bf16) -> S::V {
        unsafe { S::load_bf16(p) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut bf16, v: S::V) {
        unsafe { S::store_bf16(p, v) }
    }
}

impl Element for f16 {
    const NAME: &'static str = "f16";
    const IS_F32: bool = false;
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f16::to_f32(self)
    }
    #[inline(always)]
    fn from_f32(x: f32) -> f16 {
        f16::from_f32(x)
    }
    #[inline(always)]
    unsafe fn load<S: Simd>(p: *const f16) -> S::V {
        unsafe { S::load_f16(p) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(p: *mut f16, v: S::V) {
        unsafe { S::store_f16(p, v) }
    }
}

/// e^x, relative error about 2e-7; 0 below -87.3 and infinity above 88.7.
#[inline(always)]
pub(super) unsafe fn exp<S: Simd>(x: S::V) -> S::V {
    unsafe {
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let n = S::max(S::splat(-126.0), S::min(S::splat(127.0), n));
        let r = S::fma(n, S::splat(-0.693_359_4), x);
        let r = S::fma(n, S::splat(2.121_944_4e-4), r);
        let mut p = S::splat(1.987_569_1e-4);
        for c in [1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5] {
            p = S::fma(p, r, S::splat(c));
        }
        let p = S::add(S::fma(p, S::mul(r, r), r), S::splat(1.0));
        let y = S::scale_exp2(p, n);
        let y = S::select(S::gt(S::splat(-87.3), x), S::zero(), y);
        S::select(S::gt(x, S::splat(88.7)), S::splat(f32::INFINITY), y)
    }
}

/// tanh x, relative error about 3e-7.
#[inline(always)]
pub(super) unsafe fn tanh<S: Simd>(x: S::V) -> S::V {
    unsafe {
        let big = S::sub(S::splat(1.0), S::div(S::splat(2.0), S::add(exp::<S>(S::add(x, x)), S::splat(1.0))));
        let z = S::mul(x, x);
        let mut p = S::splat(-5.704_988_6e-3);
        for c in [2.063_909e-2, -5.373_971_5e-2, 1.333_144_2e-1, -3.333_328e-1] {
            p = S::fma(p, z, S::splat(c));
        }
        let small = S::fma(S::mul(p, z), x, x);
        S::select(S::gt(S::splat(0.39), z), small, big)
    }
}

/// erf x, absolute error about 2e-7 (Abramowitz and Stegun 7.1.26).
#[inline(always)]
pub(super) unsafe fn erf<S: Simd>(x: S::V) -> S::V {
    unsafe {
        let a = S::max(S::neg(x), x);
        let t = S::div(S::splat(1.0), S::fma(a, S::splat(0.327_591_1), S::splat(1.0)));
        let mut p = S::splat(1.061_405_4);
        for c in [-1.453_152_1, 1.421_413_8, -0.284_496_72, 0.254_829_6] {
            p = S::fma(p, t, S::splat(c));
        }
        let tail = S::mul(S::mul(p, t), exp::<S>(S::neg(S::mul(a, a))));
        let y = S::sub(S::splat(1.0), tail);
        S::select(S::gt(S::zero(), x), S::neg(y), y)
    }
}
