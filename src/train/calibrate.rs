//! What quantisation must know of a model, found out on training rows: activations into products, and how much each layer's loss of
//! precision changes the answers. No test row is read.

use super::{TrainError, feed::feed, load_weights};
use crate::{
    backend::{OpTime, Session, open},
    data::{DataSet, calibration_rows},
    graph::{Graph, Program, ValueId, fuse, lower},
    strategy::{
        Calibration, LayerFormat, Quantized, StrategyError, Weights, quantizable_weights, quantize, watch_inputs, window_of,
    },
    vocab::{Device, Goal, Quantization, Range, Rounding},
};

/// Rows on which activation ranges are measured.
pub const CALIBRATION_ROWS: usize = 512;

/// Rows of activations that a layer keeps for GPTQ, over all batches: at most 64 MiB for 16,384 inputs.
const KEPT_ROWS: usize = 1024;

/// Weights that share a scale where a layer may become int4: the smaller of the usual groups, because the choice is by error.
const MIXED_GROUP: usize = 64;

/// Timed steps of each uniform program; the median of each layer counts.
const TIMED_STEPS: usize = 15;

/// Choices of layers that are followed at a time, cheapest to best; of more, evenly many are left.
const FRONT: usize = 4096;

/// Rows of a data set through a model on one device.
pub struct Probe<'a> {
    pub set: &'a DataSet,
    pub device: Device,
    pub threads: usize,
}

