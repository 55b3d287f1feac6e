//! The book of published shapes, from `data/models/transformers.toml`.

use super::transformer::{Attention, Dense, Experts, Latent, Recurrent, RecurrentKind, Transformer};
use crate::{
    hardware::folded,
    input::{self, Choice, Diagnostic, Field, Kind, Need, Report, Shape, Source, Table},
};

/// All shapes that are known by name.
#[derive(Clone, Debug, PartialEq)]
pub struct ModelBook {
    pub models: Vec<Transformer>,
}

impl ModelBook {
    /// The book that comes with the program.
    pub fn shipped() -> ModelBook {
        let source = Source::new("data/models/transformers.toml", include_str!("../../data/models/transformers.toml"));
        Self::read(&source).unwrap_or_else(|found| panic!("{}", input::render(&found)))
    }

    pub fn read(source: &Source) -> Result<ModelBook, Vec<Diagnostic>> {
        input::parse(source, &FILE, |file, report| {
            let tables = file.tables("model").unwrap_or_default();
            ModelBook { models: tables.iter().filter_map(|table| read_model(table, report)).collect() }
        })
    }

    /// The model of that name; case, spaces, dashes and underscores do not count, nor does a remark in brackets at the end. Active
    /// parameters may be left out.
    pub fn find(&self, name: &str) -> Option<&Transformer> {
        let bare = name.split(" (").next().unwrap_or(name).trim_end_matches(" 2-node");
        let (wanted, last) = (folded(bare), folded(bare.rsplit('/').next().unwrap_or(bare)));
        let is = |model: &Transformer, wanted: &str| {
            folded(&model.name) == wanted || model.aliases.iter().any(|alias| folded(alias) == wanted)
        };
        // `Qwen3.5 397B` is the model of that name with 17 billion active parameters.
        let without_active = |model: &Transformer| match model.name.rsplit_once("-a") {
            Some((whole, active)) if active.starts_with(|first: char| first.is_ascii_digit()) => folded(whole) == wanted,
            _ => false,
        };
        self.models
            .iter()
            .find(|model| is(model, &wanted) || is(model, &last))
            .or_else(|| self.models.iter().find(|model| without_active(model)))
    }
}

const REQUIRED: Need = Need::Required { example: "" };
const OPTIONAL: Need = Need::Optional { default: "0" };
const COUNT: Kind = Kind::Whole { low: 0, high: 1 << 24 };
const FLAG: Kind = Kind::Whole { low: 0, high: 1 };
const NAMES: Kind = Kind::List { of: &Kind::TEXT, least: 0, most: 64, bare: false, distinct: true };

const fn field(name: &'static str, about: &'static str, kind: Kind, need: Need) -> Field {
    Field { name, about, kind, need }
}

static FILE: Shape = Shape {
    fields: &[field(
        "model",
        "Transformers",
        Kind::List { of: &Kind::Table(&MODEL), least: 1, most: 4096, bare: false, distinct: false },
        REQUIRED,
    )],
    exclusive: &[],
};

/// The keys of a transformer, for every file that may hold one.
pub static MODEL: Shape = Shape {
    fields: &[
        field("name", "Name, written small", Kind::TEXT, REQUIRED),
        field("aliases", "Other spellings", NAMES, OPTIONAL),
        field("hidden", "Width of the hidden state", COUNT, REQUIRED),
        field("heads", "Query heads", COUNT, REQUIRED),
        field("key_value_heads", "Key and value heads; as many as query heads where left out", COUNT, OPTIONAL),
        field("head_size", "Width of a head; hidden / heads where left out", COUNT, OPTIONAL),
        field("latent", "Ranks and sizes of low-rank attention", Kind::Table(&LATENT), OPTIONAL),
        field("output_gate", "1 where a gate stands behind the attention", FLAG, OPTIONAL),
        field("layers", "Blocks of one attention and one feed-forward layer", COUNT, OPTIONAL),
        field(
            "attention_layers",
            "Attention layers over the whole context; `layers` less the others where left out",
            COUNT,
            OPTIONAL,
        ),
        field("window_layers", "Attention layers over a window", COUNT, OPTIONAL),
        field("window", "Tokens of the window", COUNT, OPTIONAL),
        field("recurrent", "Layers with a state", Kind::Table(&RECURRENT), OPTIONAL),
        field("dense_layers", "Feed-forward layers without experts; `layers` less those with where left out", COUNT, OPTIONAL),
        field("feed_forward", "Width of a feed-forward layer without experts", COUNT, OPTIONAL),
        field("experts", "Feed-forward layers of experts", Kind::Table(&EXPERTS), OPTIONAL),
        field("gated", "1 where the feed-forward layers multiply two projections", FLAG, OPTIONAL),
        field("vocabulary", "Tokens of the vocabulary", COUNT, REQUIRED),
        field("tied", "1 where the embedding is the last projection too", FLAG, OPTIONAL),
        field("positions", "Learned positions", COUNT, OPTIONAL),
        field("biased", "1 where linear layers have biases", FLAG, OPTIONAL),
        field("prediction_layers", "Blocks that predict further tokens while training", COUNT, OPTIONAL),
        field("source", "Where the shape stands", Kind::TEXT, REQUIRED),
    ],
    exclusive: &[],
};

