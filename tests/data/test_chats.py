"""Chats: the labels are the tokens that the assistant writes."""

import json

import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_distill import DataCollatorForCausalLM, SeparateDocuments, encode_chats, load_chats, pack_chats
from tests.conftest import make_model, make_text_tokenizer

CLS, SEP, UNK = 1, 2, 3
ASKS, ANSWERS = [CLS, UNK], [CLS, UNK]
"""The begin of a turn: [CLS] and the role, which is not in the vocabulary."""

PLAIN = (
    "{% for message in messages %}[CLS] {{ message['role'] }} {{ message['content'] }} [SEP]\n{% endfor %}"
    "{% if add_generation_prompt %}[CLS] assistant {% endif %}"
)
MARKED = (
    "{% for message in messages %}[CLS] {{ message['role'] }} {% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] }} [SEP]{% endgeneration %}{% else %}{{ message['content'] }} [SEP]"
    "{% endif %}\n{% endfor %}{% if add_generation_prompt %}[CLS] assistant {% endif %}"
)
FORGETFUL = PLAIN.replace("{{ message['content'] }}", "{{ message['content'] if loop.last else 'w9' }}")


def chat(*contents):
    roles = ["user", "assistant"] * len(contents)
    return [{"role": role, "content": content} for role, content in zip(roles, contents, strict=False)]


def make_tokenizer(template=PLAIN):
    tokenizer = make_text_tokenizer()
    tokenizer.eos_token, tokenizer.chat_template = tokenizer.sep_token, template
    return tokenizer


def encode(row, template=PLAIN, max_length=30, **options):
    return encode_chats(Dataset.from_list([row]), make_tokenizer(template), max_length, **options)[0]


TALK = chat("w5 w6", "w7", "w8", "w10 w11")
IDS = [*ASKS, 5, 6, SEP, *ANSWERS, 7, SEP, *ASKS, 8, SEP, *ANSWERS, 10, 11, SEP]
LABELS = [*[-100] * 7, 7, SEP, *[-100] * 6, 10, 11, SEP]


@pytest.mark.parametrize("template", [PLAIN, MARKED])
def test_only_answers_have_labels(template):
    row = encode({"messages": TALK}, template)
    assert row["input_ids"] == IDS
    assert row["labels"] == LABELS
    assert row["length"] == len(IDS)
    assert encode({"messages": TALK}, template, assistant_only_loss=False)["labels"] == IDS


def test_system_message_and_tools():
    template = "{% if tools %}w20 {{ tools[0]['name'] }} {% endif %}" + PLAIN
    messages = [{"role": "system", "content": "w12"}, *chat("w5", "w6")]
    row = encode({"messages": messages, "tools": '[{"name": "w21"}]'}, template)
    assert row["input_ids"][:3] == [20, 21, CLS]
    assert [label for label in row["labels"] if label != -100] == [6, SEP]


def test_template_that_forgets(tmp_path):
    """It writes a turn in another way once more messages follow."""
    with pytest.raises(ValueError, match="Row 1: the chat template writes messages in another way"):
        encode({"messages": TALK}, FORGETFUL)
    assert encode({"messages": chat("w5", "w6")}, PLAIN)["labels"][-2:] == [6, SEP]
    assert encode({"messages": TALK}, FORGETFUL, assistant_only_loss=False)["length"] > 0


def test_prompt_and_completion():
    tokenizer = make_tokenizer()
    row = encode({"prompt": "w5 w6", "completion": " w7 w8"})
    assert row["input_ids"] == [CLS, 5, 6, 7, 8, SEP]
    assert row["labels"] == [-100, -100, -100, 7, 8, SEP]
    tokenizer.backend_tokenizer.post_processor = None  # as most causal models: it adds no special tokens
    rows = encode_chats(Dataset.from_list([{"prompt": "w5", "completion": " w7"}]), tokenizer, 8)
    assert rows[0]["input_ids"] == [5, 7, SEP]
    assert rows[0]["labels"] == [-100, 7, SEP]
    row = encode({"prompt": chat("w5 w6", "w7", "w8"), "completion": TALK[3:]})
    assert row["input_ids"] == IDS
    assert row["labels"] == [*[-100] * 15, 10, 11, SEP]  # what is in the prompt is not learned


def test_token_across_the_boundary():
    """Without a space, prompt and completion share a word, which has no label."""
    assert encode({"prompt": "w5 w", "completion": "6 w7"})["labels"] == [-100, -100, -100, 7, SEP]


def test_too_long():
    rows = Dataset.from_list([{"messages": TALK}, {"messages": chat("w5", "w6")}])
    tokenizer = make_tokenizer()
    with pytest.raises(ValueError, match=r"up to 18 tokens, more than max_length=10, in row 1: raise max_length"):
        encode_chats(rows, tokenizer, 10)
    assert encode_chats(rows, tokenizer, 10, too_long="leave_out")["length"] == [8]
    cut = encode_chats(rows, tokenizer, 10, too_long="truncate")
    assert cut["labels"][0] == LABELS[:10]
    with pytest.raises(ValueError, match="No chat has an answer within max_length=6"):
        encode_chats(rows, tokenizer, 6, too_long="truncate")
    with pytest.raises(ValueError, match="too_long='cut' must be one of error, truncate, leave_out"):
        encode_chats(rows, tokenizer, 10, too_long="cut")


