//! Options of published runs that their tables do not print, but the scripts that started them do.
//!
//! `serving_silicon.csv` holds runs of the public benchmark InferenceX (SemiAnalysisAI/InferenceX, Apache-2.0). Its scripts
//! (`benchmarks/*_trt*.sh`, `benchmarks/single_node/*.sh`) show what the engine was told, its `perf-changelog.yaml` with which release and
//! from when on. What is taken from there holds for all rows of a script; nothing is chosen by a row's result.

use super::{batching::Lengths, format::ServedFormat, layout::ServingLayout, parameters::Engine};

/// What a row says about the run that it is of.
#[derive(Clone, Copy, Debug)]
pub struct Run<'a> {
    /// As in `data/models/transformers.toml`.
    pub model: &'a str,
    /// As in `data/hardware/gpus.toml`.
    pub gpu: &'a str,
    /// The engine's release, empty where it is not printed.
    pub release: &'a str,
    /// Day of the measurement, YYYY-MM-DD; empty for other runs than those of the benchmark.
    pub measured: &'a str,
    /// As printed, tokens.
    pub lengths: Lengths,
    pub users: f64,
}

/// `layout` with the options that the benchmark's scripts set, or the publisher's generator.
pub fn told(layout: ServingLayout, run: &Run) -> ServingLayout {
    if run.measured.is_empty() {
        return if layout.engine == Engine::TensorRtCandidate { generated(layout, run) } else { layout };
    }
    match layout.engine {
        Engine::TensorRt => tensor_rt(layout, run),
        Engine::Sglang => sglang(layout, run),
        Engine::Vllm => vllm(layout, run),
        _ => layout,
    }
}

/// What the publisher's own generator of configurations writes for runs that are not of the benchmark (ai-dynamo/aiconfigurator, Apache-2.0: room
/// for the sequences, a prompt and 1,500 tokens).
fn generated(layout: ServingLayout, run: &Run) -> ServingLayout {
    let decoding = run.users / f64::from(layout.attention_data);
    ServingLayout { step_tokens: (decoding + run.lengths.input) as u32 + 1500, ..layout }
}

/// `qwen3.5_*.sh` (`--scheduler-recv-interval`, `--chunked-prefill-size`) and `glm5_fp8_b*.sh`.
fn sglang(layout: ServingLayout, run: &Run) -> ServingLayout {
    let mut told = layout;
    if run.model == "qwen3.5-397b-a17b" {
        told.step_tokens = 32_768;
        told.poll_steps = if run.users >= 16.0 { 30 } else { 10 };
    }
    if run.model == "glm-5" {
        if run.gpu.starts_with('h') {
            // `glm5_fp8_h200.sh` says nothing on the cache: as the model's activations.
            told.cache_bytes = 2.0;
        } else {
            told.step_tokens = 32_768;
        }
    }
    told
}

/// `70b_fp8_*.sh`, `gptoss_fp4_*.sh`, `minimaxm2.5_fp8_*.sh` and `kimik2.5_*.sh`: `--kv-cache-dtype` (in 16 bits where it is not set),
/// `--max-cudagraph-capture-size`, `cudagraph_mode`, `--max-num-batched-tokens`, `--enable-expert-parallel`.
fn vllm(layout: ServingLayout, run: &Run) -> ServingLayout {
    let hopper = run.gpu.starts_with('h');
    let mut told = ServingLayout { cache_bytes: 2.0, ..layout };
    match run.model {
        "llama-3.1-70b" => {
            told.cache_bytes = 1.0;
            if !hopper {
                told.captured_tokens = 0;
            }
        }
        "gpt-oss-120b" => {
            told.captured_tokens = 2048;
            // Since 0.11.2, whose rows print their release.
            if !hopper && !run.release.is_empty() {
                told.cache_bytes = 1.0;
            }
        }
        "minimax-m2.5" if !hopper && run.release == "0.17.0" => told.expert = told.tensor,
        "minimax-m2.5" if !hopper => told = capturing(told, run),
        "kimi-k2" if run.gpu.starts_with("b200") && run.measured >= "2026-04-15" => told = capturing(told, run),
        _ => {}
    }
    told
}

