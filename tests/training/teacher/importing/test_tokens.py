"""Token log-probabilities, as vLLM and OpenAI-compatible servers return them."""

import copy
import json
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from datasets import Dataset

from hf_distill import DataCollatorForCausalLM, add_teacher_targets, import_teacher_targets
from hf_distill.training.teacher.columns import source_of
from tests.conftest import VOCAB_SIZE, make_model, make_text_tokenizer
from tests.training.teacher.test_targets import losses, make_dataset, make_pair, train, weights

TOKENIZER = make_text_tokenizer()
TEACHER, STUDENT = make_pair("causal")


def log_probs_of(row, teacher=TEACHER):
    """`[tokens, vocabulary]`, in float32."""
    with torch.no_grad():
        return teacher(torch.tensor([row["input_ids"]])).logits[0].log_softmax(-1)


def prompt_logprobs_of(row, top_k=5, as_objects=False, teacher=TEACHER):
    """What vLLM returns: the top k of each token and the token itself, None for the first."""
    ids, positions = row["input_ids"], [None]
    for index, own in enumerate(log_probs_of(row, teacher)[:-1], start=1):
        ranks = own.argsort(descending=True).argsort() + 1
        named = {*own.topk(top_k).indices.tolist(), ids[index]}
        values = {
            id_: {"logprob": own[id_].item(), "rank": ranks[id_].item(), "decoded_token": f"w{id_}"} for id_ in named
        }
        positions.append({id_: SimpleNamespace(**value) for id_, value in values.items()} if as_objects else values)
    return positions


def logprobs_of(row, num_tokens, top_k=5, name="w{}"):
    """What a server returns for the last tokens of a row."""
    content = []
    log_probs, ids = log_probs_of(row), row["input_ids"]
    for index in range(len(ids) - num_tokens, len(ids)):
        own = log_probs[index - 1]
        top = [
            {"token": name.format(id_), "bytes": None, "logprob": own[id_].item()}
            for id_ in own.topk(top_k).indices.tolist()
        ]
        token = {"token": name.format(ids[index]), "logprob": own[ids[index]].item(), "top_logprobs": top}
        content.append(token)
    return {"content": content}


def imported(rows, entries=None, format="prompt_logprobs", **options):
    return import_teacher_targets(rows, entries, format=format, teacher="vLLM", processing_class=TOKENIZER, **options)


OPTIONS = {"alpha_cos": 0.0, "temperature": 1.0, "trainer_options": {"processing_class": TOKENIZER}}


@pytest.mark.parametrize("form", ["objects", "json", "text column"])
def test_vllm_teaches_what_its_model_teaches(make_trainer, tmp_path, form):
    """Against `add_teacher_targets` of the same model with the same tokens, at temperature 1."""
    rows = make_dataset("causal")
    given = [prompt_logprobs_of(row, as_objects=form == "objects") for row in rows]
    if form == "objects":
        ours = imported(rows, given)
    elif form == "json":
        (tmp_path / "answers.jsonl").write_text(
            "".join(json.dumps({"prompt_logprobs": own, "text": ""}) + "\n" for own in given)
        )
        ours = imported(rows, tmp_path / "answers.jsonl", column="prompt_logprobs")
    else:
        ours = imported(rows.add_column("answer", [json.dumps(own) for own in given]), column="answer")
    stored = add_teacher_targets(rows, TEACHER, TOKENIZER, top_k=5, temperature=1.0, min_mass=0.0)
    assert source_of(ours).top_k == 5
    assert not source_of(ours).complete
    for own, expected in zip(ours, stored, strict=True):
        for name in ("teacher_top_log_probs", "teacher_top_ids", "teacher_log_tail"):
            last = 1 if name == "teacher_log_tail" else 5
            assert own[name][:-last] == pytest.approx(expected[name][:-last], rel=2**-10)
            assert len(own[name]) == len(expected[name])
    trainers = [train(make_trainer, STUDENT, None, data, eval_rows=data, **OPTIONS) for data in (ours, stored)]
    assert losses(trainers[0]) == pytest.approx(losses(trainers[1]), rel=1e-5)
    torch.testing.assert_close(weights(trainers[0]), weights(trainers[1]), rtol=0, atol=2e-6)
    evaluated = [trainer.evaluate()["eval_loss_kl"] for trainer in trainers]
    assert evaluated[0] == pytest.approx(evaluated[1], rel=1e-5)


