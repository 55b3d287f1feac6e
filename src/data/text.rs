//! Texts as numbers of words: the vocabulary is learnt from the training rows, and from nothing else.

use super::{DataError, Inputs, Part, csv::Rows};
use std::path::Path;
use tokenizers::{
    NormalizerWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerBuilder, TokenizerImpl,
    decoders::DecoderWrapper,
    models::wordlevel::{WordLevel, WordLevelTrainer},
    normalizers::BertNormalizer,
    pre_tokenizers::bert::BertPreTokenizer,
};

/// Number of what fills up a short text, and of a word that the vocabulary lacks.
const FILLER: i32 = 0;
const UNKNOWN: i32 = 1;
const SPECIAL: [&str; 2] = ["[PAD]", "[UNK]"];

/// Times that a word of the vocabulary stands in the training rows.
const LEAST_TIMES: u64 = 2;

/// What a scenario says of texts.
pub(super) struct Words {
    /// Words of a text; what is longer is cut.
    pub length: usize,
    /// Most different words, the frequent ones.
    pub vocabulary: usize,
}

type Tokenizer = TokenizerImpl<WordLevel, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// Both parts as numbers, and how many different ones there are.
pub(super) fn encode(
    path: &Path,
    train: Rows<String>,
    test: Rows<String>,
    words: &Words,
) -> Result<(Part, Part, usize), DataError> {
    let failed = |error: tokenizers::Error| DataError::Content { path: path.to_path_buf(), reason: error.to_string() };
    let tokenizer = learn(&train, words.vocabulary).map_err(failed)?;
    let part = |rows: Rows<String>| -> Result<Part, tokenizers::Error> {
        let mut tokens = Vec::with_capacity(rows.len() * words.length);
        let mut labels = Vec::with_capacity(rows.len());
        for (text, label) in rows {
            let encoding = tokenizer.encode(text, false)?;
            let ids = encoding.get_ids().iter().map(|id| *id as i32);
            tokens.extend(ids.chain(std::iter::repeat(FILLER)).take(words.length));
            labels.push(label);
        }
        Ok(Part { inputs: Inputs::Tokens(tokens), labels })
    };
    Ok((part(train).map_err(failed)?, part(test).map_err(failed)?, tokenizer.get_vocab_size(true)))
}

/// Small letters without accents, cut at blanks and punctuation (Devlin et al. 2018), each word a number.
fn learn(rows: &Rows<String>, vocabulary: usize) -> Result<Tokenizer, tokenizers::Error> {
    let special = SPECIAL.map(|word| tokenizers::AddedToken::from(word, true)).to_vec();
    let mut trainer = WordLevelTrainer::builder()
        .vocab_size(vocabulary)
        .min_frequency(LEAST_TIMES)
        .show_progress(false)
        .special_tokens(special)
        .build()?;
    let model = WordLevel::builder().unk_token(SPECIAL[UNKNOWN as usize].to_string()).build()?;
    let mut tokenizer: Tokenizer = TokenizerBuilder::new()
        .with_model(model)
        .with_normalizer(Some(BertNormalizer::default().into()))
        .with_pre_tokenizer(Some(BertPreTokenizer.into()))
        .with_post_processor(None)
        .with_decoder(None)
        .build()?;
    tokenizer.train(&mut trainer, rows.iter().map(|(text, _)| text.as_str()))?;
    Ok(tokenizer)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(texts: &[&str]) -> Rows<String> {
        texts.iter().map(|text| (text.to_string(), 0)).collect()
    }

    fn tokens(part: &Part) -> &[i32] {
        match &part.inputs {
            Inputs::Tokens(tokens) => tokens,
            Inputs::Images(_) => panic!("texts"),
        }
    }

    #[test]
    fn words_are_numbered_by_the_training_rows_alone() {
        let train = rows(&["A film, a FILM!", "a good film", "good"]);
        let test = rows(&["a dull film and more words than fit", "Good"]);
        let words = Words { length: 5, vocabulary: 100 };
        let (train, test, size) = encode(Path::new("t.csv"), train, test, &words).unwrap();
        // Filler, unknown, and what stands there twice: a, film, good.
        assert_eq!(size, 5);
        let (a, film, good) = (tokens(&train)[0], tokens(&train)[1], tokens(&train)[6]);
        let mut found = [a, film, good];
        found.sort_unstable();
        assert_eq!(found, [2, 3, 4]);
        assert_eq!(tokens(&train), [a, film, UNKNOWN, a, film, a, good, film, 0, 0, good, 0, 0, 0, 0]);
        assert_eq!(tokens(&test), [a, UNKNOWN, film, UNKNOWN, UNKNOWN, good, 0, 0, 0, 0]);
    }

    #[test]
    fn the_vocabulary_keeps_the_frequent_words_and_is_the_same_every_time() {
        let texts: Vec<String> = (0..40).map(|k| format!("w{} w{} w{k}", k % 7, k % 3)).collect();
        let all = || texts.iter().map(|text| (text.clone(), 0)).collect::<Rows<String>>();
        let words = Words { length: 3, vocabulary: 6 };
        let (first, _, size) = encode(Path::new("t"), all(), all(), &words).unwrap();
        assert_eq!(size, 6);
        for _ in 0..3 {
            assert_eq!(encode(Path::new("t"), all(), all(), &words).unwrap().0, first);
        }
    }
}
