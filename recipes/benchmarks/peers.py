"""One optimizer step of the same distillation in hf_distill, the common pattern, TextBrewer and TRL."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer, TrainingArguments, default_data_collator

from hf_distill import DistillationTrainer, DistillationTrainingArguments
from recipes.benchmarks._common import QUIET, train_quietly

TEMPERATURE, ALPHA_KL, ALPHA_TASK, ALPHA_COS = 2.0, 5.0, 2.0, 1.0

DIVERGENCE_ALONE = {"temperature": 1.0, "alpha_kl": 1.0, "alpha_task": 0.0, "alpha_cos": 0.0}
"""The loss of TRL's `GKDTrainer` with `beta=0`."""

Batch = Mapping[str, torch.Tensor]
Rows = Sequence[Mapping[str, torch.Tensor]]

OPTIONS = {
    "learning_rate": 0.0,  # so that every step starts from the same weights
    "lr_scheduler_type": "constant",
    "max_steps": 1,
    "logging_steps": 1,
    **QUIET,
}


class TrainerSide:
    """Runs the steps of a transformers trainer one by one."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        train_quietly(trainer)  # one step, which initialises everything

    def forward_and_backward(self, batch: Batch) -> float:
        """Runs one step and returns the loss."""
        trainer = self.trainer
        (batch,), num_items = trainer.get_batch_samples(iter([dict(batch)]), 1, trainer.args.device)
        return trainer.training_step(trainer.model_wrapped, batch, num_items).item()

    def optimizer_step(self) -> None:
        trainer = self.trainer
        trainer.accelerator.clip_grad_norm_(trainer.model.parameters(), trainer.args.max_grad_norm)
        trainer.optimizer.step()
        trainer.model.zero_grad()


def ours(
    teacher: PreTrainedModel, student: PreTrainedModel, batch: Batch, folder: Path, kl_positions: str, **options
) -> TrainerSide:
    """`DistillationTrainer`."""
    return TrainerSide(our_trainer(teacher, student, rows_of(batch), folder, kl_positions, **_of(batch), **options))


def our_trainer(
    teacher: PreTrainedModel, student: PreTrainedModel, rows: Rows, folder: Path, kl_positions: str, **options
) -> DistillationTrainer:
    args = DistillationTrainingArguments(str(folder), kl_positions=kl_positions, **(OPTIONS | options))
    return DistillationTrainer(student, args, train_dataset=rows, teacher_model=teacher)


class CommonTrainer(Trainer):
    """The common pattern for distillation with `Trainer`: compute all logits of both models, then the losses.

    It uses the loss formulas of hf_distill, so that figures can be compared. Many published versions have errors.
    """

    def __init__(self, *args, teacher: PreTrainedModel, kl_positions: str, **options):
        super().__init__(*args, **options)
        self.teacher = teacher.to(self.args.device).eval()
        self.kl_positions = kl_positions

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        student_outputs = model(**inputs, output_hidden_states=True)
        with torch.no_grad():
            teacher_outputs = self.teacher(**inputs, output_hidden_states=True)
        attended = inputs["attention_mask"].bool()
        scored = scored_positions(inputs, self.kl_positions)
        loss_kl = TEMPERATURE**2 * F.kl_div(
            F.log_softmax(student_outputs.logits[scored] / TEMPERATURE, dim=-1),
            F.softmax(teacher_outputs.logits[scored] / TEMPERATURE, dim=-1),
            reduction="batchmean",
        )
        student_hidden, teacher_hidden = student_outputs.hidden_states[-1], teacher_outputs.hidden_states[-1]
        loss_cos = F.cosine_embedding_loss(
            student_hidden[attended], teacher_hidden[attended], torch.ones(int(attended.sum()), device=attended.device)
        )
        return ALPHA_KL * loss_kl + ALPHA_TASK * student_outputs.loss + ALPHA_COS * loss_cos


def common(
    teacher: PreTrainedModel, student: PreTrainedModel, batch: Batch, folder: Path, kl_positions: str, **options
) -> TrainerSide:
    """Makes a trainer with the common pattern."""
    return TrainerSide(common_trainer(teacher, student, rows_of(batch), folder, kl_positions, **_of(batch), **options))


def common_trainer(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    rows: Rows,
    folder: Path,
    kl_positions: str,
    teacher_dtype: str = "float32",
    **options,
) -> CommonTrainer:
    args = TrainingArguments(str(folder), **(OPTIONS | options))
    teacher = teacher.to(getattr(torch, teacher_dtype))
    return CommonTrainer(student, args, train_dataset=rows, teacher=teacher, kl_positions=kl_positions)


class TextBrewerSide:
    """`textbrewer.GeneralDistiller` with the same losses, and the same optimizer as `Trainer`."""

    def __init__(
        self,
        teacher: PreTrainedModel,
        student: PreTrainedModel,
        batch: Batch,
        folder: Path,
        kl_positions: str,
        bf16: bool = False,
        teacher_dtype: str = "float32",
    ):
        from textbrewer import DistillationConfig, GeneralDistiller
        from textbrewer import TrainingConfig as TextBrewerTrainingConfig

        self.student, device = student, batch["input_ids"].device
        self.teacher = teacher.to(device, getattr(torch, teacher_dtype)).eval()
        self.kl_positions, self.bf16 = kl_positions, bf16
        student.to(device).train()
        # TextBrewer's loss is the cross-entropy of the softened distributions, without the factor T^2.
        distillation = DistillationConfig(
            temperature=TEMPERATURE,
            kd_loss_type="ce",
            kd_loss_weight=ALPHA_KL * TEMPERATURE**2,
            hard_label_weight=ALPHA_TASK,
            intermediate_matches=[
                {"layer_T": -1, "layer_S": -1, "feature": "hidden", "loss": "cos", "weight": ALPHA_COS}
            ],
        )
        self.distiller = GeneralDistiller(
            TextBrewerTrainingConfig(log_dir=None, output_dir=str(folder), device=device),
            distillation,
            self.teacher,
            student,
            self._read,
            self._read,
        )
        self.optimizer = torch.optim.AdamW(student.parameters(), lr=0.0, fused=True)
        self.forward_and_backward(batch)
        self.optimizer_step()

    def _read(self, batch: Batch, outputs) -> dict[str, object]:
        return {
            "logits": outputs.logits,
            "logits_mask": scored_positions(batch, self.kl_positions),
            "hidden": outputs.hidden_states,
            "inputs_mask": batch["attention_mask"],
            "losses": outputs.loss,
        }

    def forward_and_backward(self, batch: Batch) -> float:
        """Runs one step and returns the loss minus the entropy of the teacher's distribution, which gives the KL."""
        with torch.autocast(self.student.device.type, torch.bfloat16, enabled=self.bf16):
            loss, _ = self.distiller.train_on_batch(dict(batch), {"output_hidden_states": True})
        loss.backward()
        return loss.item()

    def optimizer_step(self) -> None:
        nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def entropy(self, batch: Batch) -> float:
        """The difference from our loss: the weighted entropy of the teacher's softened distribution, in nats."""
        with torch.no_grad():
            logits = self.teacher(**batch).logits[scored_positions(batch, self.kl_positions)].float()
            entropy = torch.distributions.Categorical(logits=logits / TEMPERATURE).entropy().mean().item()
        return ALPHA_KL * TEMPERATURE**2 * entropy