/// What two scripts have since April 2026.
fn capturing(layout: ServingLayout, run: &Run) -> ServingLayout {
    ServingLayout { cache_bytes: 1.0, captured_tokens: 2048, step_tokens: 2 * run.lengths.input as u32, ..layout }
}

fn tensor_rt(layout: ServingLayout, run: &Run) -> ServingLayout {
    let mut told = layout;
    let chat = (run.lengths.input, run.lengths.output) == (1024.0, 1024.0);
    match run.model {
        // 70b_*_trt*.sh: for 1,024 + 1,024 tokens on fewer than 8 GPUs.
        "llama-3.1-70b" => {
            // As many tokens a step as a sequence may have, 200 more than it does.
            told.wait_steps = if chat && layout.tensor < 8 { 20 } else { 0 };
            told.step_tokens = (run.lengths.input + run.lengths.output) as u32 + 200;
        }
        "deepseek-v3" => {
            told.balance_steps = 60;
            // `stream_interval: 10`, and no processes of their own for the replies.
            told.group_steps = 10;
            let eight_bit = layout.format == ServedFormat::Fp8Block;
            // dsr1_fp8_b200_trt.sh since 1.2.0rc6.post2.
            let delays = eight_bit && run.gpu.starts_with("b200") && run.release == "1.2.0rc6.post2";
            if delays && chat && (64.0..256.0).contains(&run.users) {
                told.wait_steps = 40;
            }
            // dsr1_*_trt_mtp.sh: added in January 2026, with releases of its own since.
            if run.release == "1.2.0rc6.post3" || (run.release == "1.1.0rc2.post2" && run.measured == "2026-01-14") {
                told.draft_tokens = if layout.attention_data > 1 { 1 } else { 3 };
            }
            // dsr1_*_b200_trt.sh: `enable_piecewise_cuda_graph`, for some loads.
            let long_reply = (run.lengths.input, run.lengths.output) == (1024.0, 8192.0);
            let captures = if !eight_bit {
                chat && run.users == 64.0 && layout.expert == 8
            } else if run.lengths.input < 8192.0 {
                (if long_reply { 128.0 } else { 64.0 }..256.0).contains(&run.users)
            } else {
                run.users >= 64.0
            };
            if captures && run.gpu.starts_with("b200") && run.release == "1.2.0rc6.post2" {
                told.captured_tokens = u32::MAX;
            }
            // A step takes one prompt and what decodes; since 1.2.0rc6.post2 at least 8,192 tokens without proposals.
            if told.draft_tokens > 0 || run.release != "1.2.0rc6.post2" {
                let decoding = run.users / f64::from(layout.attention_data) * f64::from(1 + told.draft_tokens);
                told.step_tokens = (run.lengths.input + decoding + 128.0) as u32;
            }
        }
        "gpt-oss-120b" => {
            // gptoss_fp4_b200_trt*.sh: 20,000 tokens a step, and the timeout that the engine has by itself.
            told.step_tokens = 20_000;
            told.balance_steps = 50;
        }
        _ => {}
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_follow_the_script_that_started_a_run() {
        let chat = Lengths { input: 1024.0, output: 1024.0, equal: false };
        let run = Run {
            model: "llama-3.1-70b",
            gpu: "h200-sxm-141gb",
            release: "",
            measured: "2025-10-29",
            lengths: chat,
            users: 16.0,
        };
        let on = |gpus| ServingLayout::single(gpus, ServedFormat::Fp8, Engine::TensorRt);
        assert_eq!(told(on(4), &run).wait_steps, 20);
        assert_eq!(told(on(8), &run).wait_steps, 0);
        let long = Lengths { input: 8192.0, output: 1024.0, equal: false };
        assert_eq!(told(on(4), &Run { lengths: long, ..run }).wait_steps, 0);
        assert_eq!(told(on(4), &Run { measured: "", ..run }).wait_steps, 0, "not a run of the benchmark");
        let other = ServingLayout::single(4, ServedFormat::Fp8, Engine::Vllm);
        assert_eq!(told(other, &run), other, "the cache in 8 bits, graphs as by default");
        assert_eq!(told(other, &Run { gpu: "b200", ..run }), ServingLayout { captured_tokens: 0, ..other });

        let deep = Run { model: "deepseek-v3", release: "1.2.0rc6.post3", measured: "2026-02-05", ..run };
        assert_eq!(told(on(8), &deep).draft_tokens, 3);
        let on = |gpus| ServingLayout::single(gpus, ServedFormat::Fp8Block, Engine::TensorRt);
        let wide = ServingLayout::attention_data(8, ServedFormat::Fp8Block, Engine::TensorRt);
        assert_eq!((told(wide, &deep).draft_tokens, told(wide, &deep).balance_steps), (1, 60));
        assert_eq!(told(on(8), &Run { release: "1.2.0rc6.post2", ..deep }).draft_tokens, 0);
        assert_eq!((told(on(8), &deep).group_steps, told(on(8), &deep).poll_steps), (10, 0));
        let delayed = Run { gpu: "b200", release: "1.2.0rc6.post2", users: 64.0, ..deep };
        assert_eq!(told(on(8), &delayed).wait_steps, 40);
        assert_eq!(told(on(8), &Run { users: 32.0, ..delayed }).wait_steps, 0);
        assert_eq!(
            (told(on(8), &delayed).captured_tokens, told(on(8), &Run { users: 32.0, ..delayed }).captured_tokens),
            (u32::MAX, 0)
        );
        assert_eq!(told(on(8), &Run { users: 256.0, ..delayed }).captured_tokens, 0);
    }

    #[test]
    fn options_of_vllm_changed_with_its_scripts() {
        let lengths = Lengths { input: 1024.0, output: 1024.0, equal: false };
        let run = Run { model: "minimax-m2.5", gpu: "b200", release: "0.19.0", measured: "2026-04-08", lengths, users: 8.0 };
        let on = ServingLayout::single(4, ServedFormat::Fp8, Engine::Vllm);
        let capturing = ServingLayout { cache_bytes: 1.0, captured_tokens: 2048, step_tokens: 2048, ..on };
        let plain = ServingLayout { cache_bytes: 2.0, captured_tokens: 512, ..on };
        assert_eq!(told(on, &run), capturing);
        assert_eq!(told(on, &Run { release: "0.17.0", ..run }), ServingLayout { expert: 4, ..plain });
        assert_eq!(told(on, &Run { gpu: "h100-sxm-80gb", ..run }), plain);
        let kimi = Run { model: "kimi-k2", measured: "2026-04-20", ..run };
        assert_eq!(told(on, &kimi), capturing);
        assert_eq!(told(on, &Run { measured: "2026-03-11", ..kimi }), plain);
        let oss = Run { model: "gpt-oss-120b", ..run };
        assert_eq!(told(on, &oss), ServingLayout { captured_tokens: 2048, ..on });
        assert_eq!(told(on, &Run { release: "", ..oss }).cache_bytes, 2.0);
        assert_eq!(told(on, &Run { gpu: "h200-sxm-141gb", ..oss }).cache_bytes, 2.0);
    }

    #[test]
    fn options_of_other_engines_and_of_the_publisher_s_own_runs() {
        let chat = Lengths { input: 1024.0, output: 1024.0, equal: false };
        let run = Run {
            model: "qwen3.5-397b-a17b",
            gpu: "b300",
            release: "0.5.10.post1",
            measured: "2026-04-18",
            lengths: chat,
            users: 8.0,
        };
        let on = |engine| ServingLayout::single(4, ServedFormat::Fp4, engine);
        let polls = |users: f64| {
            let layout = told(on(Engine::Sglang), &Run { users, ..run });
            (layout.poll_steps, layout.step_tokens)
        };
        assert_eq!((polls(8.0), polls(16.0)), ((10, 32_768), (30, 32_768)));
        let other = Run { model: "glm-5", gpu: "b200", ..run };
        assert_eq!(told(on(Engine::Sglang), &other).step_tokens, 32_768);
        let on_hopper = told(on(Engine::Sglang), &Run { gpu: "h200-sxm-141gb", ..other });
        assert_eq!(on_hopper, ServingLayout { cache_bytes: 2.0, ..on(Engine::Sglang) });
        let llama = Run { model: "llama-3.1-70b", ..run };
        assert_eq!(told(on(Engine::TensorRt), &llama).step_tokens, 2248);
        let own = Run { model: "qwen3-32b", measured: "", users: 64.0, ..run };
        assert_eq!(told(on(Engine::TensorRtCandidate), &own).step_tokens, 1024 + 64 + 1500);
    }
}
