//! The answer for one layout under one load.

use super::{
    batching::{Latencies, Lengths},
    layout::{ServingError, ServingLayout, reserve_bytes},
    parameters::ServingParameters,
    step::{Replica, StepTime},
    work::ServingWork,
};
use crate::{
    hardware::Machine,
    predict::Transformer,
    units::{Bytes, Seconds, Usd, UsdPerHour},
};

/// How requests come.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Arrival {
    /// At random, so many a second over all replicas.
    PerSecond(f64),
    /// So many users over all replicas, each with one request open at all times.
    Users(f64),
    /// All at once: throughput alone counts.
    Queued,
}

/// What is to be served.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Load {
    pub arrival: Arrival,
    pub input_tokens: f64,
    pub output_tokens: f64,
    /// Limits on the mean latencies.
    pub first_token: Option<Seconds>,
    pub per_token: Option<Seconds>,
}

/// Memory of the fullest GPU by its parts.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ServingMemory {
    pub weights: Bytes,
    /// Caches of the sequences that are live.
    pub cache: Bytes,
    /// Room for caches.
    pub cache_room: Bytes,
    pub reserve: Bytes,
}

/// What is predicted of a layout under a load.
#[derive(Clone, Debug, PartialEq)]
pub struct ServingEstimate {
    /// Why it will not do, if so; the other fields then say how far off it is (0 where nothing can be said).
    pub verdict: Result<(), ServingError>,
    pub memory: ServingMemory,
    /// Sequences that the cache of a replica holds, and those that are live.
    pub capacity: f64,
    pub live: f64,
    pub first_token: Seconds,
    pub per_token: Seconds,
    /// All replicas.
    pub output_tokens_per_second: f64,
    pub requests_per_second: f64,
    /// Requests a second that all replicas could answer at most.
    pub possible_per_second: f64,
    /// A step that decodes alone, by parts, and the seconds of a step that carries prompts too.
    pub decoding_step: StepTime,
    pub prompt_step: Seconds,
    /// Share of the steps that carry prompts.
    pub prompt_share: f64,
    /// Tokens that a sequence gains in a step: 1, and the proposed ones that are accepted.
    pub tokens_per_step: f64,
    pub gpus: u32,
}

impl ServingEstimate {
    /// What a million output tokens cost on GPUs of this price each; infinite where none comes.
    pub fn usd_per_million_output_tokens(&self, gpu: UsdPerHour) -> Usd {
        Usd(gpu.0 * f64::from(self.gpus) / 3600.0 / self.output_tokens_per_second * 1e6)
    }

    fn refused(reason: ServingError, memory: ServingMemory, gpus: u32) -> ServingEstimate {
        ServingEstimate {
            verdict: Err(reason),
            memory,
            capacity: 0.0,
            live: 0.0,
            first_token: Seconds(0.0),
            per_token: Seconds(0.0),
            output_tokens_per_second: 0.0,
            requests_per_second: 0.0,
            possible_per_second: 0.0,
            decoding_step: StepTime::default(),
            prompt_step: Seconds(0.0),
            prompt_share: 0.0,
            tokens_per_step: 1.0,
            gpus,
        }
    }
}

/// Latencies, throughput and memory of `layout` on `machine` under `load`.
pub fn serving(
    model: &Transformer,
    machine: &Machine,
    layout: &ServingLayout,
    load: &Load,
    parameters: &ServingParameters,
) -> ServingEstimate {
    let gpus = layout.gpus();
    if let Err(reason) = layout.check(model) {
        return ServingEstimate::refused(reason, ServingMemory::default(), gpus);
    }
    let work = ServingWork::of(model);
    let whole = |bytes: f64| Bytes(bytes.max(0.0).round() as u64);
    let memory = ServingMemory {
        weights: whole(layout.weight_bytes(&work)),
        cache: Bytes(0),
        cache_room: whole(layout.cache_room(&work, machine)),
        reserve: whole(reserve_bytes(layout.engine)),
    };
    let lengths = Lengths { input: load.input_tokens, output: load.output_tokens, equal: false };
    if let Err(reason) = layout.fits(model, &work, machine, lengths.input + lengths.output) {
        return ServingEstimate::refused(reason, memory, gpus);
    }
    let replica = Replica { work: &work, machine, layout, parameters };
    let replicas = f64::from(layout.replicas);
    let possible = replica.answered(lengths) * replicas;
    let capacity = replica.sequences(lengths);
    let (latencies, answered, too_many) = match load.arrival {
        Arrival::PerSecond(rate) => {
            let seen = replica.rate(rate / replicas, lengths);
            (seen, rate.min(possible), rate > possible)
        }
        Arrival::Users(users) => {
            let seen = replica.users(users / replicas, lengths);
            let held = seen.first_token + lengths.output * seen.per_token;
            (seen, users / held, false)
        }
        Arrival::Queued => {
            let cycle = replica.cycle(capacity, lengths);
            // The first token of a request that is queued with all others says nothing: it is that of one which has room.
            let seen = Latencies { first_token: cycle.own_prompt, per_token: cycle.time / lengths.output, live: capacity };
            (seen, possible, false)
        }
    };
    let cycle = replica.cycle(latencies.live.max(1.0), lengths);
    let verdict = match (load.first_token, load.per_token) {
        _ if too_many => Err(ServingError::Rate { wanted: answered.max(rate_of(load)), possible }),
        (Some(limit), _) if latencies.first_token > limit.0 => {
            Err(ServingError::FirstToken { limit: limit.0, predicted: latencies.first_token })
        }
        (_, Some(limit)) if latencies.per_token > limit.0 => {
            Err(ServingError::PerToken { limit: limit.0, predicted: latencies.per_token })
        }
        _ => Ok(()),
    };
    let per_rank = latencies.live / f64::from(layout.attention_data);
    ServingEstimate {
        verdict,
        memory: ServingMemory {
            cache: whole(per_rank * layout.cache_bytes_of(&work, lengths.input + lengths.output / 2.0)),
            ..memory
        },
        capacity,
        live: latencies.live,
        first_token: Seconds(latencies.first_token),
        per_token: Seconds(latencies.per_token),
        output_tokens_per_second: answered * lengths.output,
        requests_per_second: answered,
        possible_per_second: possible,
        decoding_step: cycle.decoding,
        prompt_step: Seconds(cycle.prompt_step),
        prompt_share: (cycle.prompt_steps / f64::from(layout.pipeline) / lengths.output).min(1.0),
        tokens_per_step: replica.gained(),
        gpus,
    }
}

fn rate_of(load: &Load) -> f64 {
    match load.arrival {
        Arrival::PerSecond(rate) => rate,
        Arrival::Users(_) | Arrival::Queued => 0.0,
    }
}
