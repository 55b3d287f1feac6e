//! Serving against numbers worked out by hand, and properties that must hold whatever the parameters are.

use super::{
    batching::{Latencies, Lengths, users_apart},
    *,
};
use crate::{
    hardware::{HardwareBook, Machine},
    predict::{ModelBook, Transformer},
    units::{Seconds, UsdPerHour},
};

fn model(name: &str) -> Transformer {
    ModelBook::shipped().find(name).unwrap().clone()
}

fn machine(name: &str) -> Machine {
    HardwareBook::shipped().find(name).unwrap().machine
}

fn half(tensor: u32) -> ServingLayout {
    ServingLayout::single(tensor, ServedFormat::Half, Engine::Vllm)
}

/// All shares 1, all costs and latencies (nearly) 0: nothing but the peaks.
fn ideal() -> ServingParameters {
    let mut all = ServingParameters::of(&priors().iter().map(|prior| prior.start).collect::<Vec<_>>());
    all.memory = [1.0; 5];
    all.products = [1.0; 5];
    (all.products_8_bit, all.products_4_bit, all.cache_reading, all.prompt_attention) = (1.0, 1.0, 1.0, 1.0);
    (all.latent_attention, all.experts, all.experts_compiled) = (1.0, 1.0, 1.0);
    (all.product_rows, all.expert_rows, all.expert_layer, all.expert_exchange) = (0.0, 0.0, 0.0, 0.0);
    (all.latent_layer, all.latent_eager, all.expert_layer_block, all.products_block) = (0.0, 0.0, 0.0, 1.0);
    (all.first_group, all.reception, all.expert_evenness) = (1.0, 0.0, 1e9);
    (all.nvlink_latency, all.pcie_latency, all.element_passes, all.cache_transfer) = (0.0, 0.0, 0.0, 0.0);
    for engine in &mut all.engines {
        *engine = EngineCosts {
            block: 0.0,
            eager_block: 0.0,
            step: 0.0,
            sequence: 0.0,
            request: 0.0,
            burst: 0.0,
            prompt: 1.0,
            held_tokens: 0.0,
        };
    }
    all
}

#[test]
fn a_sequence_of_llama_70b_holds_320_kib_a_token() {
    let work = ServingWork::of(&model("llama-3.1-70b"));
    let layout = half(1);
    // 80 layers x 8 heads x 128 elements x (key, value) x 2 bytes.
    assert_eq!(layout.cache_bytes_of(&work, 1.0), 327_680.0);
    // Eight GPUs hold a head each; sixteen hold no less.
    assert_eq!(half(8).cache_bytes_of(&work, 1.0), 40_960.0);
    assert_eq!(half(16).cache_bytes_of(&work, 1.0), 40_960.0);
    // A latent vector of DeepSeek-V3 is whole on every rank: 61 x 576 x 2 bytes.
    assert_eq!(half(8).cache_bytes_of(&ServingWork::of(&model("deepseek-v3")), 1.0), 70_272.0);
}

#[test]
fn a_decoding_step_reads_the_weights_and_the_caches_once() {
    let (work, machine, parameters) = (ServingWork::of(&model("llama-3.1-8b")), machine("H100"), ideal());
    let layout = half(1);
    let replica = Replica { work: &work, machine: &machine, layout: &layout, parameters: &parameters };
    let step = replica.step(&StepLoad { decoding: 1.0, context: 1000.0, ..StepLoad::default() });
    // 8.03e9 weights less the embedding's 128,256 x 4,096, 2 bytes each, and 32 x 1,024 x 2 x 2 bytes x 1,000 tokens, at 3.35 TB/s.
    let bytes = 2.0 * (8.03e9 - 128_256.0 * 4096.0) + 131_072.0 * 1000.0;
    assert!((step.total() / (bytes / 3.35e12) - 1.0).abs() < 0.005, "{} against {}", step.total(), bytes / 3.35e12);
}

