"""Custom models and wrapped transformers models give the same numbers as the plain model."""

import pytest
import torch
from torch import nn
from transformers import AutoModel, BertConfig, BertForMaskedLM, PreTrainedModel

from hf_distill.training.scoring.alignment import head_spec, named_inputs
from tests.conftest import FAMILY_OF_HEAD, collate, make_config, make_model, make_rows
from tests.training.conftest import make_trainer  # noqa: F401

HEADS = ["classification", "token_classification", "question_answering", "multiple_choice", "mlm", "causal", "seq2seq"]
FORMS = ["tuple", "dict", "tensor", "return_dict"]
CASES = [(head, FAMILY_OF_HEAD.get(head, "bert"), form) for head in HEADS for form in FORMS]
CASES.remove(("question_answering", "bert", "tensor"))  # it has two
# With return_dict=False, transformers' own GPT-2 and BART fail.
CASES.remove(("causal", "gpt2", "return_dict"))
CASES[CASES.index(("seq2seq", "bart", "return_dict"))] = ("seq2seq", "t5", "return_dict")


def make_pair(head, family="bert"):
    return make_model(family, head), make_model(family, head, seed=1)


def step(make_trainer, teacher, student, head, **arguments):  # noqa: F811
    """Loss and gradient of a step, and the loss of an evaluation with predictions."""
    rows = make_rows(head)
    options = {"trainer_options": {"compute_metrics": lambda prediction: {}}, **arguments}
    trainer = make_trainer(student, teacher, rows, eval_rows=rows, **options)
    loss = trainer.compute_loss(student, collate(rows))
    loss.backward()
    gradient = {name: parameter.grad for name, parameter in student.named_parameters() if parameter.grad is not None}
    gradient = torch.cat([gradient[name].flatten() for name in sorted(gradient)])
    student.zero_grad()
    return loss.detach(), gradient, torch.tensor(trainer.evaluate()["eval_loss"])


def assert_same(step, other):
    for one, two in zip(step, other, strict=True):
        torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-6)


def dressed(model, form):
    """The model with a forward that names no arguments and returns its outputs in another form."""

    class Dressed(type(model)):
        def forward(self, *args, **kwargs):
            output = super().forward(*args, **kwargs)
            if form == "tensor":
                return output.logits
            return {"mine": 1, **output} if form == "dict" else output.to_tuple()

    Dressed.__name__ = type(model).__name__
    model.__class__ = Dressed
    return model


@pytest.mark.parametrize(("head", "family", "form"), CASES)
def test_what_a_model_returns(make_trainer, head, family, form):  # noqa: F811
    plain = step(make_trainer, *make_pair(head, family), head)
    pair = make_pair(head, family)
    for model in pair:
        if form == "return_dict":
            model.config.return_dict = False
        else:
            dressed(model, form)
    assert_same(step(make_trainer, *pair, head), plain)


def test_inputs_of_a_forward_that_names_none():
    model = make_model("distilbert", "classification")
    names = named_inputs(model)
    assert {"input_ids", "attention_mask"} < names
    assert "token_type_ids" not in names
    assert named_inputs(dressed(model, "tuple")) == names
    assert head_spec(model).vocab_size == model.config.vocab_size


def test_inputs_that_a_forward_of_ones_own_passes_on(make_trainer):  # noqa: F811
    class Passing(type(make_model("bert", "classification"))):
        def forward(self, input_ids=None, **kwargs):
            return super().forward(input_ids, **kwargs)

    plain = step(make_trainer, *make_pair("classification"), "classification")
    teacher, student = make_pair("classification")
    student.__class__ = Passing
    assert named_inputs(student) == named_inputs(teacher)
    assert_same(step(make_trainer, teacher, student, "classification"), plain)
    assert named_inputs(OwnForMaskedLM(make_config("bert"))) == {"input_ids", "attention_mask"}


def test_only_one_of_the_two_names_its_inputs(make_trainer):  # noqa: F811
    plain = step(make_trainer, *make_pair("classification"), "classification")
    teacher, student = make_pair("classification")
    assert_same(step(make_trainer, dressed(teacher, "dict"), student, "classification"), plain)


