"""`python -m recipes.benchmarks.whole_job`: seconds from raw text to a trained student, compared with tutorials.

- "tutorial": a `Trainer` whose `compute_loss` runs the teacher, in float32, with every text padded to the maximum
  length.
- "ours": the teacher's outputs are computed once and stored; batches contain texts of similar length, padded to their
  longest; matrix products are in bfloat16 where that is fast; and on a CPU, attention has no dropout.
- "ours, teacher next to the student": the same with a live teacher in every step, to show the effect of stored outputs.
- "second training": another training with other loss weights, once with stored outputs and once with a live teacher.

All ways train the same student with 3 layers, cut from the same teacher with 6, with the same epochs, batch size,
learning rate, losses and temperature. Time is measured from text to student, without loading and cutting of models. For
each seed, all ways run one after the other, so a machine that slows down affects all of them. Ratios are computed
within a seed; the median over the seeds is reported.
"""

import copy
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from datasets import Dataset
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_distill import DistillationTrainer, DistillationTrainingArguments, add_teacher_targets, make_student
from recipes.benchmarks._common import (
    PACKAGES,
    QUIET,
    add_fetched,
    explains_fetch_errors,
    make_parser,
    predict,
    print_machine,
    print_versions,
    silence,
    spread,
    synchronise,
    table,
    train_quietly,
    write_json,
)
from recipes.quickstart.data import Corpus, load_corpus, tokenize
from recipes.quickstart.fetch import fetch
from recipes.quickstart.students import STUDENT_LEARNING_RATE, trained_teacher
from recipes.quickstart.train import bf16_is_fast

TEMPERATURE = 2.0
ALPHAS = {"alpha_kl": 5.0, "alpha_task": 2.0}
OTHER_ALPHAS = {"alpha_kl": 1.0, "alpha_task": 1.0}
"""Loss weights of the second training."""

MEDIAN_WORDS, DEVIATION_OF_LOG = 174, 0.75
"""Parameters of a log-normal for the words in a review. Its mean is 231; the mean of IMDb is 234 words."""


@dataclass(frozen=True)
class Setting:
    """Texts and how they are batched.

    Attributes:
        rows: number of texts.
        max_length: maximum length in tokens; longer texts are truncated.
        batch_size: texts per batch.
        are_documents: True if each text consists of many sentences.
    """

    rows: int
    max_length: int
    batch_size: int
    are_documents: bool = False


SETTINGS = {
    "sentences": Setting(rows=640, max_length=128, batch_size=32),
    "documents": Setting(rows=96, max_length=512, batch_size=16, are_documents=True),
}


def make_documents(sentences: Dataset, number: int, seed: int = 0) -> Dataset:
    """Makes texts as long as film reviews, by joining sentences with the same label.

    The number of words is drawn from a log-normal distribution.

    Args:
        sentences: dataset with the columns `text` and `labels`.
        number: number of documents; labels are balanced to within one document.
        seed: seed of the random draws.
    """
    rng = random.Random(seed)
    of_label: dict[int, list[str]] = {}
    for text, label in zip(sentences["text"], sentences["labels"], strict=True):
        of_label.setdefault(label, []).append(text)
    labels = [sorted(of_label)[index % len(of_label)] for index in range(number)]
    texts = []
    for label in labels:
        num_words = MEDIAN_WORDS * rng.lognormvariate(0, DEVIATION_OF_LOG)
        words: list[str] = []
        while len(words) < num_words:
            words += rng.choice(of_label[label]).split()
        texts.append(" ".join(words))
    return Dataset.from_dict({"text": texts, "labels": labels})


class TutorialTrainer(Trainer):
    """Distillation as in typical tutorials."""

    def __init__(self, *args, teacher: PreTrainedModel, **options):
        super().__init__(*args, **options)
        self.teacher = teacher.to(self.args.device).eval()

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        student_outputs = model(**inputs)
        with torch.no_grad():
            teacher_outputs = self.teacher(**inputs)
        loss_kl = TEMPERATURE**2 * F.kl_div(
            F.log_softmax(student_outputs.logits / TEMPERATURE, dim=-1),
            F.softmax(teacher_outputs.logits / TEMPERATURE, dim=-1),
            reduction="batchmean",
        )
        loss = ALPHAS["alpha_kl"] * loss_kl + ALPHAS["alpha_task"] * student_outputs.loss
        return (loss, student_outputs) if return_outputs else loss


def without_attention_dropout(student: PreTrainedModel) -> PreTrainedModel:
    """Switches off attention dropout of a BERT, and returns it.

    On a CPU, PyTorch draws a random number for each pair of tokens in each head, one after the other. For 16 texts of
    512 tokens that takes longer than everything else.
    """
    config = copy.deepcopy(student.config)
    config.attention_probs_dropout_prob = 0.0
    fresh = type(student)(config)
    fresh.load_state_dict(student.state_dict())
    return fresh


