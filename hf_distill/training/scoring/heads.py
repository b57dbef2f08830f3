"""The interface of a head, and the heads with one distribution per example. `token_heads.py` has those per token.

A position is whatever a head returns one distribution for: an example in classification, a token in language modelling,
the start or the end of the answer in question answering. `docs/heads.md` lists all heads in one table.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import torch
from transformers import (
    DataCollatorForMultipleChoice,
    PreTrainedConfig,
    PreTrainedModel,
    default_data_collator,
)
from transformers.image_processing_base import ImageProcessingMixin
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput
from transformers.utils import ModelOutput

from hf_distill.data.candidates import DataCollatorForRankings
from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.embedding import EmbeddingOutput
from hf_distill.training.scoring.groups import candidates_of, flattened, is_grouped
from hf_distill.training.scoring.inputs import attended_positions, count_examples, first_examples
from hf_distill.training.scoring.scored import MASKED_LOGIT, Scored

Distribution = Literal["categorical", "binary", "real"]
"""What the logits of a position describe: one class of several, a yes or no per class, or numbers."""


class Head:
    """One distribution per example: sequence, image, audio and video classification, and all heads not listed below.

    `config.problem_type` decides whether the logits describe one class, a yes or no per class, or numbers.

    Args:
        model: the model that has the head.

    Attributes:
        tasks: the tasks for which transformers lists models with this head, such as `MASKED_LM`.
        class_names: endings of the names of classes that transformers does not list.
        auto_class: the Auto class that loads models of the first task. It identifies the kind of head.
        pipeline_tag: the Hub's name of the task; None if the Hub has several.
        is_exported: whether `hf-distill export` accepts it.
        label_names: the entries of a batch that are labels.
        prediction_names: the entries of the model's output that are logits.
        output_class: the output class of transformers that has these entries.
        collator: name of the transformers collator that pads rows with labels.
        distribution: what the logits of a position describe.
        problem_type: the `problem_type` of the config, for heads that depend on it.
        per_token: whether there is one distribution per token, not per example.
        over_vocabulary: whether the classes are the tokens of a vocabulary.
        named_classes: whether `id2label` of the config names the classes.
        reads_labels: whether the model's inputs are derived from the labels, see `complete`.
        learns_to_stop: whether the labels should include the end of a text.
        takes_label_smoothing: whether the task loss supports label smoothing.
        takes_text_columns: whether a teacher with another tokenizer can read the text itself.
        can_be_stored: whether the teacher's logits are the same in every epoch, so they can be stored.
        has_logits: whether there are logits at all. A model without a head has hidden states only.
        has_embeddings: whether the model returns one vector per text, in place of logits.
        takes_groups: whether a row may have several candidates, each scored by itself, see `groups.py`.
    """

    tasks: tuple[str, ...] = (
        *("SEQUENCE_CLASSIFICATION", "IMAGE_CLASSIFICATION", "AUDIO_CLASSIFICATION", "VIDEO_CLASSIFICATION"),
        "NEXT_SENTENCE_PREDICTION",
    )
    class_names: tuple[str, ...] = (
        *("ForSequenceClassification", "ForImageClassification", "ForAudioClassification"),
        *("ForVideoClassification", "ForNextSentencePrediction"),
    )
    auto_class = "AutoModelForSequenceClassification"
    pipeline_tag: str | None = "text-classification"
    is_exported = True
    label_names: tuple[str, ...] = ("labels",)
    prediction_names: tuple[str, ...] = ("logits",)
    output_class: type[ModelOutput] = SequenceClassifierOutput
    collator = "DataCollatorWithPadding"
    distribution: Distribution = "categorical"
    problem_type: str | None = "single_label_classification"
    per_token = False
    over_vocabulary = False
    named_classes = True
    reads_labels = False
    learns_to_stop = False
    takes_label_smoothing = True
    takes_text_columns = True
    can_be_stored = True
    has_logits = True
    has_embeddings = False
    takes_groups = True

    def __init__(self, model: PreTrainedModel):
        self.model_name = type(model).__name__
        self.runs_alone = self.over_vocabulary  # on the scored positions only, until that fails
        # `make test-families` tests the models of transformers. Other models are tested in their first forward.
        self.is_proved = inspect.unwrap(type(model).forward).__module__.startswith("transformers.")

    def set_problem_type(self, config: PreTrainedConfig) -> None:
        """Sets `problem_type` in the config if it is missing, as a model does when it first computes its own loss.

        Here models never compute their own loss. Without `problem_type`, a pipeline applies a sigmoid to regression
        outputs.
        """
        if self.problem_type is not None and getattr(config, "problem_type", None) is None:
            config.problem_type = self.problem_type

    def complete(self, inputs: Mapping[str, torch.Tensor], model: PreTrainedModel) -> Mapping[str, torch.Tensor]:
        """The inputs of the model: with those that it would derive from the labels, and one example per candidate."""
        return flattened(inputs) if self.reads_groups_in(inputs) else inputs

    def reads_groups_in(self, inputs: Mapping[str, torch.Tensor]) -> bool:
        """Whether each row of a batch has several candidates, each scored by itself."""
        return self.takes_groups and is_grouped(inputs)

    def score(
        self, inputs: Mapping[str, torch.Tensor], kl_positions: str = "labels", num_examples: int | None = None
    ) -> Scored:
        """Finds the scored positions of a batch.

        Args:
            inputs: a batch from the collator.
            kl_positions: for a head with one distribution per token: "labels" to score the positions with a label,
                "attended" to score all that are not padding.
            num_examples: score only the first examples; None for all.

        Raises:
            ValueError: if the positions depend on labels and the batch has none, or if the labels do not match the
                head.
        """
        if self.reads_groups_in(inputs):
            return self._score_groups(inputs, num_examples)
        attended = first_examples(attended_positions(inputs), num_examples)
        positions = attended.new_ones(count_examples(inputs))[:num_examples]
        labels = inputs.get("labels")
        if labels is None:
            return Scored(attended, positions, torch.zeros_like(positions), None)
        labels = self._check_labels(labels[:num_examples])
        return Scored(attended, positions, self._labelled(labels), labels)

    def _score_groups(self, inputs: Mapping[str, torch.Tensor], num_rows: int | None) -> Scored:
        """`score` for grouped rows, whose labels are `[rows, candidates]`, or `[rows, candidates, classes]`."""
        candidates = candidates_of(inputs)
        pairs = flattened(inputs)
        if (labels := inputs.get("labels")) is not None:
            if labels.shape[:2] != candidates.shape:
                raise ValueError(
                    f"The labels are {list(labels.shape)} for {list(candidates.shape)} rows and candidates: give each "
                    f"candidate a label, and use DataCollatorForRankings(tokenizer)."
                )
            labels = labels[candidates]
            pairs["labels"] = labels if self.distribution == "categorical" else labels.reshape(len(labels), -1)
        num_pairs = None if num_rows is None else int(candidates[:num_rows].sum())
        return replace(self.score(pairs, num_examples=num_pairs), candidates=candidates[:num_rows])

    def scored_logits(self, output: ModelOutput, scored: Scored) -> torch.Tensor | None:
        """The logits of the scored positions, `[scored, classes]`, from the output of `named`."""
        logits = output.get("logits")
        if logits is None or logits.ndim != 2:
            given = f"logits {list(logits.shape)}" if logits is not None else f"{', '.join(output)} and no logits"
            raise ValueError(
                f"{self.model_name} returned {given}: use a head with logits [batch, classes], or another head that "
                f"docs/heads.md lists."
            )
        return logits[: len(scored.positions)]

    def logits_per_token(self, config: PreTrainedConfig) -> int | None:
        """The number of logits per token; None if logits belong to the whole example."""
        return None

    def stored_logits(self, logits: torch.Tensor, scored: Scored) -> torch.Tensor:
        """Converts `[scored, classes]` logits for storage: `[examples, classes]` or `[tokens, logits_per_token]`."""
        return logits

    def logits_of_stored(self, stored: torch.Tensor, scored: Scored) -> torch.Tensor:
        """Converts a batch of stored logits to `[scored, classes]`.

        Args:
            stored: `[batch, classes]`, or `[batch, length, logits_per_token]` aligned with the tokens.
            scored: the scored positions of the batch.
        """
        return stored[: len(scored.positions)]

    def of_positions(self, values: torch.Tensor, scored: Scored) -> torch.Tensor:
        """Repeats one value per example, `[batch, ...]`, for its scored positions: `[scored, ...]`."""
        if scored.candidates is not None:
            return values[scored.candidates.nonzero()[:, 0]]
        return values[: len(scored.positions)]

    def padding_collator(self, processing_class: object) -> Callable[[Sequence], Mapping[str, torch.Tensor]]:
        """The collator that makes a teacher's batches from rows without labels."""
        is_padding = hasattr(processing_class, "pad") and not isinstance(processing_class, ImageProcessingMixin)
        return DataCollatorForRankings(processing_class) if is_padding else default_data_collator

    def named(self, output: ModelOutput | Mapping | tuple | torch.Tensor) -> ModelOutput:
        """Converts the model's output (a tuple, a tensor or a dict) to an output class with named entries."""
        if isinstance(output, ModelOutput) and hasattr(output, "loss"):  # the loss is added to this entry later
            return output
        if not isinstance(output, Mapping):
            values = [output] if isinstance(output, torch.Tensor) else [value for value in output if value is not None]
            output = dict(zip(self.prediction_names, values, strict=False))
        missing = [name for name in self.prediction_names if name not in output]
        if missing:
            raise ValueError(f"{self.model_name} returned {', '.join(output)} and no {' and no '.join(missing)}.")
        return self.output_class(**{name: output[name] for name in self.prediction_names})

    def predictions(
        self, output: ModelOutput | Mapping | tuple | torch.Tensor
    ) -> torch.Tensor | tuple[torch.Tensor, ...]:
        """The predictions that `Trainer` passes to `compute_metrics`."""
        output = self.named(output)
        predictions = tuple(output[name] for name in self.prediction_names)
        return predictions[0] if len(predictions) == 1 else predictions

    def _labelled(self, labels: torch.Tensor) -> torch.Tensor:
        return labels.ne(IGNORE_INDEX)

    def _check_labels(self, labels: torch.Tensor) -> torch.Tensor:
        if labels.is_floating_point():
            raise ValueError(
                f"The labels are {labels.dtype} {list(labels.shape)}, but {self.model_name} predicts one class per "
                f"example: use integer class indices, or set problem_type='multi_label_classification' or "
                f"'regression' in the configs of student and teacher."
            )
        return labels.reshape(-1)


