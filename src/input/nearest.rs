//! "Did you mean": the name that a typing mistake was aimed at.

/// The name nearest to `found`, where one is near enough to be worth a guess. Case, `-`, `_` and `.` do not count; of equals the first.
pub fn nearest<'a>(found: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    // Nobody types a hundred characters for a name, and the distance costs the product of the lengths.
    if found.is_empty() || found.chars().count() > 100 {
        return None;
    }
    let plain = |text: &str| text.to_lowercase().replace(['-', '_', '.', ' '], "");
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
    }
}
