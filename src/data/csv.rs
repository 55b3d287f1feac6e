//! Tables: one row an image, pixels in all columns but the label and the split; or one row a text, which stands in one column.

use super::DataError;
use crate::input::nearest;
use std::{collections::HashMap, path::Path};

/// What a scenario says of a table, whatever its rows hold.
pub(super) struct Columns<'a> {
    pub label: &'a str,
    pub split: Option<&'a str>,
    pub test_share: f64,
}

/// What it says of a table of images.
pub(super) struct Layout<'a> {
    pub columns: Columns<'a>,
    pub shape: [usize; 3],
    pub maximum: f64,
}

/// Rows of one part with their class numbers.
pub(super) type Rows<T> = Vec<(T, u32)>;

/// A table's parts, and its classes in order.
pub(super) struct Table<T> {
    pub train: Rows<T>,
    pub test: Rows<T>,
    pub classes: Vec<String>,
}

/// The columns of a file.
pub(super) struct Header<'a> {
    path: &'a Path,
    names: Vec<String>,
    label: usize,
    split: Option<usize>,
}

impl Header<'_> {
    /// The place of a column.
    pub fn column(&self, name: &str) -> Result<usize, DataError> {
        column(self.path, &self.names, name)
    }
}

/// One line of a file.
pub(super) struct Line<'a> {
    header: &'a Header<'a>,
    number: usize,
    cells: Vec<String>,
}

impl Line<'_> {
    pub fn cell(&self, column: usize) -> &str {
        &self.cells[column]
    }

    pub fn wrong(&self, column: usize, expected: &str) -> DataError {
        DataError::Cell {
            path: self.header.path.to_path_buf(),
            line: self.number,
            column: self.header.names[column].clone(),
            expected: expected.into(),
            found: self.cells[column].clone(),
        }
    }
}

fn column(path: &Path, names: &[String], name: &str) -> Result<usize, DataError> {
    let mut places = (0..names.len()).filter(|k| names[*k] == name);
    match (places.next(), places.next()) {
        (Some(_), Some(_)) => {
            let reason = format!("column `{name}` stands twice in the header");
            Err(DataError::Content { path: path.to_path_buf(), reason })
        }
        (Some(place), None) => Ok(place),
        (None, _) => {
            let mut columns = names.to_vec();
            let near = nearest(name, columns.iter().map(String::as_str)).map(str::to_string);
            if let Some(at) = near.and_then(|near| columns.iter().position(|column| *column == near)) {
                columns[..=at].rotate_right(1);
            }
            Err(DataError::Column { path: path.to_path_buf(), column: name.to_string(), columns })
        }
    }
}

/// Splits one line into cells; quotes may hold commas and doubled quotes (RFC 4180; a quoted cell may not hold a line end). `None`
/// when a quote is still open at the end of the line.
fn cells(line: &str) -> Option<Vec<String>> {
    let mut out = vec![String::new()];
    let (mut quoted, mut chars) = (false, line.chars().peekable());
    while let Some(c) = chars.next() {
        let cell = out.last_mut().expect("starts with one");
        match c {
            '"' if quoted && chars.peek() == Some(&'"') => {
                chars.next();
                cell.push('"');
            }
            '"' => quoted = !quoted,
            ',' if !quoted => out.push(String::new()),
            c => cell.push(c),
        }
    }
    (!quoted).then_some(out)
}

/// Reads a table of images.
pub(super) fn images(path: &Path, bytes: &[u8], layout: &Layout) -> Result<Table<Vec<f32>>, DataError> {
    let content = |reason: String| DataError::Content { path: path.to_path_buf(), reason };
    if !(layout.maximum.is_finite() && layout.maximum > 0.0) {
        return Err(content(format!("`maximum` is {}: expected a number above 0", layout.maximum)));
    }
    let elements = layout.shape.iter().try_fold(1usize, |all, n| all.checked_mul(*n)).filter(|n| *n > 0);
    let elements = elements.ok_or_else(|| content(format!("shape {:?} is not the shape of an image", layout.shape)))?;
    rows(path, bytes, &layout.columns, |header| {
        let pixels: Vec<usize> = (0..header.names.len()).filter(|k| *k != header.label && Some(*k) != header.split).collect();
        if pixels.len() != elements {
            return Err(content(format!("{} pixel columns, but shape {:?} has {elements} elements", pixels.len(), layout.shape)));
        }
        Ok(move |line: &Line| {
            let pixel = |k: &usize| {
                let value = line.cell(*k).trim().parse().ok().filter(|v: &f64| v.is_finite());
                let value = value.ok_or_else(|| line.wrong(*k, "a number"))?;
                if !(0.0..=layout.maximum).contains(&value) {
                    return Err(line.wrong(*k, &format!("a number from 0 to {}, the `maximum`", layout.maximum)));
                }
                Ok((value / layout.maximum) as f32)
            };
            pixels.iter().map(pixel).collect()
        })
    })
}