class BinaryHead(Head):
    """Multi-label classification, a yes or no per class: `problem_type="multi_label_classification"`."""

    distribution = "binary"
    problem_type = "multi_label_classification"
    takes_label_smoothing = False

    def _check_labels(self, labels: torch.Tensor) -> torch.Tensor:
        if labels.ndim != 2:
            raise ValueError(
                f"The labels are {labels.dtype} {list(labels.shape)}, but {self.model_name} predicts a yes or no per "
                f"class: use labels [batch, classes] of 0.0 and 1.0 (-100 where unknown)."
            )
        return labels


class RegressionHead(Head):
    """Regression: `problem_type="regression"`, or `num_labels=1`. An unknown label is NaN."""

    distribution = "real"
    problem_type = "regression"
    takes_label_smoothing = False

    def _labelled(self, labels: torch.Tensor) -> torch.Tensor:
        return ~labels.isnan()

    def _check_labels(self, labels: torch.Tensor) -> torch.Tensor:
        return labels.unsqueeze(-1).flatten(1)


class MultipleChoiceHead(Head):
    """One distribution per example, with one class per choice. The inputs are `[batch, choices, length]`."""

    tasks = ("MULTIPLE_CHOICE",)
    class_names = ("ForMultipleChoice",)
    auto_class = "AutoModelForMultipleChoice"
    pipeline_tag = "multiple-choice"
    is_exported = False
    collator = "DataCollatorForMultipleChoice"
    problem_type = None
    named_classes = False
    takes_text_columns = False
    takes_groups = False  # the candidates of a row share one distribution

    def score(self, inputs, kl_positions="labels", num_examples=None):
        scored = super().score(inputs, kl_positions, num_examples)
        return Scored(scored.attended.flatten(0, 1), scored.positions, scored.labelled, scored.labels)

    def padding_collator(self, processing_class):
        with_labels = DataCollatorForMultipleChoice(processing_class)
        return lambda rows: with_labels([{**row, "labels": 0} for row in rows])


