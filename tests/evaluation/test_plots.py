"""Each plot shows its data, is written completely or not at all, and does not change matplotlib's state."""

import sys

import matplotlib
import pytest
from matplotlib.figure import Figure

from hf_distill import plot_calibration, plot_quality_against_latency, plot_training_curves

HISTORY = [
    {"loss": 3.0, "loss_kl": 0.5, "learning_rate": 1e-4, "step": 10},
    {"eval_loss": 2.5, "eval_loss_kl": 0.4, "eval_accuracy": 0.9, "eval_runtime": 1.0, "step": 10},
    {"loss": 2.0, "loss_kl": 0.3, "learning_rate": 0.0, "step": 20},
    {"eval_test_loss": 2.25, "step": 20},
    {"train_loss": 2.5, "train_runtime": 9.0, "step": 20},
]
PROBABILITIES = [[0.4, 0.6], [0.9, 0.1], [0.7, 0.3], [0.98, 0.02], [0.5, 0.5]]
LABELS = [1, 0, 1, 0, -100]
PLOTS = [
    (plot_training_curves, HISTORY),
    (plot_calibration, {"student": (PROBABILITIES, LABELS)}),
    (plot_quality_against_latency, {"teacher": (8.0, 0.84), "student": (4.0, 0.83)}),
]


@pytest.fixture
def figures(monkeypatch):
    """Collects the saved figures."""
    saved = []
    save = Figure.savefig
    monkeypatch.setattr(
        Figure, "savefig", lambda self, *args, **options: (saved.append(self), save(self, *args, **options))
    )
    return saved


def points_of(axes):
    """The points of each line in the legend."""
    return {line.get_label(): line.get_xydata().tolist() for line in axes.get_lines()}


def test_training_curves(tmp_path, figures):
    plot_training_curves(HISTORY, tmp_path / "losses.png")
    loss, loss_kl = figures[0].axes  # loss_task and loss_cos were not logged
    assert points_of(loss) == {"loss": [[10, 3], [20, 2]], "eval_loss": [[10, 2.5]], "eval_test_loss": [[20, 2.25]]}
    assert points_of(loss_kl) == {"loss_kl": [[10, 0.5], [20, 0.3]], "eval_loss_kl": [[10, 0.4]]}
    assert [axes.get_ylabel() for axes in (loss, loss_kl)] == ["loss", "loss_kl"]
    assert loss_kl.get_xlabel() == "step"


def test_gradient_norms(tmp_path, figures):
    norms = [{"step": 10, "grad_norm": 9, "grad_norm_kl": 2, "grad_norm_cos": 0}, {"step": 20, "grad_norm_cos": 0.1}]
    plot_training_curves([*HISTORY, *norms], tmp_path / "losses.png")
    axes = figures[0].axes[-1]
    assert points_of(axes) == {"grad_norm_kl": [[10, 2]], "grad_norm_cos": [[20, 0.1]]}
    assert (axes.get_ylabel(), axes.get_yscale(), axes.get_xlabel()) == ("gradient norm", "log", "step")


def test_calibration(tmp_path, figures):
    """Two bins: one row up to 0.5, with a label for only one model; and four rows above it, three of them correct."""
    models = {"teacher": (PROBABILITIES, [1, 0, 0, 0, 1]), "student": (PROBABILITIES, LABELS)}
    plot_calibration(models, tmp_path / "calibration.png", num_bins=2)
    teacher, student, teacher_rows, student_rows = figures[0].axes
    assert [axes.get_title() for axes in (teacher, student)] == ["teacher", "student"]
    # confidences 0.6, 0.9, 0.7, 0.98
    error = abs(0.75 - 3.18 / 4)
    assert f"accuracy, ECE {error:.3f}" in [text.get_text() for text in student.get_legend().get_texts()]
    (bar,) = student.patches
    assert (bar.get_x(), bar.get_width(), bar.get_height()) == (0.5, 0.5, 0.75)
    assert points_of(student)["at mean confidence"] == [pytest.approx([3.18 / 4, 0.75])]
    assert [bar.get_height() for bar in student_rows.patches] == [4]
    assert [(bar.get_x(), bar.get_height()) for bar in teacher_rows.patches] == [(0.0, 1), (0.5, 4)]
    assert [bar.get_height() for bar in teacher.patches] == [0, 1]


