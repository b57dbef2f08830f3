"""`DistillationTrainer`: `Trainer` with a teacher."""

from collections.abc import Mapping
from dataclasses import replace
from functools import reduce

import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.trainer_utils import TrainOutput
from transformers.utils import ModelOutput, logging

from hf_distill.adapters import transformers_model
from hf_distill.embedding import as_embedding_model
from hf_distill.hub.push import clear_errors
from hf_distill.training.batches import BatchTrainer
from hf_distill.training.checkpoints.folders import differences
from hf_distill.training.checkpoints.trainer import CheckpointingTrainer
from hf_distill.training.checks import (
    check_datasets,
    check_kind_of_training,
    check_labels,
    check_processes,
    check_student,
    check_targets,
    check_teacher_weights,
    find_source,
    warn_of_emulated_bfloat16,
    warn_of_ends_without_labels,
)
from hf_distill.training.engines import is_zero3, loss_scale, one_group_for_head_and_embeddings
from hf_distill.training.finite import FiniteGuard
from hf_distill.training.losses.base import Loss
from hf_distill.training.losses.batch import BatchLosses
from hf_distill.training.losses.evaluation import EvaluatingTrainer
from hf_distill.training.losses.generation import check_generates
from hf_distill.training.losses.gradient_norms import GradientNorms, check_gradient_norms
from hf_distill.training.losses.grouped_rows import check_groups
from hf_distill.training.losses.making import GivenLosses, how_to_read_no_labels, name_of_label_reader
from hf_distill.training.losses.on_policy import OnPolicyTrainer, check_on_policy
from hf_distill.training.losses.parameters import check_optimizer, check_scheduler
from hf_distill.training.losses.schedules import Schedule
from hf_distill.training.losses.steps import means
from hf_distill.training.losses.whole_step import WholeStep
from hf_distill.training.scoring.alignment import named_inputs
from hf_distill.training.scoring.find_head import find_head
from hf_distill.training.scoring.forward import ScoredOutput, scored_forward
from hf_distill.training.scoring.known_indices import SCORED_INDICES, KnownIndices
from hf_distill.training.scoring.scored import Scored
from hf_distill.training.scoring.widths import vocab_size
from hf_distill.training.teacher.columns import TARGET_COLUMNS, as_arrays
from hf_distill.training.teacher.loading import AnyTeacher, GivenTeachers, prepare_teacher
from hf_distill.training.teacher.shared_encoder import SharedEncoder
from hf_distill.training.training_args import DistillationTrainingArguments

logger = logging.get_logger(__name__)


