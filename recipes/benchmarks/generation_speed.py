"""How fast does a language model write with weights in fp32, bf16, int8 and int4, and what does that change?

The models are SmolLM2-135M, and students of `recipes.smollm` that are named. transformers quantizes their linear
layers with torchao as it loads them. All write the same number of tokens for the same prompts, greedily, taking turns.
The last column is the share of tokens in held-out sentences after which a model finds the same token most likely as in
fp32.

    python -m recipes.benchmarks.generation_speed --students outputs/smollm/15-layers/teacher-0

torchao has int4 kernels for GPUs alone, so int4 is measured where there is one.
"""

import itertools
import statistics
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torchao.quantization import Int4WeightOnlyConfig, Int8DynamicActivationInt8WeightConfig, Int8WeightOnlyConfig
from torchao.utils import get_model_size_in_bytes
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, TorchAoConfig

from recipes.benchmarks._common import (
    PACKAGES,
    add_fetched,
    explains_fetch_errors,
    make_parser,
    print_machine,
    print_versions,
    silence,
    table,
    write_json,
)
from recipes.smollm.data import fetch_teacher, write_texts

PROMPT_TOKENS = 16
NUM_PROMPTS, NUM_TEXTS = 2, 40
FP32 = "fp32"


def weights() -> dict[str, dict[str, Any]]:
    """The options of `from_pretrained` for each kind of weights that this machine can compute with."""
    int8 = {
        "int8 weights": Int8WeightOnlyConfig(),
        "int8 weights and activations": Int8DynamicActivationInt8WeightConfig(),
    }
    ways: dict[str, dict[str, Any]] = {FP32: {"dtype": torch.float32}, "bf16": {"dtype": torch.bfloat16}}
    ways |= {
        name: {"dtype": torch.float32, "quantization_config": TorchAoConfig(config)} for name, config in int8.items()
    }
    if torch.cuda.is_available():
        int4 = Int4WeightOnlyConfig(group_size=64, int4_packing_format="tile_packed_to_4d")
        ways["int4 weights"] = {"dtype": torch.bfloat16, "quantization_config": TorchAoConfig(int4)}
    return ways


def load(folder: Path, options: Mapping[str, Any], device: torch.device) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(folder, device_map={"": device}, **options).eval()


def write(model: PreTrainedModel, prompt: torch.Tensor, num_tokens: int) -> float:
    """Seconds in which the model writes tokens after a prompt, `[1, length]`. On a CPU, those of the processor."""
    on_gpu = model.device.type != "cpu"
    clock = time.perf_counter if on_gpu else time.process_time
    if on_gpu:
        torch.accelerator.synchronize()
    start = clock()
    model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        max_new_tokens=num_tokens,
        min_new_tokens=num_tokens,
        do_sample=False,
        pad_token_id=model.config.eos_token_id,
    )
    if on_gpu:
        torch.accelerator.synchronize()
    return clock() - start


def tokens_per_second(
    models: Mapping[str, PreTrainedModel], prompts: Sequence[torch.Tensor], num_tokens: int, rounds: int
) -> dict[str, float]:
    """Median over rounds. The models take turns; their first round is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in models}
    for number in range(rounds + 1):
        for name, model in models.items():
            own = sum(write(model, prompt.to(model.device), num_tokens) for prompt in prompts)
            if number:
                seconds[name].append(own)
    return {name: len(prompts) * num_tokens / statistics.median(own) for name, own in seconds.items()}


@torch.inference_mode()
def next_tokens(model: PreTrainedModel, texts: Sequence[torch.Tensor]) -> torch.Tensor:
    """The most likely next token after each token of the texts."""
    return torch.cat([model(text.to(model.device)).logits[0].argmax(-1).cpu() for text in texts])


def megabytes(model: PreTrainedModel) -> float:
    """The size of the weights; embeddings that are also the head's weights count once."""
    size = get_model_size_in_bytes(model)
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    return (size - head.numel() * head.element_size() * (head is embeddings)) / 1e6


def measure(folder: Path, texts: Sequence[str], num_tokens: int, rounds: int) -> dict[str, dict[str, float]]:
    """Measures a model with each kind of weights."""
    device = torch.accelerator.current_accelerator() or torch.device("cpu")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(text, return_tensors="pt").input_ids for text in texts]
    prompts = list(
        itertools.islice((own[:, :PROMPT_TOKENS] for own in ids if own.shape[1] >= PROMPT_TOKENS), NUM_PROMPTS)
    )
    models = {name: load(folder, options, device) for name, options in weights().items()}
    speeds = tokens_per_second(models, prompts, num_tokens, rounds)
    expected = next_tokens(models[FP32], ids[:NUM_TEXTS])
    return {
        name: {
            "tokens_per_second": speeds[name],
            "megabytes": megabytes(model),
            "agreement": (next_tokens(model, ids[:NUM_TEXTS]) == expected).float().mean().item(),
        }
        for name, model in models.items()
    }


def show(results: Mapping[str, Mapping[str, Mapping[str, float]]]) -> str:
    header = ["model", "weights", "tokens per second", "of fp32", "MB", "same next token as in fp32"]
    lines = []
    for name, by_weights in results.items():
        for kind, own in by_weights.items():
            ratio = own["tokens_per_second"] / by_weights[FP32]["tokens_per_second"]
            speed = [f"{own['tokens_per_second']:.1f}", f"{ratio:.2f}"]
            lines.append([name, kind, *speed, f"{own['megabytes']:.0f}", f"{own['agreement']:.1%}"])
    return table(header, lines)


@explains_fetch_errors
def main() -> int:
    parser = make_parser("generation_speed", __doc__)
    add_fetched(parser)
    parser.add_argument("--students", type=Path, nargs="*", default=[], help="folders of students of SmolLM2")
    parser.add_argument("--tokens", type=int, default=32, help="tokens to write (default: 32)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (default: 3)")
    args = parser.parse_args()
    silence()
    _, held_out = write_texts(args.fetched, args.output.with_suffix(""))
    texts = held_out.read_text(encoding="utf-8").splitlines()
    models = {"the teacher": fetch_teacher(args.fetched)} | {str(folder): folder for folder in args.students}
    results = {name: measure(folder, texts, args.tokens, args.rounds) for name, folder in models.items()}
    on = print_machine("device", "threads")
    versions = print_versions([*PACKAGES, "torchao"])
    print(show(results))
    write_json(args.output, {"machine": on, "versions": versions, "results": results})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
