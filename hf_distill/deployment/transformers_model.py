"""Reads everything that deployment needs from a transformers model and its tokenizer."""

from pathlib import Path
from typing import Any

import transformers
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

from hf_distill.answers import MAX_ANSWER_TOKENS
from hf_distill.data.image_processors import check_channels, image_reader, load_image_processor
from hf_distill.data.languages import set_languages
from hf_distill.data.sounds import MAX_SECONDS, load_extractor, sound_reader
from hf_distill.data.speech import load_speech_processor, speech_reader
from hf_distill.deployment.embeddings import EMBEDDING, Prompts
from hf_distill.deployment.heads import CLASSIFIERS, PREDICTION_HEADS, OutputReader, head_of_class
from hf_distill.deployment.image_encoder import ImageEncoder
from hf_distill.deployment.sound_encoder import SoundEncoder
from hf_distill.deployment.text_encoder import TextEncoder
from hf_distill.embedding import EmbeddingModel, is_sentence_transformer
from hf_distill.files import read_json
from hf_distill.lengths import length_of_rows, noted_stride, reading_of, truncation_of
from hf_distill.loading import load_config, load_pretrained

SETTINGS_FILE = "config_sentence_transformers.json"

INPUTS = ["input_ids", "attention_mask", "token_type_ids"]


def load_student(name: str | Path) -> tuple[PreTrainedModel, Any]:
    """Loads a model and its tokenizer, image processor, feature extractor or processor from a folder or the Hub.

    Raises:
        ImportError: if it is an embedding model, and sentence-transformers is not installed.
        ValueError: if the model does not exist, has a head without predictions, or lacks weights.
    """
    if is_sentence_transformer(name) and _noted(name).get("model_type") in (None, "SentenceTransformer"):
        embedding_model = EmbeddingModel.from_pretrained(name)
        return embedding_model, embedding_model.tokenizer
    architecture = (load_config(name).architectures or ["A model whose config names no class"])[0]
    head = PREDICTION_HEADS[head_of_class(architecture)]
    model = load_model(name, head.auto_class)
    note_cross_encoder(name, model.config)
    if head.reads == "image":
        return model, load_image_processor(str(name))
    if head.reads == "audio":
        return model, load_speech_processor(str(name)) if head.generates else load_extractor(str(name))
    return model, AutoTokenizer.from_pretrained(name)


def load_model(name: str | Path, auto_class: str) -> PreTrainedModel:
    model_class = EmbeddingModel if auto_class == "EmbeddingModel" else getattr(transformers, auto_class)
    return load_pretrained(model_class, name)


def note_cross_encoder(name: str | Path, config: PreTrainedConfig) -> None:
    """Records in the config of a CrossEncoder of sentence-transformers 6 that it is one, as earlier versions do."""
    if (noted := _noted(name)).get("model_type") == "CrossEncoder":
        config.sentence_transformers = {"activation_fn": noted.get("activation_fn")}


def _noted(name: str | Path) -> dict[str, Any]:
    """What sentence-transformers notes of a model in a file of its own; empty if it has no such file."""
    file = Path(name, SETTINGS_FILE)
    if not Path(name).is_dir():
        try:
            file = Path(hf_hub_download(str(name), SETTINGS_FILE))
        except (HfHubHTTPError, HFValidationError, OSError):
            return {}  # most models have no such file
    return read_json(file) if file.is_file() else {}


def encoder_of(
    model: PreTrainedModel, tokenizer: Any, max_length: int | None = None
) -> TextEncoder | ImageEncoder | SoundEncoder:
    """Makes an encoder that gives the same inputs as the model's tokenizer, image processor or feature extractor.

    Raises:
        ValueError: if the tokenizer is not a fast tokenizer, or if `max_length` exceeds the model's limit.
    """
    name = head_of_class(type(model).__name__)
    head, reads = PREDICTION_HEADS[name], PREDICTION_HEADS[name].reads
    if reads != "text" and max_length is not None:
        raise ValueError(f"max_length={max_length} has no effect on models that read {reads}: leave it out.")
    if reads == "audio" and head.generates:
        return SoundEncoder.of(speech_reader(tokenizer))
    if reads == "audio":
        return SoundEncoder.of(sound_reader(tokenizer, reading_of(model.config).get("max_seconds", MAX_SECONDS)))
    if reads == "image":
        check_channels(tokenizer, model.config)
        return ImageEncoder(image_reader(tokenizer))
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(
            f"{type(tokenizer).__name__} is a slow tokenizer: use a fast tokenizer, which has a tokenizer.json."
        )
    max_length = length_of_rows(max_length, tokenizer, model)
    is_answering = name == "question answering"
    if name == EMBEDDING:
        return _embedding_encoder(model, tokenizer, max_length)
    reading = reading_of(model.config)
    if reading.get("source_lang") is not None:
        set_languages(tokenizer, reading["source_lang"], reading["target_lang"])
    return TextEncoder(
        tokenizer=_copy_of(tokenizer),
        inputs=[name for name in INPUTS if name in tokenizer.model_input_names],
        max_length=max_length,
        pad_token_id=padding_of(model, tokenizer),
        truncation="context" if is_answering else truncation_of(model.config),
        stride=noted_stride(model.config, max_length) if is_answering or "words" in reading else None,
        prefix=reading.get("source_prefix", ""),
    )