def test_chats_without_an_answer_after_truncation_are_left_out(caplog):
    rows = Dataset.from_list([{"messages": chat("w5 w5 w5 w5 w5 w5", "w6")}, {"messages": chat("w5", "w6")}])
    cut = encode_chats(rows, make_tokenizer(), 8, too_long="truncate")
    assert cut["length"] == [8]
    assert "1 of 2 chats" in caplog.text


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"messages": chat("w5")}, "no turn of the role 'assistant', so nothing to learn, in row 1"),
        ({"messages": []}, "row 1: 'messages' must be a list of messages"),
        ({"messages": [{"role": "assistant"}]}, "row 1: the assistant's message has no content"),
        ({"messages": [{"from": "gpt", "value": "w5"}]}, "row 1: a message must have a role and a content"),
        ({"prompt": "w5", "completion": " "}, "row 1: the completion is empty"),
        ({"prompt": "w5", "answer": "w6"}, "no column 'messages', and no columns 'prompt' and 'completion', only"),
        ({"prompt": "w5", "completion": [{"role": "assistant", "content": "w6"}]}, "'prompt' must be a list"),
    ],
)
def test_bad_rows(tmp_path, row, message):
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps(row))
    with pytest.raises(ValueError, match=message):
        load_chats(str(file))


def test_bad_templates():
    with pytest.raises(
        ValueError, match=r"The chat template marks nothing that the assistant writes, in row 1: .*marks"
    ):
        encode({"messages": TALK}, MARKED.replace("== 'assistant'", "== 'bot'"))
    with pytest.raises(ValueError, match=r"Row 1: the tokenizer has no chat template: set tokenizer.chat_template"):
        encode({"messages": TALK}, None)
    with pytest.raises(ValueError, match="Row 1: the chat begins with the assistant"):
        encode({"messages": [{"role": "assistant", "content": "w5"}]})


def test_load(tmp_path):
    file = tmp_path / "chats.jsonl"
    rows = [
        {"messages": TALK, "id": 1},
        {"messages": [{"role": "user", "content": "w5", "name": "w6"}, TALK[1]], "id": 2},
    ]
    file.write_text("\n".join(map(json.dumps, rows)))
    loaded = load_chats(str(file))
    assert loaded.column_names == ["messages"]
    assert encode_chats(loaded, make_tokenizer(), 30)["labels"][0] == LABELS  # fields that Arrow fills are not written


@settings(max_examples=25, deadline=None)
@given(st.lists(st.integers(1, 12), min_size=1, max_size=30))
def test_packing_keeps_chats_whole(lengths):
    rows = Dataset.from_list(
        [
            {"input_ids": [number + 1] * own, "labels": [-100, *[number + 1] * (own - 1)], "length": own}
            for number, own in enumerate(lengths)
        ]
    )
    packed = pack_chats(rows, 12)
    found = {}
    for row in packed:
        assert len(row["input_ids"]) == len(row["labels"]) == len(row["attention_mask"]) <= 12
        for number in set(row["attention_mask"]):
            of_chat = [place for place, own in enumerate(row["attention_mask"]) if own == number]
            (chat_number,) = {row["input_ids"][place] for place in of_chat}
            assert chat_number not in found
            found[chat_number] = [row["labels"][place] for place in of_chat]
    assert found == {number + 1: [-100, *[number + 1] * (own - 1)] for number, own in enumerate(lengths)}
    assert sum(lengths) > 12 * (len(packed) - 1) / 2  # two half-empty rows would be one


def test_too_long_for_a_row():
    with pytest.raises(ValueError, match="A chat has 18 tokens, more than block_size=10"):
        pack_chats(encode_chats(Dataset.from_list([{"messages": TALK}]), make_tokenizer(), 30), 10)


@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_collator_keeps_labels(padding_side):
    tokenizer = make_tokenizer()
    tokenizer.padding_side = padding_side
    rows = encode_chats(Dataset.from_list([{"messages": TALK}, {"messages": chat("w5", "w6")}]), tokenizer, 30)
    batch = DataCollatorForCausalLM(tokenizer)(
        [
            {"input_ids": own["input_ids"], "labels": own["labels"], "attention_mask": own["attention_mask"]}
            for own in rows
        ]
    )
    padding, short = [-100] * 10, [*[-100] * 6, 6, SEP]
    assert batch["labels"][0].tolist() == LABELS
    assert batch["labels"][1].tolist() == (padding + short if padding_side == "left" else short + padding)


def test_packed_chats_are_apart():
    """A packed chat has the loss that it has alone."""
    model = make_model("llama", "causal", num_layers=2).eval()
    tokenizer = make_tokenizer()
    chats = Dataset.from_list([{"messages": TALK}, {"messages": chat("w5", "w6")}, {"messages": chat("w7 w8", "w9")}])
    rows = encode_chats(chats, tokenizer, 38)
    packed = pack_chats(rows, 38)
    collate = DataCollatorForCausalLM(tokenizer, attention=SeparateDocuments(model))

    def loss_sum(batch):
        with torch.no_grad():
            logits = model(**{name: own for name, own in batch.items() if name != "labels"}).logits[:, :-1]
        return torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), batch["labels"][:, 1:].flatten(), reduction="sum"
        )

    alone = sum(loss_sum(collate([{k: own[k] for k in ("input_ids", "attention_mask", "labels")}])) for own in rows)
    together = sum(loss_sum(collate([row])) for row in packed)
    assert len(packed) < len(rows)
    assert together.item() == pytest.approx(alone.item(), rel=1e-5)
