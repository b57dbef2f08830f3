"""`python -m recipes.benchmarks.general_distillation`: a student made from text without labels, in three ways.

The student has 3 layers of width 192, half of the layers and half of the width of its teacher, MiniLM, and starts with
random weights. With `--cut` it has 3 of the teacher's own layers instead. It learns from short texts without labels by
`recipes/minilm`, that is by MiniLMv2's relations alone; or by the three losses of DistilBERT; or not at all. Then each
is fine-tuned on the same labelled film-review sentences.

Two of the three losses need a head for masked language modelling, which MiniLM does not have. It gets a new one, which
is trained on the same texts. MiniLM itself is frozen meanwhile, so both ways have the same teacher. The three losses
get as many steps as fit into the time of the relations' steps: processor time on a CPU, elapsed time on a GPU.

Figures are written after each training, and a second run continues from there.
"""

import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    TrainerCallback,
    set_seed,
)

from hf_distill import (
    DistillationTrainer,
    DistillationTrainingArguments,
    __version__,
    classification_metrics,
    make_student,
    parse_config,
)
from recipes.benchmarks._common import (
    PACKAGES,
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
from recipes.benchmarks.distil_from_scratch import TWEETS, read_tweets
from recipes.benchmarks.where_distilling_pays import train as fine_tune
from recipes.distilroberta import train as three_losses
from recipes.minilm import train as minilm
from recipes.quickstart.data import Corpus, load_corpus, read_ratings, tokenize
from recipes.quickstart.fetch import SENTENCE_FILES, download, fetch
from recipes.quickstart.train import bf16_is_fast, common_options

RELATIONS, THREE_LOSSES, NOTHING = "relations (recipes/minilm)", "the three losses", "not at all"
WAYS = [RELATIONS, THREE_LOSSES, NOTHING]

MINILM, DISTILROBERTA = (Path(module.__file__).parent for module in (minilm, three_losses))
ONLY_TASK = ["--alpha_kl", "0", "--alpha_cos", "0"]
TIMED_STEPS, UNTIMED_STEPS = 20, 5
"""How many steps of both ways are timed, after a few that are not."""

FINE_TUNING_STEPS, BATCH_SIZE, LEARNING_RATE = 150, 32, 3e-4


def write_corpus(file: Path, sentence_folder: Path, tweets: Sequence[str], tested: Sequence[str]) -> None:
    """Writes every text once, one per line, in the same random order in every run, without those that are tested on."""
    sentences = [text for name in SENTENCE_FILES for text, _ in read_ratings(sentence_folder / name)]
    texts = sorted({*sentences, *tweets} - {"", *tested})
    random.Random(0).shuffle(texts)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(texts), encoding="utf-8")


def clock() -> float:
    """Seconds: of this process on a CPU, where other programs do not count; of the wall clock on an accelerator."""
    synchronise()
    return time.perf_counter() if torch.accelerator.is_available() else time.process_time()


class StepTimes(TrainerCallback):
    """The time of each step, in seconds of `clock`."""

    def __init__(self):
        self.seconds: list[float] = []

    def on_step_begin(self, *args, **kwargs):
        self.began = clock()

    def on_step_end(self, *args, **kwargs):
        self.seconds.append(clock() - self.began)


def timed(trainer: DistillationTrainer) -> list[float]:
    """Trains, and returns the time of each step."""
    times = StepTimes()
    trainer.add_callback(times)
    train_quietly(trainer)
    return times.seconds


