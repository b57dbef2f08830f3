"""`export_model`: from a student to what runs where it is served."""

import copy
import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.deployment.formats import FORMATS, export_formats
from hf_distill.deployment.heads import PREDICTION_HEADS
from hf_distill.deployment.manifest import Manifest
from hf_distill.deployment.parity import Parity, measure_parity
from hf_distill.deployment.parity_texts import QUESTIONS, TEXTS
from hf_distill.deployment.predictor import Predictor, load_predictor, predictor_of
from hf_distill.deployment.text_encoder import TextInput
from hf_distill.deployment.transformers_model import load_student
from hf_distill.hub.push import public_name
from hf_distill.version import __version__

logger = logging.getLogger(__name__)

PACKAGES = ["torch", "transformers", "onnx", "onnxscript", "onnxruntime", "torchao"]


LARGEST_DIFFERENCE = 1e-4
"""Between the logits of an exact export and those of the student, as a share of the largest logit if that is over 1."""


@dataclass(frozen=True)
class Export:
    """What `export_model` wrote.

    Attributes:
        folder: where it is.
        num_bytes: of the model's files.
        parity: what was measured beside the student.
    """

    folder: Path
    num_bytes: int
    parity: Parity


def export_model(
    student: str | Path | PreTrainedModel,
    output: str | Path,
    format: str = "onnx-int8",
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    texts: Sequence[TextInput] | None = None,
    max_length: int | None = None,
    min_agreement: float = 0.95,
) -> Export:
    """Writes a student as what runs without PyTorch, or in int8, and proves it beside the student.

    The folder has the model, the tokenizer, the config and `export.json`; `load_predictor(output)` loads it. Any number
    of texts of any length can be given to it. It gets its name once all of it is there and its parity was found good.

    Args:
        student: a folder or a name on the Hub, or a model at hand; with a head for sequence or token classification,
            question answering, masked or causal language modelling. It stays as it is; a copy in fp32 is exported.
        output: a folder that does not exist yet.
        format: `"onnx"` for ONNX in fp32; `"onnx-int8"` for the same with int8 weights and activations that are
            quantised as they come, by ONNX Runtime; `"torch-int8"` for a transformers model with the like by torchao.
        tokenizer: of a model at hand.
        texts: what parity is measured on: some dozens that are like those to come. By default prose in some languages.
        max_length: the tokens that are read of a text; by default as many as the tokenizer says, which are those that a
            classifier of `hf-distill train` was trained with, and as the model takes. Of longer texts it reads the part
            that it was trained on.
        min_agreement: for int8, the share of texts (or of tokens, for a head over tokens) on which the export has to
            decide as the student does. For `"onnx"` no logit may be off by more than 1e-4.

    Raises:
        TypeError: if `student` is something else.
        ValueError: if there is no such student, if it has another head or no fast tokenizer, if `output` exists, or if
            the export is not near enough to the student; then nothing is written.
        ImportError: without the packages of `hf_distill[onnx]` or, for `"torch-int8"`, `hf_distill[quant]`.

    Example:
        >>> export = export_model("outputs/student", "outputs/student-int8")
        >>> export.parity.agreement
        1.0
        >>> load_predictor("outputs/student-int8").predict(["A warm, funny film."])
        [{'label': 'positive', 'score': 0.98}]
    """
    output = Path(output)
    if format not in export_formats():
        raise ValueError(f"format={format!r} should be one of {', '.join(export_formats())}.")
    if output.exists():
        raise ValueError(f"{output} exists already: choose another folder, or remove it first.")
    logger.info("Loading %s", getattr(student, "name_or_path", student))
    predictor, model, tokenizer = _student(student, tokenizer, max_length)
    if texts is None:
        texts = _questions() if PREDICTION_HEADS[predictor.head].reads_pairs else TEXTS
    if not texts:
        raise ValueError("There are no texts to measure parity on: give some dozens, or leave texts out.")
    batches = [predictor.encoder.pad([encoding]) for encoding in predictor.encoder.encode(texts)]

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temporary:
        unfinished = Path(temporary, output.name)
        unfinished.mkdir()
        outputs = PREDICTION_HEADS[predictor.head].outputs
        write = FORMATS[format].write
        assert write is not None  # as for every name in export_formats()
        logger.info("Writing %s", format)
        write(model, predictor.encoder.inputs, outputs, unfinished, batches)
        files = {file.name: file.stat().st_size for file in sorted(unfinished.iterdir())}
        tokenizer.save_pretrained(unfinished)
        if "config.json" not in files:
            model.config.save_pretrained(unfinished)
        manifest = _manifest(predictor, format, files)
        manifest.write(unfinished)
        logger.info("Comparing the export with the student on %d texts", len(texts))
        parity = measure_parity(predictor, load_predictor(unfinished), texts)
        _check(parity, format, min_agreement)
        dataclasses.replace(manifest, parity=dataclasses.asdict(parity)).write(unfinished)
        unfinished.rename(output)
    return Export(output, sum(files.values()), parity)


def _student(
    student: str | Path | PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None, max_length: int | None
) -> tuple[Predictor, PreTrainedModel, PreTrainedTokenizerBase]:
    if isinstance(student, PreTrainedModel):
        if tokenizer is None:
            raise ValueError("A model at hand has no tokenizer with it: give tokenizer.")
        model, name = student, student.name_or_path
    elif not isinstance(student, str | Path):
        raise TypeError(
            f"A {type(student).__name__} cannot be exported: give a transformers model or where one is. Of one with "
            f"PEFT adapters, trainer.save_merged_model makes a plain one."
        )
    else:
        model, own_tokenizer = load_student(student)
        tokenizer, name = tokenizer or own_tokenizer, str(student)
    model = copy.deepcopy(model).float().cpu().eval()  # beside which an export in fp32 is exact
    return predictor_of(model, tokenizer, public_name(name), max_length), model, tokenizer


def _questions() -> list[TextInput]:
    return [(QUESTIONS[number % len(QUESTIONS)], text) for number, text in enumerate(TEXTS)]


def _manifest(student: Predictor, format: str, files: dict[str, int]) -> Manifest:
    return Manifest(
        format=format,
        head=student.head,
        student=student.name,
        inputs=student.encoder.inputs,
        outputs=PREDICTION_HEADS[student.head].outputs,
        labels=student.labels,
        problem_type=student.reader.problem_type,
        max_length=student.encoder.max_length,
        pad_token_id=student.encoder.pad_token_id,
        mask_token_id=student.reader.mask_token_id,
        num_parameters=student.num_parameters,
        opset=FORMATS[format].opset,
        versions={"hf_distill": __version__, **_versions()},
        files=files,
        truncation=student.encoder.truncation,
    )


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _check(parity: Parity, format: str, min_agreement: float) -> None:
    beside = (
        f"on {parity.texts} texts its logits are off by {parity.largest_difference:.2g} at most, of "
        f"{parity.largest_logit:.3g}, and it decides as the student does on {parity.agreement:.1%}"
    )
    allowed = LARGEST_DIFFERENCE * max(1.0, parity.largest_logit)
    if FORMATS[format].is_exact and not parity.largest_difference <= allowed:  # NaN is refused too
        raise ValueError(
            f"The export is not the student: {beside}, where {allowed:.2g} is allowed. Nothing was written. Is there "
            f"something in the model that depends on more than its inputs?"
        )
    if parity.agreement < min_agreement:
        raise ValueError(
            f"The export is not near enough to the student: {beside}, where {min_agreement:.1%} is asked for. Nothing "
            f"was written. Try texts of its own kind, allow less (min_agreement), or export in fp32 (onnx)."
        )
