"""`hf-distill report`: a student and its exports beside the teacher, on one page."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from hf_distill.data import load_labelled_texts
from hf_distill.deployment.heads import head_of_class
from hf_distill.deployment.manifest import is_export, read_manifest
from hf_distill.deployment.predictor import load_predictor
from hf_distill.evaluation.benchmark import NUM_TEXTS, Json, benchmark_models, locate_model
from hf_distill.evaluation.optional import optional
from hf_distill.evaluation.plots import plot_calibration, plot_quality_against_latency
from hf_distill.evaluation.report import (
    PUBLISHED,
    STUDENT,
    TEACHER,
    compare_with_teacher,
    comparison_table,
    eval_results,
    largest_differences,
    latency_length,
    report_page,
)
from hf_distill.files import write_json, write_whole
from hf_distill.hub.cards import around_results, put_results
from hf_distill.loading import load_config
from hf_distill.tasks.data import columns_by_name, data_columns, label_names_of


def write_report(
    teacher: str | Path,
    student: str | Path,
    data: str | Path,
    output: str | Path,
    *,
    exports: Sequence[str | Path] = (),
    text_column: str | None = None,
    label_column: str | None = None,
    split: str = "test",
    config_name: str | None = None,
    card: str | Path | None = None,
    num_examples: int = 10,
    lengths: Sequence[int] | None = None,
    threads: int | None = None,
    rounds: int = 10,
) -> Json:
    """Compares a classifier with its teacher, and its exports with both.

    - Quality: accuracy, F1, Matthews correlation and calibration error, and which share of the teacher's is retained.
    - Fidelity: on how many texts a model says what the teacher says, how far its probabilities are from the teacher's
      (KL), and the texts on which student and teacher part most.
    - Size and speed: `benchmark_models`, on texts of the data.

    Each model reads of a text what it was trained to read, or as much as it has room for, through `load_predictor`.

    Args:
        teacher: a folder or a name on the Hub; a classifier with one label per text.
        student: the same, with the same classes, in another order maybe.
        data: labelled texts, as in `load_labelled_texts`; the labels are the teacher's, by name or by number.
        output: a folder for `report.md`, `report.json`, `calibration.png` and `quality_against_latency.png`.
        exports: folders that `export_model` wrote; each is called as its folder.
        text_column: the column with the texts; by default the one that the student was trained on, if `hf-distill
            train` trained it, else the teacher, else `text`.
        label_column: the column with the labels, by default likewise, or `label`.
        split: of a data set on the Hub.
        config_name: of a data set on the Hub.
        card: the student's `README.md`, to put the comparison into, in the place of the results that are there; and, if
            the data is on the Hub, the student's metrics into its metadata. By default no card is changed.
        num_examples: how many texts are shown.
        lengths: as in `benchmark_models`, as are the next two.
        threads: of a forward.
        rounds: how many are counted.

    Returns:
        What is in `report.json`: `data`; by model what was measured; `examples`; `published`, what is known of others;
        `settings`, `machine` and `versions`. Of local files and folders, only their own names.

    Raises:
        ValueError: if a model is no classifier with one label per text or has other classes, if there are no texts, if
            two exports are called the same, or if the card has no place for results.
        ImportError: without scikit-learn or matplotlib, or without what an export needs.

    Example:
        >>> report = write_report("outputs/teacher", "outputs/student", "test.csv", "report", exports=["outputs/int8"])
        >>> report["models"]["student"]["retained"]["accuracy"]
    """
    for module in ("sklearn.metrics", "matplotlib.figure"):
        optional(module)  # what is missing is said before the work
    output = Path(output)
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output} is a file: give a folder, which need not exist.")
    if num_examples < 0:
        raise ValueError(f"num_examples={num_examples} should be 0 or more.")
    if card is not None:
        around_results(Path(card))
    models = _by_name(teacher, student, exports)
    labels_of = {name: _labels_of_classifier(model) for name, model in models.items()}
    label_names = labels_of[TEACHER]
    columns = {name: columns_by_name(own, label_names, str(models[name])) for name, own in labels_of.items()}
    text_column, label_column = data_columns([load_config(student), load_config(teacher)], text_column, label_column)
    rows, _ = load_labelled_texts(data, text_column, label_column, label_names, split, config_name)
    texts, labels = list(rows["text"]), list(rows["labels"])
    predictors = {name: load_predictor(*locate_model(model)) for name, model in models.items()}
    predictors[TEACHER].encoder.encode(texts)  # what is wrong with one is said before the work

    measured = benchmark_models(models, lengths=lengths, texts=_spread(texts), threads=threads, rounds=rounds)
    logits = {name: own.logits(texts)[:, columns[name]] for name, own in predictors.items()}
    compared = compare_with_teacher(logits, labels)
    is_on_hub = not Path(data).exists()
    report = {
        "data": {
            "source": _own_name(data),
            "is_on_hub": is_on_hub,
            "config_name": config_name,
            "split": None if Path(data).is_file() else split,
            "text_column": text_column,
            "label_column": label_column,
            "texts": len(texts),
            "labels": label_names,
        },
        "models": {
            name: {
                "model": _own_name(model),
                "max_length": predictors[name].encoder.max_length,
                "truncation": predictors[name].encoder.truncation,
                **compared[name],
                "size_and_speed": measured.models[name],
            }
            for name, model in models.items()
        },
        "examples": largest_differences(logits, labels, texts, label_names, num_examples),
        "published": PUBLISHED,
        "settings": measured.settings,
        "machine": measured.machine,
        "versions": measured.versions,
    }
    output.mkdir(parents=True, exist_ok=True)
    _plot(report, logits, labels, output)
    write_json(output / "report.json", report, ensure_ascii=False)
    write_whole(output / "report.md", report_page(report))
    if card is not None:
        put_results(card, comparison_table(report), eval_results(report) or None)
    return report


def _own_name(name_or_path: str | Path) -> str:
    """A name on the Hub as it is; of what is here, only its own name, since reports are given away."""
    path = Path(name_or_path)
    return path.absolute().name if path.exists() else str(name_or_path)


def _by_name(teacher: str | Path, student: str | Path, exports: Sequence[str | Path]) -> dict[str, str | Path]:
    names = [TEACHER, STUDENT, *(_own_name(export) for export in exports)]
    if len(set(names)) < len(names):
        raise ValueError(
            f"Two models would be called the same ({', '.join(names)}): exports are called as their folders, so rename "
            f"one."
        )
    return dict(zip(names, [teacher, student, *exports], strict=True))


def _labels_of_classifier(model: str | Path) -> list[str]:
    """The classes of a model or an export, by number, of which the weights are not read yet."""
    if is_export(Path(model)):
        manifest = read_manifest(Path(model))
        head, labels, problem = manifest.head, manifest.labels, manifest.problem_type
    else:
        config = load_config(model)
        head = head_of_class((config.architectures or ["A model whose config names no class"])[0])
        labels = label_names_of(config)
        problem = config.problem_type or ("regression" if config.num_labels == 1 else None)
    if head != "sequence classification" or problem not in (None, "single_label_classification"):
        what = problem.replace("_", " ") if head == "sequence classification" else head
        raise ValueError(f"{model} is for {what}: a report is of classifiers with one label per text.")
    return labels


def _spread(texts: Sequence[str]) -> list[str]:
    """Some from all over the data, which may be sorted by class."""
    return list(texts[:: max(1, len(texts) // NUM_TEXTS)][:NUM_TEXTS])


def _plot(report: Json, logits: Mapping[str, object], labels: Sequence[int], output: Path) -> None:
    probabilities = {name: torch.from_numpy(own).double().softmax(-1) for name, own in logits.items()}
    plot_calibration({name: (own, labels) for name, own in probabilities.items()}, output / "calibration.png")
    length = latency_length(report)
    points = {
        name: (own["size_and_speed"]["latency"][length]["p50"], own["quality"]["accuracy"])
        for name, own in report["models"].items()
    }
    plot_quality_against_latency(
        points, output / "quality_against_latency.png", "accuracy", f"milliseconds for one text of {length} tokens"
    )