def test_all_tokens_give_the_full_divergence(make_trainer):
    """With the whole vocabulary there is no tail, and the loss is a live teacher's."""
    rows = make_dataset("causal")
    ours = imported(rows, [prompt_logprobs_of(row, top_k=VOCAB_SIZE) for row in rows])
    assert source_of(ours).top_k == VOCAB_SIZE == len(TOKENIZER)
    live, of_import = (
        train(make_trainer, STUDENT, teacher, data, **OPTIONS) for teacher, data in ((TEACHER, rows), (None, ours))
    )
    assert losses(of_import) == pytest.approx(losses(live), rel=2e-4)
    torch.testing.assert_close(weights(of_import), weights(live), rtol=0, atol=2e-5)


def test_a_position_by_hand():
    """The distribution of a token is stored at the token before it. The rest is one minus the sum."""
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7]], "labels": [[5, 6, 7]]})
    first = {"6": {"logprob": math.log(0.5)}, "9": {"logprob": math.log(0.2)}, "8": {"logprob": math.log(0.25)}}
    second = {"7": math.log(0.01), "5": math.log(0.9)}
    (row,) = imported(rows, [[None, first, second]])
    assert np.array(row["teacher_top_ids"]).reshape(3, 2)[:2].tolist() == [[6, 8], [5, 7]]
    probabilities = np.exp(row["teacher_top_log_probs"]).reshape(3, 2)
    assert np.log(probabilities[:2]) == pytest.approx(np.log([[0.5, 0.25], [0.9, 0.01]]), rel=2**-11)
    assert row["teacher_log_tail"][:2] == pytest.approx(np.log([0.25, 0.09]), rel=2**-11)
    assert np.isnan(probabilities[2]).all()
    assert math.isnan(row["teacher_log_tail"][2])
    (row,) = imported(rows, [[None, first, second]], top_k=1)
    assert row["teacher_top_ids"][:2] == [6, 5]
    assert row["teacher_log_tail"][:2] == pytest.approx(np.log([0.5, 0.1]), rel=2**-11)


def test_only_positions_with_a_label_need_a_distribution(make_trainer):
    """The prompt has labels of -100; the server returned the completion only."""
    rows = make_dataset("causal", num_rows=8)
    rows = rows.map(lambda row: {"labels": [-100] * (len(row["input_ids"]) - 2) + row["input_ids"][-2:]})
    given = [logprobs_of(row, 2, name="token_id:{}") for row in rows]
    by_text = [logprobs_of(row, 2, name="w{}") for row in rows]
    # The tokens below 5 are [PAD] and so on: the text `w3` is not a token, and its probability is in the tail.
    ours = imported(rows, given, "logprobs")
    stored = add_teacher_targets(rows, TEACHER, TOKENIZER, top_k=5, temperature=1.0, min_mass=0.0)
    ours_, theirs = (
        make_trainer(STUDENT, None, data, data, **OPTIONS).evaluate()["eval_loss_kl"] for data in (ours, stored)
    )
    assert ours_ == pytest.approx(theirs, rel=1e-5)
    texts = imported(rows, by_text, "logprobs", top_k=2)
    assert 0 < make_trainer(STUDENT, None, texts, texts, **OPTIONS).evaluate()["eval_loss_kl"] <= ours_
    with pytest.raises(ValueError, match="Row 0 has no log-probabilities for the token after token 0, which has a"):
        imported(make_dataset("causal").remove_columns("labels").select(range(8)), given, "logprobs")


def test_rows_that_are_padded():
    rows = Dataset.from_dict(
        {"input_ids": [[5, 6, 0, 0], [0, 0, 5, 6]], "attention_mask": [[1, 1, 0, 0], [0, 0, 1, 1]]}
    )
    ours = imported(rows, [[None, {"6": -0.5}]] * 2)
    assert ours["teacher_top_ids"][:] == [[6, 0]] * 2
    assert ours["teacher_log_tail"][0][0] == pytest.approx(math.log(1 - math.exp(-0.5)), rel=2**-11)


def test_a_student_with_a_padded_vocabulary(make_trainer):
    """It may have more entries than the tokenizer, but not fewer."""
    rows = make_dataset("causal", num_rows=4)
    ours = imported(rows, [prompt_logprobs_of(row) for row in rows])
    padded = make_model("gpt2", "causal", vocab_size=64, num_layers=2)
    assert make_trainer(padded, None, ours, ours, **OPTIONS).evaluate()["eval_loss_kl"] > 0
    small = make_model("gpt2", "causal", vocab_size=60, num_layers=2)
    with pytest.raises(ValueError, match="vocabulary has 60 entries, but the tokenizer of the imported targets has 61"):
        make_trainer(small, None, ours, **OPTIONS)


