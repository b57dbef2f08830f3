"""A custom head is one class and one row in `HEADS`. The example points at a token."""

import copy
from dataclasses import dataclass

import datasets
import pytest
import torch
from datasets import Dataset
from transformers import AutoModel, BertPreTrainedModel
from transformers.utils import ModelOutput

from hf_distill import add_teacher_targets
from hf_distill.data.labels import IGNORE_INDEX
from hf_distill.training.scoring import find_head as finding
from hf_distill.training.scoring.heads import Head
from hf_distill.training.scoring.inputs import attended_positions, first_examples
from hf_distill.training.scoring.scored import MASKED_LOGIT, Scored
from tests.conftest import collate, make_config, make_rows, make_text_tokenizer


@dataclass
class PointerOutput(ModelOutput):
    loss: torch.Tensor | None = None
    pointer_logits: torch.Tensor | None = None


class BertForPointing(BertPreTrainedModel):
    """A model that predicts which token matters most."""

    def __init__(self, config):
        super().__init__(config)
        self.bert = AutoModel.from_config(config, add_pooling_layer=False)
        self.pointer = torch.nn.Linear(config.hidden_size, 1)
        self.post_init()

    def forward(self, input_ids, attention_mask=None, pointed_at=None) -> PointerOutput:
        states = self.bert(input_ids, attention_mask=attention_mask).last_hidden_state
        return PointerOutput(pointer_logits=self.pointer(states).squeeze(-1))


class PointerHead(Head):
    """One distribution per example, with a class per token that is not padding."""

    tasks = ()
    class_names = ("ForPointing",)
    auto_class = "AutoModelForPointing"
    label_names = ("pointed_at",)
    prediction_names = ("pointer_logits",)
    output_class = PointerOutput
    problem_type = None
    named_classes = False
    takes_label_smoothing = False
    takes_text_columns = False

    def score(self, inputs, kl_positions="labels", num_examples=None):
        attended = first_examples(attended_positions(inputs), num_examples)
        positions = attended.new_ones(len(attended))[:num_examples]
        labels = inputs.get("pointed_at")
        labels = torch.full((len(attended),), IGNORE_INDEX) if labels is None else labels
        labels = labels[:num_examples]
        return Scored(attended, positions, labels.ne(IGNORE_INDEX), labels)

    def scored_logits(self, output, scored):
        logits = output.pointer_logits[: len(scored.positions)]
        return logits.masked_fill(~scored.attended[: len(logits)], MASKED_LOGIT)

    def logits_per_token(self, config):
        return 1

    def stored_logits(self, logits, scored):
        return logits[scored.attended].unsqueeze(-1)

    def logits_of_stored(self, stored, scored):
        logits = stored[: len(scored.positions)].squeeze(-1)
        return logits.masked_fill(~scored.attended[: len(logits)], MASKED_LOGIT)


@pytest.fixture
def pair(monkeypatch, tmp_path):
    """A teacher and a student."""
    monkeypatch.setattr(finding, "HEADS", (PointerHead, *finding.HEADS))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    torch.manual_seed(0)
    return BertForPointing(make_config("bert")).eval(), BertForPointing(make_config("bert", num_layers=2))


def make_dataset():
    rows = make_rows("question_answering")
    names = ("input_ids", "attention_mask")
    return Dataset.from_list(
        [{**{name: row[name] for name in names}, "pointed_at": len(row["input_ids"]) // 2} for row in rows]
    )


def test_it_is_trained_beside_its_teacher_and_from_stored_targets(make_trainer, pair):
    teacher, student = pair
    rows = make_dataset()
    stored = add_teacher_targets(rows, teacher, make_text_tokenizer(), hidden_states=True, batch_size=5)
    assert [len(row["teacher_logits"]) for row in stored] == [len(row["input_ids"]) for row in rows]

    trainers = {}
    for name, given, dataset in (("live", teacher, rows), ("stored", None, stored)):
        options = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "optim": "sgd"}
        trainer = make_trainer(copy.deepcopy(student), given, dataset, dataset, **options)
        assert type(trainer.head) is PointerHead
        trainer.train()
        trainers[name] = trainer
    live, from_stored = (
        torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])
        for trainer in trainers.values()
    )
    assert not torch.equal(live, torch.cat([parameter.detach().flatten() for parameter in student.parameters()]))
    torch.testing.assert_close(from_stored, live, rtol=0, atol=1e-4)
    metrics = trainers["stored"].evaluate()
    assert metrics["eval_loss"] == pytest.approx(trainers["live"].evaluate()["eval_loss"], rel=1e-4)


def test_its_losses_by_hand(make_trainer, pair):
    teacher, student = pair
    batch = collate(list(make_dataset()))
    trainer = make_trainer(student.eval(), teacher, make_dataset(), make_dataset(), alpha_cos=0.0, temperature=2.0)
    with torch.no_grad():
        inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
        logits, teacher_logits = student(**inputs).pointer_logits, teacher(**inputs).pointer_logits
    kl, task = 0.0, 0.0
    for index, length in enumerate(batch["attention_mask"].sum(1).tolist()):
        p, q = (values[index, :length] / 2 for values in (teacher_logits, logits))
        kl += 4 * (p.softmax(0) * (p.log_softmax(0) - q.log_softmax(0))).sum().item() / 16
        task -= logits[index, :length].log_softmax(0)[batch["pointed_at"][index]].item() / 16
    metrics = trainer.evaluate()
    assert metrics["eval_loss_kl"] == pytest.approx(kl, rel=1e-4)
    assert metrics["eval_loss_task"] == pytest.approx(task, rel=1e-4)
