"""What a head answers, and the heads of one distribution per example; those per token are in `token_heads.py`.

A position is what a head gives one distribution for: an example in classification, a token in language modelling, the
start or the end of the answer in question answering. `docs/heads.md` has all of it in one table.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import torch
from transformers import (
    DataCollatorForMultipleChoice,
    DataCollatorWithPadding,
    PreTrainedConfig,
    PreTrainedModel,
    default_data_collator,
)
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput
from transformers.utils import ModelOutput

from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.training.scoring.inputs import attended_positions, count_examples, first_examples
from hf_distill.training.scoring.scored import MASKED_LOGIT, Scored

Distribution = Literal["categorical", "binary", "real"]
"""What the logits of a position describe: one class out of several, a yes or no for each class, or numbers."""


class Head:
    """One distribution per example: sequence, image, audio and video classification, and whatever is not listed below.

    `config.problem_type` says whether it is one class, a yes or no for each class, or numbers.

    Args:
        model: the model that has the head.

    Attributes:
        tasks: the tasks under which transformers lists models with such a head, such as `MASKED_LM`.
        class_names: how the names of classes end that transformers does not list.
        auto_class: the class that loads such models, those of the first task: it stands for the kind of head.
        pipeline_tag: the Hub's name for what it does; None where the Hub has several.
        is_exported: whether `hf-distill export` takes it.
        label_names: the entries of a batch that are its labels.
        prediction_names: the entries of the model's output that are its logits.
        output_class: the output of transformers that has them.
        collator: the collator of transformers that pads its rows, with labels.
        distribution: what the logits of a position describe.
        problem_type: the config's, for heads that it tells apart.
        per_token: whether there is one distribution per token; else the positions are those of examples.
        over_vocabulary: whether its classes are the words of a vocabulary.
        named_classes: whether the config's id2label names the classes.
        reads_labels: whether the labels make a part of what the model reads, see `complete`.
        learns_to_stop: whether its labels should have the end of a text.
        takes_label_smoothing: whether its task loss does.
        takes_text_columns: whether a teacher of another tokenizer can read the text itself.
        can_be_stored: whether the teacher's logits are those of every epoch.
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

    def __init__(self, model: PreTrainedModel):
        self.model_name = type(model).__name__
        self.runs_alone = self.over_vocabulary  # on the scored positions, until that has been seen to fail
        # `make test-families` tries the models of transformers; others are tried in their first forward.
        self.is_proved = inspect.unwrap(type(model).forward).__module__.startswith("transformers.")

    def set_problem_type(self, config: PreTrainedConfig) -> None:
        """Writes into the config what its model does the first time that it computes its own loss, which it never does.

        Without it, a pipeline applies a sigmoid to the numbers of a regression.
        """
        if self.problem_type is not None and getattr(config, "problem_type", None) is None:
            config.problem_type = self.problem_type

    def complete(self, inputs: Mapping[str, torch.Tensor], model: PreTrainedModel) -> Mapping[str, torch.Tensor]:
        """The batch, with what the model would have made of its labels."""
        return inputs

    def score(
        self, inputs: Mapping[str, torch.Tensor], kl_positions: str = "labels", num_examples: int | None = None
    ) -> Scored:
        """Reads from a batch what is scored in it.

        Args:
            inputs: a batch as the collator made it.
            kl_positions: for a head with a distribution per token, whether it is scored where there is a label or
                wherever it is attended.
            num_examples: score only so many examples; by default all.

        Raises:
            ValueError: if the positions are to be taken from labels and there are none, or if labels do not fit.
        """
        attended = first_examples(attended_positions(inputs), num_examples)
        positions = attended.new_ones(count_examples(inputs))[:num_examples]
        labels = inputs.get("labels")
        if labels is None:
            return Scored(attended, positions, torch.zeros_like(positions), None)
        labels = self._check_labels(labels[:num_examples])
        return Scored(attended, positions, self._labelled(labels), labels)

    def scored_logits(self, output: ModelOutput, scored: Scored) -> torch.Tensor:
        """`[scored, classes]`: the logits of the scored positions, out of what `named` returns."""
        logits = output.get("logits")
        if logits is None or logits.ndim != 2:
            given = f"logits {list(logits.shape)}" if logits is not None else f"{', '.join(output)} and no logits"
            raise ValueError(
                f"{self.model_name} returned {given}: distilled are heads with logits [batch, classes], and those that "
                f"docs/heads.md lists."
            )
        return logits[: len(scored.positions)]

    def logits_per_token(self, config: PreTrainedConfig) -> int | None:
        """How many logits of an example belong to each of its tokens; None where they are those of the example."""
        return None

    def stored_logits(self, logits: torch.Tensor, scored: Scored) -> torch.Tensor:
        """`[scored, classes]` logits as they are stored: `[examples, classes]`, or `[tokens, logits_per_token]`."""
        return logits

    def logits_of_stored(self, stored: torch.Tensor, scored: Scored) -> torch.Tensor:
        """`[scored, classes]` logits out of a batch of stored ones.

        Args:
            stored: `[batch, classes]`, or `[batch, length, logits_per_token]` with the tokens in their places.
            scored: what is scored in the batch.
        """
        return stored[: len(scored.positions)]

    def padding_collator(self, processing_class: object) -> Callable[[Sequence], Mapping[str, torch.Tensor]]:
        """What makes a batch for a teacher, of rows that need no labels."""
        return DataCollatorWithPadding(processing_class) if hasattr(processing_class, "pad") else default_data_collator

    def named(self, output: ModelOutput | Mapping | tuple | torch.Tensor) -> ModelOutput:
        """What the model returned without labels: by name, where it was a tuple, a tensor or a plain dict."""
        if isinstance(output, ModelOutput) and hasattr(output, "loss"):  # which it is returned with
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
        """What `Trainer` gives to `compute_metrics`."""
        output = self.named(output)
        predictions = tuple(output[name] for name in self.prediction_names)
        return predictions[0] if len(predictions) == 1 else predictions

    def _labelled(self, labels: torch.Tensor) -> torch.Tensor:
        return labels.ne(IGNORE_INDEX)

    def _check_labels(self, labels: torch.Tensor) -> torch.Tensor:
        if labels.is_floating_point():
            raise ValueError(
                f"The labels are {labels.dtype} {list(labels.shape)}, but {self.model_name} gives one class per "
                f"example: give its index as an integer, or set problem_type='multi_label_classification' or "
                f"'regression' in the configs of student and teacher."
            )
        return labels.reshape(-1)


