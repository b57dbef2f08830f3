"""Completions of student and teacher during a training."""

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from hf_distill import DataCollatorForCausalLM, show_completions
from tests.conftest import make_model, make_rows
from tests.data.test_chats import make_tokenizer
from tests.training.conftest import make_trainer  # noqa: F401

PROMPTS = ["w5 w6", "w7"]
OPTIONS = {"alpha_task": 0.0, "alpha_cos": 0.0, "learning_rate": 0.05, "max_steps": 4}


@pytest.fixture
def trainer(make_trainer, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "board"))
    models = [make_model("llama", "causal", seed=seed, initializer_range=0.5) for seed in (0, 1)]
    for own in models:
        own.generation_config.eos_token_id = own.generation_config.pad_token_id = None
    tokenizer = make_tokenizer()
    rows = [
        {"input_ids": row["input_ids"], "attention_mask": [1] * len(row["input_ids"])} for row in make_rows("causal")
    ]
    return make_trainer(
        models[1],
        models[0],
        rows,
        rows,
        data_collator=DataCollatorForCausalLM(tokenizer),
        trainer_options={"processing_class": tokenizer},
        eval_strategy="steps",
        eval_steps=2,
        report_to="tensorboard",
        **OPTIONS,
    )


def continued(model, prompt, number=5):
    """Token after token."""
    tokens = torch.tensor([make_tokenizer()(prompt)["input_ids"]])
    begin = tokens.shape[1]
    for _ in range(number):
        with torch.no_grad():
            tokens = torch.cat([tokens, model(input_ids=tokens).logits[:, -1:].argmax(-1)], 1)
    return make_tokenizer().decode(tokens[0, begin:], skip_special_tokens=True)


def test_completions(trainer, tmp_path, capsys):
    teacher, student = trainer.teacher.model, trainer.model.eval()
    before = [continued(student, prompt) for prompt in PROMPTS]
    show_completions(trainer, PROMPTS, max_new_tokens=5)
    trainer.train()
    shown = trainer.callback_handler.callbacks[-1]
    assert shown.of_teacher == [continued(teacher, prompt) for prompt in PROMPTS]
    assert list(shown.shown) == [0, 2, 4]
    assert shown.shown[0] == before
    assert shown.shown[4] == [continued(trainer.model.eval(), prompt) for prompt in PROMPTS] != before
    assert "student, step 4" in capsys.readouterr().err

    (file,) = tmp_path.rglob("events.out*")
    board = EventAccumulator(str(file)).Reload()
    texts = [event.tensor_proto.string_val[0].decode() for event in board.Tensors("completions/1/text_summary")]
    assert len(texts) == 3
    assert f"student: {before[1]}" in texts[0]


def test_bad_arguments(trainer, make_trainer):  # noqa: F811
    with pytest.raises(ValueError, match="prompts is empty"):
        show_completions(trainer, [])
    masked = make_trainer(make_model("bert", "mlm"), make_model("bert", "mlm"), make_rows("mlm"))
    with pytest.raises(ValueError, match="A BertForMaskedLM does not continue texts"):
        show_completions(masked, PROMPTS)
    trainer.processing_class = None
    with pytest.raises(ValueError, match="The trainer has no tokenizer"):
        show_completions(trainer, PROMPTS)
