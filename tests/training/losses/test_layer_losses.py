"""The losses over layers in a training: families, losses of one's own, compiled models, and what is refused."""

import pytest
import torch
import transformers

from hf_distill import Loss, Needs, add_teacher_targets, make_student
from hf_distill.training.losses import LOSSES
from tests.conftest import FAMILY_OF_HEAD, VOCAB_SIZE, make_model, make_rows
from tests.training.test_split_invariance import assert_equal_steps, make_sparse_rows, one_step_of

OVER_LAYERS = {"alpha_hidden": 1.0, "alpha_attention": 1.0, "alpha_relation": 1.0, "hidden_embeddings": True}
ALONE = {**{f"alpha_{name}": 0.0 for name in LOSSES}, **OVER_LAYERS}
NAMES = ["hidden", "attention", "relation"]


@pytest.mark.parametrize("checkpointing", [False, True], ids=["", "checkpointing"])
@pytest.mark.parametrize(
    ("head", "family"),
    [
        ("mlm", "roberta"),
        ("question_answering", "distilbert"),
        ("multiple_choice", "bert"),
        ("causal", "llama"),
        ("causal", "gpt2"),
        ("seq2seq", "t5"),
        ("seq2seq", "bart"),
        ("image", "vit"),
        ("audio", "wav2vec2"),
    ],
)
def test_micro_batches(make_trainer, head, family, checkpointing):
    def step(**arguments):
        teacher = make_model(family, head)
        number = {"decoder": 2, "encoder": 1} if head == "seq2seq" else 2
        student = make_student(make_model(family, head, seed=1), number)
        return one_step_of(make_trainer, student, teacher, make_sparse_rows(head), NAMES, **{**ALONE, **arguments})

    whole = step()
    split = {"per_device_train_batch_size": 4, "gradient_accumulation_steps": 4}
    assert_equal_steps(step(gradient_checkpointing=checkpointing, **split), whole)


class ValueDistance(Loss):
    """A loss that a user would write."""

    needs = Needs(values=True)
    description = "the distance between values"

    def forward(self, student, teacher, scored):
        difference = (student.values - teacher.values).float().square().mean((1, 3))
        return (scored.state_weights * difference).sum()


def test_a_loss_of_ones_own_over_layers(make_trainer):
    teacher = make_model("bert", "classification")
    student = make_student(make_model("bert", "classification", seed=1))
    off = {f"alpha_{name}": 0.0 for name in LOSSES}
    options = {"trainer_options": {"losses": {"values": (ValueDistance(), 1.0)}}, **off}
    rows = make_rows("classification")
    trainer = make_trainer(student, teacher, eval_rows=rows, **options)
    assert [pair.of_teacher for pair in trainer.losses["values"].layers] == [("layers", 1), ("layers", 3)]
    assert {wanted for wanted in vars(trainer._capture.wanted["layers", 0]).items() if wanted[1]} == {("values", True)}
    assert trainer.evaluate()["eval_loss_values"] > 1e-3
    options["trainer_options"] = {"losses": {"values": (ValueDistance(), 1.0)}}
    mapped = make_trainer(student, teacher, eval_rows=rows, layer_map=[[0, 2]], **options)
    assert [pair.of_teacher for pair in mapped.losses["values"].layers] == [("layers", 2)]


@pytest.mark.long
@pytest.mark.parametrize("head", ["mlm", "causal"])
def test_compiled(make_trainer, head):
    """Layers that are read are not fused with others. The losses are the same."""
    family = FAMILY_OF_HEAD.get(head, "bert")

    def losses(**arguments):
        teacher, student = make_model(family, head), make_model(family, head, seed=1, num_layers=2)
        rows = make_rows(head)
        trainer = make_trainer(student, teacher, rows, rows, max_steps=2, learning_rate=1e-2, **ALONE, **arguments)
        trainer.train()
        return [log[f"loss_{name}"] for log in trainer.state.log_history[:2] for name in NAMES]

    expected = losses()
    compiled = losses(torch_compile=True, torch_compile_backend="aot_eager")
    torch._dynamo.reset()
    assert compiled == pytest.approx(expected, rel=1e-5)


