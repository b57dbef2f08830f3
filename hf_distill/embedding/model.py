"""`EmbeddingModel`: a `SentenceTransformer` as a transformers model, so that it can be cut, distilled and exported."""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

from hf_distill.embedding.folders import check_modules, load, save, settings_of, width_of
from hf_distill.optional import optional

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer


@dataclass
class EmbeddingOutput(ModelOutput):
    """The output of an `EmbeddingModel`.

    Attributes:
        loss: `[]`, added by the trainer.
        embeddings: `[batch, width]`, one vector per text, after pooling, dense and normalise modules.
        last_hidden_state: `[batch, length, hidden width]`, of the transformer.
    """

    loss: torch.Tensor | None = None
    embeddings: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None


class EmbeddingModel(PreTrainedModel):
    """A transformer, a pooling of its hidden states, and the dense and normalise modules that follow.

    It holds the modules of a `SentenceTransformer` and computes the same vectors. `save_pretrained` writes the format
    of sentence-transformers: the folder loads with `SentenceTransformer(folder)`, and its transformer with
    `AutoModel.from_pretrained(folder)`. Needs the extra `embeddings`.

    Reference: Reimers and Gurevych, 2019, Sentence-BERT, https://arxiv.org/abs/1908.10084

    Args:
        modules: the modules of a `SentenceTransformer`: a `Transformer`, a `Pooling`, and then any `Dense`,
            `Normalize`, `LayerNorm` or `Dropout`.
        settings: what else a `SentenceTransformer` is created with, such as `prompts`.

    Attributes:
        transformer: the transformers model.
        head: the modules after it.
        settings: the settings.

    Raises:
        ValueError: if there are other modules, or none that pools.

    Example:
        >>> teacher = EmbeddingModel.from_pretrained("sentence-transformers/all-MiniLM-L6-v2")
        >>> student = make_student(teacher, num_layers=3)
        >>> student.save_pretrained("student")
        >>> vectors = SentenceTransformer("student").encode(["a text"])
    """

    base_model_prefix = "transformer"
    supports_gradient_checkpointing = True
    # The attention is that of the transformer, which has checked it.
    _supports_sdpa = _supports_flash_attn = _supports_flex_attn = _supports_attention_backend = True

    def __init__(self, modules: Sequence[nn.Module], settings: Mapping[str, Any] | None = None):
        check_modules(modules)
        first: Any = modules[0]
        super().__init__(first.model.config)
        self.transformer: PreTrainedModel = first.model
        self.head = nn.ModuleList(modules[1:])
        self.settings = dict(settings or {})
        self._first = (first,)  # in a tuple, so that its weights are not listed twice
        self.post_init()
        self.train(first.model.training)

    def init_weights(self) -> None:
        """Does nothing: the modules have their weights."""

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        pooling: str | Sequence[str] | None = None,
        normalize: bool = False,
        output_loading_info: bool = False,
        **options: Any,
    ) -> Any:
        """Loads a model from a folder or the Hub, on the CPU, in evaluation mode.

        Args:
            name: folder or Hub name of a `SentenceTransformer`, or of a transformers model without a head.
            pooling: for a transformers model, how its hidden states become one vector: `"mean"`, `"cls"`, `"max"`,
                `"lasttoken"`, `"weightedmean"` or `"mean_sqrt_len_tokens"`, or a list of these, whose vectors are
                concatenated.
            normalize: for a transformers model, whether vectors have length 1.
            output_loading_info: also return the loading info of transformers. No key is ever missing.
            **options: options of `AutoModel.from_pretrained`, such as `dtype`.

        Raises:
            ImportError: if sentence-transformers is not installed.
            ValueError: if the model does not exist, if it has modules of other kinds, if weights are not safetensors,
                or if `pooling` is missing or would have no effect.
        """
        model = cls.from_sentence_transformer(load(str(name), pooling, normalize, options)).eval()
        return (model, {"missing_keys": set()}) if output_loading_info else model

    @classmethod
    def from_sentence_transformer(cls, model: "SentenceTransformer") -> Self:
        """The same model, with the same modules, not copies: training one trains the other."""
        return cls(list(model), settings_of(model))

    def to_sentence_transformer(self) -> "SentenceTransformer":
        """A `SentenceTransformer` with the same modules, not copies. Its `encode` turns texts into vectors."""
        library = optional("sentence_transformers", "embeddings")
        return library.SentenceTransformer(modules=self.modules_in_order, device=str(self.device), **self.settings)

    @property
    def modules_in_order(self) -> list[Any]:
        """The modules as in a `SentenceTransformer`, the transformer first."""
        return [self._first[0], *self.head]

    @property
    def tokenizer(self) -> Any:
        """The tokenizer. It truncates at `max_length` only if told to."""
        return self._first[0].tokenizer

    @tokenizer.setter
    def tokenizer(self, tokenizer: Any) -> None:
        self._first[0].processor = tokenizer

    @property
    def max_length(self) -> int | None:
        """The maximum number of tokens of a text, special tokens included; None if there is none."""
        return self._first[0].max_seq_length

    @property
    def embedding_width(self) -> int:
        """The width of the vectors."""
        return width_of(self.modules_in_order)

    def forward(self, **inputs: torch.Tensor) -> EmbeddingOutput:
        """Turns tokens into vectors.

        Args:
            **inputs: the transformer's inputs, such as `input_ids` and `attention_mask`, `[batch, length]`.
        """
        features = self._first[0](dict(inputs))
        hidden = features["token_embeddings"]
        for module in self.head:
            features = module(features)
        return EmbeddingOutput(embeddings=features["sentence_embedding"], last_hidden_state=hidden)

    def with_transformer(self, transformer: PreTrainedModel, head: Sequence[nn.Module] | None = None) -> Self:
        """A copy with another transformer, and with copies of the other modules or with those of `head`."""
        first = self._first[0]
        first = copy.deepcopy(first, {id(first.model): transformer})
        copied = copy.deepcopy(list(self.head)) if head is None else list(head)
        return type(self)([first, *copied], copy.deepcopy(self.settings))

    def save_pretrained(
        self, save_directory: str | Path, state_dict: Mapping[str, torch.Tensor] | None = None, **options: Any
    ) -> None:
        """Writes the model as a `SentenceTransformer` does, with its tokenizer, without a card.

        Args:
            save_directory: the folder.
            state_dict: the weights, if an engine has sharded those of the model.
            **options: options of `PreTrainedModel.save_pretrained`.
        """
        save(self, Path(save_directory), self.state_dict() if state_dict is None else state_dict, options)


def as_embedding_model(model: Any) -> Any:
    """An `EmbeddingModel` with the modules of a `SentenceTransformer`; any other model unchanged."""
    if type(model).__module__.startswith("sentence_transformers.") and hasattr(model, "encode"):
        return EmbeddingModel.from_sentence_transformer(model)
    return model
