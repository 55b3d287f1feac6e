//! What one token asks of a model when it is served: weights it meets and cache it leaves, worked out once for a model.

use crate::predict::{Experts, Linear, RecurrentKind, Transformer};

/// Weights and widths of a model, by kind of layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ServingWork {
    pub hidden: f64,
    /// Weights of the table of the vocabulary.
    pub table: f64,
    /// Weights of one attention layer's linear parts.
    pub attention: f64,
    pub attention_layers: f64,
    pub window_layers: f64,
    pub window: f64,
    /// Weights of one recurrent layer, its layers, and the elements of the state of one sequence.
    pub recurrent: f64,
    pub recurrent_layers: f64,
    pub state: f64,
    /// Weights of one dense feed-forward layer.
    pub dense: f64,
    pub dense_layers: f64,
    /// Weights of one expert.
    pub expert: f64,
    pub experts: f64,
    pub active: f64,
    /// Weights that every token passes in a layer of experts.
    pub common: f64,
    pub expert_layers: f64,
    pub heads: f64,
    pub key_value_heads: f64,
    /// Sizes of a key and of a value of one head.
    pub key: f64,
    pub value: f64,
    /// Elements that one token leaves in the cache of one attention layer.
    pub cached: f64,
    /// Blocks that predict further tokens, and the weights that such a one has besides those of a block: of the projection of two hidden states
    /// to one (DeepSeek-V3, arXiv 2412.19437, section 2.2).
    pub prediction_layers: f64,
    pub prediction_joint: f64,
    /// Weights of the scores by which sparse attention chooses tokens, of one layer, and their heads and size; 0 without.
    pub indexer: f64,
    pub index_heads: f64,
    pub index_size: f64,
    /// Low-rank attention: the cache is one vector that all heads share.
    pub latent: bool,
}

impl ServingWork {
    pub fn of(model: &Transformer) -> ServingWork {
        let hidden = f64::from(model.hidden);
        let sum = |linears: &[Linear]| linears.iter().map(|one| one.weights()).sum::<f64>();
        let attention = &model.attention;
        let heads = f64::from(attention.heads);
        let experts = model.experts.as_ref();
        let of_experts = |value: fn(&Experts) -> f64| experts.map_or(0.0, value);
        let recurrent = model.recurrent.as_ref();
        ServingWork {
            hidden,
            table: model.vocabulary_weights(),
            attention: model.attention_weights(),
            attention_layers: f64::from(model.attention_layers),
            window_layers: f64::from(model.window_layers),
            window: f64::from(model.window),
            recurrent: recurrent.map_or(0.0, |one| sum(&one.linears(hidden))),
            recurrent_layers: recurrent.map_or(0.0, |one| f64::from(one.layers)),
            state: recurrent.map_or(0.0, |one| {
                let heads = match one.kind {
                    RecurrentKind::Mamba2 | RecurrentKind::GatedDelta => f64::from(one.heads),
                };
                heads * f64::from(one.head_size) * f64::from(one.state)
            }),
            dense: sum(&model.dense.linears(hidden, model.gated)),
            dense_layers: f64::from(model.dense.layers),
            expert: experts.map_or(0.0, |one| sum(&one.linears(hidden, model.gated))),
            experts: of_experts(|one| f64::from(one.count)),
            active: of_experts(|one| f64::from(one.active)),
            common: experts.map_or(0.0, |one| sum(&one.common(hidden, model.gated))),
            expert_layers: of_experts(|one| f64::from(one.layers)),
            heads,
            key_value_heads: f64::from(attention.key_value_heads),
            key: attention.query_width() / heads,
            value: attention.value_width() / heads,
            cached: attention.cached_width(),
            prediction_layers: f64::from(model.prediction_layers),
            prediction_joint: 2.0 * hidden * hidden,
            indexer: sum(&attention.indexer(hidden)),
            index_heads: attention.latent.map_or(0.0, |latent| f64::from(latent.index_heads)),
            index_size: attention.latent.map_or(0.0, |latent| f64::from(latent.index_size)),
            latent: attention.latent.is_some(),
        }
    }

    /// Weights of the layers that one token meets.
    pub fn active_weights(&self) -> f64 {
        (self.attention_layers + self.window_layers) * self.attention
            + self.recurrent_layers * self.recurrent
            + self.dense_layers * self.dense
            + self.expert_layers * (self.active * self.expert + self.common)
    }

    /// Blocks: layers that mix tokens.
    pub fn blocks(&self) -> f64 {
        self.attention_layers + self.window_layers + self.recurrent_layers
    }

    /// Elements that a sequence of `context` tokens holds in the cache, all layers. Chosen tokens may be any: all stay, each with its key.
    pub fn cache_elements(&self, context: f64) -> f64 {
        let kept = if self.indexer > 0.0 { context } else { context.min(self.window) };
        (self.attention_layers * context + self.window_layers * kept) * (self.cached + self.index_size)
            + self.recurrent_layers * self.state
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::predict::ModelBook;

    #[test]
    fn the_cache_of_a_token_is_what_the_heads_say() {
        let book = ModelBook::shipped();
        let work = |name: &str| ServingWork::of(book.find(name).unwrap());
        // Llama 3 70B: 80 layers x 8 heads x 128 x (key and value) = 163,840 elements, 320 KiB in 16 bits.
        assert_eq!(work("llama-3.1-70b").cache_elements(1.0), 163_840.0);
        // DeepSeek-V3: 61 layers x (512 + 64).
        assert_eq!(work("deepseek-v3").cache_elements(1.0), 61.0 * 576.0);
        // gpt-oss: every second layer keeps 128 tokens alone.
        let oss = work("gpt-oss-120b");
        assert_eq!(oss.cache_elements(1000.0), (18.0 * 1000.0 + 18.0 * 128.0) * 1024.0);
    }

    #[test]
    fn weights_add_up_to_the_parameters() {
        let book = ModelBook::shipped();
        for name in [
            "llama-3.1-8b",
            "llama-3.1-405b",
            "mixtral-8x7b",
            "deepseek-v3",
            "qwen3-235b-a22b",
            "gpt-oss-120b",
            "llama-4-maverick-17b-128e",
        ] {
            let model = book.find(name).unwrap();
            let work = ServingWork::of(model);
            let sum = (work.attention_layers + work.window_layers) * work.attention
                + work.dense_layers * work.dense
                + work.expert_layers * (work.experts * work.expert + work.common)
                + if model.tied { 1.0 } else { 2.0 } * work.table;
            assert!((sum / model.parameters() - 1.0).abs() < 0.01, "{name}: {sum} against {}", model.parameters());
        }
    }
}
