"""Cuts at the start of stages: a stage with `cut` makes the student of the stage before smaller, then trains it."""

from collections.abc import Callable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedModel

from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.student import make_student
from hf_distill.student.layer_selection import ON_DATA
from hf_distill.student.width.importance import WITH_LABELS, WITHOUT_DATA
from hf_distill.student.width.narrowing import check_width
from hf_distill.student.width.sizes import KINDS
from hf_distill.training.checkpoints.stages import Stage, errors_of
from hf_distill.training.scoring.groups import as_pairs

CUT = "cut"
OPTIONS = ("num_layers", "layers", *KINDS, "width")
"""The arguments of `make_student` that a cut may have."""

NUM_TEXTS, BATCH_SIZE = 256, 32
"""Training texts for choices that need data."""

Cut = Mapping[str, Any]


def split_cuts(
    stages: Sequence[Mapping[str, Any]] | None,
) -> tuple[Sequence[Mapping[str, Any]] | None, list[Cut | None]]:
    """Separates the cuts of stages from their training arguments.

    Args:
        stages: stages as in `make_stages`, each with `cut` or without. None for a training without stages.

    Returns:
        The stages without `cut`, for `make_stages`; and the cut of each stage, None if it has none.

    Raises:
        ValueError: if a cut is not a mapping, has an unknown option or `width`, or has a `width` without a size.
    """
    if stages is None:
        return None, [None]
    if not isinstance(stages, Sequence) or not all(isinstance(stage, Mapping) for stage in stages):
        return stages, []  # `make_stages` says what is wrong
    cuts = [stage.get(CUT) for stage in stages]
    for stage, cut in zip(stages, cuts, strict=True):
        if cut is not None:
            _check(cut, stage.get("name"))
    return [{name: value for name, value in stage.items() if name != CUT} for stage in stages], cuts


def _check(cut: object, stage: object) -> None:
    if not isinstance(cut, Mapping) or not cut:
        raise ValueError(f"Stage {stage!r}: cut={cut!r} must map options to values, such as {{num_layers: 3}}.")
    for name in cut:
        if name not in OPTIONS:
            near = get_close_matches(str(name), OPTIONS, n=1)
            meant = f" Did you mean {near[0]}?" if near else ""
            raise ValueError(f"Stage {stage!r}: cut has no option {name}.{meant} It may have {', '.join(OPTIONS)}.")
    with errors_of(str(stage)):
        check_width(cut.get("width", WITHOUT_DATA), (), is_narrower=any(size in cut for size in KINDS))


def cut_student(model: PreTrainedModel, cut: Cut, rows: Dataset, collate: Callable, is_first: bool) -> PreTrainedModel:
    """Makes the student of a stage.

    Args:
        model: the student of the stage before, or the model that the first stage starts with.
        cut: arguments of `make_student`.
        rows: encoded training rows. Choices that need data are made on 256 of them.
        collate: the collator for those rows.
        is_first: whether `model` is what the first stage starts with. Otherwise the config of the student records its
            origin as if all cuts had been one.
    """
    student = make_student(model, **cut, calibration_data=_batches(cut, rows, collate))
    if not is_first and getattr(model.config, "distilled_from", None):
        student.config.distilled_from = _as_one(model.config.distilled_from, student.config.distilled_from)
    return student


def try_cut(model: PreTrainedModel, cut: Cut) -> PreTrainedModel:
    """Makes a student of the sizes of a cut, without data: an error if the sizes do not fit."""
    of_data = {"width"} | ({"layers"} if _is_on_data(cut.get("layers")) else set())
    return make_student(model, **{name: value for name, value in cut.items() if name not in of_data})


def check_widths(stages: Sequence[Stage], cuts: Sequence[Cut | None]) -> None:
    """Raises an error if a stage compares hidden states of the teacher and of a student that an earlier cut narrows."""
    is_narrower = False
    for stage, cut in zip(stages, cuts, strict=True):
        is_narrower = is_narrower or "hidden_size" in (cut or {})
        if is_narrower and stage.args.alpha_cos and not stage.args.project_hidden_states:
            raise ValueError(
                f"Stage {stage.name!r}: alpha_cos={stage.args.alpha_cos} compares hidden states of the same width, but "
                f"a cut has hidden_size: set project_hidden_states=True or alpha_cos=0."
            )


def try_later_cuts(model: PreTrainedModel, cuts: Sequence[tuple[str | None, Cut | None]]) -> None:
    """Raises an error if the sizes of a later stage do not fit, rather than after hours of training."""
    for name, cut in cuts:
        if cut is not None:
            with errors_of(name):
                model = try_cut(model, cut)


def _is_on_data(layers: object) -> bool:
    return any(which in ON_DATA for which in (layers.values() if isinstance(layers, Mapping) else [layers]))


def _batches(cut: Cut, rows: Dataset, collate: Callable) -> list[dict[str, torch.Tensor]] | None:
    """Batches of training rows, evenly spaced; None if the cut needs no data."""
    width = cut.get("width", WITHOUT_DATA)
    if width == WITHOUT_DATA and not _is_on_data(cut.get("layers")):
        return None
    rows = rows.select_columns([name for name in rows.column_names if not name.startswith("teacher_")])
    if width == WITH_LABELS:
        labels = rows["labels"] if "labels" in rows.column_names else []
        rows = rows.select([index for index, label in enumerate(labels) if label != IGNORE_INDEX])
        if not len(rows):
            raise ValueError(
                f"width={WITH_LABELS!r} needs labelled training texts: give train_file, or width='activation'."
            )
    rows = rows.select(range(0, len(rows), max(1, len(rows) // NUM_TEXTS))).take(NUM_TEXTS)
    parts = (list(rows.skip(start).take(BATCH_SIZE)) for start in range(0, len(rows), BATCH_SIZE))
    return [as_pairs(collate(part)) for part in parts]


def _as_one(earlier: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Any]:
    """What the student's config records of its origin: of two cuts, as if they had been one."""
    layers = last["layers"]
    if isinstance(layers, Mapping):
        layers = {stack: [earlier["layers"][stack][index] for index in own] for stack, own in layers.items()}
    else:
        layers = [earlier["layers"][index] for index in layers]
    sizes = {**earlier.get("sizes", {})}
    for axis, own in last.get("sizes", {}).items():
        sizes[axis] = {"student": own["student"], "teacher": sizes.get(axis, own)["teacher"]}
    one = {**last, **{name: earlier[name] for name in ("teacher", "revision", "num_teacher_layers")}, "layers": layers}
    return one | ({"sizes": sizes, "width": last.get("width", earlier.get("width"))} if sizes else {})
