//! The shape of a transformer, and what follows from it alone: parameters, and operations of one token.
//!
//! A shape counts its sub-layers by kind, so that models that mix them (recurrent layers, windows, experts in some layers only) need no case
//! of their own. Counts are those of the published configurations; a layer of attention and one of feed-forward make one usual block.

/// The query, key and value shapes of every attention layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    pub heads: u32,
    pub key_value_heads: u32,
    pub head_size: u32,
    /// Low-rank queries, keys and values (DeepSeek-V2, arXiv 2405.04434).
    pub latent: Option<Latent>,
    /// A gate as wide as the heads behind the attention (Qwen3-Next).
    pub gated: bool,
}

/// Sizes of low-rank attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latent {
    /// 0 where queries are projected at full rank.
    pub query_rank: u32,
    pub key_value_rank: u32,
    /// Of a head, without and with rotation.
    pub plain: u32,
    pub rotated: u32,
    pub value: u32,
    /// Heads and size of the scores by which each token chooses those of the whole context that it attends to, as many as the window holds
    /// (sparse attention of DeepSeek-V3.2); 0 without. Every token of the context stays in the cache.
    pub index_heads: u32,
    pub index_size: u32,
}

/// Feed-forward layers without experts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Dense {
    pub layers: u32,
    pub width: u32,
}

/// Feed-forward layers of experts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Experts {
    pub layers: u32,
    pub count: u32,
    /// Chosen for a token.
    pub active: u32,
    pub width: u32,
    /// Width of what every token passes besides, all shared experts together.
    pub shared_width: u32,
    /// Width in which the experts work, where the hidden state is projected down before and up behind them (latent experts); else 0.
    pub latent: u32,
}

/// Layers with a state instead of attention.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Recurrent {
    pub layers: u32,
    pub kind: RecurrentKind,
    /// Heads of the values (Mamba-2: heads).
    pub heads: u32,
    pub head_size: u32,
    /// Heads of keys and queries (Mamba-2: groups of B and C).
    pub groups: u32,
    /// Size of a key (Mamba-2: the state's).
    pub state: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecurrentKind {
    /// State-space duality in chunks (arXiv 2405.21060).
    Mamba2,
    /// The gated delta rule in chunks (arXiv 2412.06464).
    GatedDelta,
}

/// A transformer.
#[derive(Clone, Debug, PartialEq)]
pub struct Transformer {
    /// `llama-3.1-8b`.
    pub name: String,
    pub aliases: Vec<String>,
    pub hidden: u32,
    pub attention: Attention,
    /// Layers that attend to the whole context.
    pub attention_layers: u32,
    /// Layers that attend to the last `window` tokens.
    pub window_layers: u32,
    pub window: u32,
    pub recurrent: Option<Recurrent>,
    pub dense: Dense,
    pub experts: Option<Experts>,
    /// The feed-forward layers multiply two projections (SwiGLU, arXiv 2002.05202).
    pub gated: bool,
    pub vocabulary: u32,
    /// The embedding is also the last projection.
    pub tied: bool,
    /// Learned positions; 0 for rotary or none.
    pub positions: u32,
    /// Linear layers have biases and norms have two vectors (GPT-2, GPT-3).
    pub biased: bool,
    /// Blocks of one attention and one feed-forward that predict tokens beyond the next while training (DeepSeek-V3, arXiv 2412.19437).
    pub prediction_layers: u32,
    /// Where the shape stands.
    pub source: String,
}

/// Weights of a linear layer that is one matrix product in the forward pass: inputs x outputs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Linear {
    pub inputs: f64,
    pub outputs: f64,
}

impl Linear {
    pub const fn new(inputs: f64, outputs: f64) -> Linear {
        Linear { inputs, outputs }
    }

    pub fn weights(self) -> f64 {
        self.inputs * self.outputs
    }
}

