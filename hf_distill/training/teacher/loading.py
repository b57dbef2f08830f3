"""Prepares the teacher: chooses it, loads it, converts it to its dtype and places it on devices."""

import copy
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeAlias

import torch
from accelerate import Accelerator
from peft import PeftConfig, PeftModel
from transformers import AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils import find_adapter_config_file, is_bitsandbytes_available

from hf_distill.adapters import transformers_model
from hf_distill.embedding import EmbeddingModel
from hf_distill.loading import load_pretrained
from hf_distill.training.engines import compiled, shard_teacher
from hf_distill.training.losses import LOSSES
from hf_distill.training.scoring.find_head import auto_class_of
from hf_distill.training.teacher.columns import SOURCE, JoinedSource, Source
from hf_distill.training.teacher.ensemble import TeacherEnsemble
from hf_distill.training.teacher.live import Teacher, check_tokenizers
from hf_distill.training.teacher.stored import StoredTeacher
from hf_distill.training.teacher.weights import fixed_weights
from hf_distill.training.training_args import DistillationTrainingArguments

GivenTeacher: TypeAlias = PreTrainedModel | PeftModel | str
GivenTeachers: TypeAlias = GivenTeacher | Sequence[GivenTeacher] | Mapping[str, GivenTeacher]
"""The `teacher_model` argument of `DistillationTrainer`: one teacher or several."""

AnyTeacher: TypeAlias = Teacher | StoredTeacher | TeacherEnsemble


def prepare_teacher(
    teacher_model: GivenTeachers | None,
    student: PreTrainedModel | PeftModel,
    args: DistillationTrainingArguments,
    tokenizer: object,
    accelerator: Accelerator,
    source: Source | JoinedSource | None,
    readers: Sequence[str],
) -> AnyTeacher | None:
    """Prepares the teacher, on its device or sharded over the processes. Returns None if no loss reads a teacher.

    Args:
        teacher_model: the argument of `DistillationTrainer`.
        student: the student.
        args: the training arguments.
        tokenizer: the student's tokenizer.
        accelerator: the trainer's accelerator.
        source: the teacher of the targets stored in the datasets; None if none are stored.
        readers: the losses that read a teacher, as written in the user's code.

    Raises:
        TypeError: if `teacher_model` has the wrong type.
        ValueError: if there is no teacher or more than one, if an option would have no effect, or if the teacher cannot
            be compared with the student.
    """
    if source is not None and readers:
        _check_alone(source, teacher_model, args)
        if isinstance(source, Source):
            _check_several(args, 1)
            return StoredTeacher(source, student, tokenizer)
        sources, number = source.sources, len(source.sources)
        stored = {
            f"the stored teacher {index} ({own.teacher!r})": StoredTeacher(own, student, tokenizer, (index, number))
            for index, own in enumerate(sources)
        }
        return TeacherEnsemble(stored, student, args, source)
    teacher_model = _choose(teacher_model, args, readers)
    if teacher_model is None:
        return None
    given = _by_name(teacher_model)
    _check_several(args, len(given))
    if len(given) > 1 and isinstance(transformers_model(student), EmbeddingModel):
        raise ValueError(
            f"teacher_model has {len(given)} models. Vectors of different models cannot be averaged, because each "
            f"model has its own space: use one teacher."
        )
    teachers = {}
    for name, own in given.items():
        with _named_errors(name if len(given) > 1 else None):
            teachers[name] = _live_teacher(own, student, args, tokenizer, accelerator)
    return TeacherEnsemble(teachers, student, args) if len(teachers) > 1 else next(iter(teachers.values()))


