"""`python -m recipes.benchmarks.trl_peer`: a step of causal distillation, ours and that of other trainers.

The sides are `DistillationTrainer`, TRL's `GKDTrainer` and `DistillationTrainer`, a `Trainer` subclass that reads all
logits of both models, and NVIDIA ModelOpt's `KDTrainer`. All compute the same loss, KL(teacher || student) over the
tokens with a label. TRL's `DistillationTrainer` trains on text that the student generates; here it is given the text,
so that only its loss is compared. A side whose package is not installed is left out:

    pip install --no-deps trl==1.16.0
    pip install --no-deps nvidia-modelopt==0.47.0 && pip install omegaconf 'pulp<4' nvidia-ml-py

It prints two tables:

- Cost: CPU seconds, seconds and memory of a step. Each side has a process of its own, and the sides take turns. A ratio
  is the median over the rounds of the ratio within a round, so that a machine that slows down slows all sides. Prefer
  CPU seconds on a machine that does other work too. Memory is the peak of a step minus weights and optimizer state. It
  is also given without the gradients of the weights, which have the same size on all sides.
- Exactness: one step of 16 rows as one batch, as 4 accumulated batches of 4, and as 8 rows on each of two processes. It
  is the same step, so its loss and its gradient should be the same. The rows have unequal numbers of tokens, and only
  their completions have labels: the labels of a prompt are -100.
"""

import multiprocessing
import os
import socket
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, Trainer, TrainingArguments, set_seed

from hf_distill import DistillationTrainer, DistillationTrainingArguments, make_student
from recipes.benchmarks._common import (
    PACKAGES,
    QUIET,
    make_parser,
    median_ratio,
    print_machine,
    print_versions,
    silence,
    table,
    train_quietly,
    write_json,
)
from recipes.benchmarks.corpus_streaming import peak_of_process
from recipes.benchmarks.peers import TrainerSide, gkd_trainer, make_tokenizer, rows_of
from recipes.benchmarks.split_invariance import KeepGradient, collate, make_rows
from recipes.benchmarks.training_step import peak_memory

PROCESSES = multiprocessing.get_context("spawn")

ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
"""Of the processes: no telemetry, and no warning that `GKDTrainer` is experimental."""

TINY = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
TINY_MODEL = LlamaConfig(vocab_size=61, **TINY, initializer_range=0.2, pad_token_id=0, bos_token_id=1, eos_token_id=2)
SMOLLM2 = LlamaConfig(
    vocab_size=49_152,
    hidden_size=576,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    intermediate_size=1536,
    tie_word_embeddings=True,
)
LARGE_VOCABULARY = LlamaConfig(**(SMOLLM2.to_dict() | {"vocab_size": 128_256, "num_hidden_layers": 8}))
UNTIED = LlamaConfig(**(LARGE_VOCABULARY.to_dict() | {"tie_word_embeddings": False}))
SHAPES = {
    "smollm2-135m": (SMOLLM2, 4, 128),
    "vocabulary-128k": (LARGE_VOCABULARY, 4, 128),
    "vocabulary-128k-untied": (UNTIED, 4, 128),
    "tiny": (TINY_MODEL, 4, 32),
}
"""Of the teacher, and of the batch: rows, and tokens of a row. The student has half of the teacher's layers."""

SPLITS = {"one batch of 16": (16, 1), "4 batches of 4": (4, 4), "two processes": (8, 1)}
"""Rows per batch and process, and number of accumulated batches."""

SHARED = {"lr_scheduler_type": "constant", "learning_rate": 0.0, "max_steps": 1, "logging_steps": 1, "use_cpu": True}
SHARED |= {"max_grad_norm": 0.0, "gradient_checkpointing": False, "bf16": False, **QUIET}

Rows = Sequence[dict[str, object]]


def ours(teacher: PreTrainedModel, student: PreTrainedModel, rows: Rows, temperature: float, **options) -> Trainer:
    """`hf_distill.DistillationTrainer`."""
    args = DistillationTrainingArguments(
        **options, temperature=temperature, alpha_kl=1.0, alpha_task=0.0, alpha_cos=0.0
    )
    return DistillationTrainer(student, args, collate, rows, teacher_model=teacher)


def gkd(teacher: PreTrainedModel, student: PreTrainedModel, rows: Rows, temperature: float, **options) -> Trainer:
    """TRL's `GKDTrainer` with `lmbda=0`: it generates nothing."""
    return gkd_trainer(teacher, student, rows, collate, temperature=temperature, **options)


