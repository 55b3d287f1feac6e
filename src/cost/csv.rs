//! Cells of a comma-separated file (RFC 4180): quoted cells may hold commas, doubled quotes and line ends.

/// Cells of a row, with the line on which it begins, counted from 1.
pub type Cells = (usize, Vec<String>);

/// All rows but the empty ones. The error says on which line what is wrong.
pub fn rows(text: &str) -> Result<Vec<Cells>, (usize, String)> {
    let mut rows = Vec::new();
    let (mut cells, mut cell) = (Vec::new(), String::new());
    let (mut line, mut first_line) = (1, 1);
    let (mut quoted, mut was_quoted) = (false, false);
    let mut characters = text.strip_prefix('\u{feff}').unwrap_or(text).chars().peekable();
    loop {
        let next = characters.next();
        match next {
            Some('"') if quoted => {
                if characters.next_if_eq(&'"').is_some() {
                    cell.push('"');
                } else {
                    quoted = false;
                }
            }
            Some(other) if quoted => {
                line += usize::from(other == '\n');
                cell.push(other);
            }
            None if quoted => return Err((first_line, "a quoted cell has no end".to_string())),
            Some('"') if cell.is_empty() && !was_quoted => (quoted, was_quoted) = (true, true),
            Some('"') => return Err((line, "a quote in the middle of a cell".to_string())),
            Some(',') => {
                cells.push(std::mem::take(&mut cell));
                was_quoted = false;
            }
            Some('\r') if characters.peek() == Some(&'\n') => {}
            Some('\n') | None => {
                if !cells.is_empty() || !cell.is_empty() || was_quoted {
                    cells.push(std::mem::take(&mut cell));
                    rows.push((first_line, std::mem::take(&mut cells)));
                }
                was_quoted = false;
                line += 1;
                first_line = line;
                if next.is_none() {
                    return Ok(rows);
                }
            }
            Some(other) => cell.push(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_cells_hold_commas_quotes_and_line_ends() {
        let text = "a,b\r\n\"x, \"\"y\"\"\",2\n\n\"two\nlines\",\n";
        let read = rows(text).unwrap();
        assert_eq!(read[0], (1, vec!["a".to_string(), "b".to_string()]));
        assert_eq!(read[1], (2, vec!["x, \"y\"".to_string(), "2".to_string()]));
        assert_eq!(read[2], (4, vec!["two\nlines".to_string(), String::new()]));
        assert_eq!(read.len(), 3);
    }

    #[test]
    fn a_broken_quote_is_named_by_its_line() {
        assert_eq!(rows("a\n\"b").unwrap_err().0, 2);
        assert_eq!(rows("a\nb\nc\"d").unwrap_err().0, 3);
    }
}
