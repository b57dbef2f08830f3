"""An encoder that runs once for teacher and student gives the same step as two equal ones."""

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model

from hf_distill import DistillationTrainingArguments, add_teacher_targets, make_student
from tests.conftest import collate, make_model, make_text_tokenizer
from tests.training.test_split_invariance import LOSS_NAMES, assert_equal_steps, make_sparse_rows, one_step_of

FAMILIES = pytest.mark.parametrize("family", ["bart", "t5"])


def make_pair(family):
    teacher = make_model(family, "seq2seq")
    student = make_student(teacher, num_layers={"decoder": 2})
    for parameter in student.get_decoder().layers.parameters() if family == "bart" else student.decoder.parameters():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    if family == "t5":  # whose decoder has the shared embeddings too
        student.shared.weight.data.copy_(teacher.shared.weight)
    return student, teacher


def one_step(make_trainer, family, **arguments):
    student, teacher = make_pair(family)
    if not arguments.get("share_encoder"):
        student.get_encoder().requires_grad_(False)
    return one_step_of(make_trainer, student, teacher, make_sparse_rows("seq2seq"), LOSS_NAMES[1:], **arguments)


@FAMILIES
def test_the_same_losses_and_gradient(make_trainer, family):
    shared, apart = (one_step(make_trainer, family, share_encoder=share) for share in (True, False))
    assert shared[0] == apart[0]
    assert torch.equal(shared[1], apart[1])


@FAMILIES
def test_micro_batches(make_trainer, family):
    whole = one_step(make_trainer, family, share_encoder=True)
    for batch_size, accumulation in [(8, 2), (1, 16)]:
        split = {"per_device_train_batch_size": batch_size, "gradient_accumulation_steps": accumulation}
        assert_equal_steps(one_step(make_trainer, family, share_encoder=True, **split), whole)


@FAMILIES
def test_the_encoder_runs_once_and_stays(make_trainer, family):
    student, teacher = make_pair(family)
    before = {name: value.clone() for name, value in student.get_encoder().state_dict().items()}
    ran = []
    for role, model in (("student", student), ("teacher", teacher)):
        model.get_encoder().register_forward_hook(lambda *args, role=role: ran.append(role))
    rows = make_sparse_rows("seq2seq")
    trainer = make_trainer(student, teacher, rows, rows, share_encoder=True, max_steps=2, learning_rate=1e-2)
    trainer.train()
    assert ran == ["teacher"] * 2
    evaluated = trainer.evaluate()
    assert ran == ["teacher"] * 3
    after = student.get_encoder().state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    apart = make_trainer(student, teacher, eval_rows=rows).evaluate()
    assert "student" in ran[3:]
    assert evaluated["eval_loss"] == pytest.approx(apart["eval_loss"], rel=1e-6)


def test_dropout_does_not_reach_the_shared_encoder(make_trainer):
    """As in the teacher: the encoder is frozen, so dropout would only add noise."""
    losses = set()
    for seed in (0, 1):
        teacher = make_model("bart", "seq2seq")
        student = make_student(teacher, num_layers={"decoder": 2})
        student.config.dropout = 0.5
        for layer in student.get_encoder().layers:
            layer.dropout = 0.5
        rows = make_sparse_rows("seq2seq")
        trainer = make_trainer(student, teacher, rows, share_encoder=True, max_steps=1, seed=seed)
        trainer.train()
        losses.add(trainer.state.log_history[0]["loss"])
    assert len(losses) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("encoder", r"whose encoder equals the teacher's, but the values of .* differ: cut only the decoder"),
        ("layers", r"but only one of them has layers.1"),
        ("dtype", r"torch.float32 and .*torch.bfloat16"),
        ("adapters", "does not work with adapters"),
        ("stored", "needs one teacher that runs in every step"),
        ("several", "needs one teacher that runs in every step"),
        ("frozen", "freezes all parameters of the student"),
        ("bert", "needs encoder-decoders, but the student is a BertForMaskedLM"),
    ],
)
def test_errors(make_trainer, change, message, tmp_path):
    student, teacher = make_pair("bart")
    rows, options = make_sparse_rows("seq2seq"), {}
    if change == "encoder":
        student.get_encoder().layers[0].fc1.weight.data[0] += 1
    elif change == "layers":
        student = make_student(teacher, num_layers={"decoder": 2, "encoder": 1})
    elif change == "dtype":
        options["teacher_dtype"] = "bfloat16"
    elif change == "adapters":
        student = get_peft_model(student, LoraConfig(target_modules=["q_proj"]))
    elif change == "stored":
        rows = [row for row in rows if any(label > 0 for label in row["labels"])]
        rows = add_teacher_targets(Dataset.from_list(rows), teacher, make_text_tokenizer(), output_dir=tmp_path / "t")
        teacher, options["alpha_cos"] = None, 0.0
    elif change == "several":
        teacher = [teacher, make_model("bart", "seq2seq", seed=3)]
    elif change == "frozen":
        student.requires_grad_(False)
    elif change == "bert":
        student, teacher = make_model("bert", "mlm", seed=1), make_model("bert", "mlm")
    with pytest.raises(ValueError, match=message):
        make_trainer(student, teacher, rows, data_collator=collate, share_encoder=True, **options)


def test_options_without_an_effect():
    with pytest.raises(ValueError, match="share_encoder=True does not work with losses over layers"):
        DistillationTrainingArguments("out", share_encoder=True, alpha_hidden=1.0).check_losses()
    with pytest.raises(ValueError, match=r"share_encoder=True would have no effect with alpha_kl=0\.0"):
        DistillationTrainingArguments("out", share_encoder=True, alpha_kl=0.0, alpha_cos=0.0).check_losses()