impl Probe<'_> {
    /// Runs `program` over the calibration rows; `look(session, rows that count)` after each batch.
    fn run(
        &self,
        program: Program,
        weights: &Weights,
        mut look: impl FnMut(&mut dyn Session, usize) -> Result<(), TrainError>,
    ) -> Result<(), TrainError> {
        let x = program.find("x").ok_or(TrainError::NoOutput { name: "x" })?;
        let batch = program.value(x).shape[0];
        let mut session = open(self.device, self.threads)?.load(program, None)?;
        load_weights(&mut *session, weights)?;
        let rows = calibration_rows(self.set.train.rows(), CALIBRATION_ROWS, 0);
        for chunk in rows.chunks(batch) {
            // The last batch is filled up with its first rows again, which are not counted twice.
            let filled: Vec<u32> = chunk.iter().copied().cycle().take(batch).collect();
            feed(&mut *session, x, &self.set.train, &filled)?;
            session.execute()?;
            look(&mut *session, chunk.len())?;
        }
        Ok(())
    }

    /// Runs the fp32 graph over calibration rows and notes the activations into each product in `calibration`. `forward` is the model at
    /// any batch.
    pub fn calibrate(&self, forward: &Graph, weights: &Weights, mut calibration: Calibration) -> Result<Calibration, TrainError> {
        let fused = fuse(forward.clone(), false);
        let program = lower(&watch_inputs(&fused));
        let batch = program.find("x").map_or(1, |x| program.value(x).shape[0]);
        let watched: Vec<(String, ValueId)> = program.outputs.clone();
        self.run(program, weights, |session, counted| {
            for (name, id) in &watched {
                let Some(weight) = name.strip_prefix("into ") else { continue };
                let value = session.program().value(*id);
                let shape = value.shape.clone();
                let mut activations = vec![0.0; value.elements()];
                session.download_f32(*id, &mut activations)?;
                activations.truncate(activations.len() / batch * counted);
                match (window_of(&fused, weight), &shape[..]) {
                    (Some(window), [_, height, width, channels]) => {
                        calibration.observe_images(weight, &window, [counted, *height, *width, *channels], &activations);
                    }
                    _ => calibration.observe(weight, *shape.last().expect("what enters a product has axes"), &activations),
                }
            }
            Ok(())
        })?;
        Ok(calibration)
    }

    /// What `quantization` asks for. `forward` is the model at the candidate's batch, whose time counts, `large` at a batch for judging.
    pub fn observe(
        &self,
        forward: &Graph,
        large: &Graph,
        weights: &Weights,
        quantization: Quantization,
    ) -> Result<Calibration, TrainError> {
        let batches = || {
            let batch = large.find("x").map_or(1, |x| large.shape(x)[0]);
            CALIBRATION_ROWS.min(self.set.train.rows()).div_ceil(batch)
        };
        let empty = match quantization {
            Quantization::Int4 { rounding: Rounding::Gptq, .. } => Calibration::keeping_rows(KEPT_ROWS.div_ceil(batches())),
            _ => Calibration::default(),
        };
        let calibration = self.calibrate(large, weights, empty)?;
        match quantization {
            Quantization::Mixed(goal) => self.choose(forward, large, weights, calibration, goal),
            _ => Ok(calibration),
        }
    }

    /// A format for every layer: the choice under the goal whose layers, each measured alone, change the answers least.
    fn choose(
        &self,
        forward: &Graph,
        large: &Graph,
        weights: &Weights,
        mut calibration: Calibration,
        goal: Goal,
    ) -> Result<Calibration, TrainError> {
        let fused = fuse(large.clone(), false);
        let mut layers = Vec::new();
        for name in quantizable_weights(&fused) {
            layers.push(Layer { options: Vec::new(), name });
        }
        let word = Quantization::Mixed(goal);
        // All layers in fp32 but those that `format` answers something for.
        let with = |calibration: &mut Calibration, graph: &Graph, format: &dyn Fn(&Layer) -> LayerFormat, layers: &[Layer]| {
            calibration.choices = layers.iter().map(|layer| (layer.name.clone(), format(layer))).collect();
            quantize(graph, weights, calibration, word)
        };
        let plain = with(&mut calibration, &fused, &|_| LayerFormat::Fp32, &layers)?;
        let exact = self.answers(&plain)?;
        for k in 0..layers.len() {
            for format in FORMATS {
                let divergence = match format {
                    LayerFormat::Fp32 => 0.0,
                    _ => {
                        let name = layers[k].name.clone();
                        let alone = |layer: &Layer| if layer.name == name { format } else { LayerFormat::Fp32 };
                        divergence(&exact, &self.answers(&with(&mut calibration, &fused, &alone, &layers)?)?)
                    }
                };
                let cost = bytes(&weights.get(&layers[k].name)?.shape, format);
                layers[k].options.push(Choice { format, divergence, cost });
            }
        }
        let (share, rest) = match goal {
            Goal::Size(share) => (share, 0.0),
            Goal::Latency(share) => {
                let at_batch = fuse(forward.clone(), false);
                let mut uniform = Vec::new();
                for format in FORMATS {
                    uniform.push(with(&mut calibration, &at_batch, &|_| format, &layers)?);
                }
                (share, self.time(&uniform, &mut layers)?)
            }
        };
        let whole = rest + layers.iter().map(|layer| layer.options[0].cost).sum::<f64>();
        let picked = least_divergence(&layers, share * whole - rest).ok_or_else(|| {
            let least = |layer: &Layer| layer.options.iter().map(|o| o.cost).fold(f64::INFINITY, f64::min);
            let reached = (rest + layers.iter().map(least).sum::<f64>()) / whole;
            StrategyError::OutOfReach { compression: word.to_string(), reached }
        })?;
        let chosen = || layers.iter().zip(&picked).map(|(layer, at)| (layer, &layer.options[*at]));
        let cost = rest + chosen().map(|(_, option)| option.cost).sum::<f64>();
        let of = match goal {
            Goal::Size(_) => "the bytes of the layers' fp32 weights",
            Goal::Latency(_) => "the measured time of an fp32 step",
        };
        let each = chosen().map(|(layer, option)| format!("{} {} ({:.1e})", layer.name, option.format, option.divergence));
        calibration.notes = vec![format!(
            "{:.3} of {of}; layers with what each alone changes the answers (KL divergence): {}",
            cost / whole,
            each.collect::<Vec<_>>().join(", ")
        )];
        calibration.choices = chosen().map(|(layer, option)| (layer.name.clone(), option.format)).collect();
        Ok(calibration)
    }

    /// Logits of the calibration rows, row by row.
    fn answers(&self, model: &Quantized) -> Result<Answers, TrainError> {
        let program = lower(&model.graph);
        let logits = program.output("logits").ok_or(TrainError::NoOutput { name: "logits" })?;
        let shape = program.value(logits).shape.clone();
        let (mut all, mut batch) = (Vec::new(), vec![0.0; shape[0] * shape[1]]);
        self.run(program, &model.weights, |session, counted| {
            session.download_f32(logits, &mut batch)?;
            all.extend_from_slice(&batch[..counted * shape[1]]);
            Ok(())
        })?;
        Ok(Answers { logits: all, classes: shape[1] })
    }

    /// Puts the measured seconds of each layer in each format in place of bytes. `uniform` are the model with all layers in fp32, then
    /// int8, then int4. A layer's time is that of its product and of what follows up to the next product; the answer is the time before
    /// the first.
    fn time(&self, uniform: &[Quantized], layers: &mut [Layer]) -> Result<f64, TrainError> {
        let backend = open(self.device, self.threads)?;
        let mut sessions = Vec::new();
        for model in uniform {
            let program = lower(&model.graph);
            let x = program.find("x").ok_or(TrainError::NoOutput { name: "x" })?;
            let rows: Vec<u32> = (0..program.value(x).shape[0]).map(|k| (k % self.set.train.rows()) as u32).collect();
            let mut session = backend.load(program, None)?;
            load_weights(&mut *session, &model.weights)?;
            feed(&mut *session, x, &self.set.train, &rows)?;
            // The first run packs weights.
            session.execute()?;
            sessions.push((session, Vec::new()));
        }
        // In turns, so that what else the machine does falls on all alike.
        for _ in 0..TIMED_STEPS {
            for (session, runs) in &mut sessions {
                let mut times = Vec::new();
                session.execute_timed(&mut times)?;
                runs.push(times);
            }
        }
        let mut rest = 0.0;
        for (number, (session, runs)) in sessions.iter().enumerate() {
            let (mut current, mut seconds, mut before) = (None, vec![0.0; layers.len()], 0.0);
            for (k, step) in session.program().steps.iter().enumerate() {
                // A product with a weight, or what widens it for the product behind.
                let reads = |layer: &Layer| {
                    step.inputs.iter().take(2).any(|w| {
                        let name = &session.program().value(*w).name;
                        let base = name.strip_suffix(".int8").or_else(|| name.strip_suffix(".int4")).unwrap_or(name);
                        base == layer.name
                    })
                };
                current = layers.iter().position(reads).or(current);
                let of_step: Vec<f64> = runs.iter().map(|times: &Vec<OpTime>| times[k].total.0).collect();
                let time = crate::stats::median(&of_step).unwrap_or(0.0);
                *current.map_or(&mut before, |layer| &mut seconds[layer]) += time;
            }
            for (layer, seconds) in layers.iter_mut().zip(seconds) {
                if let Some(option) = layer.options.get_mut(number) {
                    option.cost = seconds;
                }
            }
            // Before the first product all three are alike.
            if number == 0 {
                rest = before;
            }
        }
        Ok(rest)
    }
}

