"""The heads that can be distilled: what is scored in a batch, and where the logits of it are.

A position is what a head gives one distribution for: an example in classification, a token in language modelling, the
start or the end of the answer in question answering. `docs/heads.md` has all of it in one table.
"""

import inspect
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import cached_property
from typing import Literal

import torch
import torch.nn.functional as F
import transformers
from transformers import EncoderDecoderModel, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import QuestionAnsweringModelOutput, SequenceClassifierOutput
from transformers.models.auto import modeling_auto
from transformers.utils import ModelOutput

from hf_distill.data.labels import IGNORE_INDEX

SCORED_INDICES = "scored_indices"
"""In a batch: `[scored]`, which of its tokens are scored, counted through the batch."""

MASKED_LOGIT = -1e30
"""The logit of a class that a position cannot have. Finite, so that a difference of two of them is 0 and not NaN."""

Distribution = Literal["categorical", "binary", "real"]
"""What the logits of a position describe: one class out of several, a yes or no for each class, or numbers."""

PROBLEM_TYPES: dict[str, Distribution] = {
    "single_label_classification": "categorical",
    "multi_label_classification": "binary",
    "regression": "real",
}

MAPPINGS = {
    name.removeprefix("MODEL_FOR_").removesuffix("_MAPPING_NAMES"): frozenset(
        model for models in names.values() for model in ([models] if isinstance(models, str) else models)
    )
    for name, names in vars(modeling_auto).items()
    if name.startswith("MODEL_") and name.endswith("_MAPPING_NAMES")
}
"""The names of the models that transformers lists for each task, such as `MASKED_LM`."""

OTHER_AUTO_CLASSES = {
    "IMAGE_CLASSIFICATION": "AutoModelForImageClassification",
    "AUDIO_CLASSIFICATION": "AutoModelForAudioClassification",
    "VIDEO_CLASSIFICATION": "AutoModelForVideoClassification",
    "NEXT_SENTENCE_PREDICTION": "AutoModelForNextSentencePrediction",
    "DOCUMENT_QUESTION_ANSWERING": "AutoModelForDocumentQuestionAnswering",
    "SEQ_TO_SEQ_CAUSAL_LM": "AutoModelForSeq2SeqLM",
    "SPEECH_SEQ_2_SEQ": "AutoModelForSpeechSeq2Seq",
    "IMAGE_TEXT_TO_TEXT": "AutoModelForImageTextToText",
}
"""What loads the models of a task, where that is not the `auto_class` of their head."""

HEADLESS = ("MODEL", "BACKBONE", "TEXT_ENCODING", "IMAGE")
"""Those of models without a head."""

OF_MANY_KINDS = ("PRETRAINING", "MULTIMODAL_LM")
"""Those in which models with heads of all kinds are listed once more."""


@dataclass(frozen=True)
class Scored:
    """What is scored in one batch.

    Attributes:
        attended: `[batch, length]`, True where there is no padding: the items of the cosine loss. `[batch, 1]` for
            images and audio, where an example counts as one item.
        positions: True where the head's output is scored: the items of the KL loss. `[batch, length]` for a head with a
            distribution per token, and what is scored follows the positions that are True; else `[scored]`.
        labelled: True where there is a label too: the items of the task loss. Of the shape of `labels`.
        labels: like `positions`, or `[scored, classes]`; None if the batch has no labels.
        known_indices: `[scored]`, for a head with a distribution per token: where `positions` is True, counted through
            the batch; None if that has still to be found out, for which a device has to be waited for.
    """

    attended: torch.Tensor
    positions: torch.Tensor
    labelled: torch.Tensor
    labels: torch.Tensor | None
    known_indices: torch.Tensor | None = None

    @property
    def per_token(self) -> bool:
        return self.positions.ndim == 2

    @property
    def scored_labels(self) -> torch.Tensor | None:
        """`[scored]` or `[scored, classes]`: the labels of the scored positions, in their order."""
        return self.select(self.labels) if self.per_token and self.labels is not None else self.labels

    @cached_property
    def indices(self) -> torch.Tensor:
        """`[scored]`, as `known_indices`; found out once for student, teacher and labels."""
        if self.known_indices is not None:
            return self.known_indices
        with torch.inference_mode(False):  # the teacher may be the first to ask
            return self.positions.flatten().nonzero().squeeze(1)

    def select(self, values: torch.Tensor) -> torch.Tensor:
        """`[scored, ...]` out of `[batch, length, ...]`, for a head with a distribution per token.

        Raises:
            ValueError: if the values are not those of the batch's tokens.
        """
        if values.shape[:2] != self.positions.shape:
            raise ValueError(
                f"The model gives values {list(values.shape)} for tokens {list(self.positions.shape)}, so it is not "
                f"known which of them belong to which: pad the rows to the length that the model always gives."
            )
        return values.flatten(0, 1)[self.indices.to(values.device)]


