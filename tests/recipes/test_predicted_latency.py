import json

from transformers import BertConfig, BertModel

from recipes.benchmarks import predicted_latency


def test_predicted_latency(tmp_path, capsys):
    """Each student takes less time than the teacher, by both ways. (Of models so tiny, shapes alone decide little.)"""
    config = {"hidden_size": 64, "intermediate_size": 4096, "num_hidden_layers": 4, "num_attention_heads": 4}
    teacher = BertModel(BertConfig(vocab_size=61, **config))
    teacher.save_pretrained(tmp_path / "model")
    output = tmp_path / "latency.json"
    shares = predicted_latency.run(tmp_path / "model", output, rounds=3)
    printed = capsys.readouterr().out
    assert json.loads(output.read_text())["shares"] == shares
    assert len(shares) == 5
    assert all(f"| {name} |" in printed for name in shares)
    smallest = shares["both halves and 2 layers"]
    assert 0 < smallest["predicted"] < 0.6
    assert 0 < smallest["measured"] < 0.9
