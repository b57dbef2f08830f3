"""Several live teachers: one mean, whichever way it is weighted and however a step is split."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_distill import Loss, Needs
from hf_distill.training.scoring import pieces
from hf_distill.training.teacher.ensemble import TeacherEnsemble
from tests.conftest import FAMILY_OF_HEAD, HEADS, make_model, make_rows
from tests.training.teacher.test_means import expected
from tests.training.test_split_invariance import LOSS_NAMES, KeepGradient, assert_equal_steps, make_sparse_rows

ALL_HEADS = list(HEADS)
KIND = {"multi_label": "binary", "regression": "real"}


def make_teachers(head, number=2, family=None, **options):
    family = family or FAMILY_OF_HEAD.get(head, "bert")
    return [make_model(family, head, seed=seed, **options) for seed in range(number)]


def make_small(head, family=None, **options):
    family = family or FAMILY_OF_HEAD.get(head, "bert")
    return make_model(family, head, seed=9, num_layers=2, **options)


def with_weights(rows, number=2, column="votes"):
    """Rows with a weight for each teacher. In some rows a teacher has weight 0, and some lists do not sum to 1."""
    generator = torch.Generator().manual_seed(5)
    weights = torch.rand(len(rows), number, generator=generator).tolist()
    weights[0], weights[1] = [0] * (number - 1) + [3], [1] + [0] * (number - 1)
    return [{**row, column: own} for row, own in zip(rows, weights, strict=True)]


def losses(trainer):
    return {name: value for name, value in trainer.state.log_history[0].items() if "loss" in name}


def weights(trainer):
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def scored_by_hand(trainer, head, batch):
    """The logits of the student and of each teacher from plain forwards, and the weights of each scored position."""
    batch = {name: value for name, value in batch.items() if name != "scored_indices"}
    votes = batch.pop("votes", None)
    scored = trainer.head.score(batch)
    inputs = trainer.head.complete(batch, trainer.model)
    inputs = {name: value for name, value in inputs.items() if name not in trainer.head.label_names}
    with torch.no_grad():
        models = [trainer.model, *(teacher.model for teacher in trainer.teacher.teachers)]
        student, *teachers = [trainer.head.scored_logits(model(**inputs), scored) for model in models]
    if votes is None:
        votes = torch.full((1, len(teachers)), 1 / len(teachers)).expand(len(student), -1)
    elif head == "question_answering":
        votes = torch.cat([votes, votes])
    elif scored.per_token:
        votes = votes[scored.positions.nonzero()[:, 0]]
    return student.double().numpy(), teachers, votes


def divergence_by_hand(student, teacher, kind, temperature):
    """The mean divergence from probabilities `teacher`, in float64."""
    if kind == "real":
        return np.square(student - teacher).mean()
    if kind == "binary":
        own = 1 / (1 + np.exp(-student / temperature))
        each = teacher * np.log(teacher / own) + (1 - teacher) * np.log((1 - teacher) / (1 - own))
        return temperature**2 * each.mean()
    shifted = student / temperature - (student / temperature).max(-1, keepdims=True)
    log_probs = shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))
    with np.errstate(divide="ignore", invalid="ignore"):
        each = np.where(teacher > 0, teacher * (np.log(teacher) - log_probs), 0.0)
    return temperature**2 * each.sum(-1).mean()


@pytest.mark.parametrize("mean", ["probabilities", "logits"])
@pytest.mark.parametrize("column", [None, "votes"])
@pytest.mark.parametrize("head", ALL_HEADS)
def test_the_divergence_by_hand(make_trainer, head, column, mean):
    """For every head: one evaluation of the trainer against NumPy in float64, at a temperature other than 1."""
    kind = KIND.get(head, "categorical")
    rows = with_weights(make_rows(head), 3)
    temperature = 2.0 if kind == "real" else 3.0
    options = {"temperature": temperature, "teacher_mean": mean, "teacher_weights_column": column, "alpha_cos": 0.0}
    if column is None:
        rows = [{name: value for name, value in row.items() if name != "votes"} for row in rows]
    trainer = make_trainer(make_small(head), make_teachers(head, 3), rows, rows, **options)
    assert isinstance(trainer.teacher, TeacherEnsemble)
    seen = trainer.evaluate()["eval_loss_kl"]
    (batch,) = trainer.get_train_dataloader()
    student, teachers, votes = scored_by_hand(trainer, head, batch)
    wanted = expected(teachers, votes, temperature, mean, kind)
    assert seen == pytest.approx(divergence_by_hand(student, wanted, kind, temperature), rel=1e-5, abs=1e-6)
    assert seen > 1e-3


def test_fixed_weights(make_trainer):
    rows = make_rows("classification")
    teachers = make_teachers("classification", 3)
    options = {"teacher_weights": [2, 1, 5], "temperature": 4.0, "alpha_cos": 0.0}
    trainer = make_trainer(make_small("classification"), teachers, rows, rows, **options)
    (batch,) = trainer.get_train_dataloader()
    student, logits, _ = scored_by_hand(trainer, "classification", batch)
    votes = torch.tensor([[0.25, 0.125, 0.625]]).expand(len(student), -1)
    wanted = expected(logits, votes, 4.0, "probabilities", "categorical")
    by_hand = divergence_by_hand(student, wanted, "categorical", 4.0)
    assert trainer.evaluate()["eval_loss_kl"] == pytest.approx(by_hand, rel=1e-5)


@pytest.mark.parametrize("given", [lambda teacher: [teacher], lambda teacher: {"only": teacher}])
@pytest.mark.parametrize("head", ["classification", "mlm"])
def test_one_teacher_in_a_list_is_that_teacher(make_trainer, head, given):
    (teacher,) = make_teachers(head, 1)
    trained = []
    for own in (teacher, given(teacher)):
        trainer = make_trainer(make_small(head), own, make_rows(head), max_steps=4, per_device_train_batch_size=4)
        trainer.train()
        trained.append(weights(trainer))
    assert torch.equal(*trained)


def one_step_of_several(make_trainer, head, column, batch_size):
    """The losses and the gradient of the first step of 16 rows, in micro-batches."""
    rows = with_weights(make_sparse_rows(head))
    if column is None:
        rows = [{name: value for name, value in row.items() if name != "votes"} for row in rows]
    keeper = KeepGradient()
    trainer = make_trainer(
        make_small(head),
        make_teachers(head),
        rows,
        max_steps=1,
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=16 // batch_size,
        teacher_weights_column=column,
        trainer_options={"callbacks": [keeper]},
    )
    keeper.trainer = trainer
    trainer.train()
    logged = trainer.state.log_history[0]
    return [logged[name] for name in LOSS_NAMES], keeper.gradient


@pytest.mark.parametrize(
    ("head", "column"), [*((head, "votes") for head in ALL_HEADS), ("classification", None), ("causal", None)]
)
def test_split_invariance(make_trainer, head, column):
    """Ragged rows with few labels, and weights per row: the same step in one batch, in four and in sixteen."""
    whole = one_step_of_several(make_trainer, head, column, 16)
    for batch_size in (4, 1):
        assert_equal_steps(one_step_of_several(make_trainer, head, column, batch_size), whole)


def test_small_pieces(make_trainer, monkeypatch):
    """Vocabulary logits of a few positions at a time give the same losses, and one forward for each teacher."""
    rows = with_weights(make_rows("mlm"))
    options = {"teacher_weights_column": "votes"}
    whole = make_trainer(make_small("mlm"), make_teachers("mlm"), rows, rows, **options).evaluate()
    monkeypatch.setattr(pieces, "CHUNK_ELEMENTS", 4 * 61)
    trainer = make_trainer(make_small("mlm"), make_teachers("mlm"), rows, rows, **options)
    runs = []
    for teacher in trainer.teacher.teachers:
        teacher.model.bert.encoder.register_forward_hook(lambda module, args, output: runs.append(module))
        largest = []
        teacher.model.cls.register_forward_hook(lambda module, args, output, seen=largest: seen.append(output.shape))
    pieced = trainer.evaluate()
    assert len(runs) == 2
    assert {shape[1] for shape in largest[1:]} <= {1, 2, 3, 4}
    for name in ("eval_loss", "eval_loss_kl"):
        assert pieced[name] == pytest.approx(whole[name], rel=1e-6)


def test_hidden_states_are_those_of_the_first_teacher(make_trainer):
    """The first has the student's width; the second need not."""
    first, rows = make_model("bert", "classification"), make_rows("classification")
    second = make_model("roberta", "classification", seed=1, width=8)
    alone = make_trainer(make_small("classification"), first, rows, rows).evaluate()
    both = make_trainer(make_small("classification"), [first, second], rows, rows).evaluate()
    assert both["eval_loss_cos"] == pytest.approx(alone["eval_loss_cos"], rel=1e-6)
    assert both["eval_loss_kl"] != alone["eval_loss_kl"]
    with pytest.raises(ValueError, match="student's are 16 wide and the teacher's 8"):
        make_trainer(make_small("classification"), [second, first], rows)


