"""Token classification per word: long texts in windows, by the predictor and in the service."""

import numpy as np
import pytest
import torch

from hf_distill import load_predictor
from hf_distill.deployment.heads import PREDICTION_HEADS, OutputReader
from hf_distill.deployment.predictor import predictor_of
from hf_distill.lengths import READING
from hf_distill.serving.model_info import model_info
from hf_distill.serving.worker import answer
from tests.conftest import make_text_tokenizer, make_texts
from tests.deployment.conftest import tiny_student

HEAD = "token classification"
LABELS = {0: "O", 1: "B-PER", 2: "I-PER", 3: "B-LOC", 4: "I-LOC"}


def tagger(**reading):
    """A model that reads windows of 12 tokens, two of which are special."""
    student = tiny_student("bert", HEAD, id2label=LABELS, label2id={name: number for number, name in LABELS.items()})
    with torch.no_grad():
        student.classifier.weight.mul_(8)
    setattr(student.config, READING, {"words": "spaces", "stride": 4, **reading})
    tokenizer = make_text_tokenizer()
    tokenizer.model_max_length = 12
    return student, tokenizer


def words_of(text):
    starts = np.cumsum([0, *(len(word) + 1 for word in text.split())])[:-1]
    return [(int(start), int(start) + len(word)) for start, word in zip(starts, text.split(), strict=True)]


def by_hand(student, tokenizer, text, size=10, shared=4):
    """Label and probability of each word, one token each, from windows that are cut and run one by one."""
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    start, best = 0, {}
    while True:
        inside = ids[start : start + size]
        row = [1, *inside, 2]
        with torch.no_grad():
            probabilities = student(torch.tensor([row])).logits[0].double().softmax(-1)[1:-1]
        for place in range(len(inside)):
            context = min(place, len(inside) - 1 - place)
            if context > best.get(start + place, (-1,))[0]:
                best[start + place] = context, int(probabilities[place].argmax()), float(probabilities[place].max())
        if start + size >= len(ids):
            return [best[word][1:] for word in range(len(ids))]
        start += size - shared


def test_long_texts():
    student, tokenizer = tagger()
    specials = tokenizer("w5")["input_ids"]
    assert (specials[0], specials[-1]) == (1, 2)
    for text in [*make_texts(6, 1, 10), *make_texts(6, 2, 60)]:
        expected = by_hand(student, tokenizer, text)
        words, entities = words_of(text), []
        for (label, score), (start, end) in zip(expected, words, strict=True):
            name = LABELS[label]
            joins = (
                entities and name[0] == "I" and entities[-1]["label"] == name[2:] and entities[-1]["end"] == start - 1
            )
            if joins:
                entities[-1]["end"] = end
                entities[-1]["score"].append(score)
            elif name != "O":
                entities.append({"label": name[2:], "score": [score], "start": start, "end": end})
        found = predictor_of(student, tokenizer, "tagger").predict([text])[0]
        assert found == [
            {**own, "score": pytest.approx(np.mean(own["score"]), abs=1e-6), "text": text[own["start"] : own["end"]]}
            for own in entities
        ]
        assert len(found) > 0 or len(words) < 5


def test_the_service_reads_windows(tmp_path):
    student, tokenizer = tagger()
    student.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    predictor = load_predictor(tmp_path)
    texts = ["w5 w6", "w7 " * 40, *make_texts(1), " "]
    *answers, empty = answer(predictor, texts, 1)
    assert [own["entities"] for own in answers] == predictor.predict(texts[:-1])
    assert [own["truncated"] for own in answers] == [False] * 3
    assert answers[0]["tokens"] == 4
    assert answers[1]["tokens"] > 40
    assert empty["error"] == "is empty."
    assert model_info(predictor, str(tmp_path)).max_length > 10**6


def test_texts_are_counted_when_all_their_windows_are_done():
    student, tokenizer = tagger()
    predictor, counts = predictor_of(student, tokenizer, "tagger"), []
    encodings = predictor.encoder.encode(["w5", "w6 " * 200, "w7 " * 30])
    outputs = predictor.run(encodings, counts.append)
    assert sum(counts) == 3
    assert [len(own["logits"]) for own in outputs] == [len(own) for own in encodings]


def test_shorter_windows_share_less():
    predictor = predictor_of(*tagger(), "tagger")
    predictor.read_texts(8)
    (encoding,) = predictor.encoder.encode(["w5 " * 20])
    assert predictor.encoder.stride == 2
    assert [len(window) for window in encoding.windows] == [8, 8, 8, 8, 6]


def test_models_without_a_record_decide_per_token():
    student, tokenizer = tagger()
    delattr(student.config, READING)
    predictor = predictor_of(student, tokenizer, "tagger")
    (encoding,) = predictor.encoder.encode(["w5 " * 50])
    assert (len(encoding), bool(encoding.overflowing)) == (12, True)
    assert {"label", "score", "text", "start", "end"} == set(predictor.predict(["w5 w6 w7 w8"])[0][0])


def test_words_within_a_token_are_one_entity():
    """`...` is three words. A tokenizer with one token for it predicts one entity."""
    tokenizer = make_text_tokenizer().backend_tokenizer
    encoding = tokenizer.encode("... abc", add_special_tokens=False)
    assert encoding.offsets == [(0, 3), (4, 7)]
    outputs = {"logits": np.log(np.array([[0.1, 0.9], [0.6, 0.4]]))}
    reader = OutputReader(tokenizer, labels=["O", "B-X"], words="marks")
    (found,) = PREDICTION_HEADS[HEAD].predict(outputs, encoding, "... abc", reader, 1)
    assert found == {"label": "X", "score": pytest.approx(0.9), "text": "...", "start": 0, "end": 3}
