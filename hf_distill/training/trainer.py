"""`DistillationTrainer`: `Trainer` with a teacher beside the model."""

import copy
import os
from collections.abc import Mapping

import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import EvalLoopOutput, TrainOutput, has_length

from hf_distill.training.losses import LOSSES
from hf_distill.training.scoring import Scored, ScoredOutput, find_head, score, scored_forward, sum_over_chunks
from hf_distill.training.teacher import Teacher, load_teacher, named_inputs
from hf_distill.training.training_args import DistillationTrainingArguments


class DistillationTrainer(Trainer):
    """A drop-in for `Trainer` that trains the model to do as a frozen teacher does.

    `loss = alpha_kl * L_kl + alpha_task * L_task + alpha_cos * L_cos`: the KL divergence of the softened outputs, the
    head's own loss on hard labels, and one minus the cosine of the last hidden states (Sanh et al., 2019, DistilBERT,
    https://arxiv.org/abs/1910.01108). Each is a mean over its own items in the whole optimizer step, so the loss and
    its gradient do not depend on how a step is split into micro-batches and processes. The three are logged beside
    `loss` as `loss_kl`, `loss_task` and `loss_cos`, and in evaluation as `eval_loss_kl` and so on, not yet weighted.

    Args:
        model: the student, for instance from `make_student(teacher)`.
        args: `DistillationTrainingArguments`.
        *trainer_arguments: every other argument is `Trainer`'s own, in `Trainer`'s order.
        teacher_model: a transformers model, or a name on the Hub or a folder to load one from. It is set to
            `requires_grad=False`, moved to the training device and otherwise left as it is; no checkpoint contains it.
            By default `args.teacher_model_name_or_path`. None if `alpha_kl` and `alpha_cos` are both 0.
        **trainer_options: `Trainer`'s own, by name.

    Raises:
        TypeError: if `args` or `teacher_model` is of the wrong kind.
        ValueError: if teacher and student cannot be compared, if an option would have no effect, or if a data set is
            empty.

    Example:
        >>> teacher = AutoModelForSequenceClassification.from_pretrained("textattack/bert-base-uncased-imdb")
        >>> trainer = DistillationTrainer(
        ...     model=make_student(teacher),
        ...     teacher_model=teacher,
        ...     args=DistillationTrainingArguments(output_dir="student"),
        ...     train_dataset=train,
        ...     eval_dataset=test,
        ...     processing_class=tokenizer,
        ... )
        >>> trainer.train()
    """

    # Many heads take `**kwargs` and ignore `num_items_in_batch`, which Trainer takes for a loss that is scaled already.
    # Here every loss is computed from the logits, and divided by its items in the whole step.
    loss_is_scaled_for_ga = True

    args: DistillationTrainingArguments
    model: PreTrainedModel

    def __init__(
        self,
        model: PreTrainedModel | None = None,
        args: DistillationTrainingArguments | None = None,
        *trainer_arguments,
        teacher_model: PreTrainedModel | str | None = None,
        **trainer_options,
    ):
        if args is None:
            args = DistillationTrainingArguments(output_dir="tmp_trainer")
        if not isinstance(args, DistillationTrainingArguments):
            raise TypeError(
                f"args should be DistillationTrainingArguments, but is {type(args).__name__}: it takes all that "
                f"TrainingArguments takes."
            )
        super().__init__(model, args, *trainer_arguments, **trainer_options)
        self.model_accepts_loss_kwargs = True  # says what `loss_is_scaled_for_ga` says, to transformers before 5.19
        if args.n_gpu > 1:
            raise ValueError(
                f"One process cannot drive {args.n_gpu} GPUs here: start one process per GPU with `accelerate launch` "
                f"or `torchrun`, or choose one GPU with CUDA_VISIBLE_DEVICES=0."
            )

        if self.compute_loss_func is not None:
            raise ValueError("compute_loss_func would have no effect: to change a loss, override compute_loss.")

        student = self.model
        if not isinstance(student, PreTrainedModel):
            raise TypeError(
                f"model should be a transformers model, but is {type(student).__name__}: pass what "
                f"make_student(teacher) or AutoModelFor....from_pretrained(...) returns."
            )
        self.head = find_head(student)
        self.alphas = {name: getattr(args, f"alpha_{name}") for name in LOSSES}
        self.losses = {name: build(args) for name, build in LOSSES.items() if self.alphas[name] > 0}
        self.teacher = self._make_teacher(teacher_model)

        student_inputs = named_inputs(student)
        teacher_inputs = student_inputs if self.teacher is None else named_inputs(self.teacher.model)
        # An input that only the one model names (such as token_type_ids, beside DistilBERT) is not given to the other.
        self._not_for_student = {*self.label_names, *(teacher_inputs - student_inputs)}
        self._not_for_teacher = {*self.label_names, *(student_inputs - teacher_inputs)}
        self._check_options()

        # Sums that stay on the device until they are logged: no micro-batch waits for them.
        self._train_sums = torch.zeros(len(self.losses), device=args.device)
        self._train_steps = 0
        self._eval_sums_and_items = torch.zeros(2, len(self.losses), device=args.device)

    def train(self, *args, **kwargs) -> TrainOutput:
        """As in `Trainer`."""
        # Steps that an earlier training did not come to log are not part of this one.
        self._train_sums, self._train_steps = torch.zeros_like(self._train_sums), 0
        return super().train(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """`alpha_kl * L_kl + alpha_task * L_task + alpha_cos * L_cos`.

        Args:
            model: the student, in whatever wrapper it is trained in.
            inputs: a batch, with its labels.
            return_outputs: return the student's logits too, as `{"logits": ...}`.
            num_items_in_batch: `[losses]`, the items of each loss in the whole optimizer step, as `get_batch_samples`
                counts them. Without it, the means are over this batch.
        """
        scored = self._score(inputs)
        sums, logits = self._sum_losses(model, inputs, scored, whole_logits=return_outputs)
        items = self._count_items(scored) if num_items_in_batch is None else num_items_in_batch
        losses = _means(sums, items)
        loss = self._weighted_sum(losses)

        if num_items_in_batch is not None:
            self._train_sums += losses.detach()
            loss = loss * self.accelerator.num_processes  # the engines average gradients over the processes
        return (loss, {"logits": logits}) if return_outputs else loss

    def _sum_losses(
        self, model: nn.Module, inputs: Mapping[str, torch.Tensor], scored: Scored, whole_logits: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`[losses]`, each summed over its items in the batch; and the student's logits, all if `whole_logits`."""
        sums: dict[str, torch.Tensor] = {}
        labels = scored.row_labels
        teacher = None
        if self.teacher is not None:
            teacher_inputs = {name: value for name, value in inputs.items() if name not in self._not_for_teacher}
            teacher = self.teacher(teacher_inputs, scored.positions, self.accelerator.autocast)

        def on_logits(student: ScoredOutput) -> None:
            losses = {name: loss for name, loss in self.losses.items() if loss.reads == "logits"}

            def of_rows(rows: slice) -> torch.Tensor:
                student_logits = student.logits(rows)
                teacher_logits = None if teacher is None else teacher.logits(rows)
                row_labels = None if labels is None else labels[rows]
                return torch.stack([loss(student_logits, teacher_logits, row_labels) for loss in losses.values()])

            if losses:
                sums.update(zip(losses, sum_over_chunks(of_rows, student.num_rows, self._num_classes), strict=True))

        student, logits = scored_forward(
            model,
            self.accelerator.unwrap_model(model, keep_torch_compile=False),
            self._student_inputs(inputs),
            scored.positions,
            whole_logits=whole_logits,
            then=on_logits,
        )
        for name, loss in self.losses.items():
            if loss.reads == "hidden_states":
                sums[name] = loss(student.last_hidden_state, teacher.last_hidden_state, scored.attended)
        return torch.stack([sums[name] for name in self.losses]), logits

    def _score(self, inputs: Mapping[str, torch.Tensor], num_sequences: int | None = None) -> Scored:
        return score(inputs, self.head, self.args.kl_positions, num_sequences)

    def _count_items(self, scored: Scored) -> torch.Tensor:
        """`[losses]`: how many items each loss has in a batch."""
        return torch.stack([loss.items(scored) for loss in self.losses.values()])

    def _weighted_sum(self, losses: torch.Tensor) -> torch.Tensor:
        return sum(self.alphas[name] * loss for name, loss in zip(self.losses, losses, strict=True))

    def _student_inputs(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value for name, value in inputs.items() if name not in self._not_for_student}

    def get_batch_samples(self, epoch_iterator, num_batches: int, device: torch.device):
        """The micro-batches of one optimizer step and, for each loss, its items in all of them on all processes."""
        batch_samples, _ = super().get_batch_samples(epoch_iterator, num_batches, device)
        if not batch_samples:
            return batch_samples, None
        if "task" in self.losses and "labels" not in batch_samples[0]:
            raise ValueError(
                f"The training batches have no labels, only {', '.join(batch_samples[0])}, but "
                f"alpha_task={self.args.alpha_task}: add labels, or set alpha_task=0 to learn from the teacher alone."
            )
        self._train_steps += 1
        items = sum(self._count_items(self._score(batch)) for batch in batch_samples)
        return batch_samples, self.accelerator.reduce(items.to(device), reduction="sum")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs; in training, adds the mean of each loss over the steps since the last log."""
        if "loss" in logs:
            means = self.accelerator.reduce(self._train_sums, reduction="sum") / self._train_steps
            logs |= {f"loss_{name}": mean for name, mean in zip(self.losses, means.tolist(), strict=True)}
            self._train_sums, self._train_steps = torch.zeros_like(self._train_sums), 0
        super().log(logs, start_time)

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """As in `Trainer`; of the outputs only the logits are returned, so that no hidden states are gathered."""
        inputs = self._prepare_inputs(inputs)
        labels = inputs.get("labels")
        labels_needed = "task" in self.losses or (self.head.per_token and self.args.kl_positions == "labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            if labels is None and labels_needed:
                return None, model(**self._student_inputs(inputs)).logits, None
            scored = self._score(inputs, self._num_fresh(len(next(iter(inputs.values())))))
            sums, logits = self._sum_losses(model, inputs, scored, whole_logits=not prediction_loss_only)
        items = self._count_items(scored)
        self._eval_sums_and_items += torch.stack([sums, items])
        loss = self._weighted_sum(_means(sums, items))
        return (loss, None, None) if prediction_loss_only else (loss, logits, labels)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As in `Trainer`, but each loss is the mean over all its items, however they fall into batches."""
        self._eval_sums_and_items.zero_()
        output = super().evaluation_loop(dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix)
        if f"{metric_key_prefix}_loss" in output.metrics:
            losses = _means(*self.accelerator.reduce(self._eval_sums_and_items, reduction="sum"))
            output.metrics[f"{metric_key_prefix}_loss"] = self._weighted_sum(losses).item()
            for name, loss in zip(self.losses, losses.tolist(), strict=True):
                output.metrics[f"{metric_key_prefix}_loss_{name}"] = loss
        return output

    def _num_fresh(self, batch_size: int) -> int:
        """How many sequences of this evaluation batch are not repeats.

        Accelerate fills the last batches up to equal size on all processes, with sequences from the beginning.
        """
        state = self.accelerator.gradient_state
        if not state.end_of_dataloader or state.remainder <= 0:
            return batch_size
        return min(max(state.remainder - self.accelerator.process_index * batch_size, 0), batch_size)

    def _set_signature_columns_if_needed(self) -> None:
        """Keeps the columns of the data set that only the teacher reads."""
        super()._set_signature_columns_if_needed()
        if self.teacher is not None:
            self._signature_columns = sorted({*self._signature_columns, *named_inputs(self.teacher.model)})

    def _make_teacher(self, teacher_model: PreTrainedModel | str | None) -> Teacher | None:
        args = self.args
        if teacher_model is not None and args.teacher_model_name_or_path is not None:
            raise ValueError(
                f"There are two teachers, teacher_model and teacher_model_name_or_path="
                f"{args.teacher_model_name_or_path!r}: give one of them."
            )
        if teacher_model is None:
            teacher_model = args.teacher_model_name_or_path
        if not args.reads_teacher:
            if teacher_model is not None:
                raise ValueError(
                    "teacher_model would have no effect with alpha_kl=0 and alpha_cos=0: raise one of them, or pass "
                    "teacher_model=None."
                )
            return None
        if teacher_model is None:
            raise ValueError(
                f"alpha_kl={args.alpha_kl} and alpha_cos={args.alpha_cos} need a teacher: pass teacher_model, or set "
                f"both to 0."
            )
        dtype = None if args.teacher_dtype is None else getattr(torch, args.teacher_dtype)
        if isinstance(teacher_model, str | os.PathLike):
            teacher_model = load_teacher(str(teacher_model), self.model, self.processing_class, dtype or "auto")
        teacher = Teacher(teacher_model, self.model)
        if dtype is not None and teacher.model.dtype != dtype:
            teacher.model = copy.deepcopy(teacher.model).to(dtype)  # the caller's own stays as it is
        if getattr(teacher.model, "hf_device_map", None) is None:
            teacher.model.to(args.device)
        return teacher

    def _check_options(self) -> None:
        student, teacher = self.model, None if self.teacher is None else self.teacher.model
        if self.args.kl_positions != "labels" and not self.head.per_token:
            raise ValueError(
                f"kl_positions={self.args.kl_positions!r} would have no effect for a {type(student).__name__}, "
                f"which has one row of logits per sequence: leave it out."
            )
        if "cos" in self.losses and student.config.hidden_size != teacher.config.hidden_size:
            raise ValueError(
                f"The cosine loss compares states of one width: the student's are {student.config.hidden_size} "
                f"wide and the teacher's {teacher.config.hidden_size}: set alpha_cos=0, or cut the student with "
                f"make_student(teacher)."
            )
        named_datasets = {"train_dataset": self.train_dataset}
        named_datasets |= (
            self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval_dataset": self.eval_dataset}
        )
        for name, dataset in named_datasets.items():
            if dataset is not None and has_length(dataset) and len(dataset) == 0:
                raise ValueError(f"{name} is empty: give it at least one row.")

    @property
    def _num_classes(self) -> int:
        return self.model.config.vocab_size if self.head.per_token else self.model.config.num_labels


def _means(sums: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
    """`sums / items`, where a loss without any item is 0 rather than NaN."""
    return sums / items.clamp(min=1)
