"""`hf-distill inspect`"""

import pytest

from hf_distill import describe
from hf_distill.cli import main
from tests.conftest import make_config, make_model


def test_inspect(teacher, tmp_path, capsys):
    """The command reads only the config."""
    (teacher / "model.safetensors").unlink()
    assert main(["inspect", str(teacher), "--no-latency"]) == 0
    shown = capsys.readouterr().out
    assert shown.strip() == describe(make_model("roberta", "mlm"))
    assert "0-3: RobertaLayer x 4" in shown


def test_latency(teacher, capsys):
    assert main(["inspect", str(teacher)]) == 0
    shown = capsys.readouterr().out
    assert "   ms   made by" in shown
    assert "in fp32 on one thread of this CPU" in " ".join(shown.split())


@pytest.mark.parametrize("architectures", [None, ["MyModel"]])
def test_inspect_a_class_that_is_not_there(tmp_path, capsys, architectures):
    make_config("bert", architectures=architectures).save_pretrained(tmp_path)
    assert main(["inspect", str(tmp_path)]) == 2
    assert "`architectures` in its config must name a class" in capsys.readouterr().err