def trl_on_given_text(
    teacher: PreTrainedModel, student: PreTrainedModel, rows: Rows, temperature: float, **options
) -> Trainer:
    """TRL's `DistillationTrainer`, whose completions are the labelled tokens of the rows."""
    from datasets import Dataset
    from trl import DistillationConfig
    from trl import DistillationTrainer as TRLDistillationTrainer

    class OnGivenText(TRLDistillationTrainer):
        def _generate_and_score_completions(self, inputs):
            inputs = split_prompts(inputs)
            num_items = self.accelerator.gather(inputs["completion_mask"].sum()).sum()
            return inputs | {"num_items_in_batch": num_items}

    args = DistillationConfig(**options, beta=0.0, temperature=temperature, shuffle_dataset=False)
    trainer = OnGivenText(student, teacher, args, Dataset.from_list(list(rows)), processing_class=make_tokenizer())
    trainer.data_collator = collate
    return trainer


def split_prompts(batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Prompts, padded on the left, and completions, padded on the right: the latter begin at the first label."""
    parts: dict[str, list[torch.Tensor]] = {"prompt": [], "completion": []}
    for input_ids, mask, labels in zip(batch["input_ids"], batch["attention_mask"], batch["labels"], strict=True):
        tokens = input_ids[mask.bool()]
        begin = max(1, int(labels.ne(-100).int().argmax()))  # nothing predicts the first token
        parts["prompt"].append(tokens[:begin])
        parts["completion"].append(tokens[begin:])
    split = {}
    for name, side in (("prompt", "left"), ("completion", "right")):
        split[f"{name}_ids"] = pad_sequence(parts[name], batch_first=True, padding_side=side)
        ones = [torch.ones_like(tokens) for tokens in parts[name]]
        split[f"{name}_mask"] = pad_sequence(ones, batch_first=True, padding_side=side)
    return split


class FullLogitsTrainer(Trainer):
    """What is commonly written by hand: all logits of both models, and a mean over the tokens of the batch."""

    def __init__(self, *args, teacher: PreTrainedModel, temperature: float, **options):
        super().__init__(*args, **options)
        self.teacher, self.temperature = teacher.eval(), temperature

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        labels = inputs.pop("labels")[:, 1:]
        student_logits = model(**inputs).logits[:, :-1]
        with torch.no_grad():
            teacher_logits = self.teacher(**inputs).logits[:, :-1]
        scored = labels != -100
        return self.temperature**2 * F.kl_div(
            F.log_softmax(student_logits[scored] / self.temperature, dim=-1),
            F.softmax(teacher_logits[scored] / self.temperature, dim=-1),
            reduction="batchmean",
        )


def full_logits(
    teacher: PreTrainedModel, student: PreTrainedModel, rows: Rows, temperature: float, **options
) -> Trainer:
    """A `Trainer` with a `compute_loss` of its own."""
    args = TrainingArguments(**options)
    return FullLogitsTrainer(student, args, collate, train_dataset=rows, teacher=teacher, temperature=temperature)


def modelopt(teacher: PreTrainedModel, student: PreTrainedModel, rows: Rows, temperature: float, **options) -> Trainer:
    """NVIDIA ModelOpt's `KDTrainer`."""
    from modelopt.torch.distill.plugins.huggingface import KDTrainer

    distil = {"teacher_model": teacher.eval(), "temperature": temperature}
    return KDTrainer(student, TrainingArguments(**options), collate, train_dataset=rows, distill_args=distil)


@dataclass(frozen=True)
class Side:
    """A trainer, and the package and the module that it needs."""

    make: Callable[..., Trainer]
    package: str | None = None
    module: str | None = None


SIDES = {
    "hf_distill DistillationTrainer": Side(ours),
    "TRL GKDTrainer": Side(gkd, "trl", "trl"),
    "TRL DistillationTrainer, given text": Side(trl_on_given_text, "trl", "trl"),
    "Trainer subclass, all logits": Side(full_logits),
    "ModelOpt KDTrainer": Side(modelopt, "nvidia-modelopt", "modelopt"),
}
"""The first is what the others are compared with."""

COST = ["", "CPU s per step", "of the first", "s per step", "of the first", "memory, MB", "of the first"]
COST += ["without gradients, MB", "of the first", "process, MB"]
EXACTNESS = ["", "loss", "loss, 4 x 4", "gradient, 4 x 4", "loss, 2 x 8", "gradient, 2 x 8", "loss at T = 2"]

Figures = dict[str, float | list[float] | str]
Step = tuple[float, torch.Tensor]
"""The loss that is logged for an optimizer step, and its gradient."""


def installed() -> list[str]:
    """The sides whose package is there."""
    return [name for name, side in SIDES.items() if side.module is None or find_spec(side.module)]


def alone() -> ProcessPoolExecutor:
    """One process, which is started anew."""
    return ProcessPoolExecutor(1, mp_context=PROCESSES, initializer=_initialise)


def _initialise() -> None:
    os.environ |= ENVIRONMENT
    silence()


_stepping: dict[str, object] = {}
"""In the process of a side: its steps, and its batch."""


def prepare(name: str, shape: str, folder: str) -> None:
    """Makes the trainer of a side and one step, after which the optimizer's state is there."""
    config, num_rows, length = SHAPES[shape]
    torch.manual_seed(0)
    teacher = LlamaForCausalLM(config).eval()
    input_ids = torch.randint(3, config.vocab_size, (num_rows, length))
    batch = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": input_ids}
    options = SHARED | {"output_dir": folder, "per_device_train_batch_size": num_rows}
    rows = [{column: values.tolist() for column, values in row.items()} for row in rows_of(batch)]
    trainer = SIDES[name].make(teacher, make_student(teacher), rows, 1.0, **options)
    _stepping.update(side=TrainerSide(trainer), batch=batch)


def step() -> tuple[float, float, float]:
    """CPU seconds, seconds and loss of a step."""
    side = _stepping["side"]
    wall, cpu = time.perf_counter(), time.process_time()
    loss = side.forward_and_backward(_stepping["batch"])
    side.optimizer_step()
    return time.process_time() - cpu, time.perf_counter() - wall, loss


def memory() -> dict[str, int]:
    """Peaks in bytes: of tensors above weights and optimizer state, the same without gradients, and of the process."""
    process, side = peak_of_process(), _stepping["side"]
    peak = peak_memory(lambda: side.forward_and_backward(_stepping["batch"]), "cpu")
    gradients = [own.grad for own in side.trainer.model.parameters() if own.grad is not None]
    return {
        "memory": peak,
        "without gradients": peak - sum(gradient.nbytes for gradient in gradients),
        "process": process,
    }


def measure_cost(names: Sequence[str], shape: str, rounds: int, folder: Path) -> dict[str, Figures]:
    """The figures of each side; in a round each makes a step, one after the other."""
    processes = {name: alone() for name in names}
    measured: dict[str, Figures] = {name: {"cpu": [], "wall": []} for name in names}
    try:
        for index, (name, process) in enumerate(processes.items()):
            process.submit(prepare, name, shape, str(folder / f"cost-{index}")).result()
        for number in range(rounds + 1):
            for name, process in processes.items():
                cpu, wall, loss = process.submit(step).result()
                if number:  # the first round warms up
                    measured[name]["cpu"].append(cpu)
                    measured[name]["wall"].append(wall)
                    measured[name]["loss"] = loss
        for name, process in processes.items():
            measured[name] |= process.submit(memory).result()
    finally:
        for process in processes.values():
            process.shutdown()
    return measured


def steps_of_splits(
    names: Sequence[str],
    splits: Sequence[str],
    temperatures: Sequence[float],
    folder: str,
    rank: int = 0,
    port: int = 0,
) -> dict[str, list[Step | str]]:
    """A step of each side per split and temperature, or why there is none. With a port: one of two processes."""
    torch.set_num_threads(1)  # tiny models run slower on more
    if port:
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
    taken: dict[str, list[Step | str]] = {name: [] for name in names}
    for name in names:
        for split in splits:
            for temperature in temperatures:
                try:
                    taken[name].append(_one_step(name, *SPLITS[split], temperature, f"{folder}/{rank}"))
                except Exception as error:
                    if SIDES[name].package is None:
                        raise
                    taken[name].append(f"{type(error).__name__}: {error}".splitlines()[0])  # a peer may not run here
    if port:
        torch.distributed.destroy_process_group()
    return taken


def _one_step(name: str, num_rows: int, num_batches: int, temperature: float, folder: str) -> Step:
    set_seed(0)
    teacher, student = LlamaForCausalLM(TINY_MODEL), LlamaForCausalLM(TINY_MODEL)
    options = SHARED | {"output_dir": folder, "per_device_train_batch_size": num_rows}
    options |= {"gradient_accumulation_steps": num_batches}
    keeper = KeepGradient()
    trainer = SIDES[name].make(teacher, student, make_rows("causal LM"), temperature, **options)
    trainer.add_callback(keeper)
    train_quietly(trainer)
    return trainer.state.log_history[0]["loss"], keeper.gradient


def measure_exactness(names: Sequence[str], folder: Path) -> dict[str, Figures]:
    """How far the loss and the gradient of each split are from those of one batch, relative to these."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    whole, accumulated, distributed = SPLITS
    with alone() as one, alone() as first, alone() as second:
        both = [
            process.submit(steps_of_splits, names, [distributed], [1.0], str(folder), rank, port)
            for rank, process in enumerate((first, second))
        ]
        single = one.submit(steps_of_splits, names, [whole, accumulated], [1.0, 2.0], str(folder / "one")).result()
        on_two = both[0].result()
        both[1].result()
    measured: dict[str, Figures] = {}
    for name in names:
        (loss, gradient), (softer, _), in_four, _ = single[name]
        measured[name] = {"loss": loss, "loss at T = 2": softer}
        for split, step in ((accumulated, in_four), (distributed, on_two[name][0])):
            if isinstance(step, str):
                measured[name][split] = step
            else:
                measured[name][f"loss, {split}"] = step[0] / loss - 1
                measured[name][f"gradient, {split}"] = ((step[1] - gradient).norm() / gradient.norm()).item()
    return measured


def run(names: Sequence[str], shape: str, rounds: int, output: Path) -> dict[str, dict[str, Figures]]:
    """Measures, prints the tables, and writes the figures to `output`."""
    with tempfile.TemporaryDirectory() as folder:
        exactness = measure_exactness(names, Path(folder))
        cost = measure_cost(names, shape, rounds, Path(folder))
    config, num_rows, length = SHAPES[shape]
    print(
        f"\nA teacher of {config.num_hidden_layers} layers and a student of half of them, {num_rows} x {length} tokens"
    )
    print(f"\n{table(COST, [_cost_cells(own, name, cost[names[0]]) for name, own in cost.items()])}")
    print(f"\nMedians of {rounds} rounds. Memory: peak of tensors above weights and optimizer state. Process: its peak")
    print(f"\n{describe_rows()}")
    print(f"\n{table(EXACTNESS, [[name, *_exactness_cells(own)] for name, own in exactness.items()])}")
    for name, own in exactness.items():
        for split in own.keys() & SPLITS.keys():
            print(f"\n{name}, {split}: {own[split]}")
    print("\n4 x 4, 2 x 8: (loss - loss of one batch) / loss; |gradient - gradient of one batch| / |gradient|\n")
    on = print_machine("device", "threads")
    peers = {SIDES[name].package for name in names} - {None}
    versions = print_versions([*PACKAGES, *sorted(peers)])
    write_json(
        output,
        {"shape": shape, "machine": on, "versions": versions, "rounds": rounds, "cost": cost, "exactness": exactness},
    )
    return {"cost": cost, "exactness": exactness}


def describe_rows() -> str:
    """The lengths of the rows of the exactness table, and of their completions."""
    rows = make_rows("causal LM")
    lengths = [len(row["labels"]) for row in rows]
    completions = [sum(label != -100 for label in row["labels"]) for row in rows]
    return (
        f"Exactness: {len(rows)} rows of {min(lengths)} to {max(lengths)} tokens. Only completions have labels: the "
        f"last {min(completions)} to {max(completions)} tokens of a row."
    )


def _cost_cells(own: Figures, name: str, first: Figures) -> list[str]:
    cells = [name]
    for column in ("cpu", "wall"):
        cells += [f"{statistics.median(own[column]):.2f}", f"{median_ratio(own[column], first[column]):.2f}"]
    for column in ("memory", "without gradients"):
        cells += [f"{own[column] / 1e6:,.0f}", f"{own[column] / first[column]:.2f}"]
    return [*cells, f"{own['process'] / 1e6:,.0f}"]


def _exactness_cells(own: Figures) -> list[str]:
    deviations = []
    for split in list(SPLITS)[1:]:
        numbers = [own.get(f"{name}, {split}") for name in ("loss", "gradient")]
        deviations += ["does not run", ""] if split in own else [f"{number:+.1e}" for number in numbers]
    return [f"{own['loss']:.5f}", *deviations, f"{own['loss at T = 2']:.5f}"]


def main() -> None:
    parser = make_parser("trl_peer", __doc__)
    parser.add_argument("--shape", choices=SHAPES, default="smollm2-135m")
    parser.add_argument("--sides", nargs="+", choices=SIDES, help="by default all that are installed")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    run(options.sides or installed(), options.shape, options.rounds, options.output)


if __name__ == "__main__":
    main()