@pytest.mark.parametrize("loss", ["hidden", "attention", "relation"])
def test_layers_are_those_of_the_first_teacher(make_trainer, loss):
    rows, (first, second) = make_rows("classification"), make_teachers("classification")
    options = {f"alpha_{loss}": 1.0}
    alone = make_trainer(make_small("classification"), first, rows, rows, **options).evaluate()
    both = make_trainer(make_small("classification"), [first, second], rows, rows, **options).evaluate()
    assert both[f"eval_loss_{loss}"] == pytest.approx(alone[f"eval_loss_{loss}"], rel=1e-6)


@pytest.mark.parametrize("divergence", ["reverse_kl", "mse", "dist"])
def test_every_divergence_reads_the_mean(make_trainer, divergence):
    """Two equal teachers teach what one of them teaches, also where logits are compared."""
    options = {"divergence": divergence, "alpha_cos": 0.0}
    (teacher,) = make_teachers("classification", 1, num_labels=3)
    rows, other = make_rows("classification", num_labels=3), copy.deepcopy(teacher)
    trainers = [
        make_trainer(make_small("classification", num_labels=3), given, rows, rows, **options)
        for given in (teacher, [teacher, other])
    ]
    alone, both = (trainer.evaluate()["eval_loss_kl"] for trainer in trainers)
    assert both == pytest.approx(alone, rel=1e-5)


