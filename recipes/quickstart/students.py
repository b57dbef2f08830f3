"""Students that learn from labels, from a teacher, from both or from more text, trained with several seeds."""

import shutil
import statistics
from dataclasses import dataclass, field
from pathlib import Path

from datasets import Dataset, concatenate_datasets
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments

from hf_distill import (
    DistillationTrainer,
    DistillationTrainingArguments,
    classify_texts,
    export_model,
    make_student,
)
from recipes.quickstart.data import Corpus, load_corpus, tokenize
from recipes.quickstart.fetch import fetch
from recipes.quickstart.folders import check_free_space, only_run, write_json
from recipes.quickstart.job import NUM_COMPARED, quiet
from recipes.quickstart.measure import measure, quality
from recipes.quickstart.progress import Advance, Job
from recipes.quickstart.report import machine, plot, printable, table
from recipes.quickstart.train import (
    common_options,
    is_trained,
    load_pretrained,
    load_trained,
    run_training,
    settings_of,
    train_teacher,
    trained,
)

TEACHER_OPTIONS = {"learning_rate": 8e-5, "num_train_epochs": 2}
STUDENT_LEARNING_RATE = 1.5e-4
NUM_FEW_LABELS = 500


@dataclass(frozen=True)
class StudentRun:
    """What a student of half the teacher's layers learns from.

    Attributes:
        from_teacher: whether it is cut from the fine-tuned teacher and learns from it. Otherwise it is cut from the
            pretrained model and learns from the labels alone.
        labels: how many labels it reads, as the table shows it.
        num_sentences: how many training sentences it reads; None for all.
        more_text: whether it also reads the unlabelled sentences of other sources.
        options: for `DistillationTrainingArguments`, or without a teacher for `TrainingArguments`.
    """

    from_teacher: bool
    labels: str
    num_sentences: int | None = None
    more_text: bool = False
    options: dict[str, float] = field(default_factory=dict)


WITHOUT_LABELS = {"num_train_epochs": 2, "alpha_kl": 1.0, "alpha_task": 0.0, "alpha_cos": 0.0}
STUDENTS = {
    "student": StudentRun(from_teacher=True, labels="all", options={"num_train_epochs": 2}),
    "student-no-labels": StudentRun(from_teacher=True, labels="none", options=WITHOUT_LABELS),
    "student-no-labels-more-text": StudentRun(
        from_teacher=True,
        labels="none, more text",
        more_text=True,
        options=WITHOUT_LABELS | {"max_steps": 158},  # as many as two epochs of the 5,000 sentences
    ),
    "student-no-teacher": StudentRun(from_teacher=False, labels="all", options={"num_train_epochs": 2}),
    "student-no-teacher-few-labels": StudentRun(
        from_teacher=False, labels=str(NUM_FEW_LABELS), num_sentences=NUM_FEW_LABELS, options={"num_train_epochs": 6}
    ),
}
"""By the folder that each is saved in."""

STEPS = {"teacher": 40, **dict.fromkeys(STUDENTS, 30), "student-no-teacher-few-labels": 9, "measure": 40}
"""Seconds that each step takes on two cores; for the time left."""

MEGABYTES_PER_SEED = 600


def run(output: Path, seeds: list[int]) -> None:
    """Trains and measures the teacher and its students for each seed, and prints one table over all seeds."""
    quiet()
    with only_run(output.parent):
        if not (output / "report.json").exists():
            check_free_space(output.parent, MEGABYTES_PER_SEED * len(seeds))
        pretrained, sentences = fetch(output.parent / "quickstart-fetched")
        corpus = load_corpus(sentences)
        run_seeds(output, pretrained, corpus, seeds)


def run_seeds(output: Path, pretrained: Path, corpus: Corpus, seeds: list[int]) -> None:
    job = Job({f"seed {seed}, {name}": seconds for seed in seeds for name, seconds in STEPS.items()})
    with job.progress:
        results = [run_seed(seed, output / f"seed-{seed}", pretrained, corpus, job) for seed in seeds]
    write_json(output / "report.json", {"machine": machine(), "seeds": results})
    plot(output / "quality_against_latency.png", [result["models"] for result in results])
    spread = f"mean ± standard deviation over {len(seeds)} seeds" if len(seeds) > 1 else "one seed"
    print(printable(f"\nAccuracy and agreement in percent of {len(corpus.test):,} test sentences ({spread})\n"))
    print(printable(students_table(results)))
    print(f"\nModels, report.json and a plot are in {output}.")


