"""Evaluation by generation: the methods and arguments of `Seq2SeqTrainer`."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import torch
from transformers import GenerationConfig, PreTrainedModel, Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.trainer_utils import PredictionOutput


@dataclass
class GenerationTrainingArguments(Seq2SeqTrainingArguments):
    """`Seq2SeqTrainingArguments`: `TrainingArguments` with options of evaluation by generation."""

    predict_with_generate: bool = field(
        default=False,
        metadata={
            "help": "In evaluations, let the student generate, and pass the generated tokens to compute_metrics in "
            "place of logits, for instance to compute ROUGE or BLEU."
        },
    )
    generation_max_length: int | None = field(
        default=None,
        metadata={
            "help": "With predict_with_generate, the maximum number of generated tokens. Default: as in the "
            "generation config."
        },
    )
    generation_num_beams: int | None = field(
        default=None,
        metadata={
            "help": "With predict_with_generate, the number of beams; 1 means no beam search. Default: as in the "
            "generation config."
        },
    )
    generation_config: str | Path | GenerationConfig | None = field(
        default=None,
        metadata={
            "help": "The generation config that replaces the student's: a file, a folder or a model's name on the Hub. "
            "It is saved with the student."
        },
    )

    def __post_init__(self):
        if isinstance(self.generation_config, Path):  # from the command line; a Path cannot be written as JSON
            self.generation_config = str(self.generation_config)
        super().__post_init__()

    def check_generation(self) -> None:
        """Checks that every option of generation has an effect.

        Raises:
            ValueError: if an option would have no effect.
        """
        if self.sortish_sampler:
            raise ValueError(
                "sortish_sampler=True would have no effect, because transformers has no such sampler: use "
                "train_sampling_strategy='group_by_length'."
            )
        if not self.predict_with_generate:
            options = {"generation_max_length": self.generation_max_length}
            options |= {"generation_num_beams": self.generation_num_beams}
            _refuse({name: value for name, value in options.items() if value is not None})


def check_generates(student: PreTrainedModel, args: GenerationTrainingArguments) -> None:
    """Checks that the student can generate, if evaluations do.

    Raises:
        ValueError: if it cannot.
    """
    if args.predict_with_generate and not student.can_generate():
        raise ValueError(
            f"predict_with_generate=True does not work with a {type(student).__name__}, which cannot generate: load "
            f"the student with AutoModelForSeq2SeqLM or AutoModelForCausalLM, or leave the option out."
        )


class GenerationOptions(Protocol):
    """The training arguments that `GeneratingTrainer` reads."""

    @property
    def generation_config(self) -> str | Path | GenerationConfig | None: ...

    @property
    def predict_with_generate(self) -> bool: ...


class GeneratingTrainer(Seq2SeqTrainer):
    """A `Seq2SeqTrainer` that is a `Trainer` unless `predict_with_generate` is set."""

    args: GenerationOptions

    def __init__(self, *arguments, **options):
        super(Seq2SeqTrainer, self).__init__(*arguments, **options)  # whose own lacks an argument of `Trainer`
        if self.args.generation_config is not None:
            self.model.generation_config = self.load_generation_config(self.args.generation_config)

    def evaluate(
        self,
        eval_dataset=None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **gen_kwargs,
    ) -> dict[str, float]:
        """As in `Trainer`. With `predict_with_generate`, options of `generate` may be given, as in `Seq2SeqTrainer`."""
        if self.args.predict_with_generate:
            return super().evaluate(eval_dataset, ignore_keys, metric_key_prefix, **gen_kwargs)
        _refuse(gen_kwargs)
        return super(Seq2SeqTrainer, self).evaluate(eval_dataset, ignore_keys, metric_key_prefix)

    def predict(
        self, test_dataset, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test", **gen_kwargs
    ) -> PredictionOutput:
        """As in `Trainer`. With `predict_with_generate`, options of `generate` may be given, as in `Seq2SeqTrainer`."""
        if self.args.predict_with_generate:
            return super().predict(test_dataset, ignore_keys, metric_key_prefix, **gen_kwargs)
        _refuse(gen_kwargs)
        return super(Seq2SeqTrainer, self).predict(test_dataset, ignore_keys, metric_key_prefix)

    def _generate(
        self,
        inputs: Mapping[str, torch.Tensor],
        labels: torch.Tensor | None,
        ignore_keys: list[str] | None,
        **gen_kwargs,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """What `Seq2SeqTrainer` returns as predictions and labels, without a forward for its own loss.

        Args:
            inputs: the student's inputs, without labels.
            labels: `[batch, length]`; None without labels.
            ignore_keys: as in `Trainer.prediction_step`.
            **gen_kwargs: options of `generate`.

        Returns:
            The generated tokens, and the labels, padded as `Seq2SeqTrainer` pads them.
        """
        inputs = dict(inputs)
        decoder_inputs = inputs.get("decoder_input_ids")
        if labels is not None and decoder_inputs is not None and decoder_inputs.shape == labels.shape:
            del inputs["decoder_input_ids"]  # derived from the labels: generation would continue them
            inputs.pop("decoder_attention_mask", None)
        _, generated, _ = Seq2SeqTrainer.prediction_step(self, self.model, inputs, False, ignore_keys, **gen_kwargs)
        assert generated is not None  # always there without `prediction_loss_only`
        config = self.model.generation_config
        lengths = (config.max_length, 0 if config.max_new_tokens is None else config.max_new_tokens + 1)
        if labels is not None and (longer := [length for length in lengths if length > labels.shape[-1]]):
            labels = self._pad_tensors_to_max_len(labels, longer[0])
        return generated, labels


def _refuse(options: Mapping[str, object]) -> None:
    if options:
        shown = ", ".join(f"{name}={value!r}" for name, value in options.items())
        raise ValueError(f"{shown} would have no effect without predict_with_generate=True: set it, or leave this out.")