/// A product whose format is to be chosen.
struct Layer {
    name: String,
    options: Vec<Choice>,
}

struct Choice {
    format: LayerFormat,
    /// Mean KL divergence of the answers with this layer alone in this format from those in fp32, nats.
    divergence: f64,
    /// Bytes or seconds.
    cost: f64,
}

struct Answers {
    logits: Vec<f32>,
    classes: usize,
}

/// What a layer may become.
const FORMATS: [LayerFormat; 3] =
    [LayerFormat::Fp32, LayerFormat::Int8(Range::Largest), LayerFormat::Int4 { group: MIXED_GROUP, rounding: Rounding::Nearest }];

/// Of a weight as stored, with its scales.
fn bytes(shape: &[usize], format: LayerFormat) -> f64 {
    let elements: usize = shape.iter().product();
    let outputs = *shape.last().expect("a weight has axes");
    let bytes = match format {
        LayerFormat::Fp32 => 4 * elements,
        LayerFormat::Int8(_) | LayerFormat::Int8Dynamic => elements + 4 * outputs,
        LayerFormat::Int4 { group, .. } => {
            let inputs = elements / outputs;
            inputs.div_ceil(2) * outputs + 2 * inputs.div_ceil(group) * outputs
        }
    };
    bytes as f64
}

/// Mean over rows of the KL divergence of softmax(other) from softmax(exact).
fn divergence(exact: &Answers, other: &Answers) -> f64 {
    let log_shares = |row: &[f32]| -> Vec<f64> {
        let most = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|v| f64::from(v - most).exp()).sum();
        row.iter().map(|v| f64::from(v - most) - sum.ln()).collect()
    };
    let rows = exact.logits.chunks_exact(exact.classes).zip(other.logits.chunks_exact(exact.classes));
    let of_rows = rows.map(|(p, q)| {
        let (p, q) = (log_shares(p), log_shares(q));
        p.iter().zip(&q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>()
    });
    // Rounding may leave it a hair below zero.
    (of_rows.sum::<f64>() / (exact.logits.len() / exact.classes).max(1) as f64).max(0.0)
}