impl Attention {
    /// Elements of all queries of a token.
    pub fn query_width(&self) -> f64 {
        match self.latent {
            Some(latent) => f64::from(self.heads) * f64::from(latent.plain + latent.rotated),
            None => f64::from(self.heads) * f64::from(self.head_size),
        }
    }

    /// Elements of all values of a token, one a query head.
    pub fn value_width(&self) -> f64 {
        f64::from(self.heads) * f64::from(self.latent.map_or(self.head_size, |latent| latent.value))
    }

    /// Elements of the keys and values that later tokens need, of one token: what a cache holds.
    pub fn cached_width(&self) -> f64 {
        match self.latent {
            Some(latent) => f64::from(latent.key_value_rank + latent.rotated),
            None => 2.0 * f64::from(self.key_value_heads) * f64::from(self.head_size),
        }
    }

    /// Elements of the keys and values of one token as the attention of training reads them.
    pub fn key_value_width(&self) -> f64 {
        match self.latent {
            Some(_) => self.query_width() + self.value_width(),
            None => self.cached_width(),
        }
    }

    /// Linear layers of the scores that choose tokens: queries from their low-rank form, one key and a weight for each head from the hidden
    /// state (DeepSeek-V3.2-Exp, its `model.py`). They count when a model serves; training leaves them out, for published trainings have none.
    pub fn indexer(&self, hidden: f64) -> [Linear; 3] {
        let latent = self.latent.filter(|latent| latent.index_heads > 0);
        let of = |value: fn(&Latent) -> u32| latent.as_ref().map_or(0.0, |latent| f64::from(value(latent)));
        let (heads, size) = (of(|latent| latent.index_heads), of(|latent| latent.index_size));
        [Linear::new(of(|latent| latent.query_rank), heads * size), Linear::new(hidden, size), Linear::new(hidden, heads)]
    }

    /// Its linear layers: into queries, keys and values (some of low rank), and out; unused places are of size 0.
    pub fn linears(&self, hidden: f64) -> [Linear; 5] {
        let none = Linear::new(0.0, 0.0);
        let gate = if self.gated { self.query_width() } else { 0.0 };
        let out = Linear::new(self.value_width(), hidden);
        let Some(latent) = self.latent else {
            return [Linear::new(hidden, self.query_width() + self.cached_width() + gate), out, none, none, none];
        };
        let heads = f64::from(self.heads);
        let rank = f64::from(latent.key_value_rank);
        let up = Linear::new(rank, heads * f64::from(latent.plain + latent.value));
        let down = Linear::new(hidden, rank + f64::from(latent.rotated));
        match latent.query_rank {
            0 => [Linear::new(hidden, self.query_width()), down, up, out, none],
            query_rank => {
                let query_rank = f64::from(query_rank);
                [Linear::new(hidden, query_rank), Linear::new(query_rank, self.query_width()), down, up, out]
            }
        }
    }
}

impl Recurrent {
    pub fn inner(&self) -> f64 {
        f64::from(self.heads) * f64::from(self.head_size)
    }

    /// In (values, gate, keys, queries, steps) and out.
    pub fn linears(&self, hidden: f64) -> [Linear; 2] {
        let keys = 2.0 * f64::from(self.groups) * f64::from(self.state);
        let steps = f64::from(self.heads) * if self.kind == RecurrentKind::GatedDelta { 2.0 } else { 1.0 };
        [Linear::new(hidden, 2.0 * self.inner() + keys + steps), Linear::new(self.inner(), hidden)]
    }

    /// Operations of the scan of one token, forward, in chunks of 128: scores and their products inside a chunk (causal), then reading
    /// and writing the state (arXiv 2405.21060, section 6). The delta rule solves a triangular system of a chunk besides.
    pub fn scan_flops(&self) -> f64 {
        const CHUNK: f64 = 128.0;
        let (heads, size, state) = (f64::from(self.heads), f64::from(self.head_size), f64::from(self.state));
        let scores = if self.kind == RecurrentKind::GatedDelta { 2.0 * heads } else { f64::from(self.groups) };
        CHUNK * (scores * state + heads * size) + 4.0 * heads * size * state
    }
}

