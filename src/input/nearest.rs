//! "Did you mean": the name that a typing mistake was aimed at.

/// The name nearest to `found`, where one is near enough to be worth a guess. Case, `-`, `_` and points of numbers do not count; of equals the first.
pub fn nearest<'a>(found: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Nobody types a hundred characters for a name, and the distance costs the product of the lengths.
    if found.is_empty() || found.chars().count() > 100 {
        return None;
    }
    let wanted = plain(found);
    let mut best: Option<(usize, &str)> = None;
    for name in names {
        let candidate = plain(name);
        let distance = strsim::damerau_levenshtein(&wanted, &candidate);
        // One mistake in three characters, as rustc allows.
        let allowed = (wanted.chars().count().max(candidate.chars().count()) / 3).max(1);
        let worth = distance <= allowed && distance < candidate.chars().count();
        if worth && best.is_none_or(|(least, _)| distance < least) {
            best = Some((distance, name));
        }
    }
    best.map(|(_, name)| name)
}

/// `Llama-3.1_8B` as `llama318b`; the point of `digits.csv` stays, for it tells a file from a name.
fn plain(text: &str) -> String {
    let small = text.to_lowercase();
    let is_digit = |at: Option<usize>| at.and_then(|at| small.as_bytes().get(at)).is_some_and(u8::is_ascii_digit);
    let counts = |(at, letter): &(usize, char)| match letter {
        '-' | '_' | ' ' => false,
        '.' => !(is_digit(at.checked_sub(1)) && is_digit(Some(at + 1))),
        _ => true,
    };
    small.char_indices().filter(counts).map(|(_, letter)| letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slip_finds_its_name_and_nonsense_finds_none() {
        let names = ["precision", "compression", "layout", "batch_size"];
        assert_eq!(nearest("precison", names), Some("precision"));
        assert_eq!(nearest("Batch-Size", names), Some("batch_size"));
        assert_eq!(nearest("zebra", names), None);
        assert_eq!(nearest("", names), None);
        assert_eq!(nearest("x", ["y"]), None);
        assert_eq!(nearest("llama3-8b", ["llama-2-7b", "llama-3.1-8b"]), Some("llama-3.1-8b"));
        assert_eq!(nearest("digits.csv", ["digits-8x8"]), None);
    }
}