static LATENT: Shape = Shape {
    fields: &[
        field("query_rank", "Rank of the queries, 0 for full", COUNT, OPTIONAL),
        field("key_value_rank", "Rank of keys and values", COUNT, REQUIRED),
        field("plain", "Of a head without rotation", COUNT, REQUIRED),
        field("rotated", "Of a head with rotation", COUNT, REQUIRED),
        field("value", "Of a value", COUNT, REQUIRED),
        field("index_heads", "Heads of the scores that choose `window` tokens of the whole context", COUNT, OPTIONAL),
        field("index_size", "Size of such a head", COUNT, OPTIONAL),
    ],
    exclusive: &[],
};

const RECURRENT_KIND: Kind = Kind::Word {
    what: "recurrence",
    choices: || ["mamba2", "gated-delta"].into_iter().map(|name| Choice { name, aliases: &[], about: "" }).collect(),
    hint: |_| None,
};

static RECURRENT: Shape = Shape {
    fields: &[
        field("layers", "Layers", COUNT, REQUIRED),
        field("kind", "Recurrence", RECURRENT_KIND, REQUIRED),
        field("heads", "Heads of the values", COUNT, REQUIRED),
        field("head_size", "Of a value", COUNT, REQUIRED),
        field("groups", "Heads of keys and queries", COUNT, REQUIRED),
        field("state", "Of a key", COUNT, REQUIRED),
    ],
    exclusive: &[],
};

static EXPERTS: Shape = Shape {
    fields: &[
        field("layers", "Layers with experts; all where left out", COUNT, OPTIONAL),
        field("count", "Experts of a layer", COUNT, REQUIRED),
        field("active", "Experts of a token", COUNT, REQUIRED),
        field("width", "Width of an expert", COUNT, REQUIRED),
        field("shared_width", "Width of all shared experts together", COUNT, OPTIONAL),
        field("latent", "Width in which the experts work", COUNT, OPTIONAL),
    ],
    exclusive: &[],
};