#[test]
fn a_long_prompt_is_bound_by_its_operations() {
    let (work, machine, parameters) = (ServingWork::of(&model("llama-3.1-70b")), machine("H100"), ideal());
    let layout = half(4);
    let replica = Replica { work: &work, machine: &machine, layout: &layout, parameters: &parameters };
    let step = replica.step(&StepLoad {
        prompt_tokens: 8192.0,
        prompt_context: 4096.0,
        prompt_undivided: 8192.0,
        ..StepLoad::default()
    });
    let weights = 80.0 * (8192.0 * (8192.0 + 2048.0) + 8192.0 * 8192.0 + 3.0 * 8192.0 * 28_672.0);
    let products = 2.0 * weights * 8192.0 / 4.0 / machine.peaks.bf16;
    assert!(((step.projections + step.feed_forward) / products - 1.0).abs() < 0.01);
    // 4 x tokens x seen x heads x head size, 80 layers.
    let attention = 4.0 * 8192.0 * 4096.0 * 8192.0 * 80.0 / 4.0 / machine.peaks.bf16;
    assert!((step.attention / attention - 1.0).abs() < 1e-9);
}

#[test]
fn few_tokens_meet_few_experts() {
    let (work, machine, parameters) = (ServingWork::of(&model("mixtral-8x7b")), machine("H100"), ideal());
    let layout = half(1);
    let replica = Replica { work: &work, machine: &machine, layout: &layout, parameters: &parameters };
    let reading = |sequences: f64| replica.step(&StepLoad { decoding: sequences, context: 1.0, ..StepLoad::default() }).experts;
    // One token meets 2 of 8 experts; many meet all.
    let one = 32.0 * 2.0 * 3.0 * 4096.0 * 14_336.0 * 2.0 / 3.35e12;
    assert!((reading(1.0) / one - 1.0).abs() < 0.01, "{} against {one}", reading(1.0));
    assert!((reading(64.0) / one / 4.0 - 1.0).abs() < 0.05);
}

/// 64 tokens that choose 2 of 8 experts: 16 for each in the mean. With a shape of 1 an expert is left out with chance 1 / 17.
#[test]
fn tokens_that_choose_unevenly_meet_fewer_experts_and_load_the_busiest_gpu_more() {
    let (work, machine, even) = (ServingWork::of(&model("mixtral-8x7b")), machine("H100"), ideal());
    let uneven = ServingParameters { expert_evenness: 1.0, ..even.clone() };
    let time = |parameters: &ServingParameters, layout: &ServingLayout, load: StepLoad| {
        Replica { work: &work, machine: &machine, layout, parameters }.step(&load).experts
    };
    let decoding = StepLoad { decoding: 64.0, context: 1.0, ..StepLoad::default() };
    let ratio = time(&uneven, &half(1), decoding) / time(&even, &half(1), decoding);
    assert!((ratio - 16.0 / 17.0).abs() < 0.01, "{ratio}");
    let wide = ServingLayout { expert: 8, ..half(8) };
    let prompts = StepLoad { prompt_tokens: 8192.0, prompt_context: 4096.0, ..StepLoad::default() };
    assert!(time(&uneven, &wide, prompts) > 1.5 * time(&even, &wide, prompts));
}

/// GLM-5: every token of the context keeps 576 elements and a key of 128, and a prompt's token scores all before it with 32 heads of 128.
#[test]
fn sparse_attention_keeps_all_tokens_and_chooses_among_them() {
    let (work, machine, parameters) = (ServingWork::of(&model("glm-5")), machine("B200"), ideal());
    assert_eq!(work.cache_elements(8192.0), 78.0 * 8192.0 * (576.0 + 128.0));
    assert_eq!(work.indexer, 2048.0 * 32.0 * 128.0 + 6144.0 * 128.0 + 6144.0 * 32.0);
    let attention = |tensor: u32| {
        let layout = ServingLayout::single(tensor, ServedFormat::Fp8Block, Engine::Sglang);
        let load = StepLoad { prompt_tokens: 8192.0, prompt_context: 4096.0, ..StepLoad::default() };
        Replica { work: &work, machine: &machine, layout: &layout, parameters: &parameters }.step(&load).attention
    };
    let scores = 8192.0 * 4096.0;
    let choosing = 2.0 * scores * 32.0 * 128.0 / machine.peaks.fp8.unwrap() + 12.0 * scores / machine.memory_bytes_per_second;
    // 2,048 chosen tokens, 64 heads of 2 x 576.
    let chosen = 2.0 * 8192.0 * 2048.0 * 64.0 * 1152.0 / machine.peaks.bf16;
    assert!((attention(1) / (78.0 * (choosing + chosen)) - 1.0).abs() < 1e-9);
    // What chooses is not divided.
    assert!((attention(8) / (78.0 * (choosing + chosen / 8.0)) - 1.0).abs() < 1e-9);
}