impl Experts {
    /// Width of what goes to the experts.
    pub fn token_width(&self, hidden: f64) -> f64 {
        if self.latent == 0 { hidden } else { f64::from(self.latent) }
    }

    /// Of one expert: into the width and back.
    pub fn linears(&self, hidden: f64, gated: bool) -> [Linear; 2] {
        let token = self.token_width(hidden);
        let width = f64::from(self.width);
        [Linear::new(token, if gated { 2.0 * width } else { width }), Linear::new(width, token)]
    }

    /// What every token passes: the router, shared experts in and out, projections into the latent width and back.
    pub fn common(&self, hidden: f64, gated: bool) -> [Linear; 5] {
        let shared = f64::from(self.shared_width);
        let latent = f64::from(self.latent);
        let some = |width: f64, linear: Linear| if width == 0.0 { Linear::new(0.0, 0.0) } else { linear };
        [
            Linear::new(hidden, f64::from(self.count)),
            some(shared, Linear::new(hidden, if gated { 2.0 * shared } else { shared })),
            some(shared, Linear::new(shared, hidden)),
            some(latent, Linear::new(hidden, latent)),
            some(latent, Linear::new(latent, hidden)),
        ]
    }
}

impl Dense {
    pub fn linears(&self, hidden: f64, gated: bool) -> [Linear; 2] {
        let width = f64::from(self.width);
        [Linear::new(hidden, if gated { 2.0 * width } else { width }), Linear::new(width, hidden)]
    }
}

fn weights(linears: &[Linear]) -> f64 {
    linears.iter().map(|linear| linear.weights()).sum()
}

impl Transformer {
    /// Layers that a pipeline can place: the larger of mixing and feed-forward layers where each block has both, all where a layer is one.
    pub fn blocks(&self) -> u32 {
        let mixing = self.attention_layers + self.window_layers + self.recurrent.map_or(0, |one| one.layers);
        let feeding = self.dense.layers + self.experts.map_or(0, |one| one.layers);
        if mixing == feeding { mixing } else { mixing + feeding }
    }

    /// Weights of one attention layer.
    pub fn attention_weights(&self) -> f64 {
        weights(&self.attention.linears(f64::from(self.hidden)))
    }

    /// Weights of one layer of experts, all of them.
    fn experts_weights(&self, count: impl Fn(&Experts) -> f64) -> f64 {
        let hidden = f64::from(self.hidden);
        let one = |experts: &Experts| {
            count(experts) * weights(&experts.linears(hidden, self.gated)) + weights(&experts.common(hidden, self.gated))
        };
        self.experts.as_ref().map_or(0.0, |experts| f64::from(experts.layers) * one(experts))
    }

    fn layer_weights(&self, experts: impl Fn(&Experts) -> f64) -> f64 {
        let hidden = f64::from(self.hidden);
        let recurrent = self.recurrent.map_or(0.0, |one| f64::from(one.layers) * weights(&one.linears(hidden)));
        f64::from(self.attention_layers + self.window_layers) * self.attention_weights()
            + recurrent
            + f64::from(self.dense.layers) * weights(&self.dense.linears(hidden, self.gated))
            + self.experts_weights(experts)
    }

    /// Weights of the blocks that predict further tokens: each a block like the last one, behind a projection of two hidden states to one.
    fn prediction_weights(&self, experts: impl Fn(&Experts) -> f64) -> f64 {
        if self.prediction_layers == 0 {
            return 0.0;
        }
        let hidden = f64::from(self.hidden);
        let feed = match &self.experts {
            Some(one) => experts(one) * weights(&one.linears(hidden, self.gated)) + weights(&one.common(hidden, self.gated)),
            None => weights(&self.dense.linears(hidden, self.gated)),
        };
        f64::from(self.prediction_layers) * (self.attention_weights() + feed + 2.0 * hidden * hidden)
    }