def test_trainings_that_do_not_fit(make_trainer):
    rows = make_dataset("causal", num_rows=4)
    ours = imported(rows, [prompt_logprobs_of(row) for row in rows])
    with pytest.raises(
        ValueError, match=r"temperature=2.0, but .* at temperature 1.0: set temperature=1.0, or pass a t"
    ):
        make_trainer(STUDENT, None, ours, **{**OPTIONS, "temperature": 2.0})
    with pytest.raises(ValueError, match=r"kl_positions='attended' needs .*set kl_positions='labels'"):
        make_trainer(STUDENT, None, ours, **OPTIONS, kl_positions="attended")
    other = copy.deepcopy(TOKENIZER)
    other.add_tokens(["another"])
    with pytest.raises(ValueError, match="is not the teacher's"):
        make_trainer(STUDENT, None, ours, **{**OPTIONS, "trainer_options": {"processing_class": other}})
    with pytest.raises(ValueError, match=r"head of AutoModelForCausalLM, but the student is a BertForSequence"):
        make_trainer(make_model("bert", "classification"), None, ours, **OPTIONS)


def test_labels_that_change_afterwards(make_trainer):
    """The collator gives a label to every token, also to those without a distribution."""
    rows = make_dataset("causal", num_rows=4)
    rows = rows.map(lambda row: {"labels": [-100] * (len(row["input_ids"]) - 1) + row["input_ids"][-1:]})
    ours = imported(rows, [logprobs_of(row, 1, name="token_id:{}") for row in rows], "logprobs")
    trainer = make_trainer(
        STUDENT, None, ours.remove_columns("labels"), data_collator=DataCollatorForCausalLM(TOKENIZER), **OPTIONS
    )
    with pytest.raises(ValueError, match="A token has a label, but the token before it has no distribution"):
        trainer.train()


def test_little_of_the_probability_is_reported(monkeypatch):
    from hf_distill.training.teacher import mass

    messages = []
    monkeypatch.setattr(mass.logger, "warning", messages.append)
    rows = Dataset.from_dict({"input_ids": [[5, 6]]})
    imported(rows, [[None, {"6": math.log(0.3)}]])
    assert messages == [
        "The 1 most likely tokens hold 30% of the teacher's probability at temperature 1, as a mean over 1 tokens. The "
        "student learns only the total of the rest: import more tokens per position."
    ]


FINE = [None, {"6": -1.0, "7": -2.0}, {"7": -1.0, "8": -2.0}]
WRONG = {
    "too short": (FINE[:2], "Row 1 has 3 tokens, but log-probabilities for 2: the prompt should be the input_ids"),
    "other tokens": ([None, FINE[1], {"8": -1.0}], "Row 1 has the id 7 at token 2, which is not among the tokens"),
    "outside": ([None, {"6": -1.0, "61": -2.0}, FINE[2]], "Row 1 has the token id 61 at token 0, .* has 61 tokens"),
    "negative id": ([None, {"6": -1.0, "-1": -2.0}, FINE[2]], "Row 1 has the token id -1"),
    "not finite": ([None, {"6": -math.inf, "7": -1.0}, FINE[2]], "Row 1 has log-probabilities that are not finite at"),
    "not a number": ([None, {"6": {"rank": 1}}, FINE[2]], "Row 1 has a log-probability None, which is not a number"),
    "logits": ([None, {"6": 2.0, "7": 1.0}, FINE[2]], "Row 1 has probabilities that sum to 10.11 at token 0"),
    "nothing": ([None, None, FINE[2]], "Row 1 has no log-probabilities for the token after token 0, which has a label"),
    "empty": ([None, {}, FINE[2]], "Row 1 has no log-probabilities for the token after token 0"),
    "a number": (3, "Row 1 is a int: format='prompt_logprobs' takes a list with one dict"),
    "an object": ({"logprobs": FINE, "text": ""}, "Row 1 is a dict: format='prompt_logprobs' takes a list"),
    "no id": ([None, {"a": -1.0}, FINE[2]], "Row 1 has 'a' instead of a token id at token 1"),
    "text": ("[None]", "Row 1 is text that is not JSON"),
}