class Benchmark:
    """Runs the trainings that are not yet in the file `output`, and writes their figures there."""

    def __init__(
        self,
        model_folder: Path,
        text: Path,
        corpus: Corpus,
        output: Path,
        steps: int,
        head_steps: int,
        is_cut: bool,
        more: list[str],
    ):
        self.model_folder, self.text, self.corpus, self.output = model_folder, text, corpus, output
        self.steps, self.head_steps, self.is_cut, self.more = steps, head_steps, is_cut, more
        self.folder = output.parent / output.stem
        self.tokenizer = AutoTokenizer.from_pretrained(model_folder)
        self.rows = tokenize(corpus.train, self.tokenizer)
        self.figures: dict[str, dict[str, float]] = {}
        settings = {"steps": steps, "head steps": head_steps, "is cut": is_cut, "options": more}
        settings["hf_distill"] = __version__
        if output.exists() and (written := json.loads(output.read_text()))["settings"] == settings:
            self.figures = written["figures"]
        self.measured = {
            "machine": print_machine("device", "threads", "training"),
            "versions": print_versions([*PACKAGES, "datasets"]),
            "settings": settings,
            "figures": self.figures,
        }

    def run(self, seed: int, labels: Sequence[int]) -> None:
        """Makes the students of one seed, and fine-tunes them on each number of labels."""
        for way in WAYS:
            folder = self.folder / f"seed {seed}, {way.split()[0]}"
            self.once(f"seed {seed}, {way}", lambda way=way, folder=folder: self.make(way, seed, folder))
            for number in labels:
                name = self.name(seed, way, number)
                self.once(name, lambda number=number, folder=folder: self.fine_tuned(folder, seed, number))

    def once(self, name: str, measure: Callable[[], dict[str, float]]) -> None:
        if name not in self.figures:
            self.figures[name] = measure()
            write_json(self.output, self.measured)
            print(f"{name}: {', '.join(f'{key} {value:.4g}' for key, value in self.figures[name].items())}", flush=True)

    def make(self, way: str, seed: int, folder: Path) -> dict[str, float]:
        """Makes one student on text without labels, and saves it."""
        return {RELATIONS: self.by_relations, THREE_LOSSES: self.by_three_losses, NOTHING: self.untrained}[way](
            seed, folder
        )

    def by_relations(self, seed: int, folder: Path) -> dict[str, float]:
        """Runs `recipes/minilm`."""
        return self.trained(self.relations_trainer(seed, folder), folder)

    def by_three_losses(self, seed: int, folder: Path) -> dict[str, float]:
        """Runs the trainer of `recipes/distilroberta` on the same texts, in the same batches."""
        self.once("steps of the three losses", self.equal_time)
        steps = int(self.figures["steps of the three losses"]["steps"])
        return self.trained(self.three_losses_trainer(seed, folder, steps), folder)

    def relations_trainer(self, seed: int, folder: Path, words: Sequence[str] = ()) -> DistillationTrainer:
        recipe, training = self.parsed(minilm, seed, folder, words)
        student, teacher = self.untrained_student(seed), self.teacher(AutoModel)
        return minilm.make_trainer(recipe, training, student, teacher, self.tokenizer)

    def equal_time(self) -> dict[str, float]:
        """Times some steps of both ways on the same batches, because batches differ in length."""
        steps = UNTIMED_STEPS + TIMED_STEPS
        trainers = [
            self.relations_trainer(0, self.folder / "timed", ["--max_steps", str(steps)]),
            self.three_losses_trainer(0, self.folder / "timed", steps),
        ]
        relations, three = (sum(timed(trainer)[UNTIMED_STEPS:]) / TIMED_STEPS for trainer in trainers)
        return {"relations": relations, "three losses": three, "steps": round(self.steps * relations / three)}

    def three_losses_trainer(self, seed: int, folder: Path, steps: int) -> DistillationTrainer:
        self.once("teacher's new head", self.train_head)
        teacher = AutoModelForMaskedLM.from_pretrained(self.folder / "teacher", dtype=torch.float32)
        if self.is_cut:
            student = make_student(teacher)
        else:
            backbone = self.untrained_student(seed)
            student = AutoModelForMaskedLM.from_config(backbone.config)
            student.base_model.load_state_dict(backbone.state_dict(), strict=False)  # without the pooler
        words = ["--max_steps", str(steps), "--project_hidden_states", str(not self.is_cut)]
        recipe, training = self.parsed(three_losses, seed, folder, words)
        return three_losses.make_trainer(recipe, training, student, teacher, self.tokenizer)

    def train_head(self) -> dict[str, float]:
        """Trains and saves the teacher's new head. Only its transform and its bias are new and trained."""
        set_seed(0)
        teacher = self.teacher(AutoModelForMaskedLM)
        teacher.base_model.requires_grad_(False)  # its embeddings are the head's decoder
        words = [*ONLY_TASK, "--max_steps", str(self.head_steps)]
        recipe, training = self.parsed(three_losses, 0, self.folder / "teacher", words)
        trainer = three_losses.make_trainer(recipe, training, teacher, None, self.tokenizer)
        before = three_losses.evaluate(trainer)["perplexity"]
        measured = self.trained(trainer, self.folder / "teacher")
        return measured | {"before": before, "perplexity": three_losses.evaluate(trainer)["perplexity"]}

    def trained(self, trainer: DistillationTrainer, folder: Path) -> dict[str, float]:
        seconds = timed(trainer)
        trainer.save_model()
        return {"steps": len(seconds), "seconds per step": sum(seconds) / len(seconds)}

    def untrained(self, seed: int, folder: Path) -> dict[str, float]:
        self.untrained_student(seed).save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        return {"steps": 0}

    def untrained_student(self, seed: int) -> PreTrainedModel:
        """The student that all ways begin with."""
        recipe, _ = self.parsed(minilm, seed, self.folder)
        return minilm.new_student(recipe, self.teacher(AutoModel), seed)

    def teacher(self, auto_class) -> PreTrainedModel:
        return auto_class.from_pretrained(self.model_folder, dtype=torch.float32, use_safetensors=True)

    def parsed(self, recipe, seed: int, folder: Path, words: Sequence[str] = ()) -> tuple:
        """The arguments of a recipe. `recipes/distilroberta` gets the data and the optimizer of `recipes/minilm`."""
        given = ["--teacher", self.model_folder, "--corpus", self.text, "--output_dir", folder, "--seed", seed]
        given += ["--max_steps", self.steps, "--report_to", "none", "--disable_tqdm", "true", "--bf16", bf16_is_fast()]
        given += ["--use_cpu", not torch.accelerator.is_available()]  # the miniatures stay on the CPU by themselves
        if recipe is minilm:
            files, own_words = [MINILM / "config.yaml", MINILM / "miniature.yaml"], self.more
            files += [MINILM / "cut.yaml"] * self.is_cut
        else:
            own, training = self.parsed(minilm, seed, folder)
            files = [DISTILROBERTA / "config.yaml", DISTILROBERTA / "miniature.yaml"]
            own_words = ["--packing", own.packing, "--block_size", own.block_size]
            own_words += ["--validation_documents", own.validation_documents, "--emphasize_rare_tokens", "false"]
            own_words += [word for name in SHARED for word in (f"--{name}", getattr(training, name))]
        words = [*map(str, ["--config", *files, *given, *own_words]), *words]
        return parse_config([recipe.RecipeArguments, DistillationTrainingArguments], words)

    def fine_tuned(self, folder: Path, seed: int, number: int) -> dict[str, float]:
        """Fine-tunes a student on labelled sentences, and tests it on others."""
        set_seed(seed)
        student = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=2)
        rows = self.rows.shuffle(seed=seed).select(range(number))
        options = {
            **common_options(seed),
            "per_device_train_batch_size": BATCH_SIZE,
            "learning_rate": LEARNING_RATE,
            "max_steps": FINE_TUNING_STEPS,
            "logging_strategy": "no",
        }
        fine_tune(student, options, rows, self.tokenizer)
        logits = predict(student.eval(), self.tokenizer, list(self.corpus.test["text"]))
        return {"accuracy": classification_metrics(logits, list(self.corpus.test["labels"]))["accuracy"]}

    @staticmethod
    def name(seed: int, way: str, number: int) -> str:
        return f"seed {seed}, {way}, {number} labels"

    def accuracies(self, seeds: Sequence[int], way: str, number: int) -> list[float]:
        """In percent, by seed."""
        return [100 * self.figures[self.name(seed, way, number)]["accuracy"] for seed in seeds]