def test_quality_against_latency(tmp_path, figures):
    models = {"teacher": (8.0, 0.84), "student": (4.0, 0.83)}
    plot_quality_against_latency(models, tmp_path / "plot.png", quality="F1", latency="ms")
    (axes,) = figures[0].axes
    assert points_of(axes) == {name: [list(point)] for name, point in models.items()}
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("ms", "F1")
    (legend,) = figures[0].legends  # outside the axes, so that it hides no point
    assert [text.get_text() for text in legend.get_texts()] == ["teacher", "student"]
    low, high = axes.get_ylim()
    assert high - low == pytest.approx(0.084)  # a difference of 0.01 looks small
    assert not axes.containers


def test_error_bars(tmp_path, figures):
    """Only where a spread over several seeds is given."""
    models = {"teacher": (8.0, 0.84), "student": (4.0, 0.83)}
    plot_quality_against_latency(models, tmp_path / "plot.png", spread={"student": 0.01})
    (axes,) = figures[0].axes
    ((_, _, (bar,)),) = axes.containers
    assert bar.get_segments()[0][:, 1].tolist() == pytest.approx([0.82, 0.84])


@pytest.mark.parametrize(("plot", "shown"), PLOTS)
def test_file(plot, shown, tmp_path, monkeypatch):
    """A plot replaces the old file. If writing fails, the old file stays."""
    backend = matplotlib.get_backend(auto_select=False)
    file = tmp_path / "made" / "plot.png"
    plot(shown, str(file))
    first = file.read_bytes()
    assert first.startswith(b"\x89PNG")
    plot(shown, file)
    assert file.read_bytes() == first
    assert list(file.parent.iterdir()) == [file]
    assert matplotlib.get_backend(auto_select=False) == backend

    def fail(figure, unfinished, **options):
        unfinished.write_bytes(first[:100])
        raise OSError("the disk is full")

    plot(shown, file.with_suffix(".pdf"))
    assert file.with_suffix(".pdf").read_bytes().startswith(b"%PDF")
    monkeypatch.setattr(Figure, "savefig", fail)
    with pytest.raises(OSError, match="the disk is full"):
        plot(shown, file)
    assert file.read_bytes() == first


@pytest.mark.parametrize(("plot", "shown"), PLOTS)
@pytest.mark.parametrize("name", ["plot.txt", "plot"])
def test_unknown_suffix(plot, shown, name, tmp_path):
    with pytest.raises(ValueError, match=rf"{name}: the file name must end in \.png, \.pdf, \.svg"):
        plot(shown, tmp_path / name)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("plot", "shown", "message"),
    [
        (plot_training_curves, [], "No loss to plot in the 0 entries"),
        (plot_training_curves, HISTORY[-1:], "No loss to plot in the 1 entries"),
        (plot_calibration, {}, "models is empty"),
        (plot_calibration, {"student": ([[0.5, 0.5]], [-100])}, "No row has a label"),
        (plot_calibration, {"student": ([[2.0, 0.5]], [0])}, "student must be probabilities"),
        (plot_calibration, {"student": ([[0.5, 0.5]], [0, 1])}, r"labels must be one integer per row, \[1\]"),
        (plot_quality_against_latency, {}, "models is empty"),
    ],
)
def test_nothing_to_draw(plot, shown, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        plot(shown, tmp_path / "plot.png")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("plot", "shown"), PLOTS)
def test_without_matplotlib(plot, shown, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "matplotlib"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"matplotlib\S* is not installed: pip install 'hf_distill\[evaluation\]'"):
        plot(shown, tmp_path / "plot.png")