@pytest.mark.parametrize("name", WRONG)
def test_log_probabilities_that_do_not_fit(name, cache):
    entry, message = WRONG[name]
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7]] * 2})
    with pytest.raises(ValueError, match=message):
        imported(rows, [FINE, entry])
    assert not cache.exists() or not list(cache.iterdir())


CONTENT = [{"token": "w6", "logprob": -1.0, "top_logprobs": []}, {"token": "w7", "logprob": -1.0}]
WRONG_CONTENT = {
    "other tokens": ([{**CONTENT[0], "token": "w9"}], "Row 0 does not contain the 1 tokens of its log-probabilities"),
    "too many": ([*CONTENT, *CONTENT], "Row 0 does not contain the 4 tokens of its log-probabilities"),
    "unknown": ([{**CONTENT[0], "token": "hello"}], "Row 0 does not contain the 1 tokens"),
    "another shape": ([{"text": "w6"}], "Row 0 is not a list of dicts with 'token', 'logprob' and 'top_logprobs'"),
    "nothing": ({"text": "w6", "id": 3}, "Row 0 is not a list of dicts"),
    "no number": ([CONTENT[0], {"token": "w7", "logprob": None}], "Row 0 has no log-probabilities for the token after"),
}


@pytest.mark.parametrize("name", WRONG_CONTENT)
def test_contents_that_do_not_fit(name):
    entry, message = WRONG_CONTENT[name]
    with pytest.raises(ValueError, match=message):
        imported(Dataset.from_dict({"input_ids": [[5, 6, 7]]}), [entry], "logprobs")


def test_a_completion_is_found_where_it_ends():
    (row,) = imported(Dataset.from_dict({"input_ids": [[5, 6, 7]]}), [CONTENT], "logprobs")
    assert row["teacher_top_ids"] == [6, 7, 0]
    rows = Dataset.from_dict({"input_ids": [[6, 7, 6, 7, 8]], "labels": [[-100, -100, 6, 7, -100]]})
    (row,) = imported(rows, [CONTENT], "logprobs")
    assert row["teacher_top_ids"][1:3] == [6, 7]


def test_texts_that_several_tokens_share():
    """Their probability is left to the tail, except of the token that the row has."""
    tokenizer = copy.deepcopy(TOKENIZER)
    decode = tokenizer.batch_decode
    tokenizer.batch_decode = lambda ids, **options: [
        {"w8": "?", "w9": "?"}.get(text, text) for text in decode(ids, **options)
    ]
    top = [{"token": name, "logprob": math.log(p)} for name, p in (("w10", 0.5), ("?", 0.3), ("w9x", 0.1))]
    rows = Dataset.from_dict({"input_ids": [[5, 9]]})
    entry = [{"token": "?", "logprob": math.log(0.3), "top_logprobs": top}]
    (row,) = import_teacher_targets(rows, [entry], format="logprobs", teacher="x", processing_class=tokenizer)
    assert row["teacher_top_ids"][:2] == [10, 9]
    assert row["teacher_log_tail"][0] == pytest.approx(math.log(0.2), rel=2**-11)


def test_top_k_that_is_too_large():
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7]]})
    with pytest.raises(
        ValueError, match="Row 0 has 2 log-probabilities, fewer than top_k=3, for the token after token 0"
    ):
        imported(rows, [FINE], top_k=3)


def test_rows_without_a_label():
    rows = Dataset.from_dict({"input_ids": [[5, 6, 7]], "labels": [[-100] * 3]})
    with pytest.raises(ValueError, match="No token has a label, so no distribution would be trained on"):
        imported(rows, [FINE])


def test_rows_of_text():
    with pytest.raises(ValueError, match="Row 0 has no input_ids, only text: tokenise the rows first"):
        imported(Dataset.from_dict({"text": ["w5 w6"]}), [FINE])


@pytest.mark.parametrize("format", ["torch", "numpy"])
def test_rows_of_another_format(format):
    rows = make_dataset("causal", num_rows=4)
    given = [prompt_logprobs_of(row) for row in rows]
    ours = imported(rows.with_format(format), given)
    assert ours.format["type"] == format
    expected = imported(rows, given)
    for own, other in zip(ours["teacher_top_ids"], expected["teacher_top_ids"], strict=True):
        assert own.tolist() == other
