"""`export_model`: exports a student to ONNX or int8."""

import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel

from hf_distill.copies import plain_copy
from hf_distill.data.image_processors import preprocessing_of
from hf_distill.deployment.embeddings import EMBEDDING
from hf_distill.deployment.formats import FORMATS, export_formats
from hf_distill.deployment.heads import PREDICTION_HEADS
from hf_distill.deployment.image_encoder import ImageEncoder
from hf_distill.deployment.manifest import Manifest
from hf_distill.deployment.parity import MIN_COSINE, Parity, measure_parity
from hf_distill.deployment.parity_inputs import built_in_inputs
from hf_distill.deployment.parity_texts import with_questions
from hf_distill.deployment.predictor import Predictor, load_predictor, predictor_of
from hf_distill.deployment.sound_encoder import SoundEncoder
from hf_distill.deployment.text_encoder import windows_of
from hf_distill.deployment.transformers_model import load_student
from hf_distill.embedding import EmbeddingModel, as_embedding_model
from hf_distill.hub.push import public_name
from hf_distill.images import Preprocessing
from hf_distill.sounds import Waveform
from hf_distill.version import __version__

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from transformers import BaseImageProcessor, PreTrainedTokenizerBase

logger = logging.getLogger(__name__)

PACKAGES = ["torch", "transformers", "onnx", "onnxscript", "onnxruntime", "torchao"]


LARGEST_DIFFERENCE = 1e-4
"""Allowed difference between the logits of a fp32 export and of the student, times the largest logit if above 1."""

LARGEST_DIFFERENCE_OF_VECTORS = 1e-5
"""The same for the values of vectors of length 1."""


@dataclass(frozen=True)
class Export:
    """The result of `export_model`.

    Attributes:
        folder: folder of the export.
        num_bytes: size of the model's files in bytes.
        parity: comparison with the student: `texts`, `decisions`, `largest_difference`, `largest_logit`, `agreement`,
            and for an embedding model `lowest_cosine`.

    Example:
        >>> export = export_model("outputs/student", "outputs/student-int8")
        >>> export.num_bytes, export.parity.agreement
    """

    folder: Path
    num_bytes: int
    parity: Parity