#[test]
fn captured_steps_with_prompts_are_not_launched_one_by_one() {
    let (work, machine) = (ServingWork::of(&model("llama-3.1-8b")), machine("H100"));
    let mut parameters = ideal();
    parameters.engines.iter_mut().for_each(|engine| engine.eager_block = 0.01);
    let layout = ServingLayout { captured_tokens: 1024, ..half(1) };
    let launches = |prompt_tokens: f64| {
        let load = StepLoad { decoding: 24.0, prompt_tokens, prompt_context: 500.0, context: 1.0, ..StepLoad::default() };
        Replica { work: &work, machine: &machine, layout: &layout, parameters: &parameters }.step(&load).launches
    };
    assert_eq!(launches(1000.0), 0.0);
    assert!(launches(1001.0) > 0.25, "32 blocks at 10 ms beside the device");
}

#[test]
fn what_does_not_fit_says_by_how_much_and_what_would() {
    let (model, machine) = (model("llama-3.1-70b"), machine("H100"));
    let load =
        Load { arrival: Arrival::Users(1.0), input_tokens: 1000.0, output_tokens: 1000.0, first_token: None, per_token: None };
    let parameters = ServingParameters::shipped();
    let refused = serving(&model, &machine, &half(1), &load, &parameters);
    let Err(ServingError::Memory { short, remedy }) = refused.verdict else { panic!("{:?}", refused.verdict) };
    // 141.1 GB of weights, 4 GB and 0.66 GB of cache against 80 GB.
    assert!((short.0 as f64 / 1e9 - 65.8).abs() < 0.3, "{short:?}");
    assert_eq!(remedy, Remedy::Tensor(2));
    assert!(refused.verdict.unwrap_err().to_string().contains("GiB short"));
    assert!(serving(&model, &machine, &half(4), &load, &parameters).verdict.is_ok());
}

#[test]
fn limits_and_rates_are_refused_with_their_numbers() {
    let (model, machine, parameters) = (model("llama-3.1-8b"), machine("H100"), ServingParameters::shipped());
    let load = |rate: f64, per_token: f64| Load {
        arrival: Arrival::PerSecond(rate),
        input_tokens: 500.0,
        output_tokens: 500.0,
        first_token: None,
        per_token: Some(Seconds(per_token)),
    };
    let estimate = |rate, limit| serving(&model, &machine, &half(1), &load(rate, limit), &parameters);
    assert!(estimate(1.0, 0.1).verdict.is_ok());
    assert!(matches!(estimate(1.0, 0.001).verdict, Err(ServingError::PerToken { .. })));
    assert!(matches!(estimate(1e4, 1.0).verdict, Err(ServingError::Rate { .. })));
    let one = estimate(1.0, 0.1);
    // 500 tokens a second of a GPU at 3.6 $ an hour: 0.001 $ a second.
    assert!((one.usd_per_million_output_tokens(UsdPerHour(3.6)).0 - 2.0).abs() < 1e-9);
}

#[test]
fn little_s_law_joins_rate_and_live_sequences() {
    let (work, machine, parameters) = (ServingWork::of(&model("llama-3.1-8b")), machine("H100"), ServingParameters::shipped());
    let layout = half(1);
    let replica = Replica { work: &work, machine: &machine, layout: &layout, parameters: &parameters };
    let lengths = Lengths { input: 500.0, output: 500.0, equal: false };
    let seen = replica.rate(5.0, lengths);
    assert!((seen.live / (5.0 * 500.0 * seen.per_token) - 1.0).abs() < 0.01, "{seen:?}");
}

#[test]
fn more_of_anything_a_machine_has_is_never_slower() {
    let parameters = ServingParameters::shipped();
    for (name, layout) in [
        ("llama-3.1-70b", ServingLayout::single(4, ServedFormat::Fp8, Engine::Vllm)),
        ("deepseek-v3", ServingLayout::attention_data(8, ServedFormat::Fp8, Engine::Sglang)),
        ("qwen3-30b-a3b", ServingLayout::single(2, ServedFormat::Half, Engine::TensorRt)),
    ] {
        let work = ServingWork::of(&model(name));
        let base = machine("H200");
        let mut faster = [base; 4];
        faster[0].memory_bytes_per_second *= 1.5;
        faster[1].scale_up.bytes_per_second *= 1.5;
        faster[2].peaks.bf16 *= 1.5;
        faster[3].peaks.fp8 = faster[3].peaks.fp8.map(|rate| rate * 1.5);
        for decoding in [1.0, 16.0, 512.0] {
            for prompt_tokens in [0.0, 300.0, 8000.0] {
                let load =
                    StepLoad { decoding, context: 3000.0, prompt_tokens, prompt_context: 1000.0, prompt_undivided: 2000.0 };
                let time = |machine: &Machine| {
                    Replica { work: &work, machine, layout: &layout, parameters: &parameters }.step(&load).total()
                };
                for machine in &faster {
                    assert!(time(machine) <= time(&base) * (1.0 + 1e-12), "{name} {load:?}");
                }
            }
        }
    }
}