class Head:
    """One distribution per example: sequence, image, audio and video classification, and whatever is not listed below.

    `config.problem_type` says whether it is one class, a yes or no for each class, or numbers.

    Args:
        model: the model that has the head.

    Attributes:
        tasks: the keys of `MAPPINGS` under which transformers lists models with such a head.
        class_names: how the names of classes end that transformers does not list.
        auto_class: the class that loads such models, those of the first task: it stands for the kind of head.
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
    output_class: type[ModelOutput] = SequenceClassifierOutput
    label_names: tuple[str, ...] = ("labels",)
    per_token = False
    over_vocabulary = False
    named_classes = True  # the config's id2label names the classes
    distribution: Distribution = "categorical"
    problem_type: str | None = "single_label_classification"  # the config's, for heads that it tells apart
    prediction_names: tuple[str, ...] = ("logits",)
    collator = "DataCollatorWithPadding"  # the one of transformers that pads its rows

    def __init__(self, model: PreTrainedModel):
        self.model_name = type(model).__name__
        self.runs_alone = self.over_vocabulary  # on the scored positions, until that has been seen to fail
        # `make test-families` tries the models of transformers; others are tried in their first forward.
        self.is_proved = inspect.unwrap(type(model).forward).__module__.startswith("transformers.")

    @classmethod
    def lists(cls, class_name: str) -> bool:
        """Whether transformers lists a model under one of the tasks of this head."""
        return any(class_name in MAPPINGS.get(task, ()) for task in cls.tasks)

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
        attended = _first(_attended(inputs), num_examples)
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

    def _labelled(self, labels: torch.Tensor) -> torch.Tensor:
        return ~labels.isnan()

    def _check_labels(self, labels: torch.Tensor) -> torch.Tensor:
        return labels.unsqueeze(-1).flatten(1)


class MultipleChoiceHead(Head):
    """One distribution per example, with a class per choice. The inputs are `[batch, choices, length]`."""

    tasks = ("MULTIPLE_CHOICE",)
    class_names = ("ForMultipleChoice",)
    auto_class = "AutoModelForMultipleChoice"
    named_classes = False
    problem_type = None
    collator = "DataCollatorForMultipleChoice"

    def score(self, inputs, kl_positions="labels", num_examples=None):
        scored = super().score(inputs, kl_positions, num_examples)
        return Scored(scored.attended.flatten(0, 1), scored.positions, scored.labelled, scored.labels)


class QuestionAnsweringHead(Head):
    """Two distributions per example, all starts before all ends, with a class per token that is not padding.

    An answer that is not among those tokens, as where it was truncated, is no label.
    """

    tasks = ("QUESTION_ANSWERING", "DOCUMENT_QUESTION_ANSWERING")
    class_names = ("ForQuestionAnswering", "ForQuestionAnsweringSimple")
    auto_class = "AutoModelForQuestionAnswering"
    output_class = QuestionAnsweringModelOutput
    label_names = ("start_positions", "end_positions")
    named_classes = False
    problem_type = None
    prediction_names = ("start_logits", "end_logits")

    def score(self, inputs, kl_positions="labels", num_examples=None):
        attended = _attended(inputs)
        choices = attended[:num_examples].repeat(2, 1)
        positions = choices.new_ones(len(choices))
        attended = _first(attended, num_examples)
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


class TokenHead(Head):
    """One distribution per token: token classification."""

    tasks = ("TOKEN_CLASSIFICATION",)
    class_names = ("ForTokenClassification",)
    auto_class = "AutoModelForTokenClassification"
    per_token = True
    problem_type = None
    collator = "DataCollatorForTokenClassification"

    def score(self, inputs, kl_positions="labels", num_examples=None):
        attended = _first(self._attended(inputs), num_examples)
        labels = self._token_labels(inputs)
        if kl_positions == "attended":
            positions = attended
        elif labels is None:
            raise ValueError(
                f"The batch has no labels, only {', '.join(inputs)}, so no position would be scored: use a collator "
                f"that makes labels, such as DataCollatorForLanguageModeling, or set kl_positions='attended' and "
                f"alpha_task=0."
            )
        else:
            positions = labels.ne(IGNORE_INDEX) & attended
        labelled = torch.zeros_like(positions) if labels is None else labels.ne(IGNORE_INDEX) & positions
        return Scored(attended, positions, labelled, labels)

    def scored_logits(self, output, scored):
        return scored.select(output.logits)

    def _attended(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
        return _attended(inputs)

    def _token_labels(self, inputs: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
        """`[batch, length]`: the class that each token should give."""
        return inputs.get("labels")


class MaskedLMHead(TokenHead):
    """One distribution per token, over the vocabulary: the word that was there."""

    tasks = ("MASKED_LM",)
    class_names = ("ForMaskedLM",)
    auto_class = "AutoModelForMaskedLM"
    over_vocabulary = True
    named_classes = False


class CausalLMHead(MaskedLMHead):
    """One distribution per token, over the vocabulary: the token that comes next.

    The labels are the tokens themselves; they are shifted here, for every model.
    """

    tasks = ("CAUSAL_LM",)
    class_names = ("ForCausalLM",)
    auto_class = "AutoModelForCausalLM"

    def _token_labels(self, inputs):
        labels = inputs.get("labels")
        return None if labels is None else F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)


class PermutedLMHead(MaskedLMHead):
    """XLNet's: one distribution for each token that `target_mapping` names, with its label in the same place.

    `AutoModelForCausalLM` loads it, but every token reads every other, unless `perm_mask` says otherwise:
    `DataCollatorForPermutationLanguageModeling` makes that.
    """

    tasks = ()
    class_names = ("XLNetLMHeadModel",)
    auto_class = "AutoModelForCausalLM"


class Seq2SeqLMHead(MaskedLMHead):
    """One distribution per token of the target, over the vocabulary.

    It reads `decoder_input_ids`, which are one behind the labels. Where the batch has none they are made of the labels,
    as the model would.
    """

    tasks = ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT")
    class_names = ("ForConditionalGeneration",)
    auto_class = "AutoModelForSeq2SeqLM"
    collator = "DataCollatorForSeq2Seq"

    def complete(self, inputs, model):
        labels = inputs.get("labels")
        if labels is None or "decoder_input_ids" in inputs or "decoder_inputs_embeds" in inputs:
            return inputs
        decoder_input_ids = decoder_input_ids_of(model, labels)
        made = {"decoder_input_ids": decoder_input_ids}
        if isinstance(model, EncoderDecoderModel):  # the only one that makes a mask of them too
            made["decoder_attention_mask"] = decoder_input_ids.ne(model.config.pad_token_id).long()
        return {**made, **inputs}

    def _attended(self, inputs):
        if (attention_mask := inputs.get("decoder_attention_mask")) is not None:
            return attention_mask.bool()
        if (labels := inputs.get("labels")) is not None:
            return labels.ne(IGNORE_INDEX)
        if (decoder_input_ids := inputs.get("decoder_input_ids")) is not None:
            return torch.ones_like(decoder_input_ids, dtype=torch.bool)
        raise ValueError(
            f"The batch has no labels and no decoder_input_ids, only {', '.join(inputs)}: {self.model_name} has "
            f"nothing to score. Use a collator that makes labels, such as DataCollatorForSeq2Seq."
        )


# A head that is missing here is one class above, one row here and one in the parametrised tests. A model that
# transformers lists for two has the first: BART is listed for masked language modelling too, and XLM for causal.
HEADS = (
    *(PermutedLMHead, Seq2SeqLMHead, MaskedLMHead, CausalLMHead),
    *(MultipleChoiceHead, QuestionAnsweringHead, TokenHead, Head),
)


def find_head(model: PreTrainedModel) -> Head:
    """The head of `model`: by the task that transformers lists its class for, or a class it derives from; by its name
    where it is not listed.

    Raises:
        ValueError: if the model has no head, or one of a kind that cannot be distilled.
    """
    for cls in type(model).__mro__:
        name = cls.__name__
        heads = [head for head in HEADS if name in head.class_names or head.lists(name)]
        tasks = [task for task, models in MAPPINGS.items() if name in models and task not in HEADLESS]
        if not heads and all(task in OF_MANY_KINDS for task in tasks):
            heads = [head for head in HEADS if name.endswith(head.class_names)]
        if Seq2SeqLMHead in heads and not model.config.is_encoder_decoder:
            # A language model that reads images or recordings among its tokens, listed beside encoder-decoders.
            among_tokens = Seq2SeqLMHead.lists(name) and name.endswith(("ForConditionalGeneration", "ForCausalLM"))
            if not among_tokens and CausalLMHead not in heads:
                raise ValueError(
                    f"{type(model).__name__} is not an encoder-decoder, so it is not clear what its logits mean: load "
                    f"its language model with AutoModelForCausalLM."
                )
            heads = [CausalLMHead]
        if heads:
            return _checked(model, _of_problem_type(model) if heads[0] is Head else heads[0](model))
        if tasks or name.endswith("ForPreTraining"):
            task = (tasks or ["PRETRAINING"])[0].lower().replace("_", " ")
            raise ValueError(
                f"{type(model).__name__} is made for {task}, and what it gives cannot be distilled: docs/heads.md "
                f"lists the heads that can be."
            )
    if is_base(model) and model.base_model is model:
        raise ValueError(
            f"{type(model).__name__} has no head, so there are no logits to distil: load it with "
            f"AutoModelForSequenceClassification, AutoModelForMaskedLM or the like."
        )
    return _checked(model, _of_problem_type(model))


def is_base(model: PreTrainedModel) -> bool:
    """Whether transformers lists its class, or one that it derives from, as a model without a head."""
    return any(cls.__name__ in MAPPINGS["MODEL"] for cls in type(model).__mro__)


def _checked(model: PreTrainedModel, head: Head) -> Head:
    """The head, unless the model declares to return something else."""
    declared = inspect.signature(model.forward).return_annotation
    classes = [cls for cls in typing.get_args(declared) or [declared] if is_dataclass(cls)]
    names = {field.name for cls in classes for field in fields(cls)}
    # Some declare the output of another head, so that only what has neither logits nor a loss is believed.
    nothing_known = names and not head.per_token and not names.intersection(("loss", *head.prediction_names))
    if nothing_known or "start_top_log_probs" in names:  # of an answer that is searched for
        raise ValueError(
            f"{type(model).__name__} returns {', '.join(sorted(names))} and no "
            f"{' and no '.join(head.prediction_names)}, so it cannot be distilled: docs/heads.md lists the heads that "
            f"can be."
        )
    return head


def _of_problem_type(model: PreTrainedModel) -> Head:
    default = "regression" if getattr(model.config, "num_labels", None) == 1 else "single_label_classification"
    distribution = PROBLEM_TYPES[getattr(model.config, "problem_type", None) or default]
    return {"categorical": Head, "binary": BinaryHead, "real": RegressionHead}[distribution](model)


def decoder_input_ids_of(model: PreTrainedModel, labels: torch.Tensor) -> torch.Tensor:
    """`[batch, length]`: what the decoder reads where the batch has only labels, as the model's own forward makes it.

    Raises:
        ValueError: if the model does not say how.
    """
    for name in ("prepare_decoder_input_ids_from_labels", "_shift_right"):
        if hasattr(model, name):
            return getattr(model, name)(labels)
    for cls in type(model).__mro__:
        # What the forwards of BART's relatives call, whether or not the model has a method for it.
        if shift_tokens_right := getattr(sys.modules[cls.__module__], "shift_tokens_right", None):
            ids = {name: getattr(model.config, name, None) for name in ("pad_token_id", "decoder_start_token_id")}
            if None in ids.values():
                raise ValueError(f"The decoder's inputs need both of {ids} in the config of {type(model).__name__}.")
            return shift_tokens_right(labels, **ids)
    raise ValueError(
        f"{type(model).__name__} does not say what its decoder reads for given labels: give the batch "
        f"decoder_input_ids."
    )


def scored_indices(head: Head, kl_positions: str, batch: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    """`[scored]` of a batch, for a head with a distribution per token; None without labels."""
    return head.score(batch, kl_positions).indices if batch.get("labels") is not None else None


def auto_class_of(model: PreTrainedModel) -> type:
    """The class that loads a model with the head of `model`, of whatever family, from a name."""
    head = find_head(model)
    known = (*head.tasks, *OTHER_AUTO_CLASSES)
    tasks = (task for cls in type(model).__mro__ for task in known if cls.__name__ in MAPPINGS.get(task, ()))
    return getattr(transformers, OTHER_AUTO_CLASSES.get(next(tasks, None), head.auto_class))


def count_examples(inputs: Mapping[str, torch.Tensor]) -> int:
    """How many examples a batch has."""
    return len(_main_input(inputs))


MAIN_INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_values", "input_features")


def _main_input(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """What the model reads: other entries of a batch may have no row per example."""
    return inputs[next((name for name in MAIN_INPUTS if inputs.get(name) is not None), next(iter(inputs)))]


def _attended(inputs: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """`[batch, length]`, or `[batch, 1]` for inputs that are not made of tokens."""
    tokens = inputs.get("input_ids", inputs.get("inputs_embeds"))
    if tokens is None:
        examples = _main_input(inputs)
        return torch.ones(len(examples), 1, dtype=torch.bool, device=examples.device)
    if (attention_mask := inputs.get("attention_mask")) is not None:
        return attended_by_mask(attention_mask)
    shape = tokens.shape if "input_ids" in inputs else tokens.shape[:-1]
    return torch.ones(shape, dtype=torch.bool, device=tokens.device)


def attended_by_mask(attention_mask: torch.Tensor) -> torch.Tensor:
    """`[batch, length]`, True for what is attended, out of a mask of tokens or of packed documents."""
    if attention_mask.ndim == 4:  # who attends to whom: what is attended attends to itself
        attention_mask = attention_mask[:, 0].diagonal(dim1=1, dim2=2)
        return attention_mask if attention_mask.dtype == torch.bool else attention_mask.eq(0)
    return attention_mask.bool()


def _first(attended: torch.Tensor, num_examples: int | None) -> torch.Tensor:
    """`attended`, False for all but the first examples."""
    if num_examples is None:
        return attended
    is_first = torch.arange(len(attended), device=attended.device) < num_examples
    return attended & is_first.reshape(-1, *[1] * (attended.ndim - 1))