def _live_teacher(
    teacher_model: GivenTeacher,
    student: PreTrainedModel | PeftModel,
    args: DistillationTrainingArguments,
    tokenizer: object,
    accelerator: Accelerator,
) -> Teacher:
    """Loads a teacher if it is a name, and places it."""
    dtype = None if args.teacher_dtype is None else getattr(torch, args.teacher_dtype)
    if isinstance(teacher_model, str | os.PathLike):
        teacher_model = load_teacher(
            str(teacher_model),
            transformers_model(student),
            tokenizer,
            dtype or "auto",
            args.teacher_quantization,
            args.teacher_device_map,
        )
    elif args.teacher_quantization is not None or args.teacher_device_map is not None:
        raise ValueError(
            f"teacher_quantization={args.teacher_quantization!r} and teacher_device_map="
            f"{args.teacher_device_map!r} would have no effect on a loaded model: pass the teacher's name instead, or "
            f"load the model with these options."
        )
    teacher = Teacher(teacher_model, student, tokenizer)
    is_quantized = getattr(teacher.model, "is_quantized", False)
    if dtype is not None and teacher.model.dtype != dtype:
        if is_quantized or teacher_model is student:
            raise ValueError(
                f"teacher_dtype={args.teacher_dtype!r} would have no effect on a quantised teacher or on the student "
                f"itself: leave it out."
            )
        teacher.model = copy.deepcopy(teacher.model).to(dtype)  # the caller's model stays unchanged
    if teacher.model.dtype == torch.float16 and args.bf16 and args.device.type == "cpu":
        raise ValueError("A float16 teacher does not run under bf16 autocast on the CPU: set teacher_dtype='bfloat16'.")
    if teacher_model is not student and getattr(teacher.model, "hf_device_map", None) is None:
        sharded = shard_teacher(accelerator, teacher.model)
        if sharded is not None:
            teacher.run_by_engine(sharded)
        else:
            teacher.model.to(args.device)
            teacher.wrapped = compiled(accelerator, teacher.model)
    return teacher


def load_teacher(
    name_or_path: str,
    student: PreTrainedModel,
    tokenizer: object = None,
    dtype: torch.dtype | str = "auto",
    quantization: str | None = None,
    device_map: str | None = None,
) -> PreTrainedModel:
    """Loads a teacher with the student's kind of head, from safetensors.

    Args:
        name_or_path: name on the Hub or folder of a model or a PEFT adapter. An adapter is merged into its base.
        student: the student, which decides the kind of head.
        tokenizer: the student's tokenizer. The teacher's must map the same tokens to the same ids. Not checked for None
            or another kind of processor.
        dtype: the dtype to load the weights in; "auto" for the dtype they are stored in.
        quantization: "8bit" or "4bit", with bitsandbytes. The head is not quantised.
        device_map: how to spread the teacher over devices, as in `from_pretrained`.

    Raises:
        ImportError: if `quantization` is set and bitsandbytes is not installed.
        ValueError: if weights are missing, for instance of a head that was never trained, or if the tokenizers
            differ.
    """
    options: dict[str, Any] = {"dtype": dtype}
    if device_map is not None:
        options["device_map"] = device_map
    if quantization is not None:
        options["quantization_config"] = _quantization_config(quantization, student)

    if find_adapter_config_file(name_or_path) is None:
        teacher = load_pretrained(auto_class_of(student), name_or_path, **options)
    else:
        base = PeftConfig.from_pretrained(name_or_path).base_model_name_or_path
        # An adapter does not record the number of labels.
        options["num_labels"] = student.config.num_labels
        teacher = load_pretrained(auto_class_of(student), base, adapter=name_or_path, **options)
    if isinstance(tokenizer, PreTrainedTokenizerBase):
        check_tokenizers(tokenizer, AutoTokenizer.from_pretrained(name_or_path), name_or_path)
    return teacher


def _quantization_config(quantization: str, student: PreTrainedModel) -> BitsAndBytesConfig:
    if not is_bitsandbytes_available():
        raise ImportError(
            f"teacher_quantization={quantization!r} needs bitsandbytes: pip install 'hf_distill[quant]', or pass a "
            f"teacher_model that is already quantised."
        )
    # The head is small, and the student learns from its outputs, so it keeps full precision.
    backbone = {student.base_model_prefix, "encoder", "decoder", "shared"}
    head = [name for name, _ in student.named_children() if name not in backbone]
    return BitsAndBytesConfig(
        load_in_8bit=quantization == "8bit", load_in_4bit=quantization == "4bit", llm_int8_skip_modules=head
    )