def trl(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    batch: Batch,
    folder: Path,
    kl_positions: str,
    teacher_dtype: str = "float32",
    **options,
) -> TrainerSide:
    """TRL's `GKDTrainer` on given text, for causal language models."""
    rows = [{name: values.tolist() for name, values in row.items()} for row in rows_of(batch)]
    options = OPTIONS | _of(batch) | {"output_dir": str(folder), "gradient_checkpointing": False} | options
    teacher = teacher.to(getattr(torch, teacher_dtype))
    return TrainerSide(gkd_trainer(teacher, student, rows, default_data_collator, temperature=1.0, **options))


def gkd_trainer(
    teacher: PreTrainedModel,
    student: PreTrainedModel,
    rows: Sequence[Mapping[str, object]],
    data_collator: Callable,
    **options,
) -> Trainer:
    """TRL's `GKDTrainer` on given text: no generation, and only the divergence as loss.

    Dropout is off, which is TRL's default.
    """
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    args = GKDConfig(**options, lmbda=0.0, beta=0.0)
    return GKDTrainer(
        student, teacher, args, data_collator, Dataset.from_list(list(rows)), processing_class=make_tokenizer()
    )


def make_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer, which TRL's trainers require. No text is tokenized here."""
    words = Tokenizer(WordLevel({"<eos>": 0}, "<eos>"))
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="<eos>", pad_token="<eos>")


def scored_positions(batch: Batch, kl_positions: str) -> torch.Tensor:
    """Mask `[batch, length]` of the positions that are compared with the teacher."""
    return batch["labels"].ne(-100) if kl_positions == "labels" else batch["attention_mask"].bool()


def rows_of(batch: Batch) -> list[dict[str, torch.Tensor]]:
    return [{name: values[i].cpu() for name, values in batch.items()} for i in range(len(batch["input_ids"]))]


def _of(batch: Batch) -> dict[str, object]:
    return {
        "per_device_train_batch_size": len(batch["input_ids"]),
        "use_cpu": batch["input_ids"].device.type == "cpu",
    }