class DistillationTrainer(EvaluatingTrainer, OnPolicyTrainer, BatchTrainer, CheckpointingTrainer):
    """A drop-in replacement for `Trainer` and `Seq2SeqTrainer` that trains a student to imitate a frozen teacher.

    `loss = alpha_kl * L_kl + alpha_task * L_task + alpha_cos * L_cos`: the KL divergence between the softened outputs,
    the task loss on hard labels, and one minus the cosine between the last hidden states. `alpha_hidden`,
    `alpha_attention` and `alpha_relation` add losses over inner layers, as in TinyBERT and MiniLMv2.

    Each loss is a mean over its own items in the whole optimizer step. The loss and its gradient therefore do not
    depend on how a step is split into micro-batches and processes. Next to `loss`, the unweighted losses are logged as
    `loss_kl`, `loss_task` and so on, in evaluation as `eval_loss_kl`, `eval_loss_task` and so on.

    Reference: Sanh et al., 2019, DistilBERT, https://arxiv.org/abs/1910.01108

    Args:
        model: the student, for instance from `make_student(teacher)`, with or without PEFT adapters.
        args: `DistillationTrainingArguments`, with the weights of the losses.
        *trainer_arguments: all other arguments of `Trainer`, in the same order.
        teacher_model: the teacher: a transformers model, a name on the Hub or a folder. By default
            `args.teacher_model_name_or_path`. Leave it out if no loss reads a teacher, or if the datasets have the
            columns of `add_teacher_targets` or `import_teacher_targets`. The teacher is frozen
            (`requires_grad=False`), moved to the training device and otherwise unchanged; checkpoints do not contain
            it. For a student with PEFT adapters it may be the student itself, which then teaches with its adapters
            switched off. Several such teachers, as a list or a dict by name, are an ensemble: the student learns from
            the mean of their outputs (`args.teacher_mean`, `args.teacher_weights`) and the first's hidden states.
        losses: your own losses with their weights, by name: `{"mine": (MyLoss(), 0.5)}`, each a `Loss`. They are added
            to the losses of the `alpha_...` arguments. To replace a built-in loss, use its name, such as `kl`, and
            set its alpha to 0. A weight may be a schedule, such as `"linear:1->0"`.
        **trainer_options: all other arguments of `Trainer`, by name.

    Raises:
        TypeError: if `args`, `teacher_model` or `losses` has the wrong type.
        ValueError: if teacher and student cannot be compared, if an option would have no effect, or if a dataset is
            empty.
        OSError: with `push_to_hub=True`, if the repository cannot be created on the Hub.
        FloatingPointError: during training, if a loss or a weight is not finite.

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

    # Many heads accept `**kwargs` but ignore `num_items_in_batch`. Trainer then assumes that their loss is scaled
    # already. Here every loss is computed from the outputs and divided by its items in the whole step.
    loss_is_scaled_for_ga = True

    args: DistillationTrainingArguments
    model: PreTrainedModel | PeftModel
    teacher: AnyTeacher | None

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | None = None,
        args: DistillationTrainingArguments | None = None,
        *trainer_arguments,
        teacher_model: GivenTeachers | None = None,
        losses: GivenLosses | None = None,
        **trainer_options,
    ):
        if args is None:
            args = DistillationTrainingArguments(output_dir="tmp_trainer")
        if not isinstance(args, DistillationTrainingArguments):
            raise TypeError(
                f"args should be DistillationTrainingArguments, but is {type(args).__name__}. "
                f"DistillationTrainingArguments accepts all options of TrainingArguments."
            )
        self._is_checked = False
        model, teacher_model = as_embedding_model(model), as_embedding_model(teacher_model)
        super().__init__(model, args, *trainer_arguments, **trainer_options)
        self.model_accepts_loss_kwargs = True  # `loss_is_scaled_for_ga` for transformers before 5.19
        check_kind_of_training(self)
        check_processes(args)
        warn_of_emulated_bfloat16(args)

        check_datasets(self.train_dataset, self.eval_dataset)
        check_labels(self.train_dataset, self.eval_dataset, self.data_collator)
        self._take_losses(losses or {})
        has_teacher = teacher_model is not None or args.teacher_model_name_or_path is not None
        is_needed = bool(self.readers_of_teacher) and not has_teacher
        source = find_source(self.train_dataset, self.eval_dataset, is_needed)
        self.teacher = prepare_teacher(
            teacher_model,
            self.model,
            args,
            self.processing_class,
            self.accelerator,
            source,
            self.readers_of_teacher,
        )
        check_teacher_weights(self.train_dataset, self.eval_dataset, self.teacher)
        self._prepare_student()
        warn_of_ends_without_labels(self.head, self.data_collator)
        self._make_losses()
        check_groups(self.train_dataset, self.eval_dataset, self.losses)
        check_scheduler(self.loss_parameters, self.lr_scheduler)
        check_optimizer(self.loss_parameters, self.optimizer, self.accelerator)

        self._known_indices: dict[int, KnownIndices] = {}
        check_gradient_norms(args, transformers_model(self.model), self.accelerator)
        self._gradient_norms = GradientNorms(self)
        self.add_callback(self._gradient_norms)
        self._whole_step = WholeStep(self)
        self._finite = FiniteGuard(self)
        self.add_callback(self._finite)
        self._is_checked = True
        if args.push_to_hub:
            with clear_errors("Creating the repository on the Hub", "Nothing has been trained yet."):
                self.init_hf_repo()

    def init_hf_repo(self, *args, **kwargs) -> None:
        """As in `Trainer`, but creates the repository only after all checks of the constructor have passed."""
        if self._is_checked:
            super().init_hf_repo(*args, **kwargs)

    def _prepare_student(self) -> None:
        student = transformers_model(self.model)
        self.head = find_head(student)
        self.head.set_problem_type(student.config)
        check_student(student, self.head, self.args)
        check_generates(student, self.args)
        check_on_policy(self.args, student, self.head, self.teacher, self.processing_class, self.accelerator)
        self._shared_encoder = SharedEncoder(self.model, self.teacher) if self.args.share_encoder else None

        student_inputs = named_inputs(student)
        teacher_inputs = student_inputs if self.teacher is None else self.teacher.inputs
        # Each model gets only the inputs that it names: DistilBERT takes no token_type_ids, for instance.
        labels = {*self.label_names, *self.head.label_names}
        self._not_for_student = {*labels, SCORED_INDICES, *TARGET_COLUMNS, *(teacher_inputs - student_inputs)}
        self._not_for_teacher = {*labels, SCORED_INDICES, *(student_inputs - teacher_inputs)}

    def train(self, *args, **kwargs) -> TrainOutput:
        self._renew_losses()
        return super().train(*args, **kwargs)

    def _prepare_for_training(self, *args, **kwargs):
        with one_group_for_head_and_embeddings(self.accelerator, transformers_model(self.model)):
            return super()._prepare_for_training(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: Mapping[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ModelOutput]:
        """Computes the weighted sum of all losses: `alpha_kl * L_kl + alpha_task * L_task + ...`, and your own.

        Training and evaluation both call this method. An override may scale the loss or add to it: the returned loss is
        trained on, logged as `loss`, and evaluated as `eval_loss`.

        Args:
            model: the student, possibly wrapped by an engine such as DDP.
            inputs: a batch, with its labels.
            return_outputs: whether to return the student's outputs too.
            num_items_in_batch: `[losses]`, the items of each loss in the whole optimizer step. If None, the means are
                over this batch.

        Returns:
            The loss, a tensor of shape `[]`. With `return_outputs`, a pair of the loss and the student's outputs, which
            include the logits of all positions.
        """
        self._take_scheduled_values()
        if self._whole_step.batches is not None and self._evaluation is None:
            self._whole_step.compute(model)
        if self._gradient_norms.batches is not None and self._evaluation is None:
            self._gradient_norms.measure(model, self._run_losses)
        scored = self._score(inputs, None if self._evaluation is None else self._num_fresh(inputs))
        items = self._count_items(scored) if num_items_in_batch is None else num_items_in_batch

        losses, output = self._run_losses(
            model, inputs, scored, self.losses, means(self._weights, items), return_outputs
        )
        loss = output.loss

        if self._evaluation is not None:
            own_items = items if num_items_in_batch is None else self._count_items(scored)
            self._evaluation.record(losses.sums, own_items, loss)
        elif num_items_in_batch is not None:
            shares = means(losses.sums, items)
            self._step_losses.record(shares)
            self._finite.record(shares)
            loss = loss * self.accelerator.num_processes  # because engines average gradients over processes
        return (loss, output) if return_outputs else loss

    def _run_losses(
        self,
        model: nn.Module,
        inputs: Mapping[str, torch.Tensor],
        scored: Scored,
        losses: Mapping[str, Loss],
        factors: torch.Tensor,
        return_outputs: bool = False,
    ) -> tuple[BatchLosses, ModelOutput]:
        """Runs teacher and student on a batch, with the sum of the losses, each times its factor, as the loss."""
        student = transformers_model(self.accelerator.unwrap_model(model, keep_torch_compile=False))
        inputs = self.head.complete(inputs, student)
        if self._shared_encoder is not None:
            inputs = self._shared_encoder.with_outputs(inputs, self.accelerator.autocast)
        shares, teacher = self._whole_step.now if self._evaluation is None else ({}, None)
        batch_losses = BatchLosses(
            losses,
            factors,
            teacher or self._read_by_teacher(inputs, scored),
            scored,
            student,
            inputs,
            self._num_classes,
            loss_scale(self.accelerator),
            shares,
        )
        student_inputs = self._student_inputs(inputs)
        _, output = scored_forward(
            model, student, self.head, student_inputs, scored, batch_losses, return_outputs, self._capture
        )
        return batch_losses, output

    def training_step(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As in `Trainer`. Without `num_items_in_batch` the loss is the mean over the micro-batches' losses."""
        self._whole_step.begin_batch()
        if num_items_in_batch is None:
            logger.warning_once(
                "get_batch_samples returned no num_items_in_batch, so all micro-batches of a step have equal weight, "
                "even with different numbers of items: return the result of super().get_batch_samples."
            )
            shares = self.current_gradient_accumulation_steps * self.accelerator.num_processes
            num_items_in_batch = self._count_items(self._score(inputs)).clamp(min=1).to(self.args.device) * shares
        return super().training_step(model, inputs, num_items_in_batch)

    def _read_by_teacher(self, inputs: Mapping[str, torch.Tensor], scored: Scored) -> ScoredOutput | None:
        """The teacher's outputs for a batch; None without a teacher."""
        if self.teacher is None:
            return None
        teacher_inputs = {name: value for name, value in inputs.items() if name not in self._not_for_teacher}
        return self.teacher(teacher_inputs, scored, self.accelerator.autocast)

    def _score(self, inputs: Mapping[str, torch.Tensor], num_fresh: int | None = None) -> Scored:
        scored = self.head.score(inputs, self.args.kl_positions, num_fresh)
        known = self._known_indices.get(id(inputs.get("labels")))
        return replace(scored, known_indices=known.indices) if known is not None and known.fit(inputs) else scored

    def _count_items(self, scored: Scored) -> torch.Tensor:
        """The number of items of each loss in a batch, `[losses]`."""
        return torch.stack([loss.items(scored) for loss in self.losses.values()])

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        """The items of each loss in the whole optimizer step, over all micro-batches and processes, `[losses]`."""
        if (
            self.is_in_train
            and self._evaluation is None
            and self.args.distillation_fields() != self._arguments_of_losses
        ):
            raise ValueError(
                f"{'; '.join(differences(self._arguments_of_losses, self.args.distillation_fields()))}: this argument "
                f"cannot change during training. Set it before train()."
            )
        counted = [batch for batch in batch_samples if SCORED_INDICES in batch]
        self._known_indices = {id(batch["labels"]): KnownIndices(batch.pop(SCORED_INDICES), batch) for batch in counted}
        if not batch_samples:
            return None
        if self.needs_labels and not self._has_labels(batch_samples[0]):
            readers = {name: loss for name, loss in self.losses.items() if loss.needs.labels}
            in_code = [name_of_label_reader(name, loss, self.loss_weights[name]) for name, loss in readers.items()]
            ways = [how_to_read_no_labels(name, loss) for name, loss in readers.items()]
            raise ValueError(
                f"The training batches have no {' and '.join(self.head.label_names)}, only "
                f"{', '.join(batch_samples[0])}, but labels are needed by {' and '.join(in_code)}: add labels, or "
                f"{' and '.join(ways)} to learn from the teacher alone."
            )
        items = reduce(torch.add, (self._count_items(self._score(batch)) for batch in batch_samples))
        items = self.accelerator.reduce(items.to(device), reduction="sum")
        if self.is_in_train and self._evaluation is None:
            self._gradient_norms.expect(batch_samples, items)
            self._whole_step.expect(batch_samples)
        return items

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """As in `Trainer`. During training, adds the mean of each loss over the steps since the last log.

        Also adds the temperature and the weights that are scheduled, as they were in the last step, and the gradient
        norms of the steps that were measured.
        """
        self._finite.check_losses(self.losses)
        is_of_steps = self.is_in_train and {"loss", "learning_rate"} <= logs.keys()  # not a user's own log
        if is_of_steps and (losses := self._step_losses.take()) is not None:
            logs |= {f"loss_{name}": mean for name, mean in zip(self.losses, losses.tolist(), strict=True)}
            logs |= self._scheduled_values()
            logs |= self._gradient_norms.take(self.losses, self._weights_at(self._progress_of_last_step))
        super().log(logs, start_time)

    def _set_signature_columns_if_needed(self) -> None:
        """Also keeps the columns of the dataset that only the teacher reads, or the model inside the student."""
        super()._set_signature_columns_if_needed()
        if self._signature_columns is not None:
            read = named_inputs(transformers_model(self.model)) | (self.teacher.inputs if self.teacher else set())
            self._signature_columns = sorted({*self._signature_columns, *read})

    def _get_dataloader(self, dataset: object, *args, **kwargs) -> DataLoader:
        if (source := getattr(self.teacher, "source", None)) is not None:
            check_targets(dataset, source)
        return super()._get_dataloader(dataset, *args, **kwargs)

    def _remove_unused_columns(self, dataset: Dataset, description: str | None = None) -> Dataset:
        return as_arrays(super()._remove_unused_columns(dataset, description))

    def _distillation_state(self) -> dict[str, object]:
        """Everything that the losses depend on, except the data."""
        state: dict[str, object] = {
            f"alpha_{name}": str(weight) if isinstance(weight, Schedule) else weight
            for name, weight in self.loss_weights.items()
        }
        state["kl_positions"] = self.args.kl_positions
        for name, settings in self._settings_of_losses().items():
            state |= {f"{name}_{key}": value for key, value in settings.items()}
        if self.teacher is not None:
            state |= self.teacher.state()
        return state

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        """As in `Trainer`, but checks before that losses and weights are finite."""
        self._finite.check_losses(self.losses)
        self._finite.check_weights()
        super()._save_checkpoint(model, trial)

    @property
    def _num_classes(self) -> int | None:
        """Logits per position; None if the head must run on all positions at once."""
        if is_zero3(self.accelerator):  # gathers the head per chunk: a hang if processes have different numbers
            return None
        config = transformers_model(self.model).config
        return vocab_size(config) if self.head.over_vocabulary else config.num_labels
