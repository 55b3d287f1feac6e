//! From a source to a data set in memory.

use super::{
    DataError, DataSet, DataSource, Inputs, Part, csv, idx,
    source::{SHIPPED, Shipped, ShippedFormat},
    text,
};
use crate::vocab::RowShape;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Words of a shipped text that are read (all of 97 in 100 texts), and most different words.
const LENGTH: usize = 48;
const VOCABULARY: usize = 8000;

/// The folder that holds the shipped data: the environment variable `ADVISOR_DATA`, else `data` beside or above any of `from`.
///
/// # Errors
/// `DataError::NoDataDir` with every place that was tried. A folder that `ADVISOR_DATA` names is the only one tried: reading other
/// rows than the ones asked for would go unnoticed.
pub fn find_data_dir(from: &[PathBuf]) -> Result<PathBuf, DataError> {
    let named = std::env::var_os("ADVISOR_DATA").filter(|value| !value.is_empty()).map(PathBuf::from);
    data_dir(named, from)
}

fn data_dir(named: Option<PathBuf>, from: &[PathBuf]) -> Result<PathBuf, DataError> {
    let mut tried = Vec::new();
    let above = from.iter().filter(|_| named.is_none()).flat_map(|place| place.ancestors().map(|folder| folder.join("data")));
    for folder in named.iter().cloned().chain(above) {
        if folder.join("PROVENANCE.md").is_file() {
            return Ok(folder);
        }
        if !tried.contains(&folder) {
            tried.push(folder);
        }
    }
    Err(DataError::NoDataDir { tried })
}

impl DataSet {
    /// Reads a data set; shipped ones are looked for as `find_data_dir` says.
    ///
    /// # Errors
    /// A `DataError` that names file and place when something is missing, unreadable or malformed, when a part has no rows, or when
    /// there are fewer than two classes.
    pub fn load(source: &DataSource, search_from: &[PathBuf]) -> Result<DataSet, DataError> {
        let (origin, mut set) = match source {
            DataSource::Shipped(name) => {
                let known = || SHIPPED.iter().map(|s| s.name.to_string()).collect();
                let shipped = SHIPPED.iter().find(|s| s.name == name);
                let shipped = shipped.ok_or_else(|| DataError::Unknown { name: name.clone(), known: known() })?;
                let folder = find_data_dir(search_from)?.join(name);
                let set = load_shipped(shipped, &folder)?;
                (folder, set)
            }
            DataSource::Idx { folder } => (folder.clone(), load_idx(folder)?),
            DataSource::Csv { path, label, shape, maximum, split, test_share } => {
                let columns = csv::Columns { label, split: split.as_deref(), test_share: *test_share };
                (path.clone(), load_csv(path, &csv::Layout { columns, shape: *shape, maximum: *maximum })?)
            }
            DataSource::Text { path, text, label, split, test_share, length, vocabulary } => {
                let columns = csv::Columns { label, split: split.as_deref(), test_share: *test_share };
                let words = text::Words { length: *length, vocabulary: *vocabulary };
                (path.clone(), load_text(path, &columns, text, &words)?)
            }
        };
        set.name = source.to_string();
        check(&set, &origin)?;
        set.content_hash = hash(&set);
        Ok(set)
    }
}

fn load_shipped(shipped: &Shipped, folder: &Path) -> Result<DataSet, DataError> {
    let table = folder.join(format!("{}.csv.gz", shipped.name));
    let columns = csv::Columns { label: "label", split: Some("split"), test_share: 0.2 };
    let mut set = match shipped.format {
        ShippedFormat::Idx => load_idx(folder)?,
        ShippedFormat::Csv => load_csv(&table, &csv::Layout { columns, shape: [8, 8, 1], maximum: 16.0 })?,
        ShippedFormat::Text => load_text(&table, &columns, "text", &text::Words { length: LENGTH, vocabulary: VOCABULARY })?,
    };
    if !shipped.classes.is_empty() {
        set.classes = shipped.classes.iter().map(|c| (*c).to_string()).collect();
    }
    Ok(set)
}