SHARED = [
    *("per_device_train_batch_size", "gradient_accumulation_steps", "train_sampling_strategy", "warmup_steps"),
    *("learning_rate", "adam_beta1", "adam_beta2", "adam_epsilon", "weight_decay", "max_grad_norm"),
]
"""The training arguments of `recipes/minilm` that the three losses have too."""


def print_table(benchmark: Benchmark, seeds: Sequence[int], labels: Sequence[int]) -> None:
    rows = []
    for way in WAYS:
        made = [benchmark.figures[f"seed {seed}, {way}"] for seed in seeds]
        seconds = [own["steps"] * own.get("seconds per step", 0.0) for own in made]
        accuracies = [spread(benchmark.accuracies(seeds, way, number)) for number in labels]
        rows.append([way, f"{made[0]['steps']:.0f}", spread(seconds, ".0f"), *accuracies])
    for way in (THREE_LOSSES, NOTHING):
        pairs = [
            (benchmark.accuracies(seeds, RELATIONS, number), benchmark.accuracies(seeds, way, number))
            for number in labels
        ]
        gains = [spread([a - b for a, b in zip(*pair, strict=True)], "+.1f") for pair in pairs]
        rows.append([f"relations over {way}, seed by seed", "", "", *gains])
    head = benchmark.figures["teacher's new head"]
    print(
        f"\nHeld-out perplexity of the teacher's new head: {head['before']:,.0f}, after {head['steps']:.0f} steps "
        f"{head['perplexity']:,.0f}"
    )
    print(f"Accuracy in percent after fine-tuning, mean ± standard deviation of {len(seeds)} seeds\n")
    header = ["made on unlabelled text by", "steps", "seconds", *(f"{number:,} labels" for number in labels)]
    print(table(header, rows))