def test_each_teacher_reads_its_own_inputs(make_trainer):
    """DistilBERT takes no token_type_ids; only BERT gets them."""
    rows = [{**row, "token_type_ids": [i % 2 for i in range(len(row["input_ids"]))]} for row in make_rows("mlm")]
    teachers = {"distilbert": make_model("distilbert", "mlm"), "bert": make_model("bert", "mlm", seed=1)}
    seen = {}
    for name, teacher in teachers.items():
        hook = lambda module, args, kwargs, name=name: seen.update({name: {*kwargs}})  # noqa: E731
        teacher.register_forward_pre_hook(hook, with_kwargs=True)
    trainer = make_trainer(make_model("distilbert", "mlm", seed=4, num_layers=2), teachers, rows, rows, alpha_cos=0.0)
    trainer.evaluate()
    assert "token_type_ids" in seen["bert"]
    assert "token_type_ids" not in seen["distilbert"]
    assert not any("labels" in names or "votes" in names for names in seen.values())


def test_labels_are_matched_by_name_for_each_teacher(make_trainer):
    names = ["negative", "neutral", "positive"]

    def named(order, seed, **options):
        labels = [names[index] for index in order]
        return make_model(
            "bert",
            "classification",
            seed=seed,
            id2label=dict(enumerate(labels)),
            label2id={label: index for index, label in enumerate(labels)},
            **options,
        )

    rows = make_rows("classification", num_labels=3)
    orders = [(2, 0, 1), (0, 2, 1)]
    trainer = make_trainer(
        named((0, 1, 2), 9), [named(order, seed) for seed, order in enumerate(orders)], rows, rows, alpha_cos=0.0
    )
    (batch,) = trainer.get_train_dataloader()
    student, logits, votes = scored_by_hand(trainer, "classification", batch)
    sorted_logits = [
        torch.stack([own[:, order.index(index)] for index in range(3)], 1)
        for own, order in zip(logits, orders, strict=True)
    ]
    wanted = expected(sorted_logits, votes, 2.0, "probabilities", "categorical")
    by_hand = divergence_by_hand(student, wanted, "categorical", 2.0)
    assert trainer.evaluate()["eval_loss_kl"] == pytest.approx(by_hand, rel=1e-5)

    unnamed = make_model("bert", "classification", seed=9, num_labels=3)
    with pytest.raises(ValueError, match=r"teacher_model\[0\] has .*teacher_model\[1\] .* in another order.*id2label"):
        make_trainer(unnamed, [named(order, seed) for seed, order in enumerate(orders)], rows)
    make_trainer(unnamed, [named(orders[0], seed) for seed in range(2)], rows)