class QuestionAnsweringHead(Head):
    """Two distributions per example, first all starts, then all ends, with one class per token that is not padding.

    An answer outside these tokens, for instance a truncated one, counts as unlabelled.
    """

    tasks = ("QUESTION_ANSWERING", "DOCUMENT_QUESTION_ANSWERING")
    class_names = ("ForQuestionAnswering", "ForQuestionAnsweringSimple")
    auto_class = "AutoModelForQuestionAnswering"
    pipeline_tag = "question-answering"
    label_names = ("start_positions", "end_positions")
    prediction_names = ("start_logits", "end_logits")
    output_class = QuestionAnsweringModelOutput
    problem_type = None
    named_classes = False
    takes_label_smoothing = False
    takes_text_columns = False
    takes_groups = False

    def score(self, inputs, kl_positions="labels", num_examples=None):
        attended = attended_positions(inputs)
        choices = attended[:num_examples].repeat(2, 1)
        positions = choices.new_ones(len(choices))
        attended = first_examples(attended, num_examples)
        if any(inputs.get(name) is None for name in self.label_names):
            return Scored(attended, positions, torch.zeros_like(positions), None)
        labels = torch.cat([inputs[name].reshape(-1)[:num_examples] for name in self.label_names])
        inside = labels.ge(0) & labels.lt(choices.shape[1])
        inside = inside & choices.gather(1, labels.where(inside, 0).unsqueeze(1)).squeeze(1)
        return Scored(attended, positions, inside, labels.where(inside, IGNORE_INDEX))

    def scored_logits(self, output, scored):
        if "start_logits" not in output:
            raise ValueError(
                f"{self.model_name} returned {', '.join(output)} and no start_logits: question answering by beam "
                f"search cannot be distilled."
            )
        num_examples = len(scored.positions) // 2
        logits = torch.cat([output.start_logits[:num_examples], output.end_logits[:num_examples]])
        padding = ~scored.attended[:num_examples].repeat(2, 1)
        return logits.float().masked_fill(padding, MASKED_LOGIT)

    def logits_per_token(self, config):
        return 2

    def stored_logits(self, logits, scored):
        return torch.stack(logits.chunk(2), dim=-1)[scored.attended]

    def logits_of_stored(self, stored, scored):
        attended = scored.attended[: len(scored.positions) // 2]
        stored = stored[: len(attended)].masked_fill(~attended.unsqueeze(-1), MASKED_LOGIT)
        return torch.cat([stored[..., 0], stored[..., 1]])

    def of_positions(self, values, scored):
        num_examples = len(scored.positions) // 2
        return torch.cat([values[:num_examples], values[:num_examples]])


@dataclass
class HiddenStates(ModelOutput):
    """The output of a model without a head.

    Attributes:
        loss: `[]`, added by the trainer.
        last_hidden_state: `[batch, length, width]`.
    """

    loss: torch.Tensor | None = None
    last_hidden_state: torch.Tensor | None = None


class NoHead(Head):
    """A model without a head, such as `BertModel`. Losses can compare its hidden states and its layers.

    Its predictions are its last hidden states.
    """

    tasks = ()
    class_names = ()
    auto_class = "AutoModel"
    pipeline_tag = "feature-extraction"
    is_exported = False
    label_names = ()
    prediction_names = ("last_hidden_state",)
    output_class = HiddenStates
    problem_type = None
    named_classes = False
    takes_label_smoothing = False
    takes_text_columns = False
    can_be_stored = False
    has_logits = False

    def scored_logits(self, output, scored):
        return None


class EmbeddingHead(NoHead):
    """An `EmbeddingModel`, which returns one vector per text. Its predictions are these vectors."""

    auto_class = "EmbeddingModel"
    pipeline_tag = "sentence-similarity"
    prediction_names = ("embeddings",)
    output_class = EmbeddingOutput
    distribution = "real"
    takes_text_columns = True
    can_be_stored = True
    has_embeddings = True

    def scored_logits(self, output, scored):
        return output.embeddings[: len(scored.positions)]
