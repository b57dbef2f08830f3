"""`hf-distill evaluate`"""

from hf_distill.cli import main


def test_evaluate_says_what_is_wrong(reviews, capsys):
    assert main(["evaluate", "pretrained", "--data", "test.csv", "--task", "text-classification"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert "pretrained is a model for fill-mask, not for text-classification: set task=fill-mask" in line