class BinaryHead(Head):
    """A yes or no for each class: `problem_type="multi_label_classification"`."""

    distribution = "binary"
    problem_type = "multi_label_classification"
    takes_label_smoothing = False

    def _check_labels(self, labels: torch.Tensor) -> torch.Tensor:
        if labels.ndim != 2:
            raise ValueError(
                f"The labels are {labels.dtype} {list(labels.shape)}, but {self.model_name} gives a yes or no for each "
                f"class: give labels [batch, classes] of 0.0 and 1.0 (-100 where it is not known)."
            )
        return labels


class RegressionHead(Head):
    """Numbers: `problem_type="regression"`, or one label only. A label that is not known is NaN."""

    distribution = "real"
    problem_type = "regression"
    takes_label_smoothing = False

    def _labelled(self, labels: torch.Tensor) -> torch.Tensor:
        return ~labels.isnan()

    def _check_labels(self, labels: torch.Tensor) -> torch.Tensor:
        return labels.unsqueeze(-1).flatten(1)


class MultipleChoiceHead(Head):
    """One distribution per example, with a class per choice. The inputs are `[batch, choices, length]`."""

    tasks = ("MULTIPLE_CHOICE",)
    class_names = ("ForMultipleChoice",)
    auto_class = "AutoModelForMultipleChoice"
    pipeline_tag = "multiple-choice"
    is_exported = False
    collator = "DataCollatorForMultipleChoice"
    problem_type = None
    named_classes = False
    takes_text_columns = False

    def score(self, inputs, kl_positions="labels", num_examples=None):
        scored = super().score(inputs, kl_positions, num_examples)
        return Scored(scored.attended.flatten(0, 1), scored.positions, scored.labelled, scored.labels)

    def padding_collator(self, processing_class):
        with_labels = DataCollatorForMultipleChoice(processing_class)
        return lambda rows: with_labels([{**row, "labels": 0} for row in rows])


class QuestionAnsweringHead(Head):
    """Two distributions per example, all starts before all ends, with a class per token that is not padding.

    An answer that is not among those tokens, as where it was truncated, is no label.
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
                f"{self.model_name} returned {', '.join(output)} and no start_logits: an answer that is searched for "
                f"cannot be distilled."
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
