"""Plots of training curves, calibration, and quality against latency."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from numpy.typing import ArrayLike

from hf_distill.evaluation.classification import NUM_BINS, as_probabilities, calibration, labelled_rows
from hf_distill.optional import optional

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LOSSES = ("loss", "loss_kl", "loss_task", "loss_cos")
SUFFIXES = (".png", ".pdf", ".svg")
MARKERS = "osD^v<>pPX"


def plot_training_curves(log_history: Sequence[Mapping[str, float]], file: str | Path) -> None:
    """Plots the training and evaluation losses over the steps.

    The losses are `loss`, `loss_kl`, `loss_task` and `loss_cos`, and `eval_loss` and so on for evaluations. A loss that
    was not logged is left out. The gradient norms of `log_gradient_norms` share one more plot.

    Args:
        log_history: `trainer.state.log_history`, or the entry of that name in `trainer_state.json`.
        file: output file, such as `losses.png`. It is written completely or not at all.

    Raises:
        ValueError: if no loss was logged, or if the file name does not end in .png, .pdf or .svg.
        ImportError: if matplotlib is missing.

    Example:
        >>> plot_training_curves(trainer.state.log_history, "losses.png")
    """
    curves = {loss: found for loss in LOSSES if (found := _curves(log_history, loss))}
    if not curves:
        raise ValueError(
            f"No loss to plot in the {len(log_history)} entries of the log history: train with logging_steps smaller "
            f"than the number of steps."
        )
    if norms := _gradient_norms(log_history):
        curves["gradient norm"] = norms
    figure = new_figure(file, width=7, height=1.2 + 1.8 * len(curves))
    for row, (axes, (loss, series)) in enumerate(
        zip(figure.subplots(len(curves), sharex=True, squeeze=False).flat, curves.items(), strict=True)
    ):
        for name, points in series.items():
            steps, values = zip(*points, strict=True)
            axes.plot(steps, values, marker="." if name != loss or len(points) == 1 else None, label=name)
        axes.set_ylabel(loss)
        if loss == "gradient norm":
            axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(loc="upper right", fontsize="small")
        if row == len(curves) - 1:
            axes.set_xlabel("step")
    save_figure(figure, file)


def _curves(log_history: Sequence[Mapping[str, float]], loss: str) -> dict[str, list[tuple[float, float]]]:
    """Steps and values of a loss by series: its training curve and the evaluations whose name ends in the loss."""
    found: dict[str, list[tuple[float, float]]] = {}
    for entry in log_history:
        for name, value in entry.items():
            if name == loss or (name.startswith("eval_") and name.endswith(f"_{loss}")):
                found.setdefault(name, []).append((entry["step"], value))
    return found


def _gradient_norms(log_history: Sequence[Mapping[str, float]]) -> dict[str, list[tuple[float, float]]]:
    """Steps and values of the gradient norm of each loss, without zeros, which a logarithmic axis cannot show."""
    found: dict[str, list[tuple[float, float]]] = {}
    for entry in log_history:
        for name, value in entry.items():
            if name.startswith("grad_norm_") and value > 0:
                found.setdefault(name, []).append((entry["step"], value))
    return found


def plot_calibration(
    models: Mapping[str, tuple[ArrayLike, ArrayLike]], file: str | Path, num_bins: int = NUM_BINS
) -> None:
    """Plots reliability diagrams, one per model, side by side.

    Each diagram shows the accuracy in each bin of confidence, and below it the number of rows in the bin. Bars below
    the diagonal mean that the model is overconfident.

    Reference: Guo et al., 2017, https://arxiv.org/abs/1706.04599, figure 1.

    Args:
        models: by name, probabilities `[rows, classes]` and labels `[rows]`; rows with label -100 are left out.
        file: output file, such as `calibration.png`. It is written completely or not at all.
        num_bins: number of equal bins of confidence.

    Raises:
        ValueError: if there are no models or no rows, if shapes do not match, if rows are not probabilities, or if the
            file name does not end in .png, .pdf or .svg.
        ImportError: if matplotlib is missing.

    Example:
        >>> teacher, student = teacher_logits.softmax(-1), student_logits.softmax(-1)
        >>> plot_calibration({"teacher": (teacher, labels), "student": (student, labels)}, "calibration.png")
    """
    if not models:
        raise ValueError("models is empty: give at least one name with its probabilities and labels.")
    measured = {
        name: calibration(*labelled_rows(as_probabilities(probabilities, name), labels), num_bins)
        for name, (probabilities, labels) in models.items()
    }
    figure = new_figure(file, width=1 + 3.5 * len(models), height=5)
    both = figure.subplots(2, len(models), sharex=True, sharey="row", squeeze=False, height_ratios=[3, 1])
    width = 1 / num_bins
    for (above, below), (name, own) in zip(both.T, measured.items(), strict=True):
        num_rows, confidence, accuracy = own.num_rows.numpy(), own.confidence.numpy(), own.accuracy.numpy()
        filled = num_rows.nonzero()[0]
        centres = (filled + 0.5) * width
        above.plot([0, 1], [0, 1], color="grey", linestyle="--", linewidth=1, label="perfect calibration")
        above.bar(centres, accuracy[filled], width, edgecolor="white", label=f"accuracy, ECE {own.error:.3f}")
        above.plot(confidence[filled], accuracy[filled], "k.", markersize=4, label="at mean confidence")
        above.set(title=name, xlim=(0, 1), ylim=(0, 1))
        above.legend(loc="upper left", fontsize="small")
        below.bar(centres, num_rows[filled], width, edgecolor="white", color="C1")
        below.set(xlabel="confidence", yscale="log")
        for axes in (above, below):
            axes.grid(alpha=0.3)
    both[0, 0].set_ylabel("accuracy")
    both[1, 0].set(ylabel="rows", ylim=(0.5, None))  # keeps the bar of a single row visible
    save_figure(figure, file)


def plot_quality_against_latency(
    models: Mapping[str, tuple[float, float]],
    file: str | Path,
    quality: str = "accuracy",
    latency: str = "milliseconds",
    spread: Mapping[str, float] | None = None,
) -> None:
    """Plots one point per model: quality over latency. The best models are at the top left.

    The vertical axis covers at least a tenth of the best quality, so that small differences look small.

    Args:
        models: by name, latency in milliseconds and quality.
        file: output file, such as `quality_against_latency.png`. It is written completely or not at all.
        quality: the label of the vertical axis.
        latency: the label of the horizontal axis.
        spread: by name, the standard deviation of the quality over several seeds, drawn as an error bar.

    Raises:
        ValueError: if there are no models, or if the file name does not end in .png, .pdf or .svg.
        ImportError: if matplotlib is missing.

    Example:
        >>> plot_quality_against_latency({"teacher": (8.1, 0.84), "student": (4.8, 0.83)}, "student.png")
    """
    if not models:
        raise ValueError("models is empty: give at least one name with its latency and quality.")
    figure = new_figure(file, width=7, height=4.5)
    axes = figure.subplots()
    for index, (name, point) in enumerate(models.items()):
        # Hollow markers of different shapes stay visible where points overlap.
        marker, color = MARKERS[index % len(MARKERS)], f"C{index}"
        axes.plot(*point, marker, color=color, markerfacecolor="none", markersize=9, markeredgewidth=2, label=name)
        if spread and name in spread:
            axes.errorbar(*point, yerr=spread[name], color=color, capsize=4)
    latencies, qualities = zip(*models.values(), strict=True)
    middle = (min(qualities) + max(qualities)) / 2
    half = max(0.05 * max(map(abs, qualities)), 0.75 * (max(qualities) - min(qualities)))
    axes.set(xlim=(0, 1.15 * max(latencies)), ylim=(middle - half, middle + half) if half else None)
    axes.set(xlabel=latency, ylabel=quality, title="Better models are further up and to the left")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=min(3, len(models)))  # below the axes, where no point is
    save_figure(figure, file)


def new_figure(file: str | Path, width: float, height: float) -> "Figure":
    """A figure with a size in inches. Does not use pyplot, which would choose a backend for the whole process."""
    if Path(file).suffix not in SUFFIXES:
        raise ValueError(f"Cannot write a plot to {file}: the file name must end in {', '.join(SUFFIXES)}.")
    return optional("matplotlib.figure", "evaluation").Figure(figsize=(width, height), dpi=120, layout="constrained")


def save_figure(figure: "Figure", file: str | Path) -> None:
    file = Path(file)
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".unfinished")
    figure.savefig(unfinished, format=file.suffix.removeprefix("."))
    unfinished.replace(file)
