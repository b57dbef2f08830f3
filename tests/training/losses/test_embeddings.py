"""The losses of embedding models: their values against NumPy, and one gradient under any split of a step."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_distill import DistillationTrainingArguments, check_split_invariance, make_student
from hf_distill.embedding import write_anchors
from hf_distill.training.losses import AnchorLoss, EmbeddingLoss, ScoredItems, Signals, SimilarityLoss
from hf_distill.training.losses.hidden_states import Projection, cosine_distance, mean_squared_error
from tests.conftest import make_model, make_rows, make_texts
from tests.embedding.models import TEXTS, encode, make_embedding_model
from tests.processes import run_on_two_processes
from tests.training.test_split_invariance import KeepGradient

ROOT = Path(__file__).parents[3]
OFF = {"alpha_kl": 0, "alpha_task": 0, "alpha_cos": 0}


def unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def softmax(row):
    exponents = np.exp(row - row.max())
    return exponents / exponents.sum()


def kl(teacher, student):
    return float((teacher * np.log(teacher / student)).sum())


def by_numpy(name, student, teacher, anchors=None, temperature=0.05, dims=None):
    """The sum over the texts, row by row in float64."""
    student, teacher = student.astype(np.float64), teacher.astype(np.float64)
    total = 0.0
    dims = dims or [student.shape[1]]
    for dim in dims:
        own, other = student[:, :dim], teacher[:, :dim]
        for row in range(len(student)):
            if name == "cosine":
                total += 1 - unit(own[row : row + 1])[0] @ unit(other[row : row + 1])[0]
            elif name == "mse":
                total += ((own[row] - other[row]) ** 2).mean()
            elif name == "similarity":
                others = [index for index in range(len(student)) if index != row]
                distributions = [softmax((unit(v) @ unit(v)[row])[others] / temperature) for v in (teacher, own)]
                total += kl(*distributions)
            else:
                one = softmax(unit(anchors.astype(np.float64)) @ unit(teacher)[row] / temperature)
                two = softmax(unit(anchors[:, :dim].astype(np.float64)) @ unit(own)[row] / temperature)
                total += kl(one, two)
    return total / len(dims)


@pytest.mark.parametrize("dims", [None, [16, 4]])
@pytest.mark.parametrize("name", ["cosine", "mse", "similarity", "anchor"])
def test_values(name, dims):
    generator = np.random.default_rng(0)
    student, teacher, anchors = (generator.normal(size=(size, 16)).astype(np.float32) for size in (9, 9, 7))
    loss = {
        "cosine": EmbeddingLoss(cosine_distance, dims=dims),
        "mse": EmbeddingLoss(mean_squared_error, dims=dims),
        "similarity": SimilarityLoss(0.1, dims),
        "anchor": AnchorLoss(torch.tensor(anchors), 0.1, dims=dims),
    }[name]
    signals = [Signals(embeddings=torch.tensor(vectors)) for vectors in (student, teacher)]
    expected = by_numpy(name, student, teacher, anchors, 0.1, dims)
    assert loss(*signals, ScoredItems()).item() == pytest.approx(expected, rel=1e-6)
    if dims is None:
        assert loss(signals[1], signals[1], ScoredItems()).item() == pytest.approx(0, abs=1e-5)


def test_similarity_of_one_text_is_zero():
    signals = Signals(embeddings=torch.ones(1, 4, requires_grad=True))
    assert SimilarityLoss()(signals, signals, ScoredItems()).item() == 0


def test_projection_maps_to_the_teachers_width():
    projection = Projection(4, 16, seed=0)
    student, teacher = torch.randn(5, 4), torch.randn(5, 16)
    loss = EmbeddingLoss(mean_squared_error, projection)
    expected = ((student @ projection.weight.T - teacher) ** 2).mean(1).sum()
    torch.testing.assert_close(loss(Signals(embeddings=student), Signals(embeddings=teacher), ScoredItems()), expected)


def make_pair(dropout=0.0, **options):
    teacher = make_embedding_model(dropout=dropout)
    return teacher, make_student(teacher, **(options or {"num_layers": 2}))


def encoded(model, texts):
    return Dataset.from_dict(dict(model.tokenizer(list(texts), truncation=True)))


LOSSES = {
    "cosine": lambda: EmbeddingLoss(cosine_distance),
    "mse": lambda: EmbeddingLoss(mean_squared_error, dims=[16, 4]),
    "similarity": lambda: SimilarityLoss(0.05),
    "similarity of first numbers": lambda: SimilarityLoss(1.0, [16, 4]),
    "anchors": lambda: AnchorLoss(torch.randn(9, 16, generator=torch.Generator().manual_seed(0))),
}


@pytest.mark.parametrize("name", LOSSES)
def test_split_invariance(name):
    teacher, student = make_pair()
    found = check_split_invariance(
        LOSSES[name](),
        model=student,
        teacher_model=teacher,
        train_dataset=encoded(teacher, make_texts(12)),
        processing_class=teacher.tokenizer,
    )
    assert found.parts == (2, 3, 4, 6, 12)


@pytest.mark.parametrize("width", [16, 8])
def test_trained_losses_are_those_of_the_vectors(width, make_trainer):
    """Logged and evaluated losses, from the vectors that sentence-transformers computes."""
    cut = {"num_layers": 2} if width == 16 else {"hidden_size": 8, "num_attention_heads": 1}
    teacher, student = make_pair(**cut)
    rows = encoded(teacher, TEXTS)
    arguments = {"alpha_similarity": 1.0} | ({"alpha_embedding": 1.0} if width == 16 else {})
    trainer = make_trainer(
        student, teacher, rows, rows, None, {"processing_class": teacher.tokenizer}, **OFF, **arguments, max_steps=1
    )
    expected = {
        name: by_numpy(kind, encode(student).numpy(), encode(teacher).numpy()) / len(TEXTS)
        for name, kind in (("similarity", "similarity"), ("embedding", "cosine"))
        if f"alpha_{name}" in arguments
    }
    evaluated = trainer.evaluate()
    trainer.train()
    (logged,) = [entry for entry in trainer.state.log_history if "loss_similarity" in entry]
    for name, value in expected.items():
        assert logged[f"loss_{name}"] == pytest.approx(value, rel=1e-4)
        assert evaluated[f"eval_loss_{name}"] == pytest.approx(value, rel=1e-4)


def gradient_of_step(make_trainer, teacher, student, rows, accumulated, **arguments):
    trainer = make_trainer(
        student,
        teacher,
        rows,
        None,
        None,
        {"processing_class": teacher.tokenizer},
        per_device_train_batch_size=len(rows) // accumulated,
        gradient_accumulation_steps=accumulated,
        max_steps=1,
        **{**OFF, **arguments},
    )
    keeper = KeepGradient()
    keeper.trainer = trainer
    trainer.add_callback(keeper)
    trainer.train()
    return trainer, keeper.gradient


def test_dropout_is_the_same_in_both_passes(make_trainer, monkeypatch):
    """The gradient of a split step is that of the loss over the vectors of its own forward passes."""
    teacher, student = make_pair(dropout=0.3)
    rows = encoded(teacher, make_texts(12))
    seen = []
    original = type(student).forward

    def forward(self, **inputs):
        output = original(self, **inputs)
        if self.training and torch.is_grad_enabled():
            seen.append(output.embeddings)
        return output

    monkeypatch.setattr(type(student), "forward", forward)
    trainer, gradient = gradient_of_step(make_trainer, teacher, student, rows, 3, alpha_similarity=1.0)
    assert len(seen) == 3
    whole = torch.cat([vectors.detach() for vectors in seen])
    expected = by_numpy("similarity", whole.numpy(), encode(teacher, make_texts(12)).numpy()) / 12
    assert trainer.state.log_history[0]["loss_similarity"] == pytest.approx(expected, rel=1e-4)
    assert gradient.norm() > 0


def test_a_single_batch_has_one_forward_pass(make_trainer, monkeypatch):
    teacher, student = make_pair()
    rows = encoded(teacher, make_texts(12))
    calls = []
    original = type(student).forward
    monkeypatch.setattr(type(student), "forward", lambda self, **inputs: calls.append(self) or original(self, **inputs))
    gradient_of_step(make_trainer, teacher, student, rows, 1, alpha_similarity=1.0)
    assert calls.count(student) == 1
    gradient_of_step(make_trainer, teacher, make_student(teacher), rows, 3, alpha_similarity=1.0)
    assert len([model for model in calls if model not in (student, teacher)]) == 6


def test_two_processes(make_trainer, tmp_path):
    result_file = tmp_path / "result.json"
    run = run_on_two_processes([__file__, str(result_file)], cwd=ROOT)
    assert result_file.exists(), run.stderr[-3000:]
    result = json.loads(result_file.read_text())
    teacher, student = make_pair()
    arguments = {"alpha_similarity": 1.0, "alpha_embedding": 1.0}
    trainer, gradient = gradient_of_step(
        make_trainer, teacher, student, encoded(teacher, make_texts(16)), 1, **arguments
    )
    assert result["num_processes"] == 2
    for name in ("loss_similarity", "loss_embedding"):
        assert result[name] == pytest.approx(trainer.state.log_history[0][name], rel=1e-6)
    difference = (torch.tensor(result["gradient"]) - gradient).norm() / gradient.norm()
    assert difference < 1e-6


def test_gradients_of_each_loss(make_trainer):
    """`log_gradient_norms` measures the gradient of the whole step."""
    teacher, student = make_pair()
    rows = encoded(teacher, make_texts(12))
    options = {"alpha_similarity": 1.0, "log_gradient_norms": 1}
    trainer, gradient = gradient_of_step(make_trainer, teacher, student, rows, 3, **options)
    assert trainer.state.log_history[0]["grad_norm_similarity"] == pytest.approx(gradient.norm().item(), rel=1e-5)


def test_resume_with_a_projection(make_trainer, tmp_path):
    """Killed after the first epoch, the training ends with the same weights. Dropout and a projection included."""

    def make():
        teacher, student = make_pair(dropout=0.1, hidden_size=8, num_attention_heads=1)
        return make_trainer(
            student,
            teacher,
            encoded(teacher, make_texts(12)),
            None,
            None,
            {"processing_class": teacher.tokenizer},
            **OFF,
            alpha_embedding=1.0,
            alpha_similarity=1.0,
            project_embeddings=True,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            num_train_epochs=2,
            save_strategy="epoch",
            learning_rate=1e-2,
        )

    whole = make()
    whole.train()
    resumed = make()
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-3"))
    weights = [torch.cat([p.flatten() for p in own.model.parameters()]) for own in (whole, resumed)]
    assert torch.equal(*weights)
    projections = [own.losses["embedding"].projection.weight for own in (whole, resumed)]
    assert torch.equal(*projections)
    whole.save_model(str(tmp_path / "student"))
    assert not [path for path in (tmp_path / "student").rglob("*.safetensors") if path.name != "model.safetensors"]


def test_anchors_from_a_file(make_trainer, tmp_path):
    teacher, student = make_pair()
    file = tmp_path / "anchors.safetensors"
    write_anchors(file, teacher, make_texts(9, seed=1))
    rows = encoded(teacher, TEXTS)
    options = {"processing_class": teacher.tokenizer}
    arguments = {**OFF, "alpha_anchor": 1.0, "anchors": str(file)}
    trainer = make_trainer(student, teacher, rows, rows, None, options, **arguments)
    anchors = encode(teacher, make_texts(9, seed=1)).numpy()
    expected = by_numpy("anchor", encode(student).numpy(), encode(teacher).numpy(), anchors) / len(TEXTS)
    assert trainer.evaluate()["eval_loss_anchor"] == pytest.approx(expected, rel=1e-4)

    write_anchors(file, make_embedding_model(seed=1), TEXTS)
    with pytest.raises(ValueError, match="are vectors of another model"):
        make_trainer(student, teacher, rows, rows, None, options, **arguments)


WRONG = {
    "another width": ({"alpha_embedding": 1.0}, "vectors are 8 wide and the teacher's 16: set project_embeddings=True"),
    "logits": ({"alpha_kl": 1.0, "alpha_embedding": 1.0}, "returns vectors, so there are no logits for alpha_kl"),
    "dims": ({"alpha_similarity": 1.0, "embedding_dims": [16]}, "has widths above 8"),
    "no list": ({"alpha_similarity": 1.0, "embedding_dims": [4, 4]}, "should be a list of different widths"),
    "no temperature": ({"alpha_similarity": 1.0, "similarity_temperature": 0.0}, "should be above 0"),
    "no anchors": ({"alpha_anchor": 1.0}, "set anchors to a file from write_anchors"),
    "no file": ({"alpha_anchor": 1.0, "anchors": "nothing"}, "anchors='nothing' is not a file of write_anchors"),
    "mixed": (
        {"alpha_embedding": 1.0, "project_embeddings": True, "embedding_dims": [4]},
        "leave out project_embeddings, or embedding_dims",
    ),
    "unused": ({"alpha_similarity": 1.0, "embedding_loss": "mse"}, "embedding_loss='mse' would have no effect"),
}


@pytest.mark.parametrize("name", WRONG)
def test_errors(name, make_trainer):
    arguments, message = WRONG[name]
    teacher, student = make_pair(hidden_size=8, num_attention_heads=1)
    rows = encoded(teacher, TEXTS)
    with pytest.raises(ValueError, match=message):
        make_trainer(student, teacher, rows, None, None, {"processing_class": teacher.tokenizer}, **(OFF | arguments))


def test_several_teachers_are_refused(make_trainer):
    teacher, student = make_pair()
    teachers = [teacher, make_embedding_model(seed=1)]
    with pytest.raises(ValueError, match="Vectors of different models cannot be averaged"):
        make_trainer(student, teachers, encoded(teacher, TEXTS), **OFF, alpha_embedding=1.0)


def test_a_classifier_has_no_vectors(make_trainer):
    student, teacher = make_model("bert", "classification"), make_model("bert", "classification", seed=1)
    with pytest.raises(ValueError, match=r"returns no vector per text, which alpha_embedding=1.0 compare"):
        make_trainer(student, teacher, make_rows("classification"), **OFF, alpha_embedding=1.0)


def test_anchors_of_another_width():
    teacher, student = make_pair()
    loss = AnchorLoss(torch.randn(9, 5))
    with pytest.raises(ValueError, match="The anchors are 5 wide and the teacher's vectors 16"):
        check_split_invariance(loss, model=student, teacher_model=teacher, train_dataset=encoded(teacher, TEXTS))
    with pytest.raises(ValueError, match="give the vectors of at least two texts"):
        AnchorLoss(torch.randn(1, 16))


if __name__ == "__main__":  # one of two processes
    torch.set_num_threads(1)
    from hf_distill import DistillationTrainer

    own_teacher, own_student = make_pair()
    own_trainer = DistillationTrainer(
        own_student,
        DistillationTrainingArguments(
            str(Path(sys.argv[1]).parent / "out"),
            **OFF,
            alpha_similarity=1.0,
            alpha_embedding=1.0,
            use_cpu=True,
            ddp_backend="gloo",
            per_device_train_batch_size=4,
            gradient_accumulation_steps=2,
            max_steps=1,
            logging_steps=1,
            max_grad_norm=0.0,
            train_sampling_strategy="sequential",
            report_to="none",
            save_strategy="no",
        ),
        teacher_model=own_teacher,
        train_dataset=encoded(own_teacher, make_texts(16)),
        processing_class=own_teacher.tokenizer,
    )
    own_keeper = KeepGradient()
    own_keeper.trainer = own_trainer
    own_trainer.add_callback(own_keeper)
    own_trainer.train()
    if own_trainer.is_world_process_zero():
        found = {name: value for name, value in own_trainer.state.log_history[0].items() if name.startswith("loss_")}
        found |= {"num_processes": own_trainer.accelerator.num_processes, "gradient": own_keeper.gradient.tolist()}
        Path(sys.argv[1]).write_text(json.dumps(found))