#[test]
fn more_live_sequences_never_lower_the_throughput_nor_the_time_of_a_token() {
    let parameters = ServingParameters::shipped();
    let machine = machine("H100");
    for (name, tensor) in [("llama-3.1-8b", 1), ("llama-3.1-70b", 4), ("mixtral-8x7b", 2), ("gpt-oss-120b", 2)] {
        let work = ServingWork::of(&model(name));
        let layout = ServingLayout::single(tensor, ServedFormat::Fp8, Engine::Vllm);
        let replica = Replica { work: &work, machine: &machine, layout: &layout, parameters: &parameters };
        let mut last = (0.0, 0.0);
        for power in 0..10 {
            let sequences = f64::from(1 << power);
            let time = replica.step(&StepLoad { decoding: sequences, context: 2000.0, ..StepLoad::default() }).total();
            assert!(sequences / time > last.0 && time >= last.1, "{name} at {sequences}");
            last = (sequences / time, time);
        }
    }
}

#[test]
fn longer_prompts_and_more_users_wait_longer() {
    let parameters = ServingParameters::shipped();
    let (work, machine) = (ServingWork::of(&model("llama-3.1-70b")), machine("H200"));
    let layout = ServingLayout::single(2, ServedFormat::Fp8, Engine::Vllm);
    let replica = Replica { work: &work, machine: &machine, layout: &layout, parameters: &parameters };
    let first = |users: f64, input: f64| replica.users(users, Lengths { input, output: 1000.0, equal: false }).first_token;
    for users in [1.0, 8.0, 64.0] {
        for pair in [500.0, 1000.0, 4000.0, 8000.0].windows(2) {
            assert!(first(users, pair[0]) < first(users, pair[1]), "{users} users, {pair:?}");
        }
    }
    for pair in [1.0, 2.0, 8.0, 64.0, 256.0, 2000.0].windows(2) {
        assert!(first(pair[0], 1000.0) < first(pair[1], 1000.0), "{pair:?} users");
    }
}

/// Nothing but the engine's window: of requests that come one in 1,000 / users steps, the first waits for all of it, the others for what is left.
#[test]
fn a_prompt_that_is_held_back_waits_for_others() {
    let (work, machine, parameters) = (ServingWork::of(&model("llama-3.1-8b")), machine("H100"), ideal());
    let lengths = Lengths { input: 100.0, output: 1000.0, equal: false };
    let held_steps = |layout: &ServingLayout, users: f64| {
        let replica = Replica { work: &work, machine: &machine, layout, parameters: &parameters };
        let cycle = replica.cycle(users, lengths);
        cycle.held_back / cycle.decoding.total()
    };
    let waiting = ServingLayout { wait_steps: 20, ..half(1) };
    assert_eq!(held_steps(&half(1), 10.0), 0.0);
    assert_eq!(held_steps(&waiting, 1.0), 20.0, "alone for the whole window");
    // One in 10 steps: two others come within it and wait for 10 steps in the mean.
    assert!((held_steps(&waiting, 100.0) - (20.0 + 2.0 * 10.0) / 3.0).abs() < 1e-9);
    // Four ranks, one request in 10 steps on each: the last of them has one after 10 x (1 + 1/2 + 1/3 + 1/4) steps. The count of steps runs on
    // whether prompts wait or not, so that one waits for half of it in the mean.
    let balanced = ServingLayout { balance_steps: 60, ..ServingLayout::attention_data(4, ServedFormat::Half, Engine::TensorRt) };
    let window = 10.0 * 25.0 / 12.0;
    assert!((held_steps(&balanced, 400.0) - window / 2.0).abs() < 1e-9);
    // Few users: the timeout.
    assert!((held_steps(&balanced, 1.0) - 30.0).abs() < 1e-9);
}

