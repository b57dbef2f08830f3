"""Students and teachers without a head: `BertModel` and others that `AutoModel` loads."""

import pytest
import torch
from datasets import Dataset
from transformers import AutoModel, AutoModelForSequenceClassification

from hf_distill import DistillationTrainer, DistillationTrainingArguments, add_teacher_targets
from tests.conftest import make_config, make_model, make_text_tokenizer, make_texts

NO_LOGITS = {"alpha_kl": 0, "alpha_task": 0, "alpha_cos": 0}


def make_base(seed, family="bert", **options):
    torch.manual_seed(seed)
    return AutoModel.from_config(make_config(family, **options))


@pytest.fixture
def rows():
    return Dataset.from_dict(dict(make_text_tokenizer()(make_texts(16), return_token_type_ids=False)))


@pytest.fixture
def make_trainer(tmp_path, rows):
    def make(student, teacher, **options):
        options = {"max_steps": 2, "learning_rate": 1e-2, "logging_steps": 1, "save_strategy": "no", **options}
        args = DistillationTrainingArguments(tmp_path / "student", report_to="none", use_cpu=True, **options)
        return DistillationTrainer(
            student,
            args,
            train_dataset=rows,
            eval_dataset=rows,
            processing_class=make_text_tokenizer(),
            teacher_model=teacher,
        )

    return make


def by_hand(student, teacher, rows):
    """The cosine loss, from the outputs of the models."""
    sums, states = 0.0, 0
    for row in rows:
        ids = torch.tensor([row["input_ids"]])
        with torch.no_grad():
            hidden = [model.eval()(ids).last_hidden_state for model in (student, teacher)]
        sums += (1 - torch.cosine_similarity(*hidden, dim=-1)).sum().item()
        states += ids.numel()
    return sums / states


@pytest.mark.parametrize("family", ["bert", "gpt2", "distilbert"])
def test_last_hidden_states(make_trainer, rows, family):
    student, teacher = make_base(0, family, num_layers=2), make_base(1, family)
    trainer = make_trainer(student, teacher, **{**NO_LOGITS, "alpha_cos": 1.0})
    expected = by_hand(student, teacher, rows)
    assert trainer.evaluate()["eval_loss_cos"] == pytest.approx(expected, rel=1e-5)
    trainer.train()
    assert trainer.evaluate()["eval_loss_cos"] < expected
    predicted = torch.from_numpy(trainer.predict(rows.select([0])).predictions)
    with torch.no_grad():
        hidden = student.eval()(torch.tensor([rows[0]["input_ids"]])).last_hidden_state
    torch.testing.assert_close(predicted, hidden)


def test_layers(make_trainer, tmp_path):
    """Relations are learned from rows without labels, and the saved model is the backbone of any head."""
    student, teacher = make_base(0, num_layers=2), make_base(1, width=32)
    trainer = make_trainer(student, teacher, **NO_LOGITS, alpha_hidden=1, alpha_relation=1)
    assert trainer.train().metrics["train_loss"] > 0
    trainer.save_model()
    classifier = AutoModelForSequenceClassification.from_pretrained(tmp_path / "student")
    for name, weight in student.state_dict().items():
        assert torch.equal(classifier.bert.state_dict()[name], weight)
    card = (tmp_path / "student" / "README.md").read_text()
    assert "pipeline_tag: feature-extraction" in card
    assert 'AutoModel.from_pretrained("path/to/this/folder")' in card


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"BertModel has no head, so there are no logits for alpha_kl=5.0 and alpha_task=2.0: set alpha_kl=0 and "),
        ({"alpha_task": 0}, "for alpha_kl=5.0: set alpha_kl=0, or load student and teacher with a class such as"),
        ({**NO_LOGITS, "alpha_cos": 1.0, "kl_positions": "attended"}, "kl_positions='attended' would have no effect"),
    ],
)
def test_losses_that_read_logits(make_trainer, options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(make_base(0), make_base(1), **options)


def test_only_one_has_a_head(make_trainer):
    for pair in [(make_base(0), make_model("bert", "mlm")), (make_model("bert", "mlm"), make_base(0))]:
        with pytest.raises(ValueError, match="different kinds of heads: load both with"):
            make_trainer(*pair, **{**NO_LOGITS, "alpha_cos": 1.0})


def test_nothing_can_be_stored(rows):
    with pytest.raises(ValueError, match="A BertModel has no head, so there are no logits to store"):
        add_teacher_targets(rows, make_base(0), make_text_tokenizer())