    /// Biases, norms and learned positions.
    fn small_weights(&self) -> f64 {
        let hidden = f64::from(self.hidden);
        let norms = f64::from(2 * self.blocks() + 1) * hidden * if self.biased { 2.0 } else { 1.0 };
        let biases = if self.biased {
            let attention: f64 = self.attention.linears(hidden).iter().map(|linear| linear.outputs).sum();
            let dense: f64 = self.dense.linears(hidden, self.gated).iter().map(|linear| linear.outputs).sum();
            f64::from(self.attention_layers) * attention + f64::from(self.dense.layers) * dense
        } else {
            0.0
        };
        norms + biases + f64::from(self.positions) * hidden
    }

    /// Weights of the table of the vocabulary.
    pub fn vocabulary_weights(&self) -> f64 {
        f64::from(self.vocabulary) * f64::from(self.hidden)
    }

    /// All parameters, without those of `prediction_layers`, as models are usually counted.
    pub fn parameters(&self) -> f64 {
        let tables = if self.tied { 1.0 } else { 2.0 };
        self.layer_weights(|experts| f64::from(experts.count)) + tables * self.vocabulary_weights() + self.small_weights()
    }

    /// All parameters that training holds.
    pub fn trained_parameters(&self) -> f64 {
        self.parameters() + self.prediction_weights(|experts| f64::from(experts.count))
    }

    /// Parameters of all experts that a token may be sent to (the part that expert parallelism divides).
    pub fn expert_parameters(&self) -> f64 {
        let hidden = f64::from(self.hidden);
        let one = |experts: &Experts| f64::from(experts.count) * weights(&experts.linears(hidden, self.gated));
        self.experts.as_ref().map_or(0.0, |experts| f64::from(experts.layers + self.prediction_layers) * one(experts))
    }

    /// Parameters that one token meets.
    pub fn active_parameters(&self) -> f64 {
        let tables = if self.tied { 1.0 } else { 2.0 };
        self.layer_weights(|experts| f64::from(experts.active)) + tables * self.vocabulary_weights() + self.small_weights()
    }

    /// Operations of one token, forward and backward, of a sequence: twice the weights of the matrix products in the forward pass and twice
    /// that in the backward one (Narayanan et al., arXiv 2104.04473, appendix), and the attention's own two products with every token it
    /// sees: all of the sequence, or the mean over the causal half of it.
    pub fn training_flops_per_token(&self, sequence: f64, causal: bool) -> f64 {
        let active = |experts: &Experts| f64::from(experts.active);
        let head = f64::from(1 + self.prediction_layers) * self.vocabulary_weights();
        let products = self.layer_weights(active) + self.prediction_weights(active) + head;
        6.0 * products + 3.0 * self.mixing_flops_per_token(sequence, causal)
    }

    /// Operations of one token in the attention's own products and in scans, forward.
    pub fn mixing_flops_per_token(&self, sequence: f64, causal: bool) -> f64 {
        let widths = self.attention.query_width() + self.attention.value_width();
        let seen = |context: f64| if causal { seen_causally(sequence, context) } else { context.min(sequence) };
        let whole = f64::from(self.attention_layers + self.prediction_layers) * 2.0 * widths * seen(sequence);
        let window = f64::from(self.window_layers) * 2.0 * widths * seen(f64::from(self.window));
        let scans = self.recurrent.map_or(0.0, |one| f64::from(one.layers) * one.scan_flops());
        whole + window + scans
    }
}

/// Tokens that a token sees in the mean over a sequence when it sees itself and at most `window` before it.
pub fn seen_causally(sequence: f64, window: f64) -> f64 {
    if window >= sequence { sequence / 2.0 } else { window - window * window / (2.0 * sequence) }
}

#[cfg(test)]
mod tests {
    use super::super::models::ModelBook;