/// Builds a transformer from a table of shape [`MODEL`].
pub fn read_model(table: &Table, report: &mut Report) -> Option<Transformer> {
    let whole = |table: &Table, key: &str| table.count(key).and_then(|value| u32::try_from(value).ok());
    let or_0 = |table: &Table, key: &str| whole(table, key).unwrap_or(0);
    let name = table.text("name")?.to_string();
    if name != name.to_lowercase() {
        report.add(table.span("name"), "a name is written small");
    }
    let (hidden, heads) = (whole(table, "hidden")?, whole(table, "heads")?);
    let layers = or_0(table, "layers");
    let window_layers = or_0(table, "window_layers");
    let recurrent = table.table("recurrent").and_then(|part| {
        Some(Recurrent {
            layers: whole(&part, "layers")?,
            kind: part.word("kind", |word| match word {
                "mamba2" => Some(RecurrentKind::Mamba2),
                "gated-delta" => Some(RecurrentKind::GatedDelta),
                _ => None,
            })?,
            heads: whole(&part, "heads")?,
            head_size: whole(&part, "head_size")?,
            groups: whole(&part, "groups")?,
            state: whole(&part, "state")?,
        })
    });
    let experts = table.table("experts").and_then(|part| {
        Some(Experts {
            layers: whole(&part, "layers").unwrap_or(layers),
            count: whole(&part, "count")?,
            active: whole(&part, "active")?,
            width: whole(&part, "width")?,
            shared_width: or_0(&part, "shared_width"),
            latent: or_0(&part, "latent"),
        })
    });
    let latent = table.table("latent").and_then(|part| {
        Some(Latent {
            query_rank: or_0(&part, "query_rank"),
            key_value_rank: whole(&part, "key_value_rank")?,
            plain: whole(&part, "plain")?,
            rotated: whole(&part, "rotated")?,
            value: whole(&part, "value")?,
            index_heads: or_0(&part, "index_heads"),
            index_size: or_0(&part, "index_size"),
        })
    });
    if latent
        .is_some_and(|latent| latent.index_heads > 0 && (latent.index_size == 0 || window_layers == 0 || latent.query_rank == 0))
    {
        report.add(
            table.span("latent"),
            format!("`{name}` chooses tokens with `index_heads`, but lacks `index_size`, `query_rank` or the `window_layers` that see them"),
        );
    }
    let others = window_layers + recurrent.map_or(0, |one| one.layers);
    let attention_layers = whole(table, "attention_layers").unwrap_or(layers.saturating_sub(others));
    let dense_layers = whole(table, "dense_layers").unwrap_or(layers.saturating_sub(experts.map_or(0, |one| one.layers)));
    let width = or_0(table, "feed_forward");
    if attention_layers + others == 0 {
        report.add(table.span("name"), format!("`{name}` has no layers"));
    }
    if dense_layers > 0 && width == 0 {
        report.add(table.span("name"), format!("`{name}` has feed-forward layers without experts, but no width `feed_forward`"));
    }
    if heads == 0 || experts.is_some_and(|one| one.active > one.count || one.count == 0) {
        report.add(table.span("name"), format!("`{name}` has no heads, or chooses more experts than it has"));
        return None;
    }
    Some(Transformer {
        aliases: table.words("aliases", |word| Some(word.to_string())).unwrap_or_default(),
        hidden,
        attention: Attention {
            heads,
            key_value_heads: whole(table, "key_value_heads").unwrap_or(heads),
            head_size: whole(table, "head_size").unwrap_or(hidden / heads),
            latent,
            gated: or_0(table, "output_gate") == 1,
        },
        attention_layers,
        window_layers,
        window: or_0(table, "window"),
        recurrent,
        dense: Dense { layers: dense_layers, width },
        experts,
        gated: or_0(table, "gated") == 1,
        vocabulary: whole(table, "vocabulary")?,
        tied: or_0(table, "tied") == 1,
        positions: or_0(table, "positions"),
        biased: or_0(table, "biased") == 1,
        prediction_layers: or_0(table, "prediction_layers"),
        source: table.text("source")?.to_string(),
        name,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_spelling_of_the_tables_is_found() {
        let book = ModelBook::shipped();
        for (text, name) in [
            ("LLAMA3.1_405B", "llama-3.1-405b"),
            ("LLAMA3-405B", "llama-3.1-405b"),
            ("DeepSeekV3", "deepseek-v3"),
            ("DeepSeek V3 671B", "deepseek-v3"),
            ("Qwen3_30B_a3B", "qwen3-30b-a3b"),
            ("Qwen3 MoE 30B", "qwen3-30b-a3b"),
            ("Qwen2.5 32B 2-node", "qwen2.5-32b"),
            ("Nemotron V3 Ultra 550B (26.04)", "nemotron-3-ultra-550b-a55b"),
            ("GPT OSS 120B", "gpt-oss-120b"),
            ("Qwen3.5 397B", "qwen3.5-397b-a17b"),
            ("Llama3 70B 2-node", "llama-3.1-70b"),
            ("openai/gpt-oss-120b", "gpt-oss-120b"),
            ("nvidia/DeepSeek-R1-NVFP4", "deepseek-v3"),
            ("Deepseek R1 0528", "deepseek-v3"),
            ("MiniMaxAI/MiniMax-M2.5", "minimax-m2.5"),
            ("Qwen/Qwen3-235B-A22B-FP8", "qwen3-235b-a22b"),
            ("moonshotai/Kimi-K2.5", "kimi-k2"),
            ("zhipuai/GLM-5", "glm-5"),
            ("meta-llama/Llama-3.1-8B-Instruct", "llama-3.1-8b"),
            ("LLaMA v3.1 70B", "llama-3.1-70b"),
            ("Llama 4 Scout", "llama-4-scout-17b-16e"),
            ("GPT-J 6B", "gpt-j-6b"),
        ] {
            assert_eq!(book.find(text).map(|model| model.name.as_str()), Some(name), "{text}");
        }
        assert!(book.find("no such model").is_none());
    }

    #[test]
    fn tokens_are_chosen_for_layers_that_see_a_window() {
        let text = include_str!("../../data/models/transformers.toml");
        let at = text.find("name = \"glm-5\"").expect("it is there");
        let glm = text[at..].split("[[model]]").next().expect("it ends");
        let read = |text: &str| ModelBook::read(&Source::new("x.toml", &format!("[[model]]\n{text}")));
        assert!(read(glm).is_ok());
        for (from, to) in [("window_layers = 78", "window_layers = 0"), (", index_size = 128", ""), ("query_rank = 2048, ", "")] {
            assert!(glm.contains(from));
            let told = input::render(&read(&glm.replace(from, to)).unwrap_err());
            assert!(told.contains("`glm-5` chooses tokens with `index_heads`, but lacks `index_size`, `query_rank`"), "{told}");
        }
    }

    #[test]
    fn no_two_models_share_a_spelling() {
        let mut seen = std::collections::BTreeMap::new();
        for model in ModelBook::shipped().models {
            let mut own: Vec<String> = model.aliases.iter().chain([&model.name]).map(|name| folded(name)).collect();
            own.sort();
            own.dedup();
            for name in own {
                if let Some(other) = seen.insert(name.clone(), model.name.clone()) {
                    panic!("`{name}` is both {other} and {}", model.name);
                }
            }
        }
    }
}
