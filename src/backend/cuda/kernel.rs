//! Typed launches: a kernel's Rust signature states what its argument struct holds, so that a wrong call does not compile.
//!
//! A signature is a tuple whose elements stand in the order of the struct's fields in `kernels/*.cu`; a test compares both. Fields lie
//! at their natural alignment, as C++ has them.

use super::machine::{Address, EncodedMap, Launch, TensorMap};
use crate::vocab::DType;
use half::{bf16, f16};
use std::marker::PhantomData;

/// An element type of device memory.
pub(super) trait Element: Copy + 'static {
    /// How kernel names end.
    const SUFFIX: &'static str;
    const DTYPE: DType;
}

impl Element for f32 {
    const SUFFIX: &'static str = "f32";
    const DTYPE: DType = DType::F32;
}
impl Element for f16 {
    const SUFFIX: &'static str = "f16";
    const DTYPE: DType = DType::F16;
}
impl Element for bf16 {
    const SUFFIX: &'static str = "bf16";
    const DTYPE: DType = DType::Bf16;
}
impl Element for i8 {
    const SUFFIX: &'static str = "i8";
    const DTYPE: DType = DType::I8;
}
impl Element for u8 {
    const SUFFIX: &'static str = "u8";
    const DTYPE: DType = DType::U8;
}
impl Element for i32 {
    const SUFFIX: &'static str = "i32";
    const DTYPE: DType = DType::I32;
}

/// Device memory that a kernel reads; 0 is a null pointer.
pub(super) struct In<T>(pub Address, PhantomData<T>);
/// Device memory that a kernel writes.
pub(super) struct Out<T>(pub Address, PhantomData<T>);

impl<T> In<T> {
    pub const NULL: In<T> = In(0, PhantomData);

    pub fn at(address: Address) -> In<T> {
        In(address, PhantomData)
    }
}

impl<T> Out<T> {
    pub fn at(address: Address) -> Out<T> {
        Out(address, PhantomData)
    }
}

/// One field of an argument struct, or several of one type in a row.
pub(super) trait Field {
    /// Bytes of one number, which lies at a multiple of them.
    const SIZE: usize;
    fn bytes(&self) -> Vec<u8>;
    /// For a tensor map, which is encoded later.
    fn map(&self) -> Option<TensorMap> {
        None
    }
}

impl Field for TensorMap {
    // Its alignment; it is as large as two of these.
    const SIZE: usize = 64;
    fn bytes(&self) -> Vec<u8> {
        vec![0; size_of::<EncodedMap>()]
    }
    fn map(&self) -> Option<TensorMap> {
        Some(*self)
    }
}

macro_rules! fields {
    ($($type:ty,)*) => {$(
        impl Field for $type {
            const SIZE: usize = size_of::<$type>();
            fn bytes(&self) -> Vec<u8> {
                self.to_le_bytes().to_vec()
            }
        }
    )*};
}

fields!(u64, u32, f32,);

impl<F: Field, const N: usize> Field for [F; N] {
    const SIZE: usize = F::SIZE;
    fn bytes(&self) -> Vec<u8> {
        self.iter().flat_map(Field::bytes).collect()
    }
}

impl<T> Field for In<T> {
    const SIZE: usize = 8;
    fn bytes(&self) -> Vec<u8> {
        self.0.to_le_bytes().to_vec()
    }
}

impl<T> Field for Out<T> {
    const SIZE: usize = 8;
    fn bytes(&self) -> Vec<u8> {
        self.0.to_le_bytes().to_vec()
    }
}

/// A struct as C++ lays it out.
#[derive(Default)]
pub(super) struct Arguments {
    pub bytes: Vec<u8>,
    pub maps: Vec<(usize, TensorMap)>,
}

impl Arguments {
    fn put<F: Field>(&mut self, field: &F) {
        self.bytes.resize(self.bytes.len().next_multiple_of(F::SIZE), 0);
        self.maps.extend(field.map().map(|map| (self.bytes.len(), map)));
        self.bytes.extend(field.bytes());
    }
}

/// The fields of an argument struct, in order.
pub(super) trait Signature {
    fn arguments(&self) -> Arguments;
}

macro_rules! signatures {
    ($($($name:ident)+;)*) => {$(
        impl<$($name: Field),+> Signature for ($($name,)+) {
            #[allow(non_snake_case)]
            fn arguments(&self) -> Arguments {
                let ($($name,)+) = self;
                let mut out = Arguments::default();
                $(out.put($name);)+
                out.bytes.resize(out.bytes.len().next_multiple_of(8), 0);
                out
            }
        }
    )*};
}

signatures! {
    A B;
    A B C;
    A B C D;
    A B C D E;
    A B C D E F;
    A B C D E F G;
    A B C D E F G H;
    A B C D E F G H I;
    A B C D E F G H I J;
    A B C D E F G H I J K;
}

/// A kernel whose argument struct is `S`.
pub(super) struct Kernel<S> {
    name: String,
    block: u32,
    signature: PhantomData<fn(S)>,
}

impl<S: Signature> Kernel<S> {
    /// `block` is the number of threads that the kernel is written for.
    pub fn new(name: String, block: u32) -> Kernel<S> {
        Kernel { name, block, signature: PhantomData }
    }

    pub fn launch(&self, grid: [u32; 3], shared_bytes: u32, arguments: S) -> Launch {
        let Arguments { bytes, maps } = arguments.arguments();
        Launch { kernel: self.name.clone(), grid, block: self.block, shared_bytes, arguments: bytes, maps }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_struct_is_laid_out_as_in_c() {
        let arguments = (In::<f32>::at(1), 2u32, Out::<f16>::at(3), 4.0f32);
        let bytes = arguments.arguments().bytes;
        assert_eq!(bytes.len(), 32);
        assert_eq!((bytes[0], bytes[8], bytes[16]), (1, 2, 3));
        assert_eq!(bytes[24..28], 4.0f32.to_le_bytes());
        assert_eq!((In::<f32>::at(1), [2u32; 3], 5u64).arguments().bytes.len(), 32, "a row of numbers lies as its numbers do");
        let map = TensorMap::matrix(256, DType::Bf16, [3, 8], [64, 64]);
        let arguments = (1u32, map, 2u32).arguments();
        assert_eq!((arguments.bytes.len(), arguments.maps), (200, vec![(64, map)]), "a map lies at a multiple of 64");
    }
}
