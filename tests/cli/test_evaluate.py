"""`hf-distill evaluate`"""

from hf_distill.cli import main


def test_evaluate_says_what_is_wrong(reviews, capsys):
    assert main(["evaluate", "pretrained", "--data", "test.csv"]) == 2
    assert "pretrained has no head of a task" in capsys.readouterr().err.splitlines()[-1]
