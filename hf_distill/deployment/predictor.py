"""One `predict(texts)`, whatever runs the model."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.deployment.backends import Backend, TorchBackend, set_torch_threads
from hf_distill.deployment.formats import FORMATS, PYTORCH, export_formats
from hf_distill.deployment.heads import PREDICTION_HEADS, OutputReader, TextOutputs, head_of_class
from hf_distill.deployment.manifest import format_of, is_export, read_manifest
from hf_distill.deployment.text_encoder import Encoded, TextEncoder, TextInput
from hf_distill.optional import optional

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Predictor:
    """Says what a model makes of texts. `load_predictor` makes it.

    Attributes:
        name: of the model.
        format: `"pytorch"`, or the format of an export.
        head: a name in `PREDICTION_HEADS`, such as `"sequence classification"`.
        labels: the classes by number; empty for a head over the vocabulary or over positions.
        num_parameters: of the model, as it was before it was exported.
        encoder: makes tokens of texts, and batches of those.
        backend: runs the model.
        reader: knows what the outputs mean.
        folder: where it was loaded from; None for a model at hand.
    """

    def __init__(
        self,
        name: str,
        format: str,
        head: str,
        num_parameters: int,
        encoder: TextEncoder,
        backend: Backend,
        reader: OutputReader,
        folder: Path | None = None,
    ):
        self.name, self.format, self.head, self.num_parameters = name, format, head, num_parameters
        self.encoder, self.backend, self.reader, self.folder = encoder, backend, reader, folder
        self.labels = list(reader.labels)

    def predict(self, texts: Sequence[TextInput], top_k: int | None = 1) -> list:
        """What the model says of each text.

        Texts of like length are run together, or in ONNX in int8 one by one; the answers are in the order of the texts.
        Of a text that is too long for the model the end is not read, or the part that it was not trained on either.

        Args:
            texts: strings; for question answering pairs of a question and its context. For masked language modelling
                each has the mask token once.
            top_k: how many answers for each text, the likeliest first; None for all.

        Returns:
            One entry for each text. `{"label", "score"}` for sequence classification, where the score is a
            probability, or for regression the number itself; for masked and causal language modelling, where the label
            is the token that is masked or comes next; with `top_k` other than 1 a list of these. For token
            classification a list of `{"label", "score", "text", "start", "end"}`, one for each entity. For question
            answering `{"answer", "score", "start", "end"}`.

        Raises:
            ValueError: if a text is empty, is no string or is not valid Unicode.

        Example:
            >>> load_predictor("outputs/student-int8").predict(["A warm, funny film."])
            [{'label': 'positive', 'score': 0.98}]
        """
        encodings = self.encoder.encode(texts)
        return [
            self.read(outputs, encoding, text, top_k)
            for outputs, encoding, text in zip(self.run(encodings), encodings, texts, strict=True)
        ]

    def read(
        self, outputs: TextOutputs, encoding: Encoded, text: TextInput, top_k: int | None = 1
    ) -> dict | list[dict]:
        """What the model says of one text, out of what `run` gave for it.

        Raises:
            ValueError: if it is not a text for this head, such as one without a mask for masked language modelling.
        """
        return PREDICTION_HEADS[self.head].predict(outputs, encoding, text, self.reader, top_k)

    def logits(self, texts: Sequence[TextInput], done: Callable[[int], object] | None = None) -> np.ndarray:
        """`[texts, labels]` in fp32: a classifier's logits. `done` is called with the number of texts of each batch."""
        if self.head != "sequence classification":
            raise ValueError(f"{self.name} is for {self.head}: only sequence classification has logits of a text.")
        rows = [outputs["logits"] for outputs in self.run(self.encoder.encode(texts), done)]
        return np.stack(rows) if rows else np.empty((0, len(self.labels)), np.float32)

    def run(self, encodings: Sequence[Encoded], done: Callable[[int], object] | None = None) -> list[TextOutputs]:
        """The model's outputs for each text, without padding, from batches of like length."""
        per_text: list[TextOutputs] = [{} for _ in encodings]
        for indices in self.encoder.batches(encodings, FORMATS[self.format].batch_size):
            outputs = self.backend(self.encoder.pad([encodings[index] for index in indices]))
            for row, index in enumerate(indices):
                length = len(encodings[index]) if PREDICTION_HEADS[self.head].per_token else None
                per_text[index] = {name: array[row][:length] for name, array in outputs.items()}
            if done is not None:
                done(len(indices))
        return per_text