def run(
    model_folder: Path,
    text: Path,
    corpus: Corpus,
    output: Path,
    *,
    steps: int,
    head_steps: int,
    seeds: Sequence[int],
    labels: Sequence[int],
    is_cut: bool = False,
    more: Sequence[str] = (),
) -> dict[str, dict[str, float]]:
    """Runs the missing trainings, prints the table, and returns the figures.

    Args:
        model_folder: the teacher and its tokenizer.
        text: a file of texts without labels, one per line.
        corpus: labelled sentences to fine-tune and to test on.
        output: JSON file, which may already exist.
        steps: steps of the student that learns relations.
        head_steps: steps of the teacher's new head.
        seeds: random seeds.
        labels: numbers of labelled sentences.
        is_cut: whether the student has layers of the teacher instead of random weights.
        more: more options of the recipe, as on its command line.
    """
    benchmark = Benchmark(model_folder, text, corpus, output, steps, head_steps, is_cut, list(more))
    for seed in seeds:
        benchmark.run(seed, labels)
    print_table(benchmark, seeds, labels)
    return benchmark.figures


@explains_fetch_errors
def main() -> int:
    parser = make_parser("general_distillation", __doc__)
    parser.add_argument("--steps", type=int, default=220, help="steps of the student that learns relations")
    parser.add_argument("--head-steps", type=int, default=250, help="steps of the teacher's new head")
    parser.add_argument("--labels", type=int, nargs="+", default=[1000], help="labelled sentences")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--cut", action="store_true", help="cut the student from the teacher")
    add_fetched(parser)
    options = parser.parse_args()
    silence()
    model_folder, sentences = fetch(options.fetched)
    tweets = read_tweets(download(TWEETS, options.fetched / "downloads"))
    corpus = load_corpus(sentences)
    text = options.output.parent / options.output.stem / "corpus.txt"
    write_corpus(text, sentences, tweets, list(corpus.test["text"]))
    run(
        model_folder,
        text,
        corpus,
        options.output,
        steps=options.steps,
        head_steps=options.head_steps,
        seeds=options.seeds,
        labels=options.labels,
        is_cut=options.cut,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
