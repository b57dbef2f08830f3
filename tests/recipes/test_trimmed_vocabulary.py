"""The benchmark of trimmed vocabularies, on a tiny model and generated texts."""

import json

import pytest

from recipes.benchmarks import trimmed_vocabulary
from recipes.benchmarks.trimmed_vocabulary import ANY_SCRIPT, MAX_LENGTH
from tests.student.tiny_models import tiny_model
from tests.student.vocabulary.tiny_tokenizers import bert, corpus


def test_trimmed_vocabulary(tmp_path, capsys):
    tokenizer = bert()
    tiny_model("bert", vocab_size=len(tokenizer), max_position_embeddings=600).save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    measured = trimmed_vocabulary.run(
        tmp_path / "model",
        corpus(),
        tmp_path / "figures.json",
        num_texts=40,
        num_logit_texts=30,
        num_tokens=500,
        keep=330,
    )
    assert json.loads((tmp_path / "figures.json").read_text())["measured"] == measured
    assert [name.split(",")[0] for name in measured] == [
        kind for kind in ("WordPiece (MiniLM)", "byte-level BPE", "Unigram") for _ in range(2)
    ]
    printed = capsys.readouterr().out
    for name, figures in measured.items():
        kept = 330 if "330" in name else figures["tokens"][1]
        assert figures["tokens"][1] == kept < figures["tokens"][0]
        assert figures["parameters"][1] < figures["parameters"][0]
        assert figures["identical tokens"] == figures["all tokens stay"]
        assert figures["largest difference"] < 1e-6
        assert figures["failures in any script"] == []
        assert f"{figures['tokens'][0]:,} → {kept:,} |" in printed
        if kept != 330:
            assert (figures["coverage"], figures["all tokens stay"], figures["compared logits"]) == (1, 40, 30)
    assert "| xlm-roberta-base | 250,002 | 30,000 | 278.0 | 109.1 | 39% | 436 |" in printed
    assert "| bert-base-uncased | 30,522 | 8,000 | 109.5 | 92.2 | 84% | 369 |" in printed


def test_a_failure_is_counted():
    class Failing:
        def tokenizer(self, texts, **options):
            raise KeyError(texts[1])

    assert trimmed_vocabulary.failures(Failing()) == [f"{name}: KeyError" for name in ANY_SCRIPT]


@pytest.mark.parametrize("text", ANY_SCRIPT.values())
def test_texts_fit(text):
    assert len(text) < MAX_LENGTH