class OwnForMaskedLM(PreTrainedModel):
    """A model without `base_model_prefix`, whose forward names its inputs but no labels."""

    config_class = BertConfig
    _supports_sdpa = True

    def __init__(self, config, between=None):
        super().__init__(config)
        self.reader = AutoModel.from_config(config)
        self.between = between or nn.Identity()
        self.words = BertForMaskedLM(config).cls

    def forward(self, input_ids, attention_mask=None):
        states = self.reader(input_ids, attention_mask)[0]
        return self.words(self.between(states) + 0 * input_ids.shape[0])

    @classmethod
    def like(cls, model, **options):
        """With the weights of a `BertForMaskedLM`."""
        own = cls(model.config, **options)
        own.reader, own.words = model.bert, model.cls
        return own.eval()


def test_model_without_a_base_model_prefix(make_trainer):  # noqa: F811
    plain = step(make_trainer, *make_pair("mlm"), "mlm")
    pair = [OwnForMaskedLM.like(model) for model in make_pair("mlm")]
    positions_seen = []
    pair[1].words.register_forward_hook(lambda module, args, output: positions_seen.append(output[..., 0].numel()))
    loss, gradient, evaluated = step(make_trainer, *pair, "mlm", label_names=["labels"])
    assert_same([loss, gradient.norm(), evaluated], [plain[0], plain[1].norm(), plain[2]])
    num_scored = sum(label != -100 for row in make_rows("mlm") for label in row["labels"])
    assert positions_seen[:5] == [1, 2, 1, 1, num_scored]  # the first forward alone proves that the head can be run so


class Recurrent(nn.GRU):
    def forward(self, states):
        return states + super().forward(states)[0]


def test_head_that_reads_several_positions_gets_all(make_trainer):  # noqa: F811
    torch.manual_seed(0)
    student = OwnForMaskedLM.like(make_model("bert", "mlm"), between=Recurrent(16, 16, batch_first=True))
    batch = collate(make_rows("mlm"))
    chosen = batch["labels"] != -100
    logits = student(batch["input_ids"], batch["attention_mask"])[chosen]
    expected = torch.nn.functional.cross_entropy(logits, batch["labels"][chosen])
    trainer = make_trainer(student, None, alpha_kl=0.0, alpha_cos=0.0, alpha_task=1.0)
    for _ in range(2):
        torch.testing.assert_close(trainer.compute_loss(student, dict(batch)), expected)
    assert not trainer.head.runs_alone


class OfTorchForMaskedLM(PreTrainedModel):
    """A model that contains no transformers model."""

    config_class = BertConfig
    _supports_sdpa = True

    def __init__(self, config):
        super().__init__(config)
        layer = nn.TransformerEncoderLayer(config.hidden_size, 2, 32, dropout=0.0, batch_first=True)
        self.words = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.head = nn.Linear(config.hidden_size, config.vocab_size)

    def forward(self, input_ids, attention_mask):
        return {"logits": self.head(self.layers(self.words(input_ids), src_key_padding_mask=attention_mask.eq(0)))}


def test_model_without_a_transformers_model_inside(make_trainer):  # noqa: F811
    teacher, student = (OfTorchForMaskedLM(make_config("bert")).eval() for _ in range(2))
    batch = collate(make_rows("mlm"))
    trainer = make_trainer(student, teacher)
    with pytest.raises(ValueError, match=r"The student's forward calls no transformers model.*set alpha_cos=0"):
        trainer.compute_loss(student, batch)
    chosen = batch["labels"] != -100
    expected = torch.nn.functional.cross_entropy(
        student(batch["input_ids"], batch["attention_mask"])["logits"][chosen], batch["labels"][chosen]
    )
    trainer = make_trainer(student, None, alpha_kl=0.0, alpha_cos=0.0, alpha_task=1.0)
    torch.testing.assert_close(trainer.compute_loss(student, batch), expected)
    trainer = make_trainer(student, teacher, make_rows("mlm"), alpha_cos=0.0, max_steps=2, label_names=["labels"])
    assert trainer.train().training_loss > 0