/// An option for each layer with the least sum of divergences among those whose costs add up to at most `most`; `None` where none do.
fn least_divergence(layers: &[Layer], most: f64) -> Option<Vec<usize>> {
    // (cost, divergence, options so far) that no other one beats in both, by cost.
    let mut front: Vec<(f64, f64, Vec<usize>)> = vec![(0.0, 0.0, Vec::new())];
    // What the layers behind take at least.
    let mut behind: f64 = layers.iter().map(cheapest).sum();
    for layer in layers {
        behind -= cheapest(layer);
        let mut next: Vec<(f64, f64, Vec<usize>)> = Vec::new();
        for (cost, divergence, picked) in &front {
            for (at, option) in layer.options.iter().enumerate() {
                // A hair of room for sums that were rounded.
                if cost + option.cost + behind <= most * (1.0 + 1e-12) {
                    let picked: Vec<usize> = picked.iter().copied().chain([at]).collect();
                    next.push((cost + option.cost, divergence + option.divergence, picked));
                }
            }
        }
        next.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.total_cmp(&b.1)));
        front.clear();
        for one in next {
            if front.last().is_none_or(|last| one.1 < last.1) {
                front.push(one);
            }
        }
        if front.len() > FRONT {
            let (every, last) = (front.len().div_ceil(FRONT), front.len() - 1);
            let mut at = 0..;
            front.retain(|_| at.next().is_some_and(|at: usize| at.is_multiple_of(every) || at == last));
        }
    }
    front.into_iter().min_by(|a, b| a.1.total_cmp(&b.1)).map(|(_, _, picked)| picked)
}

fn cheapest(layer: &Layer) -> f64 {
    layer.options.iter().map(|option| option.cost).fold(f64::INFINITY, f64::min)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(options: &[(f64, f64)]) -> Layer {
        let choice =
            |(at, (cost, divergence)): (usize, &(f64, f64))| Choice { format: FORMATS[at], divergence: *divergence, cost: *cost };
        Layer { name: "w".into(), options: options.iter().enumerate().map(choice).collect() }
    }

    #[test]
    fn the_choice_is_the_best_of_all_that_fit() {
        let mut state = 7u64;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f64 / (1u64 << 24) as f64
        };
        for round in 0..30 {
            let layers: Vec<Layer> = (0..6)
                .map(|k| {
                    let (cost, loss) = (1.0 + 9.0 * next(), next());
                    let options = [(cost, 0.0), (cost * (0.2 + 0.3 * next()), loss * next()), (cost * 0.15, loss)];
                    layer(&options[..if k == 0 { 2 } else { 3 }])
                })
                .collect();
            let all: f64 = layers.iter().map(|layer| layer.options[0].cost).sum();
            for share in [0.16, 0.3, 0.5, 1.0] {
                let mut best: Option<f64> = None;
                for code in 0..3usize.pow(6) {
                    let picked: Vec<usize> = (0..6).map(|k| code / 3usize.pow(k) % 3).collect();
                    if picked[0] == 2 {
                        continue;
                    }
                    let sum = |of: fn(&Choice) -> f64| layers.iter().zip(&picked).map(|(l, at)| of(&l.options[*at])).sum::<f64>();
                    if sum(|o| o.cost) <= share * all {
                        let divergence = sum(|o| o.divergence);
                        best = Some(best.map_or(divergence, |best: f64| best.min(divergence)));
                    }
                }
                let got = least_divergence(&layers, share * all);
                let got = got.map(|picked| layers.iter().zip(picked).map(|(l, at)| l.options[at].divergence).sum::<f64>());
                assert_eq!(got.is_some(), best.is_some(), "round {round}, {share}");
                assert!(
                    got.zip(best).is_none_or(|(got, best)| (got - best).abs() < 1e-12),
                    "round {round}, {share}: {got:?} {best:?}"
                );
            }
        }
    }

    #[test]
    fn bytes_are_those_of_what_is_stored() {
        let int4 = LayerFormat::Int4 { group: 64, rounding: Rounding::Nearest };
        assert_eq!(bytes(&[65, 10], LayerFormat::Fp32), 2600.0);
        assert_eq!(bytes(&[65, 10], LayerFormat::Int8(Range::Largest)), 650.0 + 40.0);
        assert_eq!(bytes(&[65, 10], int4), 330.0 + 40.0);
        assert_eq!(bytes(&[3, 3, 1, 32], LayerFormat::Int8(Range::Largest)), 288.0 + 128.0);
        assert_eq!(bytes(&[3, 3, 1, 32], int4), 5.0 * 32.0 + 2.0 * 32.0);
        assert_eq!(bytes(&[3, 3, 15, 8], int4), 68.0 * 8.0 + 2.0 * 3.0 * 8.0);
    }

    #[test]
    fn a_divergence_is_zero_of_equals_and_by_hand_of_two() {
        let of = |logits: &[f32]| Answers { logits: logits.to_vec(), classes: 2 };
        assert_eq!(divergence(&of(&[1.0, 2.0, 0.0, 0.0]), &of(&[1.0, 2.0, 5.0, 5.0])), 0.0);
        // Shares 1/2 and 1/2 against 1/4 and 3/4.
        let got = divergence(&of(&[0.0, 0.0]), &of(&[0.0, 3f32.ln()]));
        assert!((got - (0.5 * 2f64.ln() + 0.5 * (2f64 / 3.0).ln())).abs() < 1e-6, "{got}");
    }
}