def make_other(name, **overrides):
    """A tiny masked language model of another family."""
    sizes = {"vocab_size": VOCAB_SIZE, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = getattr(transformers, f"{name}Config")(**{**sizes, "intermediate_size": 32, **overrides})
    return getattr(transformers, f"{name}ForMaskedLM")(config)


@pytest.mark.parametrize("name", ["DebertaV2", "MPNet"])
def test_attention_that_cannot_be_captured(make_trainer, name):
    for loss in ("attention", "relation"):
        with pytest.raises(ValueError, match=rf"'{loss}' reads the attention of a {name}.*: set alpha_{loss}=0"):
            make_trainer(make_other(name), make_other(name), make_rows("mlm"), **{f"alpha_{loss}": 1.0})
    trainer = make_trainer(make_other(name), make_other(name), eval_rows=make_rows("mlm"), alpha_hidden=1.0)
    assert trainer.evaluate()["eval_loss_hidden"] > 0


@pytest.mark.parametrize(
    ("arguments", "student", "message"),
    [
        (
            {"alpha_attention": 1.0},
            {"num_attention_heads": 4},
            r"the student has 4 heads and the teacher 2: set attention_heads='mean'",
        ),
        (
            {"alpha_relation": 1.0, "relation_heads": 3},
            {},
            r"relation_heads=3 does not divide .*\(16\): use one of 1, 2, 4, 8, 16",
        ),
        (
            {"alpha_relation": 1.0, "relation_heads": 16},
            {"width": 8},
            r"relation_heads=16 does not .*\(8, 16\): use one of 1, 2, 4, 8\.",
        ),
        (
            {"alpha_relation": 1.0, "relation_layer": 4},
            {},
            r"relation_layer=4 is outside the teacher, which has 4 layers.*use 0 to 3",
        ),
        ({"alpha_relation": 1.0, "relation_heads": 0}, {}, r"relation_heads=0 should be 1 or more"),
        (
            {"alpha_hidden": 1.0, "hidden_loss": "l1"},
            {},
            r"hidden_loss='l1' should be one of 'mse', 'cosine', 'normalized_mse'",
        ),
        ({"alpha_hidden": 1.0, "layer_map": [[0, 9]]}, {}, r"\[0, 9\] is outside the stack"),
        ({"hidden_loss": "cosine"}, {}, r"hidden_loss='cosine' would have no effect"),
        ({"relation_layer": 1}, {}, r"relation_layer=1 would have no effect"),
        ({"attention_heads": "mean"}, {}, r"attention_heads='mean' would have no effect"),
        ({"layer_map": [[0, 1]]}, {}, r"layer_map=\[\[0, 1\]\] would have no effect"),
        ({"alpha_relation": 1.0, "layer_map": [[0, 1]]}, {}, r"layer_map=\[\[0, 1\]\] would have no effect"),
    ],
)
def test_what_is_refused(make_trainer, arguments, student, message):
    teacher = make_model("bert", "classification")
    student = make_model("bert", "classification", num_layers=2, **student)
    arguments = {"alpha_cos": 0.0, **arguments}
    with pytest.raises(ValueError, match=message):
        make_trainer(student, teacher, make_rows("classification"), **arguments)


@pytest.mark.parametrize("by", ["arguments", "model"])
def test_reentrant_checkpointing_is_refused(make_trainer, by):
    """Layers then run without gradients at first, so a loss that reads their inside would have none."""
    student, arguments = make_model("bert", "classification", num_layers=2), {"alpha_attention": 1.0}
    if by == "model":
        student.gradient_checkpointing_enable({"use_reentrant": True})
    else:
        arguments |= {"gradient_checkpointing": True, "gradient_checkpointing_kwargs": {"use_reentrant": True}}
    with pytest.raises(ValueError, match=r"over layers do not work with .*'use_reentrant': True.*leave use_reentrant"):
        make_trainer(student, make_model("bert", "classification"), make_rows("classification"), **arguments)


def test_stored_targets_have_no_layers(make_trainer):
    import datasets

    from tests.training.losses.test_given import TOKENIZER

    teacher = make_model("bert", "classification")
    rows = add_teacher_targets(datasets.Dataset.from_list(make_rows("classification")), teacher, TOKENIZER)
    with pytest.raises(ValueError, match="The losses over layers need a live teacher"):
        make_trainer(make_student(teacher), None, rows, alpha_cos=0.0, alpha_hidden=1.0)