/// Reads a table of texts that stand in one column.
pub(super) fn texts(path: &Path, bytes: &[u8], columns: &Columns, text: &str) -> Result<Table<String>, DataError> {
    rows(path, bytes, columns, |header| {
        let place = header.column(text)?;
        Ok(move |line: &Line| match line.cell(place).trim() {
            "" => Err(line.wrong(place, "a text")),
            text => Ok(text.to_string()),
        })
    })
}

/// Reads a table whose rows are read by what `reader` makes of the header.
fn rows<T, R: Fn(&Line) -> Result<T, DataError>>(
    path: &Path,
    bytes: &[u8],
    columns: &Columns,
    reader: impl FnOnce(&Header) -> Result<R, DataError>,
) -> Result<Table<T>, DataError> {
    let content = |reason: String| DataError::Content { path: path.to_path_buf(), reason };
    let text = std::str::from_utf8(bytes).map_err(|e| content(format!("not UTF-8 text at byte {}", e.valid_up_to())))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = text.lines().enumerate().map(|(n, line)| (n + 1, line)).filter(|(_, line)| !line.trim().is_empty());
    let (line, header) = lines.next().ok_or_else(|| content("no header line".into()))?;
    let closed = |line: usize, text: &str| cells(text).ok_or_else(|| content(format!("line {line}: a quote is not closed")));
    let names: Vec<String> = closed(line, header)?.into_iter().map(|name| name.trim().to_string()).collect();
    let label = column(path, &names, columns.label)?;
    let split = columns.split.map(|name| column(path, &names, name)).transpose()?;
    let header = Header { path, names, label, split };
    let read = reader(&header)?;
    // (class as written, goes to the test part, what the row holds)
    let mut rows: Vec<(String, Option<bool>, T)> = Vec::new();
    for (number, text) in lines {
        let cells = closed(number, text)?;
        if cells.len() != header.names.len() {
            return Err(content(format!("line {number} has {} cells, the header {}", cells.len(), header.names.len())));
        }
        let line = Line { header: &header, number, cells };
        let to_test = match split.map(|k| (k, line.cell(k).trim())) {
            None => None,
            Some((_, "train")) => Some(false),
            Some((_, "test")) => Some(true),
            Some((k, _)) => return Err(line.wrong(k, "`train` or `test`")),
        };
        if line.cell(label).trim().is_empty() {
            return Err(line.wrong(label, "a class"));
        }
        rows.push((line.cell(label).trim().to_string(), to_test, read(&line)?));
    }
    let mut classes: Vec<String> = rows.iter().map(|(class, ..)| class.clone()).collect();
    classes.sort();
    classes.dedup();
    // As numbers where all are: "10" stands behind "9".
    if classes.iter().all(|c| c.parse::<f64>().is_ok()) {
        classes.sort_by(|a, b| a.parse::<f64>().unwrap_or(0.0).total_cmp(&b.parse::<f64>().unwrap_or(0.0)));
    }
    let numbers: HashMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
    let (mut train, mut test) = (Vec::new(), Vec::new());
    // Rows of each class so far.
    let mut seen = vec![0usize; classes.len()];
    for (class, to_test, row) in rows {
        let number = numbers[class.as_str()];
        // Evenly spread over each class, because files are often sorted by it: a class's row k is a test row whenever the running share
        // passes a whole number.
        let k = seen[number as usize];
        seen[number as usize] += 1;
        let spread = ((k + 1) as f64 * columns.test_share).floor() > (k as f64 * columns.test_share).floor();
        let part = if to_test.unwrap_or(spread) { &mut test } else { &mut train };
        part.push((row, number));
    }
    for (class, number) in classes.iter().zip(0..) {
        let rows = |part: &Rows<T>| part.iter().filter(|(_, label)| *label == number).count();
        let (for_training, for_test) = (rows(&train), rows(&test));
        if for_training == 0 || for_test == 0 {
            let by = match columns.split {
                Some(column) => format!("by column `{column}`"),
                None => format!("with `test_share = {}`", columns.test_share),
            };
            let counts = format!("class `{class}` has {for_training} training and {for_test} test rows {by}");
            return Err(content(format!("{counts}: every class needs both")));
        }
    }
    Ok(Table { train, test, classes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const LAYOUT: Layout = layout(None);

    const fn layout(split: Option<&'static str>) -> Layout<'static> {
        Layout { columns: Columns { label: "class", split, test_share: 0.5 }, shape: [1, 2, 1], maximum: 10.0 }
    }

    fn parse(path: &Path, bytes: &[u8], layout: &Layout) -> Result<Table<Vec<f32>>, DataError> {
        images(path, bytes, layout)
    }

    fn read(text: &str) -> Result<Table<Vec<f32>>, String> {
        parse(Path::new("t.csv"), text.as_bytes(), &LAYOUT).map_err(|e| e.to_string())
    }

    fn labels<T>(rows: &Rows<T>) -> Vec<u32> {
        rows.iter().map(|(_, label)| *label).collect()
    }

    #[test]
    fn quotes_line_ends_and_a_byte_order_mark_are_no_trouble() {
        let rows = "5,10,10\r\n0,9,\"2.5\"\r\n\r\n10,10,0\n0,9,5\n";
        let table = read(&format!("\u{feff}\"a\",class,\"b,c\"\r\n{rows}")).unwrap();
        assert_eq!(table.classes, ["9", "10"]);
        assert_eq!(table.train, [(vec![0.5, 1.0], 1), (vec![0.0, 0.25], 0)]);
        assert_eq!(table.test, [(vec![1.0, 0.0], 1), (vec![0.0, 0.5], 0)]);
    }

    #[test]
    fn every_class_is_in_both_parts_whatever_the_order_of_the_file() {
        // Alternating classes and a share of a half: by stride alone one class would be all of the test.
        let alternating: String = (0..8).map(|k| format!("{},1,1\n", k % 2)).collect();
        let sorted: String = (0..8).map(|k| format!("{},1,1\n", k / 4)).collect();
        for rows in [alternating, sorted] {
            let table = read(&format!("class,a,b\n{rows}")).unwrap();
            for part in [&table.train, &table.test] {
                assert_eq!([0, 1].map(|class| labels(part).iter().filter(|label| **label == class).count()), [2, 2]);
            }
        }
        let error = read("class,a,b\nx,1,1\nx,1,1\ny,1,1\n").err().unwrap();
        assert!(
            error.ends_with("class `y` has 1 training and 0 test rows with `test_share = 0.5`: every class needs both"),
            "{error}"
        );
        let layout = layout(Some("part"));
        let text = "class,part,a,b\nx,train,1,1\nx,test,1,1\ny,test,1,1\n";
        let error = parse(Path::new("t.csv"), text.as_bytes(), &layout).err().unwrap().to_string();
        assert!(error.ends_with("class `y` has 0 training and 1 test rows by column `part`: every class needs both"), "{error}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| read(text).err().unwrap();
        assert!(error("a,b,kind\n").contains("no column `class`; it has `a`, `b`, `kind`"));
        assert!(error("class,a\n").contains("1 pixel columns, but shape [1, 2, 1] has 2 elements"));
        assert!(error("class,a,b\n1,2\n").contains("line 2 has 2 cells, the header 3"));
        assert!(error("class,a,b\n1,2,x\n").contains("line 2, column `b`: expected a number, found `x`"));
        assert!(error("").contains("no header line"));
        assert!(error("class,class,b\n1,1,2\n").contains("column `class` stands twice in the header"));
        assert!(error("class,a,b\n1,2,\"3\n").contains("line 2: a quote is not closed"));
        assert!(error("class,a,b\n\n ,2,3\n").contains("line 3, column `class`: expected a class, found ` `"));
        for pixel in ["-1", "10.5", "1e300"] {
            let text = error(&format!("class,a,b\n1,2,{pixel}\n"));
            let expected = format!("column `b`: expected a number from 0 to 10, the `maximum`, found `{pixel}`");
            assert!(text.contains(&expected), "{text}");
        }
        assert!(error("class,a,b\n1,2,inf\n").contains("expected a number, found `inf`"));
    }

    #[test]
    fn a_missing_column_names_the_nearest_one_first_wherever_it_stands() {
        let header = (0..30).map(|k| format!("p{k},")).collect::<String>() + "Clas";
        let error = read(&header).err().unwrap();
        assert!(error.contains("no column `class`; it has `Clas`, `p0`"), "{error}");
        assert!(error.ends_with("and 19 more"), "{error}");
    }

    #[test]
    fn no_shape_and_no_maximum_lead_to_pixels_outside_0_to_1() {
        let text = "class,a,b\n1,2,3\n";
        for shape in [[0, 2, 1], [1 << 63, 2, 2], [(1 << 63) + 1, 2, 1]] {
            let error = parse(Path::new("t"), text.as_bytes(), &Layout { shape, ..layout(None) }).err().unwrap();
            assert!(error.to_string().contains("is not the shape of an image"), "{error}");
        }
        for maximum in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = parse(Path::new("t"), text.as_bytes(), &Layout { maximum, ..layout(None) }).err().unwrap();
            assert!(error.to_string().contains("expected a number above 0"), "{error}");
        }
    }

    #[test]
    fn texts_stand_in_one_column_and_other_columns_are_no_trouble() {
        let columns = Columns { label: "label", split: Some("split"), test_share: 0.2 };
        let read = |text: &str| texts(Path::new("t.csv"), text.as_bytes(), &columns, "words");
        let table = read("id,split,label,words\n1,train,a,\"so, so\"\n2,test,a,x\n3,train,b, y \n4,test,b,z\n").unwrap();
        assert_eq!(table.train, [("so, so".to_string(), 0), ("y".to_string(), 1)]);
        assert_eq!(table.classes, ["a", "b"]);
        let error = |text: &str| read(text).err().unwrap().to_string();
        assert!(error("split,label,word\n").contains("no column `words`; it has `word`"));
        assert!(error("split,label,words\ntrain,a,\n").contains("line 2, column `words`: expected a text, found ``"));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[a-c,\"\n\r0-9.]{0,80}") {
            let _ = read(&format!("class,a,b\n{text}"));
        }
    }
}