def test_padded_vocabularies_are_cut_to_the_shortest(make_trainer):
    from tests.training.teacher.test_live import make_tokenizer

    teachers = make_teachers("mlm", 2)
    teachers[1].resize_token_embeddings(70)
    student = make_small("mlm")
    student.resize_token_embeddings(64)
    rows = make_rows("mlm")
    options = {"trainer_options": {"processing_class": make_tokenizer([str(i) for i in range(60)])}, "alpha_cos": 0.0}
    trainer = make_trainer(student, teachers, rows, rows, **options)
    (batch,) = trainer.get_train_dataloader()
    student, logits, votes = scored_by_hand(trainer, "mlm", batch)
    wanted = expected([own[:, :61] for own in logits], votes, 2.0, "probabilities", "categorical")
    by_hand = divergence_by_hand(student[:, :61], wanted, "categorical", 2.0)
    assert trainer.evaluate()["eval_loss_kl"] == pytest.approx(by_hand, rel=1e-5)


def test_teachers_are_frozen_and_absent(make_trainer, tmp_path):
    teachers = make_teachers("classification", 2, dropout=0.3)
    before = [copy.deepcopy(teacher.train().state_dict()) for teacher in teachers]
    trainer = make_trainer(make_small("classification"), teachers, make_rows("classification"), max_steps=3)
    trainer.train()
    trainer.save_model()
    for teacher, state in zip(teachers, before, strict=True):
        assert not teacher.training
        assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())
        assert not any(parameter.requires_grad for parameter in teacher.parameters())
    optimized = {id(p) for group in trainer.optimizer.param_groups for p in group["params"]}
    assert not optimized & {id(p) for teacher in teachers for p in teacher.parameters()}
    saved = HEADS["classification"].from_pretrained(trainer.args.output_dir)
    assert saved.num_parameters() == trainer.model.num_parameters()


def test_names_and_folders(make_trainer, tmp_path):
    """A teacher by name, loaded in the dtype of the arguments, next to a loaded one."""
    rows, teachers = make_rows("classification"), make_teachers("classification")
    teachers[0].save_pretrained(tmp_path / "first")
    given = {"first": str(tmp_path / "first"), "second": teachers[1]}
    losses_of = [
        make_trainer(make_small("classification"), own, rows, rows).evaluate()["eval_loss"]
        for own in (given, teachers, [str(tmp_path / "first"), teachers[1]])
    ]
    assert losses_of[0] == losses_of[1] == losses_of[2]
    trainer = make_trainer(make_small("classification"), given, rows, rows, teacher_dtype="bfloat16")
    assert {teacher.model.dtype for teacher in trainer.teacher.teachers} == {torch.bfloat16}
    assert teachers[1].dtype == torch.float32
    assert trainer.evaluate()["eval_loss"] == pytest.approx(losses_of[0], rel=0.05)


def test_the_student_without_its_adapters_is_one_of_them(make_trainer):
    from peft import LoraConfig, get_peft_model

    base, other = make_teachers("classification")
    student = get_peft_model(copy.deepcopy(base), LoraConfig(task_type="SEQ_CLS", target_modules=["query"]))
    rows = make_rows("classification")
    options = {"max_steps": 3, "learning_rate": 1e-2}
    itself, plain = (make_trainer(student, [one, other], rows, rows, **options) for one in (student, base))
    itself.train()
    assert itself.evaluate()["eval_loss"] == pytest.approx(plain.evaluate()["eval_loss"], rel=1e-6)


