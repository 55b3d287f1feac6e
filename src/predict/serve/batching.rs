//! From steps to what users see: how many sequences live at once, how prompts and decoding share the steps, and how long requests wait.
//!
//! Continuous batching (Orca, OSDI 2022) with prompts cut into chunks: a cycle is the time in which one sequence makes all its tokens.
//! In a cycle every live sequence is replaced once, so that the prompts of all of them are read in it, in steps that carry both.
//! * All requests queued: waves of as many sequences as the cache holds.
//! * A fixed number of users (closed loop): a user's next request follows at once; more users than sequences wait for room. Requests come as
//!   evenly as others end, so that no queue builds up besides the one at the start.
//! * A rate (open loop): live sequences = rate x cycle (Little's law, Operations Research 9, 1961), found by bisection.
//!
//! At a rate, the wait for other prompts is that of a queue with one server and fixed service (M/D/1: u s / (2 (1 - u)), Khintchine 1932,
//! Pollaczek 1930).

use super::{
    layout::ServingLayout,
    step::{Replica, StepLoad, StepTime},
};

/// Lengths of the requests, tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lengths {
    pub input: f64,
    pub output: f64,
    /// Whether all requests are as long as each other: those that began in consecutive steps then end in consecutive steps, time after time.
    pub equal: bool,
}

impl Lengths {
    /// Mean length while it decodes.
    fn context(self) -> f64 {
        self.input + self.output / 2.0
    }

    /// Tokens that a token of the prompt sees in the mean.
    fn seen(self) -> f64 {
        self.input / 2.0
    }
}

/// The steady state of a replica with some sequences live.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Cycle {
    pub live: f64,
    /// In which every live sequence makes all its tokens, seconds.
    pub time: f64,
    /// Steps that carry prompts, and the seconds of one such.
    pub prompt_steps: f64,
    pub prompt_step: f64,
    /// Steps that decode alone, by what they are spent on.
    pub decoding: StepTime,
    /// Between two tokens of a sequence, whose own prompt holds up the others and not itself, seconds.
    pub per_token: f64,
    /// One prompt from its first chunk to its last, seconds.
    pub own_prompt: f64,
    /// A prompt when as many as fit are read together, without decoding, seconds each.
    pub packed_prompt: f64,
    /// For which a prompt is held back so that others are read with it, seconds.
    pub held_back: f64,
}

/// Latencies of a replica under a load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Latencies {
    pub first_token: f64,
    pub per_token: f64,
    pub live: f64,
}

/// Utilisation above which the formula of the queue no longer says anything: the bound on those before one takes over.
const FULL: f64 = 0.95;