def load_predictor(model: str | Path, format: str = "auto", threads: int | None = None) -> Predictor:
    """A student or an export, ready to predict.

    Where an export for ONNX Runtime is loaded, neither PyTorch nor transformers is imported.

    Args:
        model: a folder that `save_pretrained`, `Trainer` or `export_model` wrote, or a name on the Hub.
        format: `"pytorch"`, `"onnx"`, `"onnx-int8"` or `"torch-int8"`. `"auto"` takes what the folder is; of one that
            has several, with exports in folders of its own, ONNX in int8 before ONNX before PyTorch.
        threads: for one forward; by default as many as there are cores for this process. PyTorch has one number for
            the whole process, which is set.

    Raises:
        ValueError: if there is no such model, if it is not whole, or if its head is not one that can be predicted with.
        ImportError: without what the format needs: onnxruntime, or torchao.

    Example:
        >>> predictor = load_predictor("outputs/student-int8")
        >>> predictor.predict(["A warm, funny film.", "Two hours that I will never get back."])
        [{'label': 'positive', 'score': 0.98}, {'label': 'negative', 'score': 0.95}]
    """
    is_here = Path(model).is_dir()
    folder = Path(model) if is_here else _download(str(model), allow_patterns=["*.json"])
    found = _formats(folder, is_here)
    wanted = next(iter(found)) if format == "auto" and found else format
    if wanted not in found:
        there = f"it has {', '.join(found)}" if found else "it has neither weights in safetensors nor export.json"
        raise ValueError(f"{model} is no model in the format {format}: {there}.")
    if not is_here:  # of a repository with several formats, the one
        is_below = found[wanted] != folder
        within = {"allow_patterns": [f"{found[wanted].name}/*"]} if is_below else {"ignore_patterns": ["*/*"]}
        _download(str(model), **within)
    if wanted == PYTORCH:
        return _pytorch(found[wanted], str(model), threads)
    return _export(found[wanted], threads)


def predictor_of(
    model: "PreTrainedModel",
    tokenizer: "PreTrainedTokenizerBase",
    name: str,
    max_length: int | None = None,
    folder: Path | None = None,
) -> Predictor:
    """A transformers model at hand, ready to predict with at most `max_length` tokens of a text.

    One that has no padding token in its config is told which it gets, since GPT-2's classifiers look for it.

    Raises:
        ValueError: if its head is none of `PREDICTION_HEADS`, or if its tokenizer is not a fast one.
    """
    from hf_distill.deployment.transformers_model import encoder_of, reader_of

    head = head_of_class(type(model).__name__)
    encoder = encoder_of(model, tokenizer, max_length)
    if model.config.pad_token_id is None:
        model.config.pad_token_id = encoder.pad_token_id
    return Predictor(
        name=name,
        format=PYTORCH,
        head=head,
        num_parameters=model.num_parameters(),
        encoder=encoder,
        backend=TorchBackend(model, PREDICTION_HEADS[head].outputs),
        reader=reader_of(model, tokenizer, head),
        folder=folder,
    )


def _export(folder: Path, threads: int | None) -> Predictor:
    manifest = read_manifest(folder)
    if manifest.format not in export_formats():
        raise ValueError(
            f"{folder} has the format {manifest.format!r}, which is none of {', '.join(export_formats())}: load it "
            f"with the version of hf_distill that wrote it, or export the student again."
        )
    format = FORMATS[manifest.format]
    assert format.load is not None  # as every format that is exported
    for package in format.packages:
        assert format.extra is not None  # whatever has packages has an extra
        optional(package, format.extra)
    encoder = TextEncoder.from_file(
        folder / "tokenizer.json", manifest.inputs, manifest.max_length, manifest.pad_token_id, manifest.truncation
    )
    return Predictor(
        name=manifest.student,
        format=manifest.format,
        head=manifest.head,
        num_parameters=manifest.num_parameters,
        encoder=encoder,
        backend=format.load(folder, manifest, threads),
        reader=OutputReader(encoder.tokenizer, manifest.labels, manifest.problem_type, manifest.mask_token_id),
        folder=folder,
    )


def _pytorch(folder: Path, name: str, threads: int | None) -> Predictor:
    from hf_distill.deployment.transformers_model import load_student

    set_torch_threads(threads)
    return predictor_of(*load_student(folder), name, folder=folder)


def _formats(folder: Path, is_here: bool) -> dict[str, Path]:
    """The formats that there are, the preferred ones first, each with its folder."""
    if is_export(folder):
        return {format_of(folder): folder}
    found = {format_of(own): own for own in sorted(folder.iterdir()) if own.is_dir() and is_export(own)}
    has_weights = bool(list(folder.glob("*.safetensors"))) or not is_here  # where they are not looked for yet
    if (folder / "config.json").is_file() and has_weights:
        found[PYTORCH] = folder
    return {name: found[name] for name in FORMATS if name in found} | found


def _download(name: str, **patterns: Any) -> Path:
    """Some files of a repository on the Hub."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    try:
        return Path(snapshot_download(name, **patterns))
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise ValueError(f"{name} is no folder with a model, and none was found on the Hub: {error}") from error