def run_seed(seed: int, folder: Path, pretrained: Path, corpus: Corpus, job: Job) -> dict:
    """Trains what is missing, and measures the teacher and all students."""
    tokenizer = AutoTokenizer.from_pretrained(pretrained)
    train, unlabelled = tokenize(corpus.train, tokenizer), tokenize(corpus.unlabelled, tokenizer)
    with job.step(f"seed {seed}, teacher", f"Seed {seed}: teacher") as advance:
        teacher = trained_teacher(folder / "teacher", pretrained, train, tokenizer, seed, advance)
    for name, student in STUDENTS.items():
        rows = rows_of(student, train, unlabelled)
        options = {**common_options(seed), "learning_rate": STUDENT_LEARNING_RATE, **student.options}
        settings = settings_of(rows, options, teacher=TEACHER_OPTIONS if student.from_teacher else None)
        step = f"seed {seed}, {name}"
        if is_trained(folder / name, settings):
            job.skip(step)
            continue
        shutil.rmtree(folder / f"{name}-int8", ignore_errors=True)  # the export of another student
        with job.step(step, f"Seed {seed}: {name}") as advance:
            train_one(student, folder / name, pretrained, teacher, rows, tokenizer, settings, advance)
    with job.step(f"seed {seed}, measure", f"Seed {seed}: measuring") as advance:
        return {"seed": seed, **measure_seed(folder, teacher, tokenizer, corpus, advance)}


def trained_teacher(
    folder: Path,
    pretrained: Path,
    train: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    seed: int,
    advance: Advance = lambda share: None,
) -> PreTrainedModel:
    """The pretrained model fine-tuned on all labels; read from `folder` if it is already there."""
    settings = settings_of(train, common_options(seed) | TEACHER_OPTIONS)
    if not is_trained(folder, settings):
        train_teacher(folder, pretrained, train, tokenizer, settings, advance)
    return load_trained(folder)


def rows_of(student: StudentRun, train: Dataset, unlabelled: Dataset) -> Dataset:
    if student.num_sentences is not None:
        train = train.select(range(student.num_sentences))
    if student.options.get("alpha_task") == 0:
        train = train.remove_columns("labels")
    return concatenate_datasets([train, unlabelled]) if student.more_text else train


def train_one(
    student: StudentRun,
    folder: Path,
    pretrained: Path,
    teacher: PreTrainedModel,
    rows: Dataset,
    tokenizer: PreTrainedTokenizerBase,
    settings: dict,
    advance: Advance,
) -> None:
    """Trains one student, with the teacher reading along if it has one."""
    data = {"train_dataset": rows, "processing_class": tokenizer}
    with trained(folder, settings) as unfinished:
        if student.from_teacher:
            args = DistillationTrainingArguments(str(unfinished), **settings["options"])
            trainer = DistillationTrainer(model=make_student(teacher), teacher_model=teacher, args=args, **data)
        else:
            args = TrainingArguments(str(unfinished), **settings["options"])
            trainer = Trainer(model=make_student(load_pretrained(pretrained)), args=args, **data)
        run_training(trainer, advance)


def measure_seed(
    folder: Path, teacher: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, corpus: Corpus, advance: Advance
) -> dict:
    """Quality of all students; size and speed of teacher, student and int8 student."""
    texts, labels = list(corpus.test["text"]), list(corpus.test["labels"])
    logits = classify_texts(teacher, tokenizer, texts)
    qualities = {}
    for name in STUDENTS:
        own = classify_texts(load_trained(folder / name), tokenizer, texts)
        qualities[name] = quality(own, labels, logits)
    int8 = folder / "student-int8"
    if not int8.exists():
        export_model(folder / "student", int8, texts=list(corpus.train["text"][:NUM_COMPARED]))
    models = {"teacher": folder / "teacher", "student": folder / "student", "int8": int8}
    return {"models": measure(models, texts, labels, advance), "students": qualities}


def students_table(results: list[dict]) -> str:
    """What each student learned from and how good it is: over several seeds, the mean and the standard deviation."""
    rows = [["teacher", "", "all", *_qualities([result["models"]["teacher"] for result in results])]]
    for name, student in STUDENTS.items():
        learned_from = "teacher" if student.from_teacher else "no teacher"
        measured = [result["students"][name] for result in results]
        rows.append(["student", learned_from, student.labels, *_qualities(measured)])
    return table(["", "learns from", "labels", "accuracy", "agreement"], rows)


def _qualities(measured: list[dict[str, float]]) -> list[str]:
    cells = []
    for name in ("accuracy", "agreement"):
        values = [100 * one[name] for one in measured]
        spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
        cells.append(f"{statistics.mean(values):.1f}{spread}")
    return cells