class Reverse(Loss):
    needs = Needs(logits=True)

    def __init__(self, temperature=None):
        super().__init__()
        if temperature is not None:
            self.temperature = temperature

    def forward(self, student, teacher, scored):
        temperature = getattr(self, "temperature", 1.0)
        own = (student.logits.float() / temperature).log_softmax(-1)
        return (own.exp() * (own - (teacher.logits.float() / temperature).log_softmax(-1))).sum()


def test_the_temperature_is_that_of_the_losses(make_trainer):
    """Also of a user's own loss, and also if it changes between two batches."""
    rows, teachers = make_rows("classification"), make_teachers("classification")

    def evaluate(loss, **options):
        options |= {"alpha_kl": 0.0, "alpha_cos": 0.0, "trainer_options": {"losses": {"own": (loss, 1.0)}}}
        return make_trainer(make_small("classification"), teachers, rows, rows, **options)

    def by_hand(trainer, temperature):
        (batch,) = trainer.get_train_dataloader()
        student, logits, votes = scored_by_hand(trainer, "classification", batch)
        wanted = expected(logits, votes, temperature, "probabilities", "categorical")
        own = expected([torch.tensor(student)], torch.ones(len(student), 1), temperature, "logits", "categorical")
        return (own * np.log(own / wanted)).sum(-1).mean()

    plain = evaluate(Reverse())
    assert plain.evaluate()["eval_loss_own"] == pytest.approx(by_hand(plain, 1.0), rel=1e-5)
    soft = evaluate(Reverse(5.0))
    assert soft.evaluate()["eval_loss_own"] == pytest.approx(by_hand(soft, 5.0), rel=1e-5)
    soft.losses["own"].temperature = 3.0
    assert soft.evaluate()["eval_loss_own"] == pytest.approx(by_hand(soft, 3.0), rel=1e-5)


def test_losses_at_different_temperatures(make_trainer):
    rows, teachers = make_rows("classification"), make_teachers("classification")
    options = {"alpha_cos": 0.0, "trainer_options": {"losses": {"own": (Reverse(), 1.0)}}}
    with pytest.raises(ValueError, match=r"different ones: kl at 2, own at 1.*teacher_mean='logits', or set alpha"):
        make_trainer(make_small("classification"), teachers, rows, **options)
    make_trainer(make_small("classification"), teachers, rows, teacher_mean="logits", **options)
    make_trainer(make_small("classification"), teachers, rows, temperature=1.0, **options)


def test_a_resumed_training(make_trainer, monkeypatch):
    """Bit for bit, with weights per row. Other teachers or weights are named in a warning."""
    from hf_distill.training.checkpoints import folders

    rows = Dataset.from_list(with_weights(make_rows("classification")))
    options = {"save_strategy": "steps", "save_steps": 3, "max_steps": 6, "per_device_train_batch_size": 4}
    options |= {"teacher_weights_column": "votes", "train_sampling_strategy": "random"}
    teachers = make_teachers("classification", 3)
    rows = rows.remove_columns("votes").add_column("votes", [[1.0, float(i % 3), 0.5] for i in range(16)])

    def make(given=None, **more):
        return make_trainer(make_small("classification", dropout=0.2), given or teachers, rows, **{**options, **more})

    whole = make()
    whole.train()
    checkpoint = Path(whole.args.output_dir) / "checkpoint-3"
    state = json.loads((checkpoint / "distillation_state.json").read_text())
    assert len(state["teacher_fingerprint"]) == len(set(state["teacher_fingerprint"])) == 3
    assert (state["teacher_mean"], state["teacher_weights"]) == ("probabilities", "votes")
    assert not list(checkpoint.glob("*teacher*"))
    warned = []
    monkeypatch.setattr(folders.logger, "warning", warned.append)
    resumed = make()
    resumed.train(resume_from_checkpoint=str(checkpoint))
    assert not warned
    assert torch.equal(weights(whole), weights(resumed))
    make(teachers[:2], teacher_weights_column=None).train(resume_from_checkpoint=str(checkpoint))
    assert "teacher_fingerprint was [" in warned[0]
    assert "teacher_weights was 'votes' and is [0.5, 0.5]" in warned[0]
