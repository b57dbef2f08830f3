"""`python -m recipes.benchmarks.layer_choice`: how the choice of layers affects a student before and after training.

The teacher is the fine-tuned teacher of `make quickstart`, with 6 layers. First, every possible student with 3 layers
is measured without training. Then the student of each strategy is trained as in the quickstart, on the same batches,
for a short and for the full budget, with several seeds.
"""

import itertools
import sys
import tempfile
import time
from pathlib import Path

import torch
from datasets import Dataset
from torch.nn import functional as F
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    set_seed,
)

from hf_distill import DistillationTrainer, DistillationTrainingArguments, make_student
from recipes.benchmarks._common import (
    PACKAGES,
    all_exist,
    make_parser,
    predict,
    print_machine,
    print_versions,
    silence,
    spread,
    table,
    train_quietly,
    write_json,
)
from recipes.quickstart.data import Corpus, load_corpus, tokenize
from recipes.quickstart.measure import quality
from recipes.quickstart.students import STUDENT_LEARNING_RATE
from recipes.quickstart.train import common_options

RULES = ["alternate", "spread", "first", "last"]
ON_DATA = ["calibrated", "influence"]
BUDGETS = [20, 158]
"""Optimizer steps on batches of 64. The second is two epochs of the quickstart's 5,000 sentences."""

NUM_CALIBRATION = 256
"""Number of training sentences, without labels, for the strategies "calibrated" and "influence"."""

Figures = dict[str, float]


def figures(model: PreTrainedModel, corpus: Corpus, tokenizer: PreTrainedTokenizerBase, teacher_logits: torch.Tensor):
    """KL to the teacher at T = 1, agreement with the teacher, and accuracy, on the test sentences."""
    logits = predict(model.eval(), tokenizer, list(corpus.test["text"]))
    divergence = F.kl_div(
        logits.log_softmax(-1), teacher_logits.log_softmax(-1), reduction="batchmean", log_target=True
    )
    return {"KL": divergence.item(), **quality(logits, list(corpus.test["labels"]), teacher_logits)}


def calibration_batches(corpus: Corpus, tokenizer: PreTrainedTokenizerBase) -> list[dict[str, torch.Tensor]]:
    texts = list(corpus.train["text"])[:NUM_CALIBRATION]
    batches = [texts[start : start + 64] for start in range(0, len(texts), 64)]
    return [dict(tokenizer(batch, padding=True, truncation=True, return_tensors="pt")) for batch in batches]


def train(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    max_steps: int,
    seed: int,
) -> PreTrainedModel:
    """Distils with the quickstart's options. With the same seed, all students get the same batches."""
    set_seed(seed)
    with tempfile.TemporaryDirectory() as folder:
        options = {**common_options(seed), "learning_rate": STUDENT_LEARNING_RATE, "logging_strategy": "no"}
        args = DistillationTrainingArguments(folder, max_steps=max_steps, disable_tqdm=True, **options)
        trainer = DistillationTrainer(
            student, args, teacher_model=teacher, train_dataset=rows, processing_class=tokenizer
        )
        train_quietly(trainer)
    return student


def run(
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    corpus: Corpus,
    seeds: list[int],
    budgets: list[int],
    output: Path,
) -> dict:
    """Measures, prints both tables, and writes the figures to `output`."""
    rows = tokenize(corpus.train, tokenizer)
    teacher_logits = predict(teacher, tokenizer, list(corpus.test["text"]))
    num_layers = teacher.config.num_hidden_layers

    untrained = {}
    for layers in itertools.combinations(range(num_layers), num_layers // 2):
        student = make_student(teacher, layers=list(layers))
        untrained[layers] = figures(student, corpus, tokenizer, teacher_logits)
    nearest_first = sorted(untrained, key=lambda layers: untrained[layers]["KL"])
    print(f"\nUntrained students with {num_layers // 2} of the teacher's {num_layers} layers, on the test sentences\n")
    names = list(untrained[nearest_first[0]])
    print(table(["layers", *names], [[_name(layers), *_cells(untrained[layers], names)] for layers in nearest_first]))

    students = {strategy: make_student(teacher, layers=strategy) for strategy in RULES}
    batches, seconds = calibration_batches(corpus, tokenizer), {}
    for strategy in ON_DATA:
        start = time.perf_counter()
        students[strategy] = make_student(teacher, layers=strategy, calibration_data=batches)
        seconds[strategy] = time.perf_counter() - start
        print(f"\n{strategy} read {NUM_CALIBRATION} sentences without labels in {seconds[strategy]:.0f} seconds")
    chosen = {strategy: student.config.distilled_from["layers"] for strategy, student in students.items()}

    trained = {strategy: {} for strategy in chosen}
    for budget, strategy in itertools.product(budgets, chosen):
        trained[strategy][budget] = [
            figures(
                train(make_student(teacher, layers=chosen[strategy]), teacher, rows, tokenizer, budget, seed),
                corpus,
                tokenizer,
                teacher_logits,
            )
            for seed in seeds
        ]
    for budget in budgets:
        print(f"\nAfter {budget} steps, mean and standard deviation over {len(seeds)} seeds\n")
        print(
            table(
                ["strategy", "layers", *names],
                [
                    [strategy, _name(chosen[strategy]), *_spread(trained[strategy][budget], names)]
                    for strategy in chosen
                ],
            )
        )
    print()
    measured = {
        "machine": print_machine("device", "threads"),
        "versions": print_versions(PACKAGES),
        "seeds": seeds,
        "untrained": {_name(layers): own for layers, own in untrained.items()},
        "chosen": chosen,
        "calibration seconds": seconds,
        "trained": trained,
    }
    write_json(output, measured)
    return measured


def _name(layers: tuple[int, ...] | list[int]) -> str:
    return " ".join(map(str, layers))


def _cells(own: Figures, names: list[str]) -> list[str]:
    return _spread([own], names)


def _spread(runs: list[Figures], names: list[str]) -> list[str]:
    """Formats the KL divergence in nats, and everything else in percent."""
    return [
        spread([own[name] for own in runs], ".4f") if name == "KL" else spread([100 * own[name] for own in runs])
        for name in names
    ]


def main() -> int:
    parser = make_parser("layer_choice", __doc__)
    parser.add_argument(
        "--quickstart", type=Path, default=Path("outputs/quickstart"), help="output folder of the quickstart"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="seeds; one training each")
    options = parser.parse_args()
    folder, sentences = options.quickstart / "teacher", options.quickstart.parent / "quickstart-fetched" / "sentences"
    if not all_exist(folder, sentences):
        return 1
    silence()
    teacher = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    if torch.accelerator.is_available():
        teacher.to(torch.accelerator.current_accelerator())
    corpus, tokenizer = load_corpus(sentences), AutoTokenizer.from_pretrained(folder)
    run(teacher, tokenizer, corpus, options.seeds, BUDGETS, options.output)
    return 0


if __name__ == "__main__":
    sys.exit(main())
