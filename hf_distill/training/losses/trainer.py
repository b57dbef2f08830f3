"""A trainer with losses: creates them, and trains their parameters."""

import copy
import re
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import torch
from torch import nn
from transformers import PreTrainedModel, Trainer
from transformers.trainer_utils import default_compute_objective

from hf_distill.adapters import transformers_model
from hf_distill.training.engines import partial_optimizer_states, reentrant_checkpointing
from hf_distill.training.losses.base import Loss, LossArguments, Setup
from hf_distill.training.losses.making import (
    GivenLosses,
    check_given_losses,
    layer_captures,
    make_losses,
    readers_of_teacher,
)
from hf_distill.training.losses.own_optimizer import OwnOptimizer, needs_own_optimizer
from hf_distill.training.losses.parameters import LossParameters, StepWithStudent
from hf_distill.training.losses.schedules import (
    END,
    Schedule,
    Value,
    check_some_is_on,
    is_on,
    parse_schedule,
    value_at,
)
from hf_distill.training.losses.steps import StepLosses
from hf_distill.training.scoring.alignment import HeadSpec, head_spec
from hf_distill.training.scoring.capture import LayerCapture
from hf_distill.training.scoring.heads import Head


class ReadTeacher(Protocol):
    """What this trainer needs to know about the teacher, live or stored."""

    head_spec: HeadSpec

    @property
    def model(self) -> PreTrainedModel | None: ...

    @property
    def top_k(self) -> int | None: ...

    @property
    def num_samples(self) -> int | None: ...

    def can_read(self, inputs: Mapping[str, torch.Tensor]) -> bool: ...

    def prepare_for(self, losses: Mapping[str, Loss], capture: LayerCapture | None) -> None: ...


class LossTrainerArguments(Protocol):
    """The training arguments that `LossTrainer` reads."""

    @property
    def device(self) -> torch.device: ...

    @property
    def kl_positions(self) -> str: ...

    @property
    def loss_weights(self) -> dict[str, Value]: ...

    @property
    def loss_temperature(self) -> Value: ...

    def at(self, progress: float) -> LossArguments: ...

    def check_losses(self, given: Collection[Loss] = ()) -> None: ...

    def check_distillation_fields(self) -> None: ...

    def distillation_fields(self) -> dict[str, object]: ...


