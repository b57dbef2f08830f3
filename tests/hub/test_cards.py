"""Cards on disk: who wrote them, and their section for results."""

import pytest
from huggingface_hub import EvalResult, ModelCard, ModelCardData

from hf_distill.hub.cards import RESULTS_BEGIN, RESULTS_END, make_card, may_replace, put_results, write_card

RESULT = EvalResult("text-classification", "stanfordnlp/imdb", "imdb", "accuracy", 0.9)
TEXT = f"# student\n\n{RESULTS_BEGIN}\n\nold\n\n{RESULTS_END}\n\n## Versions\n"


@pytest.fixture
def readme(tmp_path):
    write_card(make_card(ModelCardData(license="mit", tags=["a"]), TEXT), tmp_path / "README.md")
    return tmp_path / "README.md"


def test_own_card_may_be_replaced_until_it_is_edited(readme, tmp_path):
    assert may_replace(readme)
    assert may_replace(tmp_path / "none.md")
    readme.write_text(readme.read_text().replace("# student", "# my student"))
    assert not may_replace(readme)
    (tmp_path / "other.md").write_bytes(b"# By hand \xff\n")
    assert not may_replace(tmp_path / "other.md")


def test_written_again_it_is_the_same(readme):
    content = readme.read_text()
    write_card(ModelCard.load(readme), readme)
    assert readme.read_text() == content
    assert content.count("Written by hf_distill") == 1
    assert [path.name for path in readme.parent.iterdir()] == ["README.md"]


def test_put_results(readme):
    put_results(readme, "\n| new |\n", [RESULT])
    card = ModelCard.load(readme)
    assert card.data.eval_results == [RESULT]
    assert card.data.model_name == "student"
    assert card.data.license == "mit"
    assert f"{RESULTS_BEGIN}\n\n| new |\n\n{RESULTS_END}" in card.text
    assert "old" not in card.text
    assert "## Versions" in card.text
    assert may_replace(readme)
    put_results(readme, "| newer |")  # the metadata stays
    assert ModelCard.load(readme).data.eval_results == [RESULT]
    assert "| new |" not in readme.read_text()


def test_put_results_into_an_edited_card(readme):
    readme.write_text(readme.read_text().replace("tags:", "tags:  # mine").replace("# student", "# my student"))
    edited = readme.read_text()
    put_results(readme, "| new |")
    assert readme.read_text() == edited.replace("old", "| new |")
    assert not may_replace(readme)


def test_no_place_for_results(tmp_path):
    with pytest.raises(ValueError, match=r"README.md does not exist: trainer.save_model\(\) writes a card"):
        put_results(tmp_path / "README.md", "| new |")
    (tmp_path / "README.md").write_text("# By hand\n")
    with pytest.raises(ValueError, match=f"no section for results: add the lines {RESULTS_BEGIN} and {RESULTS_END}"):
        put_results(tmp_path / "README.md", "| new |")
    assert (tmp_path / "README.md").read_text() == "# By hand\n"