fn load_idx(folder: &Path) -> Result<DataSet, DataError> {
    let (train, train_labels) = idx::load_part(folder, "train")?;
    let (test, test_labels) = idx::load_part(folder, "test")?;
    if train.shape[1..] != test.shape[1..] {
        let reason = format!("training images are {:?}, test images {:?}", &train.shape[1..], &test.shape[1..]);
        return Err(DataError::Content { path: folder.to_path_buf(), reason });
    }
    let part = |images: &idx::Idx, labels: &[u8]| Part {
        inputs: Inputs::Images(images.data.iter().map(|b| f32::from(*b) / 255.0).collect()),
        labels: labels.iter().map(|l| u32::from(*l)).collect(),
    };
    let classes = train_labels.iter().chain(&test_labels).max().map_or(0, |most| usize::from(*most) + 1);
    Ok(DataSet {
        name: String::new(),
        row: RowShape::Image([train.shape[1], train.shape[2], 1]),
        classes: (0..classes).map(|c| c.to_string()).collect(),
        train: part(&train, &train_labels),
        test: part(&test, &test_labels),
        content_hash: String::new(),
    })
}

fn load_csv(path: &Path, layout: &csv::Layout) -> Result<DataSet, DataError> {
    let table = csv::images(path, &idx::read_bytes(path)?, layout)?;
    let part = |rows: csv::Rows<Vec<f32>>| {
        let (images, labels): (Vec<_>, Vec<_>) = rows.into_iter().unzip();
        Part { inputs: Inputs::Images(images.concat()), labels }
    };
    Ok(DataSet {
        name: String::new(),
        row: RowShape::Image(layout.shape),
        classes: table.classes,
        train: part(table.train),
        test: part(table.test),
        content_hash: String::new(),
    })
}

fn load_text(path: &Path, columns: &csv::Columns, text: &str, words: &text::Words) -> Result<DataSet, DataError> {
    let table = csv::texts(path, &idx::read_bytes(path)?, columns, text)?;
    let (train, test, vocabulary) = text::encode(path, table.train, table.test, words)?;
    let row = RowShape::Tokens { length: words.length, vocabulary };
    Ok(DataSet { name: String::new(), row, classes: table.classes, train, test, content_hash: String::new() })
}

/// What every data set must have to be trained and judged on.
fn check(set: &DataSet, origin: &Path) -> Result<(), DataError> {
    let fail = |reason: String| Err(DataError::Content { path: origin.to_path_buf(), reason });
    if set.train.rows() == 0 || set.test.rows() == 0 {
        return fail(format!("{} training and {} test rows: both parts need some", set.train.rows(), set.test.rows()));
    }
    if set.classes.len() < 2 {
        return fail(format!("{} class: at least two are needed", set.classes.len()));
    }
    let largest = set.train.labels.iter().chain(&set.test.labels).max().copied().unwrap_or(0) as usize;
    if largest >= set.classes.len() {
        return fail(format!("class number {largest}, but only {} class names", set.classes.len()));
    }
    Ok(())
}

