//! The IDX format of MNIST: two zero bytes, the element type, the rank, each extent as a big-endian u32, then the bytes.

use super::DataError;
use flate2::read::MultiGzDecoder;
use std::{
    io::Read,
    path::{Path, PathBuf},
};

/// 4 GiB unpacked: far beyond any set that fits the memory this program plans for.
const LARGEST: u64 = 4 << 30;

/// A file's bytes, unpacked where it is gzip.
pub(super) fn read_bytes(path: &Path) -> Result<Vec<u8>, DataError> {
    let fail = |source| DataError::Io { path: path.to_path_buf(), source };
    let raw = std::fs::read(path).map_err(fail)?;
    if !raw.starts_with(&[0x1f, 0x8b]) {
        return Ok(raw);
    }
    let mut bytes = Vec::new();
    MultiGzDecoder::new(&raw[..]).take(LARGEST + 1).read_to_end(&mut bytes).map_err(fail)?;
    if bytes.len() as u64 > LARGEST {
        return Err(DataError::Content { path: path.to_path_buf(), reason: "unpacks to more than 4 GiB".into() });
    }
    Ok(bytes)
}

/// An array of bytes with its extents.
pub(super) struct Idx {
    pub shape: Vec<usize>,
    pub data: Vec<u8>,
}

pub(super) fn parse(path: &Path, mut bytes: Vec<u8>, rank: usize) -> Result<Idx, DataError> {
    let fail = |expected: &str, found: String| DataError::Idx { path: path.to_path_buf(), expected: expected.into(), found };
    let header = 4 + 4 * rank;
    match bytes.get(..4) {
        None => return Err(fail("a header of 4 bytes", format!("{} bytes", bytes.len()))),
        Some([0, 0, 8, r]) if usize::from(*r) == rank => {}
        Some([0, 0, 8, r]) => return Err(fail(&format!("{rank} axes"), format!("{r}"))),
        Some(other) => return Err(fail("the header 0, 0, 8", format!("{other:?}"))),
    }
    let Some(extents) = bytes.get(4..header) else {
        return Err(fail(&format!("a header of {header} bytes"), format!("{} bytes", bytes.len())));
    };
    let shape: Vec<usize> = extents.chunks_exact(4).map(|e| u32::from_be_bytes([e[0], e[1], e[2], e[3]]) as usize).collect();
    let elements = shape.iter().try_fold(1usize, |all, n| all.checked_mul(*n));
    if elements != Some(bytes.len() - header) {
        return Err(fail(&format!("the bytes of a {shape:?} array"), format!("{}", bytes.len() - header)));
    }
    bytes.drain(..header);
    Ok(Idx { shape, data: bytes })
}

/// The first existing file of `folder` among the customary names of a part.
fn find(folder: &Path, part: &str, kind: &str, rank: usize) -> Result<PathBuf, DataError> {
    let mut names = Vec::new();
    // LeCun's files call the test part `t10k`.
    for part in [part].into_iter().chain((part == "test").then_some("t10k")) {
        for stem in [format!("{part}-{kind}.idx{rank}"), format!("{part}-{kind}-idx{rank}-ubyte")] {
            for end in ["", ".gz"] {
                names.push(format!("{stem}{end}"));
            }
        }
    }
    let found = names.iter().map(|name| folder.join(name)).find(|path| path.is_file());
    found.ok_or_else(|| DataError::MissingFile { folder: folder.to_path_buf(), names })
}

/// Images `[rows, H, W]` and labels `[rows]` of one part, as bytes.
pub(super) fn load_part(folder: &Path, part: &str) -> Result<(Idx, Vec<u8>), DataError> {
    let (image_path, label_path) = (find(folder, part, "images", 3)?, find(folder, part, "labels", 1)?);
    let images = parse(&image_path, read_bytes(&image_path)?, 3)?;
    let labels = parse(&label_path, read_bytes(&label_path)?, 1)?;
    if images.shape[0] != labels.shape[0] {
        let reason = format!("{} labels for the {} images of `{}`", labels.shape[0], images.shape[0], image_path.display());
        return Err(DataError::Content { path: label_path, reason });
    }
    if images.data.is_empty() {
        return Err(DataError::Content { path: image_path, reason: "holds no image".into() });
    }
    Ok((images, labels.data))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn no_bytes_make_the_parser_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64), rank in 1usize..4) {
            let _ = parse(Path::new("x"), bytes, rank);
        }

        #[test]
        fn no_extents_make_the_parser_panic(extents in proptest::array::uniform3(any::<u32>()), tail in 0usize..64) {
            let mut bytes = vec![0, 0, 8, 3];
            extents.iter().for_each(|e| bytes.extend(e.to_be_bytes()));
            bytes.extend(vec![1; tail]);
            let whole = extents.iter().map(|e| u128::from(*e)).product::<u128>() == tail as u128;
            prop_assert_eq!(parse(Path::new("x"), bytes, 3).is_ok(), whole);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |bytes: &[u8]| parse(Path::new("f"), bytes.to_vec(), 1).err().unwrap().to_string();
        assert!(error(&[0, 0]).contains("found 2 bytes"));
        assert!(error(&[0, 0, 9, 1, 0, 0, 0, 0]).contains("expected the header 0, 0, 8, found [0, 0, 9, 1]"));
        assert!(error(&[0, 0, 8, 3, 0, 0, 0, 0]).contains("expected 1 axes, found 3"));
        assert!(error(&[0, 0, 8, 1, 0, 0, 0, 2, 7]).contains("a [2] array, found 1"));
    }
}
