"""The same `predict(texts)` for PyTorch models and for exports."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hf_distill.deployment.backends import Backend, TorchBackend, set_torch_threads, torch_backend
from hf_distill.deployment.embeddings import EMBEDDING, Prompts, embed
from hf_distill.deployment.formats import FORMATS, PYTORCH, export_formats
from hf_distill.deployment.heads import CLASSIFIERS, PREDICTION_HEADS, OutputReader, TextOutputs, head_of_class
from hf_distill.deployment.image_encoder import ImageEncoder
from hf_distill.deployment.locating import download, download_format, formats_in
from hf_distill.deployment.manifest import Manifest, read_manifest
from hf_distill.deployment.sound_encoder import SoundEncoder
from hf_distill.deployment.text_encoder import Encoded, TextEncoder, windows_of
from hf_distill.images import Preprocessing
from hf_distill.optional import optional
from hf_distill.sounds import Waveform

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


class Predictor:
    """Makes predictions from texts or images. Created by `load_predictor`.

    Attributes:
        name: name of the model.
        format: `"pytorch"`, or the format of an export.
        head: a name in `PREDICTION_HEADS`, such as `"sequence classification"`.
        labels: class names in the order of their numbers; empty for a head over the vocabulary or over positions.
        num_parameters: number of parameters of the model, before export.
        encoder: tokenizes texts, or decodes images, and makes batches.
        backend: runs the model.
        reader: turns outputs into predictions.
        reads_pairs: True if the model reads pairs of texts, such as a question and its context, or a query and a
            document.
        folder: folder it was loaded from; None for a model that was already loaded.

    Example:
        >>> predictor = load_predictor("outputs/student-int8")
        >>> predictor.predict(["A warm, funny film."], top_k=None)
        [[{'label': 'positive', 'score': 0.98}, {'label': 'negative', 'score': 0.02}]]
    """

    def __init__(
        self,
        name: str,
        format: str,
        head: str,
        num_parameters: int,
        encoder: TextEncoder | ImageEncoder | SoundEncoder,
        backend: Backend,
        reader: OutputReader,
        folder: Path | None = None,
        reads_pairs: bool = False,
    ):
        self.name, self.format, self.head, self.num_parameters = name, format, head, num_parameters
        self.encoder: Any = encoder  # of which kind depends on the head
        self.backend, self.reader, self.folder = backend, reader, folder
        self.reads_pairs = reads_pairs or PREDICTION_HEADS[head].reads_pairs
        self.labels = list(reader.labels)

    @property
    def reads(self) -> str:
        """What the model reads: `"text"`, `"pair"` (of texts), `"image"` or `"audio"`."""
        return "pair" if self.reads_pairs else PREDICTION_HEADS[self.head].reads

    def predict(self, texts: Sequence[Any], top_k: int | None = 1) -> list:
        """Predicts for each text or image.

        Texts of similar length are run together; ONNX int8 models run one text at a time. Results are in the order of
        the texts. Texts that are too long for the model are read as in training: in overlapping windows, or truncated,
        by default at the end.

        Args:
            texts: strings; if `reads_pairs`, pairs of strings, such as question and context. Of a pair that is too
                long, the longer text is truncated first. For masked language modelling, each text contains the mask
                token exactly once. For image classification, images: file names, bytes of files, images of Pillow, or
                uint8 arrays `[height, width, 3]`. For audio classification and speech recognition, recordings: file
                names, bytes of files, or fp32 arrays `[samples]` at the rate of the model.
            top_k: number of answers per text, most likely first; None for all.

        Returns:
            One entry per text, depending on the head. Sequence and image classification: `{"label", "score"}`, where
            the score is a probability, or the number itself for regression. Masked and causal language modelling:
            `{"label", "score"}`, where the label is the masked or next token. Question answering:
            `{"answer", "score", "start", "end"}`; the answer is empty if the model was trained on questions without
            answers and finds none. With `top_k` other than 1, a list of these. Token classification: a list of
            `{"label", "score", "text", "start", "end"}`, one per entity. Sequence-to-sequence and speech recognition:
            `{"text"}`, the generated text, as the model's generation config says.

        Raises:
            ValueError: if a text is empty, is not a string or is not valid Unicode, or is one string where the model
                reads pairs; if a question leaves too little room for its context; if an image or a recording cannot be
                decoded; if a recording with speech is longer than the model reads, 30 s for Whisper; or if it is an
                embedding model, for which there is `embed`.

        Example:
            >>> load_predictor("outputs/student-int8").predict(["A warm, funny film."])
            [{'label': 'positive', 'score': 0.98}]
        """
        if self.head == EMBEDDING:
            raise ValueError(f"{self.name} is an embedding model and predicts no class: call embed(texts).")
        if self.reads_pairs and (single := [number for number, text in enumerate(texts) if isinstance(text, str)]):
            raise ValueError(f"Text {single[0]} must be a pair of texts, because {self.name} reads pairs.")
        return [
            self.read(outputs, encoding, text, top_k)
            for start, encodings in self.encoder.in_parts(texts)
            for outputs, encoding, text in zip(self.run(encodings), encodings, texts[start:], strict=False)
        ]

    def embed(self, texts: Sequence[str], prompt_name: str | None = None, batch_size: int | None = None) -> np.ndarray:
        """Computes the vectors of texts with an embedding model.

        They are those of `SentenceTransformer.encode`, in every format; those of int8 are close to them. A text that is
        too long is truncated as there. Texts of similar length are run together; ONNX int8 models run one text at a
        time. The vector of a text does not depend on the other texts.

        Args:
            texts: strings.
            prompt_name: name of a prompt of the model, such as `"query"`, which is put in front of each text. Default:
                the default prompt of the model, if it has one.
            batch_size: largest number of texts that are run together. Default: 32. No effect on ONNX int8 models.

        Returns:
            `[texts, width]` in fp32, in the order of the texts.

        Raises:
            ValueError: if it is not an embedding model; if a text is empty, is not a string or is not valid Unicode; or
                if the model has no prompt of that name.

        Example:
            >>> load_predictor("outputs/student-int8").embed(["A warm, funny film."]).shape
            (1, 384)
        """
        if self.head != EMBEDDING:
            raise ValueError(f"{self.name} is for {self.head} and has no vectors of texts: call predict(texts).")
        return embed(self, texts, self.reader.prompts.find(prompt_name), batch_size)

    def read(self, outputs: TextOutputs, encoding: Any, text: Any, top_k: int | None = 1) -> Any:
        """Turns the outputs of `run` for one text into its prediction.

        Raises:
            ValueError: if the text does not suit the head, such as a text without a mask for masked language modelling.
        """
        return PREDICTION_HEADS[self.head].predict(outputs, encoding, text, self.reader, top_k)

    def read_texts(self, max_length: int | None = None, truncation: str | None = None) -> None:
        """Changes how much of a long text the model reads. None changes nothing, and images are read in full.

        Args:
            max_length: tokens per text. If the model reads long texts in windows, this is the length of a window, and
                neighbouring windows share at most a quarter of it.
            truncation: which part of a longer text is kept: `head`, `tail` or `head_tail`.

        Raises:
            ValueError: if the model accepts fewer tokens, or an export was made for fewer.
        """
        if not isinstance(self.encoder, TextEncoder):
            return
        if max_length is not None and isinstance(self.backend, TorchBackend):
            from hf_distill.lengths import check_length

            check_length(max_length, self.backend.model)
        elif max_length is not None and max_length > self.encoder.max_length:
            raise ValueError(
                f"{self.name} was exported for {self.encoder.max_length} tokens: use {self.encoder.max_length} or less "
                f"for max_length, or export it again."
            )
        stride = self.encoder.stride
        if stride is not None and max_length is not None:
            stride = min(stride, max_length // 4)
        self.encoder = dataclasses.replace(
            self.encoder,
            max_length=max_length or self.encoder.max_length,
            truncation=truncation or self.encoder.truncation,
            stride=stride,
        )

    def logits(self, texts: Sequence[Any], done: Callable[[int], object] | None = None) -> np.ndarray:
        """Computes a classifier's logits, `[texts, labels]` in fp32.

        Args:
            texts: the texts or images.
            done: is called with the number of texts after each batch.

        Raises:
            ValueError: if the model is not for classification, or if a text is empty, is not a string or is not valid
                Unicode, or if an image cannot be decoded.
        """
        if self.head not in CLASSIFIERS:
            raise ValueError(f"{self.name} is for {self.head}: only {' and '.join(CLASSIFIERS)} have logits per input.")
        parts = (self.run(encodings, done) for _, encodings in self.encoder.in_parts(texts))
        rows = [outputs["logits"] for part in parts for outputs in part]
        return np.stack(rows) if rows else np.empty((0, len(self.labels)), np.float32)

    def run(
        self,
        encodings: Sequence[Encoded],
        done: Callable[[int], object] | None = None,
        batch_size: int | None = None,
    ) -> list[TextOutputs]:
        """Runs the model in batches of similar length, and returns its outputs for each text, without padding.

        For a text in windows, the outputs of its windows follow each other. A given `batch_size` replaces that of the
        format, except for formats that run one text at a time.
        """
        largest = FORMATS[self.format].batch_size
        if batch_size is not None and largest > 1:
            largest = batch_size
        windows = windows_of(encodings)
        text_of = [text for text, encoding in enumerate(encodings) for _ in windows_of([encoding])]
        to_do = Counter(text_of)
        per_window: list[TextOutputs] = [{} for _ in windows]
        for indices in self.encoder.batches(windows, largest):
            outputs = self.backend(self.encoder.pad([windows[index] for index in indices]))
            for row, index in enumerate(indices):
                length = len(windows[index]) if PREDICTION_HEADS[self.head].per_token else None
                per_window[index] = {name: array[row][:length] for name, array in outputs.items()}
            to_do.subtract(text_of[index] for index in indices)
            if done is not None:
                done(sum(to_do[text] == 0 for text in {text_of[index] for index in indices}))
        of_text: list[list[TextOutputs]] = [[] for _ in encodings]
        for text, own in zip(text_of, per_window, strict=True):
            of_text[text].append(own)
        return [_in_one(own) for own in of_text]


def _in_one(windows: list[TextOutputs]) -> TextOutputs:
    if len(windows) == 1:
        return windows[0]
    return {name: np.concatenate([own[name] for own in windows]) for name in windows[0]}


def load_predictor(
    model: str | Path, format: str = "auto", threads: int | None = None, device: "torch.device | str | None" = None
) -> Predictor:
    """Loads a student or an export for prediction.

    Loading an ONNX export imports neither PyTorch nor transformers.

    Args:
        model: a folder written by `save_pretrained`, `Trainer` or `export_model`, or a Hub name.
        format: `"pytorch"`, `"onnx"`, `"onnx-int8"`, `"torch-int8"` or `"auto"`. `"auto"` uses the format of the
            folder; if it contains exports in subfolders, ONNX int8 is preferred over ONNX, and ONNX over PyTorch.
        threads: threads per forward pass. Default: all cores available to this process for ONNX, PyTorch's own setting
            for PyTorch. For PyTorch, a number given here applies to the whole process.
        device: device of a PyTorch model, such as `"cuda"`. Default: the CPU. Exports run on the CPU.

    Returns:
        A predictor with `predict(texts)`.

    Raises:
        ValueError: if the model does not exist, is incomplete, or has a head without predictions.
        ImportError: if a package that the format needs is missing: onnxruntime or torchao.

    Example:
        >>> predictor = load_predictor("outputs/student-int8")
        >>> predictor.predict(["A warm, funny film.", "Two hours that I will never get back."])
        [{'label': 'positive', 'score': 0.98}, {'label': 'negative', 'score': 0.95}]
    """
    is_here = Path(model).is_dir()
    folder = Path(model) if is_here else download(str(model), allow_patterns=["*.json"])
    found = formats_in(folder, is_here)
    wanted = next(iter(found)) if format == "auto" and found else format
    if wanted not in found:
        there = f"it has {', '.join(found)}" if found else "it has neither .safetensors weights nor export.json"
        raise ValueError(f"{model} has no model in the format {format}: {there}.")
    if not is_here:  # download only the wanted format of the repository
        download_format(str(model), folder, found[wanted])
    if wanted == PYTORCH:
        return _pytorch(found[wanted], str(model), threads, device)
    return _export(found[wanted], threads)


def predictor_of(
    model: "PreTrainedModel",
    tokenizer: Any,
    name: str,
    max_length: int | None = None,
    folder: Path | None = None,
) -> Predictor:
    """Makes a predictor from a loaded transformers model and its tokenizer or image processor.

    It reads at most `max_length` tokens per text.

    If the model's config has no padding token, it is set, because GPT-2's classifiers look for it.

    Raises:
        ValueError: if the model's head is not in `PREDICTION_HEADS`, or if the tokenizer is not a fast tokenizer.
    """
    from hf_distill.deployment.transformers_model import encoder_of, reader_of
    from hf_distill.lengths import reads_pairs

    head = head_of_class(type(model).__name__)
    encoder = encoder_of(model, tokenizer, max_length)
    if isinstance(encoder, TextEncoder) and model.config.pad_token_id is None:
        model.config.pad_token_id = encoder.pad_token_id
    return Predictor(
        name=name,
        format=PYTORCH,
        head=head,
        num_parameters=model.num_parameters(),
        encoder=encoder,
        backend=torch_backend(model, PREDICTION_HEADS[head].outputs, PREDICTION_HEADS[head].generates),
        reader=reader_of(model, tokenizer, head),
        folder=folder,
        reads_pairs=head == "sequence classification" and reads_pairs(model.config),
    )


def _export(folder: Path, threads: int | None) -> Predictor:
    manifest = read_manifest(folder)
    if manifest.format not in export_formats():
        raise ValueError(
            f"{folder} has the unknown format {manifest.format!r}; known are {', '.join(export_formats())}. Load it "
            f"with the version of hf_distill that wrote it, or export the student again."
        )
    format = FORMATS[manifest.format]
    assert format.load is not None  # true for every export format
    for package in format.packages:
        assert format.extra is not None  # true for every format with packages
        optional(package, format.extra)
    encoder = _encoder(folder, manifest)
    return Predictor(
        name=manifest.student,
        format=manifest.format,
        head=manifest.head,
        num_parameters=manifest.num_parameters,
        encoder=encoder,
        backend=format.load(folder, manifest, threads),
        reader=OutputReader(
            encoder.tokenizer if isinstance(encoder, TextEncoder) else None,
            manifest.labels,
            manifest.problem_type,
            manifest.mask_token_id,
            manifest.words,
            manifest.max_answer_tokens,
            manifest.no_answer_threshold,
            Prompts(manifest.prompts, manifest.default_prompt_name),
            manifest.embedding_width,
        ),
        folder=folder,
        reads_pairs=manifest.reads_pairs,
    )


def _encoder(folder: Path, manifest: Manifest) -> TextEncoder | ImageEncoder | SoundEncoder:
    if manifest.preprocessing is not None and PREDICTION_HEADS[manifest.head].reads == "audio":
        return SoundEncoder(Waveform(**manifest.preprocessing), manifest.inputs)
    if manifest.preprocessing is not None:
        return ImageEncoder(Preprocessing(**manifest.preprocessing), manifest.inputs)
    return TextEncoder.from_file(
        folder / "tokenizer.json",
        manifest.inputs,
        manifest.max_length,
        manifest.pad_token_id,
        manifest.truncation,
        manifest.stride,
        manifest.source_prefix,
    )


def _pytorch(folder: Path, name: str, threads: int | None, device: "torch.device | str | None") -> Predictor:
    from hf_distill.deployment.transformers_model import load_student

    set_torch_threads(threads)
    model, tokenizer = load_student(folder)
    return predictor_of(model.to(device or model.device), tokenizer, name, folder=folder)