    #[test]
    fn parameters_are_those_that_the_names_say() {
        let book = ModelBook::shipped();
        for (name, billions, tolerance) in [
            ("gpt-3-175b", 174.6, 0.01),
            ("megatron-22b", 22.0, 0.02),
            ("turing-530b", 529.6, 0.005),
            ("megatron-1t", 1008.0, 0.005),
            ("llama-2-7b", 6.738, 0.001),
            ("llama-2-70b", 68.98, 0.001),
            ("llama-3.1-8b", 8.030, 0.001),
            ("llama-3.1-70b", 70.55, 0.001),
            ("llama-3.1-405b", 405.85, 0.001),
            ("mixtral-8x7b", 46.70, 0.001),
            ("mixtral-8x22b", 140.6, 0.002),
            ("deepseek-v3", 671.0, 0.002),
            ("kimi-k2", 1026.0, 0.01),
            ("qwen3-30b-a3b", 30.53, 0.002),
            ("qwen3-235b-a22b", 235.1, 0.002),
            ("gpt-oss-120b", 116.8, 0.005),
            ("gpt-oss-20b", 20.9, 0.01),
            ("nemotron-3-nano-30b-a3b", 31.6, 0.01),
            ("nemotron-3-super-120b-a12b", 120.6, 0.01),
            ("nemotron-3-ultra-550b-a55b", 550.0, 0.01),
            ("llama-4-maverick-17b-128e", 400.7, 0.01),
            ("llama-4-scout-17b-16e", 107.8, 0.01),
            ("qwen3-next-80b-a3b", 79.7, 0.02),
            ("qwen3.5-397b-a17b", 397.0, 0.02),
            ("mpt-7b", 6.6489, 0.001),
            ("mpt-70b", 64.862, 0.001),
        ] {
            let model = book.find(name).unwrap_or_else(|| panic!("{name} is not in the book"));
            let found = model.parameters() / 1e9;
            assert!((found / billions - 1.0).abs() < tolerance, "{name}: {found:.3} billion, published {billions}");
        }
    }

    #[test]
    fn active_parameters_are_those_that_the_names_say() {
        let book = ModelBook::shipped();
        for (name, billions, tolerance) in [
            ("deepseek-v3", 37.5, 0.02),
            ("qwen3-30b-a3b", 3.35, 0.02),
            ("qwen3-235b-a22b", 22.2, 0.02),
            ("gpt-oss-120b", 5.7, 0.05),
            ("nemotron-3-super-120b-a12b", 12.7, 0.05),
            ("nemotron-3-ultra-550b-a55b", 55.5, 0.03),
            ("kimi-k2", 32.9, 0.03),
        ] {
            let found = book.find(name).unwrap().active_parameters() / 1e9;
            assert!((found / billions - 1.0).abs() < tolerance, "{name}: {found:.3} billion active, published {billions}");
        }
    }

    /// Arithmetic of NeMo for Llama 3 8B at 8,192 tokens: 57.9 GFLOP a token with the whole attention counted; the causal half is 6.4 less.
    #[test]
    fn operations_of_a_token_are_those_of_the_published_formula() {
        let model = ModelBook::shipped().find("llama-3.1-8b").unwrap().clone();
        let full = model.training_flops_per_token(8192.0, false) / 1e9;
        let causal = model.training_flops_per_token(8192.0, true) / 1e9;
        assert!((full - 57.92).abs() < 0.02, "{full}");
        assert!((full - causal - 6.44).abs() < 0.01, "{causal}");
    }

    #[test]
    fn a_window_sees_less_than_the_whole_and_never_more() {
        assert_eq!(super::seen_causally(8192.0, 8192.0), 4096.0);
        assert!(super::seen_causally(8192.0, 128.0) < 128.0);
        assert!(super::seen_causally(8192.0, 4096.0) < 4096.0);
        assert_eq!(super::seen_causally(100.0, 1e9), 50.0);
    }
}