fn hash(set: &DataSet) -> String {
    let mut hasher = Sha256::new();
    match set.row {
        RowShape::Image(shape) => hasher.update(format!("{shape:?} {:?}", set.classes)),
        RowShape::Tokens { .. } => hasher.update(format!("{:?} {:?}", set.row, set.classes)),
    }
    for part in [&set.train, &set.test] {
        hasher.update((part.rows() as u64).to_le_bytes());
        match &part.inputs {
            Inputs::Images(images) => images.iter().for_each(|v| hasher.update(v.to_le_bytes())),
            Inputs::Tokens(tokens) => tokens.iter().for_each(|v| hasher.update(v.to_le_bytes())),
        }
        part.labels.iter().for_each(|v| hasher.update(v.to_le_bytes()));
    }
    hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::{Compression, write::GzEncoder};
    use proptest::prelude::*;
    use std::io::Write;

    fn shipped(name: &str) -> DataSet {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
        DataSet::load(&DataSource::Shipped(name.into()), &[root]).unwrap()
    }

    fn images(part: &Part) -> &[f32] {
        match &part.inputs {
            Inputs::Images(images) => images,
            Inputs::Tokens(_) => panic!("images"),
        }
    }

    fn counts(part: &Part) -> Vec<usize> {
        (0..10).map(|class| part.labels.iter().filter(|l| **l == class).count()).collect()
    }

    #[test]
    fn shipped_sets_hold_the_rows_their_provenance_names() {
        let mnist = shipped("mnist");
        assert_eq!((mnist.row, mnist.train.rows(), mnist.test.rows()), (RowShape::Image([28, 28, 1]), 8004, 1996));
        assert_eq!(counts(&mnist.train), [801, 902, 793, 826, 784, 691, 812, 856, 756, 783]);
        assert_eq!(counts(&mnist.test), [200, 225, 198, 206, 196, 172, 202, 214, 188, 195]);
        let fashion = shipped("fashion-mnist");
        assert_eq!((fashion.row, fashion.train.rows(), fashion.test.rows()), (RowShape::Image([28, 28, 1]), 8000, 2000));
        assert_eq!((counts(&fashion.train), counts(&fashion.test)), (vec![800; 10], vec![200; 10]));
        assert_eq!(fashion.classes[9], "boot");
        let digits = shipped("digits-8x8");
        assert_eq!((digits.row, digits.train.rows(), digits.test.rows()), (RowShape::Image([8, 8, 1]), 1437, 360));
        for set in [&mnist, &fashion, &digits] {
            assert_eq!(images(&set.train).len(), set.train.rows() * set.row.elements());
            let (low, high) = images(&set.train).iter().fold((1.0f32, 0.0f32), |(l, h), v| (l.min(*v), h.max(*v)));
            assert_eq!((low, high), (0.0, 1.0), "{}", set.name);
        }
        assert_ne!(mnist.content_hash, fashion.content_hash);
        let texts = shipped("sentiment-snippets");
        assert_eq!((texts.train.rows(), texts.test.rows()), (13_161, 3_257));
        assert_eq!(texts.row, RowShape::Tokens { length: 48, vocabulary: 8000 });
        assert_eq!(texts.classes, ["negative", "positive"]);
        for part in [&texts.train, &texts.test] {
            let Inputs::Tokens(tokens) = &part.inputs else { panic!("texts") };
            assert_eq!(tokens.len(), part.rows() * 48);
            assert!(tokens.iter().all(|token| (0..8000).contains(token)) && tokens.chunks(48).all(|text| text[0] != 0));
        }
    }

    #[test]
    fn a_folder_of_ones_own_is_read_plain_or_packed_and_mismatches_are_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = |rows: u8, fill: u8| -> Vec<u8> {
            let mut bytes = vec![0, 0, 8, 3, 0, 0, 0, rows, 0, 0, 0, 2, 0, 0, 0, 2];
            bytes.extend(vec![fill; usize::from(rows) * 4]);
            bytes
        };
        let labels = |values: &[u8]| [&[0, 0, 8, 1, 0, 0, 0, values.len() as u8], values].concat();
        let write = |name: &str, bytes: Vec<u8>| std::fs::write(dir.path().join(name), bytes).unwrap();
        write("train-images-idx3-ubyte", file(3, 255));
        write("train-labels-idx1-ubyte", labels(&[0, 1, 2]));
        write("t10k-images-idx3-ubyte", file(2, 0));
        let source = DataSource::Idx { folder: dir.path().to_path_buf() };
        assert!(DataSet::load(&source, &[]).unwrap_err().to_string().contains("t10k-labels"));
        write("t10k-labels-idx1-ubyte", labels(&[0]));
        assert!(DataSet::load(&source, &[]).unwrap_err().to_string().contains("1 labels for the 2 images"));
        write("t10k-labels-idx1-ubyte", labels(&[0, 1]));
        let set = DataSet::load(&source, &[]).unwrap();
        assert_eq!((set.classes.len(), images(&set.train)[0], images(&set.test)[0]), (3, 1.0, 0.0));
        write("train-labels-idx1-ubyte", labels(&[0, 0, 0]));
        write("t10k-labels-idx1-ubyte", labels(&[0, 0]));
        assert!(DataSet::load(&source, &[]).unwrap_err().to_string().contains("at least two are needed"));
    }

    #[test]
    fn a_missing_data_folder_names_every_place_that_was_tried() {
        let error = data_dir(None, &[PathBuf::from("/nowhere/at/all")]).unwrap_err().to_string();
        assert!(error.contains("`/nowhere/at/data`") && error.contains("ADVISOR_DATA"), "{error}");
    }

    #[test]
    fn a_wrong_named_data_folder_is_an_error_even_where_another_would_be_found() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("data")).unwrap();
        std::fs::write(dir.path().join("data/PROVENANCE.md"), "").unwrap();
        let from = [dir.path().join("scenarios")];
        assert_eq!(data_dir(None, &from).unwrap(), dir.path().join("data"));
        assert_eq!(data_dir(Some(dir.path().join("data")), &[]).unwrap(), dir.path().join("data"));
        let error = data_dir(Some("/nowhere".into()), &from).unwrap_err().to_string();
        assert!(error.contains("tried `/nowhere`;"), "{error}");
    }

    #[test]
    fn a_missing_file_is_asked_for_by_each_customary_name_once() {
        let error = DataSet::load(&DataSource::Idx { folder: "/nowhere".into() }, &[]).unwrap_err();
        let DataError::MissingFile { names, .. } = error else { panic!("{error}") };
        let expected = ["train-images.idx3", "train-images.idx3.gz", "train-images-idx3-ubyte", "train-images-idx3-ubyte.gz"];
        assert_eq!(names, expected);
    }

    /// `bytes` as they are, packed, or packed and cut short.
    fn disguised(bytes: &[u8], how: u8) -> Vec<u8> {
        if how == 0 {
            return bytes.to_vec();
        }
        let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
        encoder.write_all(bytes).unwrap();
        let mut packed = encoder.finish().unwrap();
        packed.truncate(packed.len() - usize::from(how - 1) * 9);
        packed
    }

    proptest! {
        #[test]
        fn no_files_make_loading_panic(
            files in prop::array::uniform4((prop::collection::vec(any::<u8>(), 0..40), any::<bool>(), 0u8..3)),
        ) {
            let dir = tempfile::tempdir().unwrap();
            let names = ["train-images.idx3", "train-labels.idx1", "test-images.idx3", "test-labels.idx1"];
            for (name, (tail, headed, how)) in names.into_iter().zip(&files) {
                // With a right header and small extents a random tail gets as far as the later checks.
                let (head, size): (&[u8], usize) = if name.ends_with('3') {
                    (&[0, 0, 8, 3, 0, 0, 0, 2, 0, 0, 0, 3, 0, 0, 0, 1], 6)
                } else {
                    (&[0, 0, 8, 1, 0, 0, 0, 2], 2)
                };
                let bytes = if *headed { [head, &tail[..size.min(tail.len())]].concat() } else { tail.clone() };
                std::fs::write(dir.path().join(name), disguised(&bytes, *how)).unwrap();
            }
            if let Ok(set) = DataSet::load(&DataSource::Idx { folder: dir.path().to_path_buf() }, &[]) {
                prop_assert_eq!((set.row, images(&set.train).len(), set.test.rows()), (RowShape::Image([3, 1, 1]), 6, 2));
            }
            let source = DataSource::Csv {
                path: dir.path().join(names[0]),
                label: "label".into(),
                shape: [3, 1, 1],
                maximum: 1.0,
                split: None,
                test_share: 0.5,
            };
            prop_assert!(DataSet::load(&source, &[]).is_err());
        }
    }
}