/// A closed loop without costs: one user's request waits for nothing, and its own prompt is no part of the time per token.
#[test]
fn a_prompt_holds_up_others_and_not_itself() {
    let (work, machine, parameters) = (ServingWork::of(&model("llama-3.1-8b")), machine("H100"), ideal());
    let layout = half(1);
    let replica = Replica { work: &work, machine: &machine, layout: &layout, parameters: &parameters };
    let lengths = Lengths { input: 1000.0, output: 100.0, equal: false };
    let one = replica.users(1.0, lengths);
    let cycle = replica.cycle(1.0, lengths);
    assert_eq!(one.first_token, cycle.own_prompt);
    assert!((one.per_token / cycle.decoding.total() - 1.0).abs() < 1e-12, "{one:?}");
    // Of two, each sees one prompt of the other's in its 100 steps.
    let (two, cycle) = (replica.users(2.0, lengths), replica.cycle(2.0, lengths));
    assert!((two.per_token * 100.0 - (cycle.prompt_step + 99.0 * cycle.decoding.total())).abs() < 1e-12);
    assert_eq!(two.first_token, cycle.own_prompt, "no queue: the other's prompt was read when it began");
    // Where all are equally long, it begins while the other's is read.
    let equal = replica.users(2.0, Lengths { equal: true, ..lengths });
    assert_eq!((equal.first_token, equal.per_token), (2.0 * cycle.own_prompt, two.per_token));
}

/// What begins together is taken in one after the other, and then read one after the other.
#[test]
fn requests_that_come_together_wait_for_each_other() {
    let (work, machine) = (ServingWork::of(&model("llama-3.1-8b")), machine("H100"));
    let layout = half(1);
    let mut parameters = ideal();
    parameters.engines.iter_mut().for_each(|engine| engine.burst = 0.1);
    let lengths = Lengths { input: 1000.0, output: 1000.0, equal: false };
    let first = |parameters: &ServingParameters| {
        let replica = Replica { work: &work, machine: &machine, layout: &layout, parameters };
        (replica.users(11.0, lengths).first_token, replica.cycle(11.0, lengths))
    };
    let (plain, cycle) = first(&parameters);
    // A tenth waits for 5 of the 10 others in the mean.
    assert!((plain - (cycle.own_prompt + 0.1 * 5.0 * cycle.packed_prompt)).abs() < 1e-12);
    let (received, _) = first(&ServingParameters { reception: 0.004, ..parameters });
    assert!((received - plain - 0.1 * 5.0 * 0.004).abs() < 1e-12);
}

#[test]
fn looks_for_requests_and_replies_in_groups_delay_the_first_token() {
    let (work, machine, parameters) = (ServingWork::of(&model("llama-3.1-8b")), machine("H100"), ideal());
    let lengths = Lengths { input: 100.0, output: 1000.0, equal: false };
    let seen = |layout: &ServingLayout, users: f64| {
        let replica = Replica { work: &work, machine: &machine, layout, parameters: &parameters };
        (replica.users(users, lengths).first_token, replica.cycle(users, lengths))
    };
    let polling = ServingLayout { poll_steps: 30, ..half(1) };
    // Half of the time between two looks in the mean; with one request in 10 steps three others are found with it and read together.
    let (alone, cycle) = seen(&polling, 1.0);
    assert!((alone - (cycle.own_prompt + 15.0 * cycle.decoding.total())).abs() < 1e-12);
    let (_, cycle) = seen(&polling, 100.0);
    assert!((cycle.held_back / cycle.decoding.total() - 15.0).abs() < 1e-9);
    assert!((cycle.prompt_steps - 100.0 / 4.0).abs() < 1e-9, "{}", cycle.prompt_steps);
    let (grouped, cycle) = seen(&ServingLayout { group_steps: 10, ..half(1) }, 1.0);
    assert!((grouped - (cycle.own_prompt + 10.0 * cycle.decoding.total())).abs() < 1e-12);
}