def export_model(
    student: "str | Path | PreTrainedModel | SentenceTransformer",
    output: str | Path,
    format: str = "onnx-int8",
    *,
    tokenizer: "PreTrainedTokenizerBase | BaseImageProcessor | None" = None,
    texts: Sequence[Any] | None = None,
    max_length: int | None = None,
    min_agreement: float = 0.95,
    min_cosine: float = MIN_COSINE,
) -> Export:
    """Exports a student to ONNX or int8, and checks the export against the student before saving it.

    The folder contains the model, the tokenizer, the config and `export.json`. Load it with `load_predictor(output)`.
    The export accepts any number of texts of any length. The folder appears only when it is complete and the check has
    passed.

    Args:
        student: a folder, a Hub name, or a loaded model, with a head for sequence or token classification, question
            answering, masked or causal language modelling, or image or audio classification; or an embedding model,
            with its pooling and the modules after it. It does not change; a copy in fp32 is exported. A
            sequence-to-sequence model can only be exported to `"torch-int8"`, and a model for speech recognition not
            at all.
        output: a folder that does not exist yet.
        format: `"onnx"` for ONNX in fp32; `"onnx-int8"` for ONNX with int8 weights and dynamically quantized int8
            activations (ONNX Runtime); `"torch-int8"` for a transformers model quantized the same way (torchao).
        tokenizer: tokenizer or image processor of a loaded model. An embedding model has its own.
        texts: texts on which export and student are compared, a few dozen that resemble the real ones, or pairs of
            texts. Default: built-in prose in several languages; pairs of a question and that prose for a model that
            reads pairs, as its config records. For an image classifier, images as in `Predictor.predict`; by default
            drawn ones.
        max_length: tokens per text. Default: the tokenizer's `model_max_length` (the training length, for models of
            `hf-distill train`), at most what the model accepts. Longer texts are truncated as in training.
        min_agreement: for int8, the share of texts (or of tokens, for a head over tokens) on which the export must
            make the same decision as the student. For `"onnx"`, no logit may differ by more than 1e-4, times the
            largest logit if that is above 1.
        min_cosine: for an embedding model in int8, the lowest cosine between a vector of the export and that of the
            student. For `"onnx"`, no value of a vector of length 1 may differ by more than 1e-5.

    Returns:
        The folder, its size and the comparison with the student.

    Raises:
        TypeError: if `student` is neither a transformers model nor the name of one.
        ValueError: if the student does not exist, has another head or no fast tokenizer; if `output` exists; or if the
            export differs too much from the student, in which case nothing is written; or if an export cannot prepare
            images as the image processor does.
        ImportError: if the packages of `hf_distill[onnx]` or, for `"torch-int8"`, `hf_distill[quant]` are missing.

    Example:
        >>> export = export_model("outputs/student", "outputs/student-int8")
        >>> export.parity.agreement
        1.0
        >>> load_predictor("outputs/student-int8").predict(["A warm, funny film."])
        [{'label': 'positive', 'score': 0.98}]
    """
    output = Path(output)
    if format not in export_formats():
        raise ValueError(f"format={format!r} must be one of {', '.join(export_formats())}.")
    if output.exists():
        raise ValueError(f"{output} already exists: choose another folder, or remove it first.")
    logger.info("Loading %s", getattr(student, "name_or_path", student))
    predictor, model, tokenizer = _student(student, tokenizer, max_length)
    if PREDICTION_HEADS[predictor.head].generates and not FORMATS[format].generates:
        raise ValueError(
            f"{type(model).__name__} generates text, and such models are not exported to {format}: use "
            f"format='torch-int8', or the model itself, which load_predictor and the service read."
        )
    if texts is None:
        texts = built_in_inputs(predictor.reads)
    elif predictor.head == "question answering":
        texts = with_questions(texts)
    if predictor.reads == "text":
        predictor.reads_pairs = not all(isinstance(text, str) for text in texts)
    if not texts:
        raise ValueError("texts is empty: give a few dozen texts, or leave the argument out for the built-in ones.")
    batches = [predictor.encoder.pad([own]) for own in windows_of(predictor.encoder.encode(texts))]

    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}-", dir=output.parent) as temporary:
        unfinished = Path(temporary, output.name)
        unfinished.mkdir()
        outputs = PREDICTION_HEADS[predictor.head].outputs
        write = FORMATS[format].write
        assert write is not None  # true for every name in export_formats()
        logger.info("Writing %s", format)
        write(model, predictor.encoder.inputs, outputs, unfinished, batches)
        written = sorted(file for file in unfinished.rglob("*") if file.is_file())
        of_tokenizer = {Path(file) for file in tokenizer.save_pretrained(unfinished)}
        files = {
            file.relative_to(unfinished).as_posix(): file.stat().st_size for file in written if file not in of_tokenizer
        }
        if "config.json" not in files:
            model.config.save_pretrained(unfinished)
        manifest = _manifest(predictor, format, files)
        manifest.write(unfinished)
        logger.info("Comparing the export with the student on %d texts", len(texts))
        parity = measure_parity(predictor, load_predictor(unfinished), texts)
        if predictor.head == EMBEDDING:
            _check_vectors(parity, format, min_cosine)
        else:
            _check(parity, format, min_agreement)
        dataclasses.replace(manifest, parity=dataclasses.asdict(parity)).write(unfinished)
        unfinished.rename(output)
    return Export(output, sum(files.values()), parity)


def _student(student: Any, tokenizer: Any, max_length: int | None) -> tuple[Predictor, PreTrainedModel, Any]:
    student = as_embedding_model(student)
    if isinstance(student, EmbeddingModel) and tokenizer is None:
        tokenizer = student.tokenizer
    if isinstance(student, PreTrainedModel):
        if tokenizer is None:
            raise ValueError("A loaded model comes without a tokenizer or image processor: pass tokenizer=.")
        model, name = student, student.name_or_path
    elif not isinstance(student, str | Path):
        raise TypeError(
            f"Cannot export {type(student).__name__}: give a transformers model, a folder or a Hub name. For a model "
            f"with PEFT adapters, call trainer.save_merged_model first."
        )
    else:
        model, own_tokenizer = load_student(student)
        tokenizer, name = tokenizer or own_tokenizer, str(student)
    model = plain_copy(model).float().cpu().eval()  # in fp32, so that an fp32 export matches it exactly
    predictor = predictor_of(model, tokenizer, public_name(name), max_length)
    if predictor.reads == "image":
        preprocessing_of(tokenizer)  # raises if an export cannot repeat it
    if isinstance(predictor.encoder, SoundEncoder) and not isinstance(predictor.encoder.reader, Waveform):
        raise ValueError(
            f"{type(tokenizer).__name__} makes spectrograms, which exports without transformers cannot do: use the "
            f"model itself, which load_predictor and the service read, or, to classify, a model of waveforms, such as "
            f"wav2vec 2.0 or HuBERT."
        )
    return predictor, model, tokenizer