class Job:
    """The ways from texts to a trained student, one method each.

    Args:
        texts: dataset with the columns `text` and `labels`.
        setting: lengths and batch size.
        teacher: the teacher, in float32.
        tokenizer: the tokenizer of both models.
        seed: seed of the trainings.
        epochs: number of epochs.
        folder: folder for temporary output.
    """

    grouping = "group_by_length"

    def __init__(
        self,
        texts: Dataset,
        setting: Setting,
        teacher: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        seed: int,
        epochs: int,
        folder: Path,
    ):
        self.texts, self.setting, self.teacher, self.tokenizer, self.folder = texts, setting, teacher, tokenizer, folder
        self.is_fast = bf16_is_fast()
        self.dtype = "bfloat16" if self.is_fast else None
        self.rows: dict[str, Dataset] = {}
        self.options = {
            "output_dir": str(folder / "trainer"),
            "seed": seed,
            "num_train_epochs": epochs,
            "per_device_train_batch_size": setting.batch_size,
            "learning_rate": STUDENT_LEARNING_RATE,
            "warmup_steps": 0.1,
            "weight_decay": 0.01,
            "use_cpu": not torch.accelerator.is_available(),
            "logging_strategy": "no",
            **QUIET,
        }

    def tutorial(self, student: PreTrainedModel) -> None:
        rows = self.tokenized(padding="max_length")
        args = TrainingArguments(**self.options)
        train_quietly(
            TutorialTrainer(student, args, train_dataset=rows, processing_class=self.tokenizer, teacher=self.teacher)
        )

    def ours(self, student: PreTrainedModel) -> None:
        rows, targets = self.tokenized(), self.folder / "targets"
        self.rows[OURS] = add_teacher_targets(rows, self.teacher, self.tokenizer, dtype=self.dtype, output_dir=targets)
        self._distil(student, self.rows[OURS], ALPHAS)

    def live(self, student: PreTrainedModel) -> None:
        self.rows[LIVE] = self.tokenized()
        self._distil(student, self.rows[LIVE], ALPHAS, self.teacher)

    def ours_again(self, student: PreTrainedModel) -> None:
        self._distil(student, self.rows[OURS], OTHER_ALPHAS)

    def live_again(self, student: PreTrainedModel) -> None:
        self._distil(student, self.rows[LIVE], OTHER_ALPHAS, self.teacher)

    def tokenized(self, **options) -> Dataset:
        """Tokenizes the texts, by default without padding."""
        tokenizer, options = self.tokenizer, {"truncation": True, "max_length": self.setting.max_length, **options}
        # The function must not refer to `self`: `datasets` would hash all of it.
        return self.texts.map(lambda rows: tokenizer(rows["text"], **options), batched=True, remove_columns=["text"])

    def _distil(
        self,
        student: PreTrainedModel,
        rows: Dataset,
        alphas: dict[str, float],
        teacher: PreTrainedModel | None = None,
    ) -> None:
        args = DistillationTrainingArguments(
            **self.options,
            **alphas,
            temperature=TEMPERATURE,
            alpha_cos=0.0,
            bf16=self.is_fast,
            teacher_dtype=None if teacher is None else self.dtype,
            train_sampling_strategy=self.grouping,
        )
        options = {"train_dataset": rows, "processing_class": self.tokenizer}
        train_quietly(DistillationTrainer(student, args, teacher_model=teacher, **options))


TUTORIAL, OURS, LIVE = "tutorial", "ours", "ours, teacher next to the student"
WAYS: dict[str, Callable[[Job, PreTrainedModel], None]] = {
    TUTORIAL: Job.tutorial,
    OURS: Job.ours,
    LIVE: Job.live,
    "ours, second training": Job.ours_again,
    "teacher next to the student, second training": Job.live_again,
}

RATIOS = {
    # name of the ratio: numerator and denominator
    "the tutorial's over ours": (TUTORIAL, OURS),
    "the tutorial's over ours with the teacher next to the student": (TUTORIAL, LIVE),
    "the teacher next to the student over stored targets": (LIVE, OURS),
    "the same, second training": ("teacher next to the student, second training", "ours, second training"),
}

Figures = dict[str, dict[str, float]]
"""`seconds` and `accuracy` by way, for one seed."""


def run_seed(job: Job, test: Dataset, without_tutorial: bool) -> Figures:
    """Runs every way once."""
    seconds, accuracy = {}, {}
    labels = torch.tensor(list(test["labels"]))
    for name, way in WAYS.items():
        if name == TUTORIAL and without_tutorial:
            continue
        student = make_student(job.teacher)
        if name != TUTORIAL and not torch.accelerator.is_available():
            student = without_attention_dropout(student)
        set_seed(job.options["seed"])
        start = time.perf_counter()
        way(job, student)
        synchronise()
        seconds[name] = time.perf_counter() - start
        logits = predict(student.eval(), job.tokenizer, list(test["text"]))
        accuracy[name] = logits.argmax(-1).eq(labels).float().mean().item()
        print(f"{name}: {seconds[name]:.0f} s, accuracy {accuracy[name]:.1%}", flush=True)
    return {"seconds": seconds, "accuracy": accuracy}