/// Prompts on machines of their own: 48 users on each of four decoders.
#[test]
fn requests_wait_for_a_place_in_a_full_decoder() {
    let (work, machine, parameters) = (ServingWork::of(&model("llama-3.1-8b")), machine("H100"), ideal());
    let lengths = Lengths { input: 100.0, output: 1000.0, equal: false };
    let reader = half(1);
    let first = |most_sequences: u32| {
        let decoder = ServingLayout { most_sequences, ..half(1) };
        let of = |layout| Replica { work: &work, machine: &machine, layout, parameters: &parameters };
        users_apart((&of(&reader), Some(4.0)), (&of(&decoder), 4.0), 192.0, lengths)
    };
    let (narrow, wide) = (first(32), first(64));
    assert!(wide.live > 180.0 && wide.first_token < 0.1 * 1000.0 * wide.per_token, "{wide:?}");
    // 128 places for 192 users: half as long again as a request decodes.
    assert_eq!(narrow.live, 128.0);
    assert!((narrow.first_token / (0.5 * 1000.0 * narrow.per_token) - 1.0).abs() < 1e-9, "{narrow:?}");
    assert!(narrow.per_token < wide.per_token);
}

/// One reader, so many users that prompts wait: it reads 8 of 1,000 tokens a step, so that launches are paid once for all of them.
#[test]
fn prompts_that_wait_are_read_together() {
    let (work, machine) = (ServingWork::of(&model("llama-3.1-8b")), machine("H100"));
    let mut parameters = ideal();
    parameters.engines.iter_mut().for_each(|engine| engine.eager_block = 0.01);
    let lengths = Lengths { input: 1000.0, output: 100.0, equal: false };
    let seen = |step_tokens: u32| {
        let reader = ServingLayout { step_tokens, ..half(1) };
        let of = |layout| Replica { work: &work, machine: &machine, layout, parameters: &parameters };
        users_apart((&of(&reader), Some(1.0)), (&of(&half(1)), 4.0), 200.0, lengths)
    };
    // 32 blocks take the host 320 ms a step, and a prompt alone about 20 ms.
    let (one, many) = (seen(1000), seen(8192));
    let answered = |seen: &Latencies| 200.0 / (seen.first_token + 100.0 * seen.per_token);
    assert!((answered(&one) * 0.32 - 1.0).abs() < 0.05, "{}", answered(&one));
    assert!(answered(&many) > 6.0 * answered(&one), "{} against {}", answered(&many), answered(&one));
}

#[test]
fn proposed_tokens_count_as_far_as_they_are_accepted() {
    let (work, machine) = (ServingWork::of(&model("deepseek-v3")), machine("B200"));
    let parameters = ServingParameters { draft_acceptance: 0.5, ..ideal() };
    let plain = ServingLayout::single(8, ServedFormat::Fp8Block, Engine::TensorRt);
    let drafting = ServingLayout { draft_tokens: 3, ..plain };
    let per_token = |layout: &ServingLayout, users: f64| {
        let replica = Replica { work: &work, machine: &machine, layout, parameters: &parameters };
        replica.users(users, Lengths { input: 10.0, output: 1000.0, equal: false }).per_token
    };
    // One user's step reads the experts of four tokens instead of one and three more blocks; it makes 1 + 1/2 + 1/4 + 1/8 tokens.
    let (one, drafted) = (per_token(&plain, 1.0), per_token(&drafting, 1.0));
    assert!(drafted > one / 1.875, "{drafted} against {one}");
    // With thousands of users products are bound by their operations, so that rows that are thrown away cost more than they bring.
    assert!(per_token(&drafting, 8000.0) > per_token(&plain, 8000.0));
    let sure = ServingParameters { draft_acceptance: 0.95, ..parameters.clone() };
    let replica = Replica { work: &work, machine: &machine, layout: &drafting, parameters: &sure };
    assert!(replica.users(1.0, Lengths { input: 10.0, output: 1000.0, equal: false }).per_token < drafted);
}

#[test]
fn replicas_share_the_load() {
    let (model, machine, parameters) = (model("llama-3.1-8b"), machine("H100"), ServingParameters::shipped());
    let load = Load {
        arrival: Arrival::PerSecond(20.0),
        input_tokens: 1000.0,
        output_tokens: 500.0,
        first_token: None,
        per_token: None,
    };
    let one = serving(&model, &machine, &half(1), &load, &parameters);
    let four = serving(&model, &machine, &ServingLayout { replicas: 4, ..half(1) }, &load, &parameters);
    assert!(four.per_token < one.per_token && four.first_token < one.first_token);
    assert!((four.possible_per_second / one.possible_per_second - 4.0).abs() < 1e-9);
    assert_eq!(four.gpus, 4);
}