impl Replica<'_> {
    fn layout(&self) -> &ServingLayout {
        self.layout
    }

    /// Tokens of prompts that one step carries at most, over all ranks of attention.
    fn step_tokens(&self) -> f64 {
        f64::from(self.layout().step_tokens) * f64::from(self.layout().attention_data)
    }

    fn prompts(&self, tokens: f64, decoding: f64, lengths: Lengths) -> StepLoad {
        StepLoad {
            decoding,
            context: lengths.context(),
            prompt_tokens: tokens,
            prompt_context: lengths.seen(),
            prompt_undivided: lengths.input.min(f64::from(self.layout().step_tokens)),
        }
    }

    fn decoding(&self, sequences: f64, lengths: Lengths) -> StepTime {
        self.step(&StepLoad { decoding: sequences, context: lengths.context(), ..StepLoad::default() })
    }

    /// Sequences that the cache holds when requests come one by one.
    pub fn sequences(&self, lengths: Lengths) -> f64 {
        let held = if self.layout().engine.reserves_whole() { lengths.input + lengths.output } else { lengths.context() };
        self.layout().capacity(self.work, self.machine, held)
    }

    /// Tokens that a sequence gains in a step: each proposed one counts if those before it were accepted (arXiv 2211.17192, equation 1).
    pub(super) fn gained(&self) -> f64 {
        (0..=self.layout().draft_tokens).map(|at| self.parameters.draft_acceptance.powi(at as i32)).sum()
    }

    /// Steps for which a prompt is held back so that others are read with it, and how many are then read at once. Requests come evenly, one in
    /// `steps / live` steps; the first of them opens the window.
    fn held_back(&self, live: f64, steps: f64) -> (f64, f64) {
        let layout = self.layout();
        let between = steps / live.max(1.0);
        let window = f64::from(layout.wait_steps);
        let mut poll = f64::from(layout.poll_steps);
        if layout.attention_data > 1 && layout.balance_steps > 0 {
            // Until the last of as many ranks has a prompt (expected maximum of exponential times), or the count of steps is full. It counts steps
            // in which no prompt waits too (TensorRT-LLM, `_balance_adp_requests`).
            let ranks = layout.attention_data;
            let harmonic: f64 = (1..=ranks).map(|rank| 1.0 / f64::from(rank)).sum();
            poll = poll.max((between * f64::from(ranks) * harmonic).min(f64::from(layout.balance_steps)));
        }
        if poll > window {
            // Requests come at any time between two looks.
            return (poll / 2.0, 1.0 + (poll / between).min((live - 1.0).max(0.0)));
        }
        let others = (window / between).min((live - 1.0).max(0.0));
        (window * (1.0 + others / 2.0) / (1.0 + others), 1.0 + others)
    }

    /// Seconds of a step that carries prompts in a live server, and would take `alone` without them.
    fn with_prompts(&self, tokens: f64, decoding: f64, lengths: Lengths, alone: f64) -> f64 {
        let prompt = self.parameters.engine(self.layout().engine).prompt;
        alone + prompt * (self.step(&self.prompts(tokens, decoding, lengths)).total() - alone)
    }

    /// The steady state with `live` sequences.
    pub fn cycle(&self, live: f64, lengths: Lengths) -> Cycle {
        let stages = f64::from(self.layout().pipeline);
        // Stages work on as many micro-batches as there are stages.
        let micro = live / stages;
        let steps = lengths.output / self.gained();
        let (held_steps, waiting) = self.held_back(live, steps);
        let together = (micro / steps).max(waiting).min(micro.max(1.0));
        let share = (together * lengths.input).min(self.step_tokens());
        let prompt_steps = micro * lengths.input / share;
        let decoding = self.decoding(micro, lengths);
        let prompt_step = self.with_prompts(share, micro, lengths, decoding.total());
        let time = (prompt_steps * prompt_step + (steps - prompt_steps).max(0.0) * decoding.total()) * stages;
        let others = prompt_steps * (live - 1.0).max(0.0) / live;
        let per_token = (others * prompt_step + (steps - others).max(0.0) * decoding.total()) * stages / lengths.output;
        let packed = (live * lengths.input).min(self.step_tokens().max(lengths.input));
        let packed_step = self.with_prompts(packed, 0.0, lengths, 0.0);
        Cycle {
            live,
            time,
            prompt_steps: prompt_steps * stages,
            prompt_step,
            decoding,
            per_token,
            own_prompt: prompt_step * (lengths.input / share).max(1.0) * stages,
            packed_prompt: packed_step * lengths.input / packed,
            held_back: held_steps * decoding.total() * stages,
        }
    }

    /// Seconds in which a replica with all requests queued answers `requests`.
    pub fn queued(&self, requests: f64, lengths: Lengths) -> Option<f64> {
        let capacity = self.layout().capacity(self.work, self.machine, lengths.input + lengths.output);
        if capacity < 1.0 {
            return None;
        }
        let waves = (requests / capacity).floor();
        Some(waves * self.wave(capacity, lengths) + self.wave(requests - waves * capacity, lengths))
    }

    /// One wave of sequences that begin together: their prompts are spread over the steps as evenly as the budget lets them.
    fn wave(&self, sequences: f64, lengths: Lengths) -> f64 {
        if sequences <= 0.0 {
            return 0.0;
        }
        let stages = f64::from(self.layout().pipeline);
        let ranks = f64::from(self.layout().attention_data);
        let micro = sequences / stages;
        let budget = f64::from(self.layout().step_tokens);
        let room = (budget - micro / ranks).max(256.0) * ranks;
        let steps = lengths.output / self.gained();
        let share = (micro * lengths.input / steps).max(lengths.input.min(budget)).min(room);
        let prompt_steps = micro * lengths.input / share;
        let with = StepLoad { prompt_undivided: 0.0, ..self.prompts(share, micro, lengths) };
        let mixed = self.step(&with).total();
        let alone = self.decoding(micro, lengths).total();
        (prompt_steps * mixed + (steps - prompt_steps).max(0.0) * alone) * stages
    }

    /// A batch that begins and ends together: seconds to the first tokens, and of all of it.
    pub fn batch(&self, sequences: f64, lengths: Lengths) -> (f64, f64) {
        let stages = f64::from(self.layout().pipeline);
        let first =
            self.step(&StepLoad { prompt_undivided: 0.0, ..self.prompts(sequences * lengths.input, 0.0, lengths) }).total()
                * stages;
        let rest = self.decoding(sequences, lengths).total() * stages;
        (first, first + (lengths.output - 1.0) / self.gained() * rest)
    }

    /// Latencies for `users` who each have one request open at all times.
    pub fn users(&self, users: f64, lengths: Lengths) -> Latencies {
        let live = users.min(self.sequences(lengths).max(1.0));
        let cycle = self.cycle(live, lengths);
        let costs = self.parameters.engine(self.layout().engine);
        // What began together waits for half of the others, to be taken in and to be read. Later, one who waits for room or a step begins when
        // another ends, so that nobody stands before it, unless all are equally long: each new prompt then comes while that before it is read.
        let before = (live - 1.0).max(0.0) / 2.0 * cycle.packed_prompt + (users - 1.0).max(0.0) / 2.0 * self.parameters.reception;
        let steady = if lengths.equal && live > 1.0 { cycle.own_prompt } else { 0.0 };
        let waiting = costs.burst * before + (1.0 - costs.burst) * steady;
        let room = if users > live { (users - live) / live * cycle.time } else { 0.0 };
        let per_token = cycle.per_token;
        Latencies {
            first_token: costs.request
                + cycle.own_prompt
                + waiting
                + cycle.held_back
                + costs.held_tokens * cycle.decoding.total()
                + self.parameters.first_group * f64::from(self.layout().group_steps) * cycle.decoding.total()
                + room,
            per_token,
            live,
        }
    }

    /// Sequences that are live when requests come at `rate` a second; what the cache holds where they come faster than they are answered.
    fn live_at(&self, rate: f64, most: f64, lengths: Lengths) -> f64 {
        let answered = |live: f64| live / self.cycle(live, lengths).time;
        let (mut low, mut high) = (1e-3, most);
        if answered(most) <= rate {
            return most;
        }
        for _ in 0..40 {
            let middle = f64::sqrt(low * high);
            if answered(middle) < rate { low = middle } else { high = middle }
        }
        high
    }

    /// Requests that one replica can answer a second.
    pub fn answered(&self, lengths: Lengths) -> f64 {
        let most = self.sequences(lengths);
        if most < 1.0 { 0.0 } else { most / self.cycle(most, lengths).time }
    }

    /// Latencies when requests come at random, `rate` a second, without end. Meaningless at a rate that is not `answered`.
    pub fn rate(&self, rate: f64, lengths: Lengths) -> Latencies {
        let live = self.live_at(rate, self.sequences(lengths).max(1.0), lengths);
        let cycle = self.cycle(live.max(1.0), lengths);
        let costs = self.parameters.engine(self.layout().engine);
        let used = (rate * cycle.own_prompt).min(FULL);
        let queue = used / (2.0 * (1.0 - used)) * cycle.own_prompt;
        let per_token = cycle.time / lengths.output;
        Latencies {
            first_token: costs.request + cycle.own_prompt + queue + cycle.held_back + costs.held_tokens * per_token,
            per_token,
            live,
        }
    }

    /// A run of `requests` that come at `rate` a second (infinite: all at once): latencies, and the seconds of the whole run.
    pub fn run(&self, rate: f64, requests: f64, lengths: Lengths) -> (Latencies, f64) {
        let most = self.sequences(lengths).max(1.0).min(requests);
        let live = if rate.is_finite() { self.live_at(rate, most, lengths) } else { most };
        let cycle = self.cycle(live.max(1.0), lengths);
        let costs = self.parameters.engine(self.layout().engine);
        let arriving = if rate.is_finite() { requests / rate } else { 0.0 };
        // Prompts come before decoding, as many to a step as fit: those that arrive faster than they are read wait for those before them.
        let service = cycle.packed_prompt + cycle.decoding.total() * lengths.input / self.step_tokens().max(lengths.input);
        let backlog = (requests * service - arriving).max(0.0) / 2.0;
        let used = (service * requests / arriving).min(FULL);
        let queue = used / (2.0 * (1.0 - used)) * cycle.own_prompt;
        // A sequence is held up by the prompts behind it: half of all, where all came at once.
        let per_token = if backlog > 0.0 {
            cycle.decoding.total() / self.gained() + requests * service / 2.0 / lengths.output
        } else {
            cycle.time / lengths.output
        };
        let first_token = costs.request + cycle.own_prompt + queue + costs.held_tokens * per_token + backlog;
        // The last sequences end in an emptying batch.
        let tail = lengths.output * (per_token + self.cycle(1.0, lengths).time / lengths.output) / 2.0;
        let all = self.queued(requests, lengths).unwrap_or(f64::INFINITY);
        (Latencies { first_token, per_token, live }, (arriving + tail).max(all))
    }
}