def _manifest(student: Predictor, format: str, files: dict[str, int]) -> Manifest:
    return Manifest(
        format=format,
        head=student.head,
        student=student.name,
        inputs=student.encoder.inputs,
        outputs=PREDICTION_HEADS[student.head].outputs,
        labels=student.labels,
        problem_type=student.reader.problem_type,
        reads_pairs=student.reads_pairs,
        max_length=student.encoder.max_length,
        pad_token_id=student.encoder.pad_token_id,
        mask_token_id=student.reader.mask_token_id,
        num_parameters=student.num_parameters,
        opset=FORMATS[format].opset,
        versions={"hf_distill": __version__, **_versions()},
        files=files,
        truncation=student.encoder.truncation,
        stride=student.encoder.stride,
        source_prefix=student.encoder.prefix,
        preprocessing=_preprocessing(student),
        words=student.reader.words,
        max_answer_tokens=student.reader.max_answer_tokens,
        no_answer_threshold=student.reader.no_answer_threshold,
        prompts=dict(student.reader.prompts.by_name),
        default_prompt_name=student.reader.prompts.default,
        embedding_width=student.reader.width,
    )


def _preprocessing(student: Predictor) -> dict[str, Any] | None:
    if not isinstance(student.encoder, ImageEncoder | SoundEncoder):
        return None
    assert isinstance(student.encoder.reader, Preprocessing | Waveform)  # `_student` has refused other readers
    return dataclasses.asdict(student.encoder.reader)


def _versions() -> dict[str, str]:
    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    return versions


def _check(parity: Parity, format: str, min_agreement: float) -> None:
    measured = (
        f"on {parity.texts} texts, logits differ by up to {parity.largest_difference:.2g} (largest logit: "
        f"{parity.largest_logit:.3g}), and {parity.agreement:.1%} of decisions agree"
    )
    allowed = LARGEST_DIFFERENCE * max(1.0, parity.largest_logit)
    if FORMATS[format].is_exact and not parity.largest_difference <= allowed:  # also refuses NaN
        raise ValueError(
            f"The export does not match the student: {measured}, but a difference of at most {allowed:.2g} is allowed. "
            f"Nothing was written. Check whether the model depends on anything besides its inputs, such as random "
            f"numbers."
        )
    if parity.agreement < min_agreement:
        raise ValueError(
            f"The export differs too much from the student: {measured}, but min_agreement is {min_agreement:.1%}. "
            f"Nothing was written. Pass texts like those the student was trained on, lower min_agreement, or export in "
            f"fp32 (onnx)."
        )


def _check_vectors(parity: Parity, format: str, min_cosine: float) -> None:
    assert parity.lowest_cosine is not None  # true for every embedding model
    measured = (
        f"on {parity.texts} texts, the lowest cosine between its vectors and the student's is "
        f"{parity.lowest_cosine:.5f}, and values of vectors of length 1 differ by up to {parity.largest_difference:.2g}"
    )
    if FORMATS[format].is_exact and not parity.largest_difference <= LARGEST_DIFFERENCE_OF_VECTORS:  # also refuses NaN
        raise ValueError(
            f"The export does not match the student: {measured}, but a difference of at most "
            f"{LARGEST_DIFFERENCE_OF_VECTORS:.2g} is allowed. Nothing was written. Check whether the model depends on "
            f"anything besides its inputs, such as random numbers."
        )
    if not FORMATS[format].is_exact and not parity.lowest_cosine >= min_cosine:
        raise ValueError(
            f"The export differs too much from the student: {measured}, but min_cosine is {min_cosine:g}. Nothing was "
            f"written. Pass texts like those the student was trained on, lower min_cosine, or export in fp32 (onnx)."
        )
