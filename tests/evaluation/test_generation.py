"""ROUGE, BLEU and chrF have the values of transformers' example scripts, and of their definitions."""

import random

import numpy as np
import pytest
from nltk.tokenize import PunktSentenceTokenizer
from rouge_score import rouge_scorer, scoring

from hf_distill import summarization_metrics, translation_metrics

WORDS = ["the", "cat", "dog", "sat", "ran", "on", "under", "mat", "table", "old", "running", "jumped", "quickly"]


def texts(seed, count=40):
    draw = random.Random(seed)

    def sentence():
        return " ".join(draw.choices(WORDS, k=draw.randint(3, 9))).capitalize() + draw.choice(".!?")

    return [" ".join(sentence() for _ in range(draw.randint(1, 4))) for _ in range(count)]


PREDICTIONS, REFERENCES = texts(1), texts(2)


def script_rouge(predictions, references, sentences):
    """What `evaluate.load("rouge")` computes in `run_summarization.py`: its texts have a line for each sentence."""
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL", "rougeLsum"], use_stemmer=True)
    aggregator = scoring.BootstrapAggregator()
    for prediction, reference in zip(predictions, references, strict=True):
        lines = ["\n".join(sentences(text.strip())) for text in (reference, prediction)]
        aggregator.add_scores(scorer.score(*lines))
    return {name: 100 * score.mid.fmeasure for name, score in aggregator.aggregate().items()}


def test_rouge_as_in_the_example_script():
    np.random.seed(0)
    expected = script_rouge(PREDICTIONS, REFERENCES, PunktSentenceTokenizer().tokenize)
    measured = summarization_metrics(PREDICTIONS, REFERENCES)
    assert measured.keys() == {*expected, "words"}
    for name, score in expected.items():
        assert measured[name] == pytest.approx(score, abs=0.5)  # the script resamples the texts


def test_rouge_by_its_definition():
    """ROUGE-1 counts common words, ROUGE-L the longest common subsequence, ROUGE-Lsum the union over sentences."""
    measured = summarization_metrics(["cats ran. dogs sat."], ["dogs sat. cats ran."])
    assert measured["rouge1"] == pytest.approx(100)
    assert measured["rouge2"] == pytest.approx(100 * 2 / 3)  # of "cats ran", "ran dogs", "dogs sat"
    assert measured["rougeL"] == pytest.approx(50)
    assert measured["rougeLsum"] == pytest.approx(100)
    assert measured["words"] == 4


def test_sentences_of_rouge_lsum():
    """Line breaks come first, then Punkt, or a function of the caller."""
    reference = "a d b c"
    assert summarization_metrics(["b c\na d"], [reference])["rougeLsum"] == pytest.approx(100)
    assert summarization_metrics(["b c a d"], [reference])["rougeLsum"] == pytest.approx(50)

    def halves(text):
        return [text[:3], text[4:]]

    assert summarization_metrics(["b c a d"], [reference], sentences=halves)["rougeLsum"] == pytest.approx(100)


def test_bleu_and_chrf_as_in_the_example_script():
    import sacrebleu

    measured = translation_metrics(PREDICTIONS, REFERENCES)
    assert measured["bleu"] == pytest.approx(sacrebleu.corpus_bleu(PREDICTIONS, [REFERENCES]).score)
    assert measured["chrf"] == pytest.approx(sacrebleu.corpus_chrf(PREDICTIONS, [REFERENCES]).score)
    assert 0 < measured["bleu"] < 20


def test_bleu_by_its_definition():
    """The geometric mean of the precisions of 1 to 4 words, times the brevity penalty."""
    prediction, reference = "a b c d e f", "a b c d e x y"
    precisions = [5 / 6, 4 / 5, 3 / 4, 2 / 3]
    expected = 100 * np.exp(1 - 7 / 6) * np.prod(precisions) ** 0.25
    assert translation_metrics([prediction], [reference])["bleu"] == pytest.approx(expected)


def test_other_scripts():
    assert translation_metrics(["猫坐在垫子上"], ["猫坐在垫子上"], tokenize="zh")["bleu"] == pytest.approx(100)
    assert translation_metrics(["кот сидит"], ["кот сидит"])["chrf"] == pytest.approx(100)


@pytest.mark.parametrize("measure", [summarization_metrics, translation_metrics])
def test_fidelity(measure):
    teacher = [*PREDICTIONS[:10], *REFERENCES[10:]]
    both = measure(PREDICTIONS, REFERENCES, teacher)
    assert both["same_as_teacher"] == 0.25
    assert measure(PREDICTIONS, teacher_predictions=teacher) == {
        name: score for name, score in both.items() if "teacher" in name or name == "words"
    }
    name = "rougeL" if measure is summarization_metrics else "bleu"
    assert both[f"{name}_to_teacher"] == pytest.approx(measure(PREDICTIONS, teacher)[name])
    assert measure(PREDICTIONS, PREDICTIONS)[name] == pytest.approx(100)
    assert measure([""] * 3, REFERENCES[:3])[name] == 0  # a model that generates nothing


@pytest.mark.parametrize("measure", [summarization_metrics, translation_metrics])
def test_errors(measure):
    with pytest.raises(ValueError, match="There are no predictions"):
        measure([])
    with pytest.raises(ValueError, match="There are 2 predictions, but 1 references: give one for each"):
        measure(["a", "b"], ["a"])
    with pytest.raises(ValueError, match="There are 1 predictions, but 2 teacher_predictions"):
        measure(["a"], teacher_predictions=["a", "b"])
