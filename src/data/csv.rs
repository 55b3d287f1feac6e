//! Tables of images: one row an image, pixels in all columns but the label and the split.

use super::{DataError, Part};
use crate::input::nearest;
use std::{collections::HashMap, path::Path};

/// What a scenario says of a table.
pub(super) struct Layout<'a> {
    pub label: &'a str,
    pub shape: [usize; 3],
    pub maximum: f64,
    pub split: Option<&'a str>,
    pub test_share: f64,
}

/// A table's parts, and its classes in order.
pub(super) struct Table {
    pub train: Part,
    pub test: Part,
    pub classes: Vec<String>,
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

pub(super) fn parse(path: &Path, bytes: &[u8], layout: &Layout) -> Result<Table, DataError> {
    let content = |reason: String| DataError::Content { path: path.to_path_buf(), reason };
    if !(layout.maximum.is_finite() && layout.maximum > 0.0) {
        return Err(content(format!("`maximum` is {}: expected a number above 0", layout.maximum)));
    }
    let elements = layout.shape.iter().try_fold(1usize, |all, n| all.checked_mul(*n)).filter(|n| *n > 0);
    let elements = elements.ok_or_else(|| content(format!("shape {:?} is not the shape of an image", layout.shape)))?;
    let text = std::str::from_utf8(bytes).map_err(|e| content(format!("not UTF-8 text at byte {}", e.valid_up_to())))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let mut lines = text.lines().enumerate().map(|(n, line)| (n + 1, line)).filter(|(_, line)| !line.trim().is_empty());
    let (line, header) = lines.next().ok_or_else(|| content("no header line".into()))?;
    let closed = |line: usize, text: &str| cells(text).ok_or_else(|| content(format!("line {line}: a quote is not closed")));
    let columns: Vec<String> = closed(line, header)?.into_iter().map(|name| name.trim().to_string()).collect();
    let column = |name: &str| {
        let mut places = (0..columns.len()).filter(|k| columns[*k] == name);
        match (places.next(), places.next()) {
            (Some(_), Some(_)) => Err(content(format!("column `{name}` stands twice in the header"))),
            (Some(place), None) => Ok(place),
            (None, _) => {
                let mut columns = columns.clone();
                let near = nearest(name, columns.iter().map(String::as_str)).map(str::to_string);
                if let Some(at) = near.and_then(|near| columns.iter().position(|column| *column == near)) {
                    columns[..=at].rotate_right(1);
                }
                Err(DataError::Column { path: path.to_path_buf(), column: name.to_string(), columns })
            }
        }
    };
    let label = column(layout.label)?;
    let split = layout.split.map(column).transpose()?;
    let pixels: Vec<usize> = (0..columns.len()).filter(|k| *k != label && Some(*k) != split).collect();
    if pixels.len() != elements {
        return Err(content(format!("{} pixel columns, but shape {:?} has {elements} elements", pixels.len(), layout.shape)));
    }
    // (class as written, goes to the test part, pixels)
    let mut rows: Vec<(String, Option<bool>, Vec<f32>)> = Vec::new();
    for (line, row) in lines {
        let row = closed(line, row)?;
        if row.len() != columns.len() {
            return Err(content(format!("line {line} has {} cells, the header {}", row.len(), columns.len())));
        }
        let wrong = |k: usize, expected: &str| DataError::Cell {
            path: path.to_path_buf(),
            line,
            column: columns[k].clone(),
            expected: expected.into(),
            found: row[k].clone(),
        };
        let to_test = match split.map(|k| (k, row[k].trim())) {
            None => None,
            Some((_, "train")) => Some(false),
            Some((_, "test")) => Some(true),
            Some((k, _)) => return Err(wrong(k, "`train` or `test`")),
        };
        if row[label].trim().is_empty() {
            return Err(wrong(label, "a class"));
        }
        let mut image = Vec::with_capacity(elements);
        for k in &pixels {
            let value: f64 = row[*k].trim().parse().ok().filter(|v: &f64| v.is_finite()).ok_or_else(|| wrong(*k, "a number"))?;
            if !(0.0..=layout.maximum).contains(&value) {
                return Err(wrong(*k, &format!("a number from 0 to {}, the `maximum`", layout.maximum)));
            }
            image.push((value / layout.maximum) as f32);
        }
        rows.push((row[label].trim().to_string(), to_test, image));
    }
    let mut classes: Vec<String> = rows.iter().map(|(class, ..)| class.clone()).collect();
    classes.sort();
    classes.dedup();
    // As numbers where all are: "10" stands behind "9".
    if classes.iter().all(|c| c.parse::<f64>().is_ok()) {
        classes.sort_by(|a, b| a.parse::<f64>().unwrap_or(0.0).total_cmp(&b.parse::<f64>().unwrap_or(0.0)));
    }
    let numbers: HashMap<&str, u32> = classes.iter().map(String::as_str).zip(0..).collect();
    let (mut train, mut test) = (Part::default(), Part::default());
    // Rows of each class so far.
    let mut seen = vec![0usize; classes.len()];
    for (class, to_test, image) in rows {
        let number = numbers[class.as_str()];
        // Evenly spread over each class, because files are often sorted by it: a class's row k is a test row whenever the running share
        // passes a whole number.
        let k = seen[number as usize];
        seen[number as usize] += 1;
        let spread = ((k + 1) as f64 * layout.test_share).floor() > (k as f64 * layout.test_share).floor();
        let part = if to_test.unwrap_or(spread) { &mut test } else { &mut train };
        part.images.extend(image);
        part.labels.push(number);
    }
    for (class, number) in classes.iter().zip(0..) {
        let rows = |part: &Part| part.labels.iter().filter(|label| **label == number).count();
        let (for_training, for_test) = (rows(&train), rows(&test));
        if for_training == 0 || for_test == 0 {
            let by = match layout.split {
                Some(column) => format!("by column `{column}`"),
                None => format!("with `test_share = {}`", layout.test_share),
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

    const LAYOUT: Layout = Layout { label: "class", shape: [1, 2, 1], maximum: 10.0, split: None, test_share: 0.5 };

    fn read(text: &str) -> Result<Table, String> {
        parse(Path::new("t.csv"), text.as_bytes(), &LAYOUT).map_err(|e| e.to_string())
    }

    #[test]
    fn quotes_line_ends_and_a_byte_order_mark_are_no_trouble() {
        let rows = "5,10,10\r\n0,9,\"2.5\"\r\n\r\n10,10,0\n0,9,5\n";
        let table = read(&format!("\u{feff}\"a\",class,\"b,c\"\r\n{rows}")).unwrap();
        assert_eq!(table.classes, ["9", "10"]);
        assert_eq!((table.train.labels, table.train.images), (vec![1, 0], vec![0.5, 1.0, 0.0, 0.25]));
        assert_eq!((table.test.labels, table.test.images), (vec![1, 0], vec![1.0, 0.0, 0.0, 0.5]));
    }

    #[test]
    fn every_class_is_in_both_parts_whatever_the_order_of_the_file() {
        // Alternating classes and a share of a half: by stride alone one class would be all of the test.
        let alternating: String = (0..8).map(|k| format!("{},1,1\n", k % 2)).collect();
        let sorted: String = (0..8).map(|k| format!("{},1,1\n", k / 4)).collect();
        for rows in [alternating, sorted] {
            let table = read(&format!("class,a,b\n{rows}")).unwrap();
            for part in [&table.train, &table.test] {
                assert_eq!([0, 1].map(|class| part.labels.iter().filter(|label| **label == class).count()), [2, 2]);
            }
        }
        let error = read("class,a,b\nx,1,1\nx,1,1\ny,1,1\n").err().unwrap();
        assert!(
            error.ends_with("class `y` has 1 training and 0 test rows with `test_share = 0.5`: every class needs both"),
            "{error}"
        );
        let layout = Layout { split: Some("part"), ..LAYOUT };
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
            let error = parse(Path::new("t"), text.as_bytes(), &Layout { shape, ..LAYOUT }).err().unwrap();
            assert!(error.to_string().contains("is not the shape of an image"), "{error}");
        }
        for maximum in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let error = parse(Path::new("t"), text.as_bytes(), &Layout { maximum, ..LAYOUT }).err().unwrap();
            assert!(error.to_string().contains("expected a number above 0"), "{error}");
        }
    }

    proptest! {
        #[test]
        fn no_text_makes_the_reader_panic(text in "[a-c,\"\n\r0-9.]{0,80}") {
            let _ = read(&format!("class,a,b\n{text}"));
        }
    }
}
