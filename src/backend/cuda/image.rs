//! The compiled kernels that the program carries, and which of them a device takes.

use super::machine::CudaError;
use flate2::read::GzDecoder;
use std::io::Read;

/// One kernel file compiled for one architecture.
pub(super) struct Image {
    /// `elementwise` of `kernels/elementwise.cu`.
    pub file: &'static str,
    /// Of the file and its headers.
    pub source_sha256: &'static str,
    /// `sm_80`, `sm_90a`, or `compute_80` for PTX.
    pub architecture: &'static str,
    /// Gzip.
    pub packed: &'static [u8],
    pub entries: &'static [&'static str],
}

include!(concat!(env!("OUT_DIR"), "/images.rs"));

impl Image {
    /// Compute capability, and whether the image is for exactly that one (`a`).
    fn target(&self) -> ((u32, u32), bool) {
        let digits = self.architecture.trim_start_matches(|c: char| !c.is_ascii_digit());
        let locked = digits.ends_with('a');
        let number: u32 = digits.trim_end_matches('a').parse().expect("architectures are numbers");
        ((number / 10, number % 10), locked)
    }

    pub fn is_ptx(&self) -> bool {
        self.architecture.starts_with("compute_")
    }

    /// How well it suits a device: an exact cubin, a cubin of the same major version, PTX; `None` where it does not run.
    fn rank(&self, capability: (u32, u32)) -> Option<u32> {
        let (target, locked) = self.target();
        if self.is_ptx() {
            return (target <= capability).then_some(0);
        }
        if target == capability {
            return Some(200);
        }
        let same_major = !locked && target.0 == capability.0 && target.1 < capability.1;
        same_major.then_some(100 + target.1)
    }

    /// The image itself; PTX ends with the zero that the driver wants.
    pub fn unpacked(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        GzDecoder::new(self.packed).read_to_end(&mut bytes).expect("the image was packed when the program was built");
        if self.is_ptx() {
            bytes.push(0);
        }
        bytes
    }
}

/// The best image with `kernel` for a device of this compute capability.
pub(super) fn choose(kernel: &str, capability: (u32, u32)) -> Result<&'static Image, CudaError> {
    let holding = IMAGES.iter().filter(|image| image.entries.contains(&kernel));
    let best = holding.filter_map(|image| Some((image.rank(capability)?, image))).max_by_key(|(rank, _)| *rank);
    best.map(|(_, image)| image).ok_or_else(|| CudaError::NoImage { kernel: kernel.to_string(), capability })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_gets_its_own_cubin_then_one_of_its_major_version_then_ptx() {
        let architecture = |capability| choose("relu_f32", capability).map(|image| image.architecture).ok();
        assert_eq!(architecture((8, 0)), Some("sm_80"));
        assert_eq!(architecture((8, 6)), Some("sm_86"));
        assert_eq!(architecture((8, 7)), Some("sm_86"));
        assert_eq!(architecture((8, 9)), Some("sm_89"));
        assert_eq!(architecture((9, 0)), Some("sm_90a"));
        assert_eq!(architecture((9, 1)), Some("compute_80"), "an image of `a` runs on its own capability alone");
        assert_eq!(architecture((12, 0)), Some("compute_80"));
        assert_eq!(architecture((7, 5)), None);
        assert!(matches!(choose("no_such_kernel", (9, 0)), Err(CudaError::NoImage { .. })));
    }

    #[test]
    fn every_image_unpacks_and_is_what_it_says() {
        for image in IMAGES {
            let bytes = image.unpacked();
            if image.is_ptx() {
                let text = std::str::from_utf8(&bytes[..bytes.len() - 1]).unwrap();
                assert!(text.contains(".version 8.0\n") && text.contains(".target sm_80\n"), "{}", image.file);
                assert!(image.entries.iter().all(|entry| text.contains(&format!(".entry {entry}("))), "{}", image.file);
            } else {
                assert_eq!(&bytes[..4], b"\x7fELF", "{} {}", image.file, image.architecture);
            }
        }
    }
}
