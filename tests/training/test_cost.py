"""Cost of a step: one forward pass of the student, no waiting for the device, no unused logits."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from hf_distill import make_student
from hf_distill.training.scoring import pieces
from hf_distill.training.scoring.find_head import find_head
from tests.conftest import collate, make_model, make_rows


def test_one_forward_of_the_wrapped_student_per_micro_batch(make_trainer, head):
    class Wrapper(torch.nn.Module):
        calls = 0

        def __init__(self, module):
            super().__init__()
            self.module = module

        def forward(self, **inputs):
            self.calls += 1
            return self.module(**inputs)

    teacher = make_model("bert", head)
    student = make_student(teacher)
    trainer, wrapper = make_trainer(student, teacher), Wrapper(student)
    trainer.accelerator.unwrap_model = lambda model, **options: student if model is wrapper else model
    trainer.compute_loss(wrapper, collate(make_rows(head)))
    assert wrapper.calls == 1


@pytest.mark.parametrize("alpha_kl", [0.0, 1.0])
def test_head_of_the_teacher_runs_where_its_logits_are_read(make_trainer, alpha_kl):
    """Its logits are computed only if a loss reads them, except for one position in the forward pass."""
    teacher, student = make_model("bert", "mlm"), make_student(make_model("bert", "mlm", seed=1))
    batch, positions_seen = collate(make_rows("mlm")), []
    teacher.get_output_embeddings().register_forward_hook(lambda m, args, output: positions_seen.append(len(output[0])))
    make_trainer(student, teacher, alpha_kl=alpha_kl).compute_loss(student, batch)
    assert positions_seen == ([1] if alpha_kl == 0 else [1, (batch["labels"] != -100).sum()])


class CountSynchronisations(TorchDispatchMode):
    """Counts what would make a device wait: a number copied to the host, a shape that depends on a mask's content."""

    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.overloadpacket.__name__
        by_mask = name.startswith("index") and any(is_mask(index) for index in args[1])
        self.count += by_mask or name in {"_local_scalar_dense", "nonzero", "masked_select"}
        return function(*args, **(kwargs or {}))


def is_mask(index):
    return isinstance(index, torch.Tensor) and index.dtype == torch.bool


def test_what_synchronises_is_counted():
    values, mask = torch.arange(3), torch.tensor([True, False, True])
    with CountSynchronisations() as counted:
        values[mask], mask.nonzero(), values.sum().item(), values[values]
    assert counted.count == 3


@pytest.mark.parametrize("kl_positions", ["labels", "attended"])
def test_no_synchronisation_for_the_losses(make_trainer, head, kl_positions):
    """A micro-batch synchronises no more often than the bare forwards of both models, which look at the mask."""
    teacher, student = make_model("bert", head), make_student(make_model("bert", head, seed=1))
    options = {"kl_positions": kl_positions} if kl_positions == "labels" or find_head(student).per_token else {}
    trainer = make_trainer(student, teacher, make_rows(head), **options)
    batch = next(iter(trainer.get_train_dataloader()))
    with CountSynchronisations() as counted:
        (batch,), items = trainer.get_batch_samples(iter([batch]), 1, torch.device("cpu"))
        trainer.compute_loss(student, batch, num_items_in_batch=items).backward()
    inputs = {name: values for name, values in batch.items() if name in ("input_ids", "attention_mask")}
    with CountSynchronisations() as bare:
        student(**inputs)
        with torch.inference_mode():
            teacher(**inputs)
    assert counted.count == bare.count > 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_no_synchronisation_on_a_gpu(make_trainer, head):
    """CUDA reports no synchronisation. Images are used, because transformers would synchronise for a mask."""
    teacher, student = make_model("bert", head), make_student(make_model("bert", head, seed=1))
    trainer = make_trainer(student, teacher, make_rows(head), use_cpu=False)
    batch = next(iter(trainer.get_train_dataloader()))
    batch.pop("attention_mask", None)
    trainer.compute_loss(student, batch).backward()  # the first call of a kernel may wait
    torch.cuda.set_sync_debug_mode("error")
    try:
        (batch,), items = trainer.get_batch_samples(iter([batch]), 1, trainer.args.device)
        trainer.compute_loss(student, batch, num_items_in_batch=items).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


class WidestVocabularyTensor(TorchDispatchMode):
    """Finds the largest number of positions in any tensor as wide as the vocabulary."""

    def __init__(self, vocab_size):
        super().__init__()
        self.vocab_size, self.positions = vocab_size, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **(kwargs or {}))
        for tensor in output if isinstance(output, tuple | list) else [output]:
            if isinstance(tensor, torch.Tensor) and tensor.ndim > 1 and tensor.shape[-1] == self.vocab_size:
                self.positions = max(self.positions, tensor.numel() // self.vocab_size)
        return output


@pytest.mark.parametrize("kl_positions", ["labels", "attended"])
def test_no_more_vocabulary_logits_than_needed(make_trainer, monkeypatch, kl_positions):
    """In forward and backward, no tensor holds logits of unscored tokens, or of more tokens than a chunk."""
    teacher, student = make_model("roberta", "mlm"), make_student(make_model("roberta", "mlm", seed=1))
    rows = make_rows("mlm", num_rows=32)
    batch = collate(rows)
    num_scored, num_attended = int((batch["labels"] != -100).sum()), int(batch["attention_mask"].sum())
    width = teacher.config.hidden_size  # a transposed weight is as wide as the vocabulary too, and has so many rows
    if kl_positions == "attended":
        monkeypatch.setattr(pieces, "CHUNK_ELEMENTS", 50 * teacher.config.vocab_size)
    trainer = make_trainer(student, teacher, kl_positions=kl_positions)
    with WidestVocabularyTensor(teacher.config.vocab_size) as widest:
        trainer.compute_loss(student, batch).backward()
    assert widest.positions == (num_scored if kl_positions == "labels" else 50)
    assert width < widest.positions < num_attended < batch["input_ids"].numel()