/// Prompts on machines of their own (disaggregated serving, DistServe, arXiv 2401.09670): latencies for `users` who each have a request open.
/// The prompts' machines are a queue; if they are the slower part, it holds all users that do not decode. Where it is not said how many read, as
/// many are taken as keep up with decoding. A decoder that is full lets requests wait for a place.
pub fn users_apart(prompts: (&Replica, Option<f64>), decoding: (&Replica, f64), users: f64, lengths: Lengths) -> Latencies {
    let ((reader, readers), (decoder, decoders)) = (prompts, decoding);
    let costs = reader.parameters.engine(reader.layout.engine);
    let ranks = f64::from(reader.layout.attention_data);
    let chunk = lengths.input.min(f64::from(reader.layout.step_tokens));
    let load =
        StepLoad { prompt_tokens: chunk * ranks, prompt_context: lengths.seen(), prompt_undivided: chunk, ..StepLoad::default() };
    let own = reader.step(&load).total() * (lengths.input / chunk) * f64::from(reader.layout.pipeline);
    let decoding_of =
        |live: f64| decoder.decoding(live / decoders, lengths).total() * f64::from(decoder.layout.pipeline) / decoder.gained();
    let keeping_up = || (users * own / ranks / (lengths.output * decoding_of(users))).ceil().max(1.0);
    // Prompts that wait are read together, as many as fit.
    let each = readers.unwrap_or_else(keeping_up) * ranks;
    let together = (f64::from(reader.layout.step_tokens) / lengths.input).floor().clamp(1.0, (users / each).max(1.0));
    let packed = StepLoad {
        prompt_tokens: together * lengths.input * ranks,
        prompt_context: lengths.seen(),
        prompt_undivided: 0.0,
        ..StepLoad::default()
    };
    let of_packed = reader.step(&packed).total() * f64::from(reader.layout.pipeline) / together;
    let service = if together > 1.0 { of_packed.min(own) } else { own } / each;
    let (mut live, mut per_token, mut wait) = (users, 0.0, own);
    // A fixed point, damped: those who wait for their prompt do not decode.
    for _ in 0..20 {
        per_token = decoding_of(live);
        let thinking = lengths.output * per_token;
        let cycle = (thinking + own).max(users * service);
        let used = (users * service / cycle).min(FULL);
        let queue = (used / (2.0 * (1.0 - used)) * service).min(users * service / 2.0);
        wait = (cycle - thinking).max(own + queue);
        let next = users * thinking / (thinking + wait);
        live = 0.5 * live + 0.5 * next.max(users.min(1.0));
    }
    // Those for whom no decoder has a place wait for one.
    let places = decoders * decoder.sequences(lengths).max(1.0);
    if live > places {
        live = places;
        per_token = decoding_of(live);
        // Of those who begin together, as many as there are places do not wait.
        wait = wait.max((1.0 - costs.burst) * (users / places - 1.0) * lengths.output * per_token);
    }
    let burst = costs.burst * (users - 1.0).max(0.0) / 2.0 * (service + reader.parameters.reception);
    Latencies {
        first_token: costs.request
            + costs.prompt * wait
            + burst
            + reader.parameters.cache_transfer
            + costs.held_tokens * per_token,
        per_token,
        live,
    }
}
