"""Masked language modelling: the tokens that are masked in a text."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from peft import TaskType
from transformers import AutoModelForMaskedLM

from hf_distill.data import DataCollatorForMaskedLM
from hf_distill.deployment.text_encoder import EditedTokens
from hf_distill.tasks.language_modelling import LanguageModelling, LanguageModellingArguments
from hf_distill.tasks.task import Reading
from hf_distill.training import DistillationTrainer

SHARE = 0.15
"""Of the tokens that are masked in an evaluation, as in Devlin et al., 2018."""


@dataclass
class FillMaskArguments(LanguageModellingArguments):
    """Model, teacher and texts of a masked language model's training.

    `DistillationTrainingArguments` holds everything else: loss weights, learning rate, epochs, output folder.

    Raises:
        ValueError: if options contradict each other, are out of range, or would have no effect.

    Example:
        >>> FillMaskArguments(train_file="books.txt", documents="paragraph", max_length=512)
    """

    task: str = field(default="fill-mask", metadata={"help": "The task: a name that `hf-distill tasks` lists."})
    mlm_probability: float = field(
        default=0.15, metadata={"help": "Share of tokens that are masked in training, at random in every batch."}
    )

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.mlm_probability < 1:
            raise ValueError(f"mlm_probability={self.mlm_probability} must be between 0 and 1, such as 0.15.")


class FillMask(LanguageModelling):
    name = "fill-mask"
    pipeline_tag = "fill-mask"
    summary = "the masked tokens of a text"
    data = "text files, or text in JSON, JSON lines and Parquet"
    example = """\
teacher_model_name_or_path: FacebookAI/roberta-base
dataset_name: Salesforce/wikitext
dataset_config_name: wikitext-103-raw-v1
train_split: train
validation_split: validation
max_length: 512
output_dir: outputs/student
"""
    arguments = FillMaskArguments
    auto_class = AutoModelForMaskedLM
    head = "masked language modelling"
    lora_task_type = TaskType.FEATURE_EXTRACTION
    takes_stored_targets = False  # other tokens are masked in every epoch
    notes = (
        "In each text 15% of the tokens are masked, the same for every model. Perplexity is over these tokens. "
        "Agreement is the share of them where both models find the same token most likely."
    )

    def collator(self, processor: Any, model: Any) -> Callable:
        return DataCollatorForMaskedLM(processor)

    def prepare(self, trainer: DistillationTrainer, reading: Reading) -> None:
        super().prepare(trainer, reading)
        collator: Any = trainer.data_collator
        collator.mlm_probability = reading["mlm_probability"]

    def scored(self, window, predictor, row):
        ids = np.array(window.ids)
        text = np.flatnonzero(np.array(window.special_tokens_mask) == 0)
        chosen = np.random.default_rng(row).permutation(text)[: max(1, round(SHARE * len(text)))]
        places = np.sort(chosen)
        right = ids[places]
        ids[places] = predictor.reader.mask_token_id
        masked = EditedTokens(
            ids.tolist(), window.type_ids, window.attention_mask, window.special_tokens_mask, window.offsets
        )
        return masked, places, right