def _by_name(teacher_model: GivenTeachers) -> dict[str, GivenTeacher]:
    """The teachers by name, as written in the user's code.

    Raises:
        TypeError: if a name is not a string.
        ValueError: if there is no teacher, or if one is given twice.
    """
    if isinstance(teacher_model, Mapping):
        if names := [name for name in teacher_model if not isinstance(name, str)]:
            raise TypeError(f"teacher_model has the name {names[0]!r}, which should be a string.")
        given = {f"teacher_model[{name!r}]": model for name, model in teacher_model.items()}
    elif isinstance(teacher_model, list | tuple):
        given = {f"teacher_model[{index}]": model for index, model in enumerate(teacher_model)}
    else:
        return {"teacher_model": teacher_model}
    if not given:
        raise ValueError("teacher_model is empty: give at least one teacher.")
    seen: dict[object, str] = {}
    for name, model in given.items():
        is_model = isinstance(model, PreTrainedModel | PeftModel)
        identity = id(transformers_model(model)) if is_model else str(model)
        if identity in seen:
            raise ValueError(
                f"{seen[identity]} and {name} are the same teacher: leave out one of them, and set teacher_weights to "
                f"give the other more weight."
            )
        seen[identity] = name
    return given


@contextmanager
def _named_errors(name: str | None) -> Iterator[None]:
    """While open, the message of an error begins with the name of the teacher."""
    try:
        yield
    except (TypeError, ValueError) as error:
        if name is None:
            raise
        raise (TypeError if isinstance(error, TypeError) else ValueError)(f"{name}: {error}") from error


def _check_several(args: DistillationTrainingArguments, num_teachers: int) -> None:
    """Checks the arguments of several teachers before any is loaded."""
    if num_teachers > 1:
        fixed_weights(args.teacher_weights, num_teachers)
        return
    fields = args.__dataclass_fields__
    options = {name: getattr(args, name) for name in ("teacher_mean", "teacher_weights", "teacher_weights_column")}
    if set_ := {name: value for name, value in options.items() if value != fields[name].default}:
        raise ValueError(f"{set_} would have no effect with a single teacher: leave it out.")


def _choose(
    teacher_model: GivenTeachers | None, args: DistillationTrainingArguments, readers: Sequence[str]
) -> GivenTeachers | None:
    """Returns the given model or the name in the arguments; None if no loss reads a teacher."""
    if teacher_model is not None and args.teacher_model_name_or_path is not None:
        raise ValueError(
            f"There are two teachers, teacher_model and teacher_model_name_or_path="
            f"{args.teacher_model_name_or_path!r}: pass only one of them."
        )
    if teacher_model is None:
        teacher_model = args.teacher_model_name_or_path
    if not readers:
        if teacher_model is not None:
            off = [f"alpha_{name}=0" for name, loss in LOSSES.items() if loss.reads_teacher]
            raise ValueError(
                f"teacher_model would have no effect with {' and '.join(off)}: raise one of them, or pass "
                f"teacher_model=None."
            )
        return None
    if teacher_model is None:
        raise ValueError(
            f"{' and '.join(readers)} need a teacher: pass teacher_model, set teacher_model_name_or_path, or add "
            f"targets to the data with add_teacher_targets. To train without a teacher, set these weights to 0."
        )
    return teacher_model


def _check_alone(
    source: Source | JoinedSource, teacher_model: GivenTeachers | None, args: DistillationTrainingArguments
) -> None:
    """Checks that no teacher or teacher option is given in addition to the stored targets."""
    given = teacher_model if teacher_model is not None else args.teacher_model_name_or_path
    if given is not None:
        models = _by_name(given).values()
        names = [own if isinstance(own, str) else transformers_model(own).config._name_or_path for own in models]
        number = "two" if len(names) == 1 else "several"
        raise ValueError(
            f"There are {number} teachers, {', '.join(map(repr, names))} and the columns {', '.join(source.columns)} "
            f"of {source}: leave out teacher_model, or call remove_columns({[*source.columns, SOURCE]}) on the "
            f"datasets."
        )
    if not source.complete and args.kl_positions != "labels":
        raise ValueError(
            f"kl_positions={args.kl_positions!r} needs a distribution for every token, which the targets of {source} "
            f"do not have: set kl_positions='labels'."
        )
    options = {name: getattr(args, name) for name in ("teacher_dtype", "teacher_quantization", "teacher_device_map")}
    if set_ := {name: value for name, value in options.items() if value is not None}:
        raise ValueError(f"{set_} would have no effect on stored targets: leave it out.")
