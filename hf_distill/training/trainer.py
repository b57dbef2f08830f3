"""`DistillationTrainer`: `Trainer` with a teacher beside the model."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial

import torch
from datasets import Dataset
from peft import PeftModel
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers import PreTrainedModel, Seq2SeqTrainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import (
    PREFIX_CHECKPOINT_DIR,
    EvalLoopOutput,
    TrainOutput,
    default_compute_objective,
    rotate_checkpoints,
)
from transformers.utils import ModelOutput, logging

from hf_distill.adapters import merged, transformers_model
from hf_distill.hub.push import clear_errors
from hf_distill.training.batches import Progress, RepeatableCollator, begin_epoch
from hf_distill.training.checkpoints.folders import (
    differences,
    last_whole_checkpoint,
    named_when_whole,
    warn_of_differences,
    whole_checkpoint,
    write_distillation_state,
)
from hf_distill.training.checks import (
    check_datasets,
    check_kind_of_training,
    check_labels,
    check_processes,
    check_student,
    check_targets,
    find_source,
    warn_of_emulated_bfloat16,
    warn_of_ends_without_labels,
)
from hf_distill.training.engines import is_zero3, loss_scale, one_group_for_head_and_embeddings
from hf_distill.training.losses import LOSSES
from hf_distill.training.losses.projection import (
    HiddenStateProjection,
    StepWithStudent,
    check_engine_of_projection,
    check_no_projection,
    check_optimizers,
)
from hf_distill.training.losses.sums import NEVER, EvaluationLosses, StepLosses, means
from hf_distill.training.publishing.trainer import PublishingTrainer
from hf_distill.training.scoring.alignment import hidden_width, named_inputs, vocab_size
from hf_distill.training.scoring.forward import ScoredOutput, scored_forward, state_weights, sum_losses_of_logits
from hf_distill.training.scoring.heads import (
    SCORED_INDICES,
    Scored,
    attended_by_mask,
    count_examples,
    find_head,
    scored_indices,
)
from hf_distill.training.scoring.known_indices import KnownIndices
from hf_distill.training.teacher.columns import TARGET_COLUMNS, as_arrays
from hf_distill.training.teacher.loading import prepare_teacher
from hf_distill.training.teacher.stored import StoredTeacher
from hf_distill.training.training_args import DistillationTrainingArguments, is_part_of_loss

logger = logging.get_logger(__name__)


class DistillationTrainer(PublishingTrainer):
    """A drop-in for `Trainer` that trains the model to do as a frozen teacher does.

    `loss = alpha_kl * L_kl + alpha_task * L_task + alpha_cos * L_cos`: the KL divergence of the softened outputs, the
    head's own loss on hard labels, and one minus the cosine of the last hidden states (Sanh et al., 2019, DistilBERT,
    https://arxiv.org/abs/1910.01108). Each is a mean over its own items in the whole optimizer step, so the loss and
    its gradient do not depend on how a step is split into micro-batches and processes. The three are logged beside
    `loss` as `loss_kl`, `loss_task` and `loss_cos`, and in evaluation as `eval_loss_kl` and so on, not yet weighted.

    Args:
        model: the student, for instance from `make_student(teacher)`, with PEFT adapters or without.
        args: `DistillationTrainingArguments`.
        *trainer_arguments: every other argument is `Trainer`'s own, in `Trainer`'s order.
        teacher_model: a transformers model, or a name on the Hub or a folder to load one from. It is set to
            `requires_grad=False`, moved to the training device and otherwise left as it is; no checkpoint contains it.
            By default `args.teacher_model_name_or_path`. None if `alpha_kl` and `alpha_cos` are both 0, and where the
            data sets have the columns that `add_teacher_targets` adds. For a student with PEFT adapters it may be the
            student itself: its adapters are then switched off while it teaches.
        **trainer_options: `Trainer`'s own, by name.

    Raises:
        TypeError: if `args` or `teacher_model` is of the wrong kind.
        ValueError: if teacher and student cannot be compared, if an option would have no effect, or if a data set is
            empty.
        OSError: with `push_to_hub=True`, if the Hub does not let a repository be made.
        FloatingPointError: in training, once a loss is not finite.

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
    model: PreTrainedModel | PeftModel

    def __init__(
        self,
        model: PreTrainedModel | PeftModel | None = None,
        args: DistillationTrainingArguments | None = None,
        *trainer_arguments,
        teacher_model: PreTrainedModel | PeftModel | str | None = None,
        **trainer_options,
    ):
        if args is None:
            args = DistillationTrainingArguments(output_dir="tmp_trainer")
        if not isinstance(args, DistillationTrainingArguments):
            raise TypeError(
                f"args should be DistillationTrainingArguments, but is {type(args).__name__}: it takes all that "
                f"TrainingArguments takes."
            )
        self._is_checked = False
        super().__init__(model, args, *trainer_arguments, **trainer_options)
        self.model_accepts_loss_kwargs = True  # says what `loss_is_scaled_for_ga` says, to transformers before 5.19
        check_kind_of_training(self)
        check_processes(args)
        warn_of_emulated_bfloat16(args)

        check_datasets(self.train_dataset, self.eval_dataset)
        check_labels(self.train_dataset, self.eval_dataset, self.data_collator)
        source = find_source(self.train_dataset, self.eval_dataset)
        self.teacher = prepare_teacher(teacher_model, self.model, args, self.processing_class, self.accelerator, source)
        self._step_losses = StepLosses(self, len(LOSSES))
        self._evaluation: EvaluationLosses | None = None
        self._prepare_student()
        warn_of_ends_without_labels(self.head, self.data_collator)
        self._make_losses()
        check_optimizers(self.lr_scheduler, args)

        self._known_indices: dict[int, KnownIndices] = {}
        self.left_over_batches: list[dict] = []
        self._train_progress, self._eval_progress = Progress(), Progress()
        self.add_callback(self._step_losses)
        self.add_callback(StepWithStudent(self))
        self._is_checked = True
        if args.push_to_hub:
            with clear_errors("Making the repository on the Hub", "Nothing has been trained yet."):
                self.init_hf_repo()

    def init_hf_repo(self, *args, **kwargs) -> None:
        """As in `Trainer`, but no repository is made for a trainer that cannot be."""
        if self._is_checked:
            super().init_hf_repo(*args, **kwargs)

    def _prepare_student(self) -> None:
        """Reads what the trainer needs to know of the student; `model_init` makes another one for each training."""
        student = transformers_model(self.model)
        self.head = find_head(student)
        self.head.set_problem_type(student.config)
        check_student(student, self.head, self.args, None if self.teacher is None else self.teacher.outputs)
        self.projection = self._make_projection() if self.args.project_hidden_states else None

        student_inputs = named_inputs(student)
        teacher_inputs = student_inputs if self.teacher is None else self.teacher.inputs
        # An input that only the one model names (such as token_type_ids, beside DistilBERT) is not given to the other.
        labels = {*self.label_names, *self.head.label_names}
        self._not_for_student = {*labels, SCORED_INDICES, *TARGET_COLUMNS, *(teacher_inputs - student_inputs)}
        self._not_for_teacher = {*labels, SCORED_INDICES, *(student_inputs - teacher_inputs)}

    def _make_losses(self) -> None:
        """From the arguments; `hyperparameter_search` changes those between trainings."""
        args = self.args
        self._arguments_of_losses = args.distillation_fields()
        self.alphas = {name: getattr(args, f"alpha_{name}") for name in LOSSES}
        top_k = None if self.teacher is None else self.teacher.top_k
        self.losses = {name: build(args, self.head, top_k) for name, build in LOSSES.items() if self.alphas[name] > 0}
        self._alphas = torch.tensor([self.alphas[name] for name in self.losses], device=args.device)
        self._step_losses.reset(len(self.losses))

    def train(self, resume_from_checkpoint: str | bool | None = None, *args, **kwargs) -> TrainOutput:
        """As in `Trainer`; warns where a checkpoint was written by a training with another teacher or other losses."""
        self._make_losses()
        if resume_from_checkpoint:
            if resume_from_checkpoint is True:
                resume_from_checkpoint = last_whole_checkpoint(self.args.output_dir)
            checkpoint = whole_checkpoint(resume_from_checkpoint)
            warn_of_differences(checkpoint, self._distillation_state())
            if self.projection is None:
                check_no_projection(checkpoint)
        return super().train(resume_from_checkpoint, *args, **kwargs)

    def _make_projection(self) -> HiddenStateProjection:
        widths = [hidden_width(transformers_model(self.model).config), self.teacher.outputs.hidden_width]
        if None in widths:
            raise ValueError("project_hidden_states needs configs that say how wide the hidden states are.")
        check_engine_of_projection(self.accelerator)
        return HiddenStateProjection(*widths, seed=self.args.seed).to(self.args.device)

    def create_scheduler(self, *args, **kwargs) -> torch.optim.lr_scheduler.LRScheduler:
        """As in `Trainer`; whoever made the optimizer, the projection of hidden states joins it before."""
        if self.projection is not None:
            self.projection.join(self.optimizer)
        return super().create_scheduler(*args, **kwargs)

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        return super()._clip_grad_norm(self._with_projection(model))

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | None = None) -> torch.Tensor | float:
        return super()._get_grad_norm(self._with_projection(model), grad_norm)

    def _with_projection(self, model: nn.Module) -> nn.Module:
        """All that the optimizer steps, with its gradients averaged over the processes."""
        if self.projection is None:
            return model
        self.projection.average_gradient(self.accelerator)
        return nn.ModuleList([model, self.projection])

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        if self.projection is not None:
            self.projection.load(resume_from_checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        if self.projection is not None:
            self.projection.load(self.state.best_model_checkpoint)

    def get_train_dataloader(self) -> DataLoader:
        """As in `Trainer`, but a collator that draws random numbers draws the same after a resume."""
        dispatched = self.args.accelerator_config.dispatch_batches
        if dispatched is None:
            dispatched = isinstance(self.train_dataset, IterableDataset)
        count_scored = None
        if self.head.per_token and not dispatched:  # a batch that one process makes for all is cut by examples
            count_scored = partial(scored_indices, self.head, self.args.kl_positions)
        with self._repeatable_collator(self._train_progress, count_scored):
            return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset=None) -> DataLoader:
        """As in `Trainer`, but a collator that draws random numbers draws the same in every evaluation."""
        self._eval_progress.begin()
        with self._repeatable_collator(self._eval_progress):
            return super().get_eval_dataloader(eval_dataset)

    def get_test_dataloader(self, test_dataset) -> DataLoader:
        """As in `Trainer`, but a collator that draws random numbers draws what it does in an evaluation."""
        self._eval_progress.begin()
        with self._repeatable_collator(self._eval_progress):
            return super().get_test_dataloader(test_dataset)

    @contextmanager
    def _repeatable_collator(self, *options) -> Iterator[None]:
        collator = self.data_collator
        process = self.args.process_index // (self.get_tp_size() * self.get_cp_size())  # one of those with other rows
        self.data_collator = RepeatableCollator(collator, self.head, [self._data_seed, process], *options)
        if self.teacher is not None:
            self.data_collator = self.teacher.collator(self.data_collator)
        try:
            yield
        finally:
            self.data_collator = collator

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def _run_epoch(self, *, epoch, train_dataloader, epochs_trained, steps_trained_in_current_epoch, **others) -> None:
        """As in `Trainer`; first the collator is told which batch of which epoch comes next."""
        skipped = steps_trained_in_current_epoch if epoch == epochs_trained else 0
        begin_epoch(self._train_progress, train_dataloader, self._data_seed, epoch, skipped)
        own = {"epochs_trained": epochs_trained, "steps_trained_in_current_epoch": steps_trained_in_current_epoch}
        super()._run_epoch(epoch=epoch, train_dataloader=train_dataloader, **own, **others)

    def _track_num_input_tokens(self, inputs: Mapping[str, torch.Tensor]) -> None:
        """As in `Trainer`; where documents are packed, a mask counts each token that is not padding once too."""
        if inputs.get("attention_mask") is not None:
            inputs = {**inputs, "attention_mask": attended_by_mask(inputs["attention_mask"])}
        super()._track_num_input_tokens(inputs)

    def _prepare_for_training(self, *args, **kwargs):
        with one_group_for_head_and_embeddings(self.accelerator, transformers_model(self.model)):
            return super()._prepare_for_training(*args, **kwargs)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | None = None,
    ) -> torch.Tensor | tuple[torch.Tensor, ModelOutput]:
        """`alpha_kl * L_kl + alpha_task * L_task + alpha_cos * L_cos`.

        Training and evaluation both go through this method. An override may add to the loss or scale it: what it
        returns is trained on, logged as `loss`, and evaluated as `eval_loss`.

        Args:
            model: the student, in whatever wrapper it is trained in.
            inputs: a batch, with its labels.
            return_outputs: return the student's outputs too.
            num_items_in_batch: `[losses]`, the items of each loss in the whole optimizer step. Without it, the means
                are over this batch.

        Returns:
            The loss, a scalar; with `return_outputs`, also what the student's forward returned, logits of all positions
            among it.
        """
        evaluated = self._evaluation is not None
        scored = self._score(inputs, self._num_fresh(inputs) if evaluated else None)
        own_items = self._count_items(scored) if evaluated or num_items_in_batch is None else None
        items = own_items if num_items_in_batch is None else num_items_in_batch
        loss, sums, output = self._compute_losses(model, inputs, scored, items, whole_logits=return_outputs)

        if evaluated:
            self._evaluation.record(sums, own_items, loss)
        elif num_items_in_batch is not None:
            self._step_losses.record(means(sums, items))
            loss = loss * self.accelerator.num_processes  # the engines average gradients over the processes
        return (loss, output) if return_outputs else loss

    def training_step(
        self, model: nn.Module, inputs: dict[str, torch.Tensor], num_items_in_batch: torch.Tensor | None = None
    ) -> torch.Tensor:
        """As in `Trainer`. Without `num_items_in_batch` the loss is the mean of those of the micro-batches."""
        if num_items_in_batch is None:
            logger.warning_once(
                "get_batch_samples returned no num_items_in_batch, so all micro-batches of a step weigh the same, "
                "however many items they have: return what super().get_batch_samples returns."
            )
            shares = self.current_gradient_accumulation_steps * self.accelerator.num_processes
            num_items_in_batch = self._count_items(self._score(inputs)).clamp(min=1).to(self.args.device) * shares
        return super().training_step(model, inputs, num_items_in_batch)

    def _compute_losses(
        self,
        model: nn.Module,
        inputs: Mapping[str, torch.Tensor],
        scored: Scored,
        items: torch.Tensor,
        whole_logits: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, ModelOutput]:
        """The losses over the items in the batch.

        Returns:
            The weighted sum of the losses, each divided by its `items`, to be differentiated; `[losses]`, each summed
            over its items in the batch; and the student's outputs, with all logits if `whole_logits`.
        """
        weights = dict(zip(self.losses, means(self._alphas, items), strict=True))
        sums: dict[str, torch.Tensor] = {}
        student_model = transformers_model(self.accelerator.unwrap_model(model, keep_torch_compile=False))
        inputs = self.head.complete(inputs, student_model)
        teacher = None
        if self.teacher is not None:
            teacher_inputs = {name: value for name, value in inputs.items() if name not in self._not_for_teacher}
            teacher = self.teacher(teacher_inputs, scored, self.accelerator.autocast)

        def loss_of(student: ScoredOutput) -> torch.Tensor:
            parts = []
            if of_logits := {name: loss for name, loss in self.losses.items() if loss.reads == "logits"}:
                part, own_sums = sum_losses_of_logits(
                    list(of_logits.values()),
                    torch.stack([weights[name] for name in of_logits]),
                    student,
                    teacher if of_logits.keys() - {"task"} else None,
                    scored.scored_labels,
                    # ZeRO-3 gathers the head for each chunk, and waits forever where processes have unequal numbers.
                    num_classes=None if is_zero3(self.accelerator) else self._num_classes,
                    loss_scale=loss_scale(self.accelerator),
                )
                parts.append(part)
                sums.update(zip(of_logits, own_sums, strict=True))
            for name, loss in self.losses.items():
                if loss.reads == "hidden_states":
                    hidden = student.states("student")
                    of_states = state_weights(student_model, inputs, scored, hidden.shape[1])
                    if self.projection is not None:
                        hidden = self.projection(hidden.to(self.projection.weight.dtype))
                    own_sum = loss(hidden, teacher.states("teacher"), of_states)
                    parts.append(weights[name] * own_sum)
                    sums[name] = own_sum.detach()
            return sum(parts)

        student_inputs = self._student_inputs(inputs)
        _, output = scored_forward(model, student_model, self.head, student_inputs, scored, loss_of, whole_logits)
        return output.loss, torch.stack([sums[name] for name in self.losses]), output

    def _score(self, inputs: Mapping[str, torch.Tensor], num_fresh: int | None = None) -> Scored:
        scored = self.head.score(inputs, self.args.kl_positions, num_fresh)
        known = self._known_indices.get(id(inputs.get("labels")))
        return replace(scored, known_indices=known.indices) if known is not None and known.fit(inputs) else scored

    def _count_items(self, scored: Scored) -> torch.Tensor:
        """`[losses]`: how many items each loss has in a batch."""
        return torch.stack([loss.items(scored) for loss in self.losses.values()])

    def _student_inputs(self, inputs: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: value for name, value in inputs.items() if name not in self._not_for_student}

    def get_batch_samples(
        self, epoch_iterator: Iterator, num_batches: int, device: torch.device
    ) -> tuple[list, torch.Tensor | None]:
        """As in `Trainer`; batches at the end of a stream that are too few for a step wait for the next pass."""
        if self.is_in_train and self.state.global_step >= self.state.max_steps:
            return [], None  # it goes on from its last step, after which Trainer would make another
        batches, self.left_over_batches = self.left_over_batches, []
        while len(batches) < num_batches and (batch := next(epoch_iterator, None)) is not None:
            batches.append(batch)
        if len(batches) < num_batches:
            batches, self.left_over_batches = [], batches
        return batches, self._get_num_items_in_batch(batches, device)

    def _get_num_items_in_batch(self, batch_samples: list, device: torch.device) -> torch.Tensor | None:
        """`[losses]`: their items in all micro-batches of an optimizer step, on all processes."""
        if (
            self.is_in_train
            and self._evaluation is None
            and self.args.distillation_fields() != self._arguments_of_losses
        ):
            raise ValueError(
                f"{'; '.join(differences(self._arguments_of_losses, self.args.distillation_fields()))}: it was changed "
                f"during the training, and the losses are made when a training begins. Set it before train()."
            )
        counted = [batch for batch in batch_samples if SCORED_INDICES in batch]
        self._known_indices = {id(batch["labels"]): KnownIndices(batch.pop(SCORED_INDICES), batch) for batch in counted}
        if not batch_samples:
            return None
        if "task" in self.losses and not self._has_labels(batch_samples[0]):
            raise ValueError(
                f"The training batches have no {' and '.join(self.head.label_names)}, only "
                f"{', '.join(batch_samples[0])}, but alpha_task={self.args.alpha_task}: add labels, or set "
                f"alpha_task=0 to learn from the teacher alone."
            )
        items = sum(self._count_items(self._score(batch)) for batch in batch_samples)
        return self.accelerator.reduce(items.to(device), reduction="sum")

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Logs; in training, adds the mean of each loss over the steps since the last log."""
        self._stop_if_a_loss_is_not_finite()
        is_of_steps = self.is_in_train and {"loss", "learning_rate"} <= logs.keys()  # and not a person's own log
        if is_of_steps and (losses := self._step_losses.take()) is not None:
            logs |= {f"loss_{name}": mean for name, mean in zip(self.losses, losses.tolist(), strict=True)}
        super().log(logs, start_time)

    def _stop_if_a_loss_is_not_finite(self) -> None:
        steps = self.accelerator.gather(self._step_losses.first_bad_step.unsqueeze(0)).amin(0).tolist()
        first = min(steps)
        if first != NEVER:
            self._step_losses.reset(len(self.losses))
            names = [f"loss_{name}" for name, step in zip(self.losses, steps, strict=True) if step == first]
            raise FloatingPointError(
                f"{' and '.join(names)} not finite in step {first}: the training stops, and writes no checkpoint. "
                f"{self._way_out}"
            )

    def _stop_if_a_weight_is_not_finite(self) -> None:
        # Each process looks at its own shards.
        weights = [getattr(p, "to_local", lambda p=p: p)() for p in self.model.parameters() if p.requires_grad]
        finite = [weight.isfinite().all() for weight in weights if weight.numel()]
        if finite and not self.accelerator.gather(torch.stack(finite).all().unsqueeze(0)).all():
            raise FloatingPointError(
                f"The student's weights are not finite after step {self.state.global_step}, though the losses were: a "
                f"gradient overflowed. The training stops, and writes no checkpoint. {self._way_out}"
            )

    @property
    def _way_out(self) -> str:
        checkpoint = last_whole_checkpoint(self.args.output_dir)
        resume = "There is no earlier checkpoint" if checkpoint is None else f"The last checkpoint is {checkpoint}"
        return f"{resume}. Lower the learning rate, clip gradients, or train with bf16 in place of fp16."

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **generation_options,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """As in `Trainer`; of the outputs only the logits are returned, so that no hidden states are gathered.

        Where this class comes before `Seq2SeqTrainer` and `predict_with_generate` is set, the generated tokens are
        returned in the place of the logits.
        """
        inputs = self._prepare_inputs(inputs)
        predictions = None
        if isinstance(self, Seq2SeqTrainer) and self.args.predict_with_generate and not prediction_loss_only:
            _, predictions, labels = super().prediction_step(model, inputs, False, ignore_keys, **generation_options)
        else:
            names = self.label_names
            labels = tuple(inputs[name] for name in names) if names and _has_all(names, inputs) else None
        logits_wanted = predictions is None and not prediction_loss_only

        labels_needed = "task" in self.losses or (self.head.per_token and self.args.kl_positions == "labels")
        with torch.no_grad(), self.compute_loss_context_manager():
            # Where predictions or accuracy alone are asked for, a stored teacher need not have read the rows.
            has_targets = self.teacher is None or self.teacher.can_read(inputs)
            if has_targets and (self._has_labels(inputs) or not labels_needed):
                num_fresh = self._num_fresh(inputs)
                loss = self.compute_loss(model, inputs, return_outputs=logits_wanted)
                loss, outputs = loss if logits_wanted else (loss, None)
                loss = loss.detach()
                if self._evaluation is not None:
                    self._evaluation.end_batch(loss, count_examples(inputs) if num_fresh is None else num_fresh)
            else:
                loss, outputs = None, model(**self._student_inputs(inputs)) if logits_wanted else None
        if prediction_loss_only:
            return loss, None, None
        if logits_wanted:
            predictions = self.head.predictions(outputs)
        return loss, predictions, _one_or_all(labels)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """As in `Trainer`, but each loss is the mean over all its items, however they fall into batches."""
        if not self.is_in_train and self.args.distillation_fields() != self._arguments_of_losses:
            self._make_losses()
        # One evaluation may run within another, as where compute_metrics calls predict.
        outer, self._evaluation = self._evaluation, EvaluationLosses(self._alphas)
        try:
            output = super().evaluation_loop(
                dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
            )
            losses = self._evaluation
        finally:
            self._evaluation = outer
        total = f"{metric_key_prefix}_loss"
        if losses.has_parts:
            loss, parts = losses.means(partial(self.accelerator.reduce, reduction="sum"))
            if losses.has_total:
                output.metrics[total] = loss
            output.metrics.update(
                {f"{metric_key_prefix}_loss_{name}": part for name, part in zip(self.losses, parts, strict=True)}
            )
        elif total in output.metrics and type(self).prediction_step is not DistillationTrainer.prediction_step:
            logger.warning_once(
                f"{total} is the loss that {type(self).__name__}.prediction_step returns, not that of the training: "
                f"call self.compute_loss there. With Seq2SeqTrainer, put DistillationTrainer before it in the bases."
            )
        return output

    def _num_fresh(self, inputs: Mapping[str, torch.Tensor]) -> int | None:
        """How many examples of this evaluation batch are not repeats; None if all are.

        Accelerate fills the last batches up to equal size on all processes, with rows from the beginning.
        """
        state, processes = self.accelerator.gradient_state, self.accelerator.num_processes
        dataloader = self.callback_handler.eval_dataloader
        if processes == 1 or state.active_dataloader is not dataloader:
            return None  # what Accelerate has not prepared, it does not fill up
        if not state.end_of_dataloader or state.remainder <= 0:
            return None
        rows = dataloader.total_batch_size // processes
        fresh_rows = min(max(state.remainder - self.accelerator.process_index * rows, 0), rows)
        return fresh_rows * count_examples(inputs) // rows  # a collator may make several examples of a row

    def _set_signature_columns_if_needed(self) -> None:
        """Keeps the columns of the data set that only the teacher reads."""
        super()._set_signature_columns_if_needed()
        if self.teacher is not None:
            self._signature_columns = sorted({*self._signature_columns, *self.teacher.inputs})

    def _get_dataloader(self, dataset: object, *args, **kwargs) -> DataLoader:
        if isinstance(self.teacher, StoredTeacher):
            check_targets(dataset, self.teacher.source)
        return super()._get_dataloader(dataset, *args, **kwargs)

    def _remove_unused_columns(self, dataset: Dataset, description: str | None = None) -> Dataset:
        return as_arrays(super()._remove_unused_columns(dataset, description))

    def _save_checkpoint(self, model: nn.Module, trial) -> None:
        """As in `Trainer`, but nothing that is not finite is saved, and a checkpoint has its name once it is whole."""
        self._stop_if_a_loss_is_not_finite()
        self._stop_if_a_weight_is_not_finite()
        run_dir = self._get_output_dir(trial)
        checkpoint = os.path.join(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")

        writer, everyone = self.args.should_save, self.accelerator.wait_for_everyone
        with named_when_whole(checkpoint, writer, everyone) as unfinished:
            self._unfinished_run_dir = os.path.dirname(unfinished)
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self._unfinished_run_dir = None
            if self.state.best_global_step == self.state.global_step:
                self.state.best_model_checkpoint = checkpoint  # which is not its name yet
            if writer:
                self.state.save_to_json(os.path.join(unfinished, TRAINER_STATE_NAME))
                write_distillation_state(unfinished, self._distillation_state())
                if self.projection is not None:
                    self.projection.save(unfinished)

        if self.args.push_to_hub:
            self._push_from_checkpoint(checkpoint)
        if writer:
            rotate_checkpoints(
                output_dir=run_dir,
                save_total_limit=self.args.save_total_limit,
                best_model_checkpoint=self.state.best_model_checkpoint,
                use_mtime=True,
            )

    def save_merged_model(self, output_dir: str) -> None:
        """Saves a student with PEFT adapters as the plain model that it amounts to. Training can go on.

        Args:
            output_dir: the folder to write to; `AutoModelFor...from_pretrained` loads it where PEFT is not installed.

        Raises:
            TypeError: if the student has no adapters.
            ValueError: if the adapters cannot be merged.
        """
        student = self.accelerator.unwrap_model(self.model, keep_torch_compile=False)
        if not isinstance(student, PeftModel):
            raise TypeError(f"A {type(student).__name__} has no adapters to merge: use save_model.")
        if self.args.should_save:
            with self._card_beside(output_dir, is_adapter=False):
                merged(student).save_pretrained(output_dir)
                if self.processing_class is not None:
                    self.processing_class.save_pretrained(output_dir)

    def _get_output_dir(self, trial) -> str:
        return self._unfinished_run_dir or super()._get_output_dir(trial)

    def _distillation_state(self) -> dict[str, object]:
        """What the losses depend on, beside the data."""
        state = {f"alpha_{name}": alpha for name, alpha in self.alphas.items()}
        state |= {"temperature": self.args.temperature, "kl_positions": self.args.kl_positions}
        if self.teacher is not None:
            state |= self.teacher.state()
        return state

    def hyperparameter_search(
        self,
        hp_space: Callable | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        *args,
        **kwargs,
    ):
        """As in `Trainer`; by default the objective is the sum of the metrics, or `eval_loss` if there are none."""
        return super().hyperparameter_search(hp_space, compute_objective or _default_objective, *args, **kwargs)

    def _hp_search_setup(self, trial) -> None:
        super()._hp_search_setup(trial)
        if self.model_init is not None:
            self._prepare_student()
        if trial is not None:
            self.args.check_distillation_fields()
            if isinstance(self.teacher, StoredTeacher):
                self.teacher.check(self.args)
                self._signature_columns = None  # the losses may read other columns now
            self._make_losses()
            if self.args.reads_teacher and self.teacher is None:
                raise ValueError(
                    f"alpha_kl={self.args.alpha_kl} and alpha_cos={self.args.alpha_cos} need a teacher: make the "
                    f"trainer with one."
                )

    def _has_labels(self, inputs: Mapping[str, torch.Tensor]) -> bool:
        return _has_all(self.head.label_names, inputs)

    @property
    def _num_classes(self) -> int:
        config = transformers_model(self.model).config
        return vocab_size(config) if self.head.over_vocabulary else config.num_labels


def _default_objective(metrics: dict[str, float]) -> float:
    """Of an evaluation: the sum of the metrics, or the loss if there are none."""
    own = {name for name in metrics if is_part_of_loss(name) or name.endswith("_model_preparation_time")}
    return default_compute_objective({name: value for name, value in metrics.items() if name not in own})


def _has_all(names: Sequence[str], inputs: Mapping[str, torch.Tensor]) -> bool:
    return all(inputs.get(name) is not None for name in names)


def _one_or_all(labels: tuple[torch.Tensor, ...] | None) -> torch.Tensor | tuple[torch.Tensor, ...] | None:
    return labels[0] if labels is not None and len(labels) == 1 else labels