def _copy_of(tokenizer: PreTrainedTokenizerBase) -> Any:
    backend = tokenizer.backend_tokenizer
    return type(backend).from_str(backend.to_str())


def _embedding_encoder(model: EmbeddingModel, tokenizer: PreTrainedTokenizerBase, max_length: int) -> TextEncoder:
    """An encoder that gives the tokens of `SentenceTransformer.encode`.

    Batches are padded on the right, also if the tokenizer pads on the left: the modules leave out the padding.

    Raises:
        ValueError: if it would give other tokens, because the model reads texts in a chat template, for example.
    """
    encoder = TextEncoder(
        tokenizer=_copy_of(tokenizer),
        inputs=[name for name in INPUTS if name in tokenizer.model_input_names],
        max_length=max_length,
        pad_token_id=padding_of(model, tokenizer),
        truncation="tail" if tokenizer.truncation_side == "left" else "head",
    )
    probes = ["A probe.", f"A{' long' * max_length} probe."]
    first: Any = model.modules_in_order[0]
    expected = [first.preprocess([probe])["input_ids"][0].tolist() for probe in probes]
    given = [own.ids for own in encoder.encode(probes)]
    if any(len(own) <= max_length and own != other for own, other in zip(expected, given, strict=True)):
        raise ValueError(
            f"{model.name_or_path} reads texts in a way of its own, such as a chat template, and not as its tokenizer "
            f"gives them, which exports and predictors do. Only models of plain texts are supported."
        )
    return encoder


def padding_of(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token. The model's own comes first: classifiers such as GPT-2's read the last token before it."""
    known = (model.config.pad_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id, 0)
    return next(token for token in known if token is not None)


def reader_of(model: PreTrainedModel, tokenizer: Any, head: str) -> OutputReader:
    config = model.config
    has_labels = head in (*CLASSIFIERS, "token classification")
    reading = reading_of(config)
    problem_type = config.problem_type or (_of_one_number(config) if config.num_labels == 1 else None)
    return OutputReader(
        tokenizer=_text_tokenizer(tokenizer, head),
        labels=[config.id2label[number] for number in range(config.num_labels)] if has_labels else [],
        problem_type=problem_type if head in CLASSIFIERS else None,
        mask_token_id=tokenizer.mask_token_id if head == "masked language modelling" else None,
        words=reading.get("words"),
        max_answer_tokens=reading.get("max_answer_tokens", MAX_ANSWER_TOKENS),
        no_answer_threshold=reading.get("no_answer_threshold", 0.0) if reading.get("unanswerable") else None,
        **(_vectors_of(model) if head == EMBEDDING else {}),
    )


def _vectors_of(model: EmbeddingModel) -> dict[str, Any]:
    settings = model.settings
    prompts = Prompts(settings.get("prompts", {}), settings.get("default_prompt_name"))
    width = min(model.embedding_width, settings.get("truncate_dim", model.embedding_width))
    return {"prompts": prompts, "width": width}


def _text_tokenizer(processor: Any, head: str) -> Any:
    """The backend of the tokenizer of a model that reads or generates text; else None."""
    if PREDICTION_HEADS[head].reads == "text":
        return processor.backend_tokenizer
    return processor.tokenizer.backend_tokenizer if PREDICTION_HEADS[head].generates else None


def _of_one_number(config: PreTrainedConfig) -> str:
    """A single number is a relevance from 0 to 1 if a CrossEncoder applies a sigmoid to it; else the number itself."""
    noted = getattr(config, "sentence_transformers", None) or {}
    activation = noted.get("activation_fn") or getattr(config, "sbert_ce_default_activation_function", None)
    return "multi_label_classification" if str(activation).endswith("Sigmoid") else "regression"