class LossTrainer(Trainer):
    """A `Trainer` with named losses, which may have parameters of their own.

    Attributes:
        losses: the losses whose weight is not 0, by name.
        loss_weights: the weights of all losses, by name: of the `alpha_...` arguments and of `losses`. Each is a number
            or a `Schedule`.
        loss_parameters: the parameters of the losses.
        loss_optimizer: their optimizer under FSDP2 and DeepSpeed; None if the student's optimizer has them.
    """

    args: LossTrainerArguments
    head: Head
    teacher: ReadTeacher | None
    losses: dict[str, Loss]
    loss_weights: dict[str, Value]
    loss_parameters: LossParameters
    loss_optimizer: OwnOptimizer | None = None
    _capture: LayerCapture | None
    _evaluation: object | None = None
    """The losses of the running evaluation."""
    _signature_columns: list[str] | None

    def _take_losses(self, given: GivenLosses) -> None:
        """Keeps the user's losses and their initial parameters."""
        check_given_losses(given, self.args.loss_weights)
        self.losses, self._given_losses = {}, dict(given)
        self._beginnings = {name: copy.deepcopy(loss.state_dict()) for name, (loss, _) in given.items()}
        self._step_losses = StepLosses(self)
        self.add_callback(self._step_losses)
        self.add_callback(StepWithStudent(self))

    @property
    def readers_of_teacher(self) -> list[str]:
        """The losses that compare the student with a teacher, as written in the user's code."""
        return readers_of_teacher(self._all_weights(), self._given_losses)

    @property
    def needs_labels(self) -> bool:
        """Whether a loss reads hard labels."""
        return any(loss.needs.labels for loss in self.losses.values())

    def _all_weights(self) -> dict[str, Value]:
        given = {name: parse_schedule(weight) for name, (_, weight) in self._given_losses.items()}
        return self.args.loss_weights | given

    def _make_losses(self, begin_anew: bool = False) -> None:
        """Creates the losses. `hyperparameter_search` changes the arguments that they depend on between trainings.

        Args:
            begin_anew: reset the losses' parameters to their initial values instead of keeping the trained ones.
        """
        args = self.args
        self.loss_weights = self._all_weights()
        args.check_losses([loss for name, (loss, _) in self._given_losses.items() if is_on(self.loss_weights[name])])
        check_some_is_on({f"alpha_{name}": weight for name, weight in self.loss_weights.items()})
        if self.teacher is None and (readers := self.readers_of_teacher):
            raise ValueError(f"{' and '.join(readers)} need a teacher: pass teacher_model to the trainer.")
        self._arguments_of_losses = args.distillation_fields()
        student, teacher = transformers_model(self.model), None if self.teacher is None else self.teacher.model
        setup = Setup(
            args=args.at(END),
            head=self.head,
            student=head_spec(student),
            teacher=None if self.teacher is None else self.teacher.head_spec,
            top_k=None if self.teacher is None else self.teacher.top_k,
            models=None if teacher is None else (student, teacher),
            teacher_fingerprint=getattr(self.teacher, "fingerprint", None),
            num_samples=None if self.teacher is None else self.teacher.num_samples,
        )
        self._schedules = {
            f"alpha_{name}": weight for name, weight in self.loss_weights.items() if isinstance(weight, Schedule)
        }
        if isinstance(args.loss_temperature, Schedule):
            self._schedules["temperature"] = args.loss_temperature
            if setup.top_k is not None or setup.num_samples is not None:
                raise ValueError(
                    f"temperature={args.loss_temperature!r} does not work with stored teacher targets of a language "
                    f"model, which are probabilities at one temperature: set a fixed temperature, or pass "
                    f"teacher_model."
                )
        if begin_anew:
            for name, state in self._beginnings.items():
                self._given_losses[name][0].load_state_dict(state)
        previous = {} if begin_anew else self.losses
        self.losses = make_losses(self.loss_weights, self._given_losses, setup, previous)
        for loss in self.losses.values():
            loss.to(args.device)
        self._capture, capture_of_teacher = layer_captures(self.losses, setup)
        if self._capture is not None and (reentrant := reentrant_checkpointing(args, student)) is not None:
            raise ValueError(
                f"The losses over layers do not work with {reentrant}, which computes layers without gradients: leave "
                f"use_reentrant out."
            )
        if self.teacher is not None:
            self.teacher.prepare_for(self.losses, capture_of_teacher)
        self.loss_parameters = LossParameters(self.losses)
        self.loss_parameters.begin_alike(self.accelerator)
        self._weights, self._values_are_of = self._weights_at(END), END
        self._step_losses.reset(len(self.losses))

    def _weights_at(self, progress: float) -> torch.Tensor:
        """`[losses]`, their weights at a moment of the training."""
        return torch.tensor(
            [float(value_at(self.loss_weights[name], progress)) for name in self.losses], device=self.args.device
        )

    def _take_scheduled_values(self) -> None:
        """Sets weights and temperature to their values of this moment.

        A training step uses the values of the steps before it, so all its micro-batches have the same. An evaluation
        uses the values at the end of the training, so that its losses can be compared with other evaluations.
        """
        in_step = self.is_in_train and self._evaluation is None
        progress = self.state.global_step / self.state.max_steps if in_step else END
        if not self._schedules or progress == self._values_are_of:
            return
        self._weights, self._values_are_of = self._weights_at(progress), progress
        if "temperature" in self._schedules:
            temperature = self._schedules["temperature"].at(progress)
            for loss in self._losses_with_temperature.values():
                loss.temperature = temperature  # type: ignore[assignment]

    @property
    def _losses_with_temperature(self) -> dict[str, Loss]:
        """The losses that read the argument `temperature`, by name."""
        return {
            name: loss
            for name, loss in self.losses.items()
            if name not in self._given_losses and "temperature" in loss.options
        }

    def _scheduled_values(self) -> dict[str, float]:
        """The values of all schedules in the last step, by argument."""
        return {name: schedule.at(self._progress_of_last_step) for name, schedule in self._schedules.items()}

    @property
    def _progress_of_last_step(self) -> float:
        return (self.state.global_step - 1) / self.state.max_steps

    def _settings_of_losses(self) -> dict[str, dict[str, object]]:
        """The settings of each loss, by name. A scheduled temperature is its notation."""
        settings = {name: dict(loss.state()) for name, loss in self.losses.items()}
        if "temperature" in self._schedules:
            for name in self._losses_with_temperature:
                if "temperature" in settings[name]:
                    settings[name]["temperature"] = str(self._schedules["temperature"])
        return settings

    def _renew_losses(self) -> None:
        """Creates the losses again if their arguments have changed."""
        if self.args.distillation_fields() != self._arguments_of_losses:
            self._make_losses()

    def _prepare_student(self) -> None:
        """Reads what the trainer must know about the student. `model_init` makes a new one for each training."""
        raise NotImplementedError

    def _prepare_for_training(self, *args, **kwargs):
        self.loss_optimizer = None
        if self.loss_parameters.owners and needs_own_optimizer(self.accelerator):
            self.loss_optimizer = OwnOptimizer(self.loss_parameters.trained, self)
        return super()._prepare_for_training(*args, **kwargs)

    def create_scheduler(self, *args, **kwargs) -> torch.optim.lr_scheduler.LRScheduler:
        """As in `Trainer`, but first adds the losses' parameters to the optimizer, no matter how it was created."""
        if self.loss_optimizer is None:
            self.loss_parameters.join(self.optimizer)
        return super().create_scheduler(*args, **kwargs)

    def _clip_grad_norm(self, model: nn.Module) -> torch.Tensor:
        return super()._clip_grad_norm(self._with_loss_parameters(model))

    def _get_grad_norm(self, model: nn.Module, grad_norm: torch.Tensor | None = None) -> torch.Tensor | float:
        return super()._get_grad_norm(self._with_loss_parameters(model), grad_norm)

    def _with_loss_parameters(self, model: nn.Module) -> nn.Module:
        """Everything that the optimizer updates, with gradients averaged over the processes."""
        self.loss_parameters.average_gradients(self.accelerator)
        return model if self.loss_optimizer is not None else self.loss_parameters.beside(model)

    def _check_checkpoint(self, checkpoint: str) -> None:
        self.loss_parameters.check(checkpoint)

    def _write_beside_checkpoint(self, checkpoint: str) -> None:
        self.loss_parameters.save(checkpoint)
        if self.loss_optimizer is not None:
            self.loss_optimizer.save(checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        super()._load_from_checkpoint(resume_from_checkpoint, model)
        self.loss_parameters.load(resume_from_checkpoint)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with partial_optimizer_states(self.accelerator):
            super()._load_optimizer_and_scheduler(checkpoint)
        if self.loss_optimizer is not None and checkpoint is not None:
            self.loss_parameters.load(checkpoint)  # DeepSpeed does not call `_load_from_checkpoint`
            self.loss_optimizer.load(checkpoint)

    def _load_best_model(self) -> None:
        super()._load_best_model()
        self.loss_parameters.load(self.state.best_model_checkpoint)

    def hyperparameter_search(
        self,
        hp_space: Callable | None = None,
        compute_objective: Callable[[dict[str, float]], float] | None = None,
        *args,
        **kwargs,
    ):
        """As in `Trainer`. The default objective is the sum of the metrics, or `eval_loss` if there are none."""
        return super().hyperparameter_search(hp_space, compute_objective or self._default_objective, *args, **kwargs)

    def _default_objective(self, metrics: dict[str, float]) -> float:
        part = re.compile(rf"(.+_)?loss_({'|'.join(self.losses)})")
        own = {name for name in metrics if part.fullmatch(name) or name.endswith("_model_preparation_time")}
        return default_compute_objective({name: value for name, value in metrics.items() if name not in own})

    def _hp_search_setup(self, trial) -> None:
        super()._hp_search_setup(trial)
        if trial is not None:
            self.args.check_distillation_fields()
        if self.model_init is not None:
            self._prepare_student()
            self._make_losses(begin_anew=True)
            self._signature_columns = None  # the losses may read other columns now
