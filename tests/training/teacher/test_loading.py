"""A teacher by name: its dtype, its quantisation, its devices."""

import pytest
import torch
from torchao.quantization import Int8WeightOnlyConfig
from transformers import TorchAoConfig

from hf_distill.training.teacher.loading import load_teacher
from tests.conftest import FAMILY_OF_HEAD, HEADS, make_model, make_rows


def saved_teacher(tmp_path, head, **options):
    # 4-bit layers need widths of at least 64.
    teacher = make_model(FAMILY_OF_HEAD.get(head, "bert"), head, width=64, initializer_range=0.1, **options)
    teacher.save_pretrained(tmp_path / "teacher")
    return teacher, str(tmp_path / "teacher")


def make_student(head):
    return make_model(FAMILY_OF_HEAD.get(head, "bert"), head, width=64, num_layers=2, seed=1, initializer_range=0.1)


@pytest.mark.parametrize("head", ["classification", "mlm", "causal"])
@pytest.mark.parametrize(("quantization", "tolerance"), [("8bit", 0.02), ("4bit", 0.25)])
def test_quantization(make_trainer, tmp_path, head, quantization, tolerance):
    """Losses with a quantized backbone are close to those without; the head keeps full precision."""
    _, name = saved_teacher(tmp_path, head)
    rows, losses = make_rows(head), []
    for option in (None, quantization):
        trainer = make_trainer(
            make_student(head),
            None,
            rows,
            rows,
            teacher_model_name_or_path=name,
            teacher_quantization=option,
            max_steps=2,
        )
        losses.append([value for key, value in trainer.evaluate().items() if key.startswith("eval_loss")])
        trainer.train()
    assert losses[0] != losses[1]
    assert losses[0] == pytest.approx(losses[1], rel=tolerance)
    teacher = trainer.teacher.model
    assert teacher.is_quantized
    dtypes = {parameter.dtype for parameter in teacher.base_model.parameters() if parameter.ndim == 2}
    assert (torch.int8 if quantization == "8bit" else torch.uint8) in dtypes
    head_modules = [module for name, module in teacher.named_children() if name != teacher.base_model_prefix]
    assert all(parameter.dtype == torch.float32 for module in head_modules for parameter in module.parameters())


def test_a_teacher_that_torchao_has_quantised(make_trainer, tmp_path):
    teacher, name = saved_teacher(tmp_path, "mlm")
    config = TorchAoConfig(Int8WeightOnlyConfig(), modules_to_not_convert=["cls"])
    quantised = HEADS["mlm"].from_pretrained(name, quantization_config=config)
    losses = []
    for model in (teacher, quantised):
        trainer = make_trainer(make_student("mlm"), model, make_rows("mlm"), make_rows("mlm"), max_steps=1)
        losses.append(trainer.evaluate()["eval_loss"])
        trainer.train()
    assert losses[0] != losses[1] == pytest.approx(losses[0], rel=0.02)


def test_dtype_of_a_quantised_teacher(make_trainer, tmp_path):
    _, name = saved_teacher(tmp_path, "mlm")
    quantised = load_teacher(name, make_student("mlm"), quantization="8bit")
    with pytest.raises(ValueError, match="teacher_dtype='bfloat16' would have no effect on a quantised teacher"):
        make_trainer(make_student("mlm"), quantised, teacher_dtype="bfloat16")


def test_bitsandbytes_is_missing(make_trainer, tmp_path, monkeypatch):
    from hf_distill.training.teacher import loading

    monkeypatch.setattr(loading, "is_bitsandbytes_available", lambda: False)
    _, name = saved_teacher(tmp_path, "mlm")
    with pytest.raises(ImportError, match=r"needs bitsandbytes: pip install 'hf_distill\[quant\]'"):
        load_teacher(name, make_student("mlm"), quantization="4bit")


def test_device_map(make_trainer, tmp_path):
    """A device map gives the same losses, on the only device and with manual disk offload."""
    teacher, name = saved_teacher(tmp_path, "mlm")
    rows = make_rows("mlm")
    offloaded = HEADS["mlm"].from_pretrained(name, device_map={"": "disk"}, offload_folder=str(tmp_path / "offload"))
    trainers = [
        make_trainer(make_student("mlm"), teacher, rows, rows, max_steps=1),
        make_trainer(make_student("mlm"), name, rows, rows, max_steps=1, teacher_device_map="auto"),
        make_trainer(make_student("mlm"), offloaded, rows, rows, max_steps=1),
    ]
    losses = [trainer.evaluate()["eval_loss"] for trainer in trainers]
    assert losses[0] == losses[1] == losses[2]
    trainers[2].train()
    assert offloaded.hf_device_map == {"": "disk"}


@pytest.mark.parametrize("option", [{"teacher_quantization": "8bit"}, {"teacher_device_map": "auto"}])
def test_options_for_a_name_beside_a_model(make_trainer, option):
    with pytest.raises(ValueError, match="would have no effect on a loaded model"):
        make_trainer(make_model("bert", "mlm"), make_model("bert", "mlm", seed=1), **option)