def measure(
    setting: Setting,
    corpus: Corpus,
    teacher: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    seeds: Sequence[int],
    epochs: int,
    without_tutorial: bool = False,
) -> list[Figures]:
    """Measures seed by seed. Each seed has its own texts."""
    measured = []
    for number, seed in enumerate([seeds[0], *seeds]):
        warms_up = number == 0
        rows = setting.batch_size if warms_up else setting.rows
        if setting.are_documents:
            texts = make_documents(corpus.train, rows, seed)
        else:
            texts = corpus.train.shuffle(seed=seed).select(range(rows))
        print("\nWarming up" if warms_up else f"\nSeed {seed}, {rows} texts")
        with tempfile.TemporaryDirectory() as folder:
            job = Job(texts, setting, teacher, tokenizer, seed, 1 if warms_up else epochs, Path(folder))
            figures = run_seed(job, corpus.test, without_tutorial)
        if not warms_up:
            measured.append(figures)
    return measured


def run(
    model_folder: Path,
    corpus: Corpus,
    settings: dict[str, Setting],
    seeds: Sequence[int],
    epochs: int,
    output: Path,
    without_tutorial: bool = False,
) -> dict[str, list[Figures]]:
    """Fine-tunes the teacher, measures, prints a table for each setting, and writes the figures to `output`."""
    for name, setting in settings.items():
        if not setting.are_documents and setting.rows > len(corpus.train):
            raise ValueError(f"rows={setting.rows}, but there are only {len(corpus.train)} {name} to train on.")
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    folder = output.parent / output.stem / "teacher"
    teacher = trained_teacher(folder, model_folder, tokenize(corpus.train, tokenizer), tokenizer, seed=0)
    print()
    on = print_machine("device", "threads", "training")
    about = {"machine": on, "versions": print_versions([*PACKAGES, "datasets"]), "seeds": list(seeds)}
    about |= {"epochs": epochs, "settings": {name: asdict(setting) for name, setting in settings.items()}}
    measured = {}
    for name, setting in settings.items():
        measured[name] = measure(setting, corpus, teacher, tokenizer, seeds, epochs, without_tutorial)
        write_json(output, about | {"figures": measured})
        batches = f"epochs: {epochs}, in batches of {setting.batch_size}"
        print(f"\n{setting.rows} {name} of at most {setting.max_length} tokens, {batches}")
        print_tables(measured[name])
    return measured


def print_tables(seeds: Sequence[Figures]) -> None:
    """Prints seconds and accuracy of each way, and the ratios."""
    over = f"{len(seeds)} seeds"
    lines = []
    for name in seeds[0]["seconds"]:
        seconds, accuracy = ([own[kind][name] for own in seeds] for kind in ("seconds", "accuracy"))
        lines.append([name, f"{statistics.median(seconds):.1f}", spread([100 * value for value in accuracy])])
    print("\n" + table(["", f"seconds, median of {over}", f"accuracy, percent, mean over {over}"], lines) + "\n")
    lines = []
    for name, (above, _) in RATIOS.items():
        if above not in seeds[0]["seconds"]:
            continue
        ratios = [ratio(own, name) for own in seeds]
        lines.append([name, f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f} to {max(ratios):.2f}"])
    print(table(["seconds of one over those of the other", f"median of {over}", "from least to most"], lines))


def ratio(figures: Figures, name: str) -> float:
    above, below = RATIOS[name]
    return figures["seconds"][above] / figures["seconds"][below]


@explains_fetch_errors
def main() -> int:
    parser = make_parser("whole_job", __doc__)
    parser.add_argument("--setting", choices=SETTINGS, nargs="+", default=list(SETTINGS), help="by default both")
    parser.add_argument("--rows", type=int, help="number of texts (default: enough for a few minutes)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds; each way runs once per seed")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, help="texts per batch (default: 32 sentences or 16 documents)")
    parser.add_argument(
        "--without-tutorial", action="store_true", help="leave out the tutorial's way, which takes longest"
    )
    add_fetched(parser)
    options = parser.parse_args()
    silence()
    model_folder, sentences = fetch(options.fetched)
    settings = {name: SETTINGS[name] for name in options.setting}
    given = {"rows": options.rows, "batch_size": options.batch_size}
    given = {name: value for name, value in given.items() if value is not None}
    settings = {name: replace(setting, **given) for name, setting in settings.items()}
    corpus = load_corpus(sentences)
    run(model_folder, corpus, settings, options.seeds, options.epochs, options.output, options.without_tutorial)
    return 0


if __name__ == "__main__":
    sys.exit(main())
