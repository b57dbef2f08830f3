"""Run by `test_engines.py` on two processes: one optimizer step and one evaluation of each case, as JSON.

python -m torch.distributed.run --nproc_per_node 2 one_step_on_processes.py ENGINE RESULT_FILE HEAD:FAMILY[:layers]...

With `:layers` the losses are those over layers.
"""

import json
import os
import sys
from collections.abc import Iterable
from pathlib import Path

import torch
from accelerate.state import PartialState
from accelerate.utils import DistributedType
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

sys.path.insert(0, str(Path(__file__).parents[2]))

from hf_distill import DistillationTrainer, DistillationTrainingArguments
from hf_distill.training.scoring import pieces
from tests.conftest import collate
from tests.training.losses.test_given import Mapped
from tests.training.losses.test_layer_losses import ALONE
from tests.training.teacher.test_ensemble import make_small, make_teachers, with_weights
from tests.training.test_split_invariance import KeepGradient, make_pair, make_sparse_rows

torch.set_num_threads(1)
pieces.CHUNK_ELEMENTS, pieces.BLOCK_ELEMENTS_ON_CPU = 300, 150  # chunks of 4 rows, blocks of 2

LEARNING_RATE = 64.0  # a power of two, so high that rounding the weights hides little of the gradient
ENGINE, RESULT_FILE = sys.argv[1], Path(sys.argv[2])
CASES = [case.split(":") for case in sys.argv[3:]]

if ENGINE != "ddp":
    # Accelerate does not shard on the CPU, and does not warn about it: pretend that these are GPUs.
    os.environ["ACCELERATE_TORCH_DEVICE"] = "cpu"
    PartialState._prepare_backend = lambda self, *args, **kwargs: ("gloo", DistributedType.MULTI_GPU)


def zero(stage: int) -> dict:
    return {
        "zero_optimization": {"stage": stage, "stage3_param_persistence_threshold": 0},
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": 0.0,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }


OPTIONS_OF_ENGINE = {
    "ddp": {"use_cpu": True},
    "fsdp2": {"fsdp": True, "fsdp_config": {"version": 2}},
    "zero2": {"deepspeed": zero(2)},
    "zero3": {"deepspeed": zero(3)},
}


def arguments_of(engine: str, **options) -> DistillationTrainingArguments:
    return DistillationTrainingArguments(
        output_dir=str(RESULT_FILE.parent / "out"),
        ddp_backend="gloo",
        dataloader_pin_memory=False,
        report_to="none",
        disable_tqdm=True,
        save_strategy="steps",
        save_steps=1,
        logging_steps=1,
        max_steps=1,
        train_sampling_strategy="sequential",
        per_device_train_batch_size=16 // int(os.environ["WORLD_SIZE"]),
        per_device_eval_batch_size=4,
        max_grad_norm=0.0,
        # The weights move by the learning rate times the gradient, which some engines do not expose.
        optim="sgd",
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        **OPTIONS_OF_ENGINE[engine],
        **options,
    )


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """All shards of it."""
    if hasattr(tensor, "ds_id"):
        import deepspeed

        with deepspeed.zero.GatheredParameters([tensor]):
            return tensor.detach().clone()
    return (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).detach().clone()


def weights(parameters: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([torch.zeros(0), *(whole(parameter).flatten() for parameter in parameters)])


def step_and_evaluation(case: list[str], teacher: PreTrainedModel, student: PreTrainedModel) -> dict:
    head, family, *layers = case
    arguments = arguments_of(ENGINE, project_hidden_states="/" in family, **(ALONE if layers else {}))
    evaluated = {}
    if ENGINE == "ddp":
        rows = make_sparse_rows(head)[1:]
        evaluated = DistillationTrainer(
            model=student, teacher_model=teacher, eval_dataset=rows, args=arguments, data_collator=collate
        ).evaluate()
        # A fresh student: Accelerate does not wrap a model a second time, and evaluating has marked it as prepared.
        teacher, student = make_pair(head, family)
    return {**step(arguments, teacher, student, make_sparse_rows(head)), "evaluated": evaluated}


def names_of(trainer: DistillationTrainer) -> list[str]:
    return [f"loss_{name}" for name in trainer.losses]


def step(
    arguments: DistillationTrainingArguments,
    teacher: PreTrainedModel | list[PreTrainedModel],
    student: PreTrainedModel,
    rows: list[dict],
) -> dict:
    keeper = KeepGradient()
    trainer = DistillationTrainer(
        model=student,
        teacher_model=teacher,
        args=arguments,
        data_collator=collate,
        train_dataset=rows,
        callbacks=[keeper],
    )
    keeper.trainer = trainer
    own = trainer.loss_parameters.trained
    before, own_before = weights(student.parameters()), weights(own)
    teacher_is_sharded = all(
        isinstance(parameter, DTensor) or (hasattr(parameter, "ds_id") and not parameter.numel())
        for own in getattr(trainer.teacher, "teachers", [trainer.teacher])
        for parameter in own.model.parameters()
    )
    trainer.train()
    gradient, moved = keeper.gradient, (own_before - weights(own)) / LEARNING_RATE
    if ENGINE.startswith("zero"):
        gradient = torch.cat([(before - weights(student.parameters())) / LEARNING_RATE, moved])
    return {
        "num_processes": trainer.accelerator.num_processes,
        "wrapper": keeper.wrapper,
        "teacher_is_sharded": teacher_is_sharded,
        "losses": [trainer.state.log_history[0][name] for name in ("loss", *names_of(trainer))],
        "gradient": whole(gradient).tolist(),
        "moved": moved.tolist(),  # the gradient of the losses' parameters, as their optimizer saw it
    }


def beginnings_of_a_loss() -> list[list[float]]:
    """The weights of a loss on each process, where it was created with different random numbers."""
    torch.manual_seed(int(os.environ["RANK"]))
    loss = Mapped()
    torch.nn.init.normal_(loss.map.weight)
    teacher, student = make_pair("mlm", "bert/narrow")
    trainer = DistillationTrainer(
        model=student, teacher_model=teacher, args=arguments_of(ENGINE, alpha_cos=0.0), losses={"mapped": (loss, 1.0)}
    )
    return trainer.accelerator.gather(loss.map.weight.detach().flatten().unsqueeze(0)).tolist()


pairs = [make_pair(head, family) for head, family, *_ in CASES]  # before ZeRO-3 is on, which shards what is made
several = make_teachers("mlm"), make_small("mlm")
arguments = arguments_of(ENGINE, teacher_weights_column="votes")
of_several = step(arguments, *several, with_weights(make_sparse_rows("mlm")))
results = [step_and_evaluation(case, *pair) for case, pair in zip(CASES, pairs, strict=True)]
if ENGINE == "ddp":
    results[0]["beginnings"] = beginnings_of_a_loss()
results[0]["several teachers"] = of_several
if os.environ["RANK"] == "0":
    RESULT_FILE.write_text(json.dumps(results))
