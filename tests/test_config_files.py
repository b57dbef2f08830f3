"""Config files and the command line form one set of options. Unknown options are errors."""

from dataclasses import dataclass
from typing import Literal

import pytest

from hf_distill import DistillationTrainingArguments, parse_config


@dataclass
class Recipe:
    corpus: str
    block_size: int = 512
    streaming: bool = False
    test_file: str | None = "test.csv"
    max_length: int | None = 8
    layers: list[str] | None = None
    part: Literal["head", "tail"] | None = "head"


TYPES = [Recipe, DistillationTrainingArguments]


def write(folder, name, text):
    (folder / name).write_text(text)
    return str(folder / name)


def test_the_later_wins(tmp_path):
    base = write(tmp_path, "a.yaml", "corpus: web\nlearning_rate: 5.0e-4\noutput_dir: out\nseed: 1\nstreaming: true\n")
    smoke = write(tmp_path, "b.yaml", "corpus: tiny\nseed: 2\naccelerator_config: {non_blocking: true}\n")
    recipe, training = parse_config(TYPES, ["--config", base, smoke, "--seed", "3", "--alpha-cos", "0"])
    assert recipe == Recipe(corpus="tiny", block_size=512, streaming=True)
    assert (training.learning_rate, training.seed, training.alpha_cos, training.alpha_kl) == (5e-4, 3, 0.0, 5.0)
    assert training.accelerator_config.non_blocking is True
    (recipe, _) = parse_config(TYPES, ["--config", base, "--streaming", "false"])
    assert recipe.streaming is False


@pytest.mark.parametrize("spelling", ["--test_file null", "--test-file null", "--test_file=null"])
def test_null_on_the_command_line(tmp_path, spelling):
    """`null` means None, as in YAML, if an option is optional."""
    base = write(
        tmp_path, "a.yaml", "corpus: web\ntest_file: held_out.csv\nmax_length: 4\nlayers: [last]\npart: tail\n"
    )
    words = ["--config", base, *spelling.split(), "--max_length", "null", "--layers", "null", "--part", "null"]
    recipe, _ = parse_config(TYPES, words)
    assert (recipe.test_file, recipe.max_length, recipe.layers, recipe.part) == (None, None, None, None)
    recipe, _ = parse_config(TYPES, ["--test_file", "null", "--test_file", "a.csv", "--corpus", "null"])
    assert (recipe.test_file, recipe.corpus) == ("a.csv", "null")


def test_null_where_something_is_needed(capsys):
    with pytest.raises(SystemExit):
        parse_config(TYPES, ["--corpus", "web", "--block_size", "null"])
    assert "invalid int value: 'null'" in capsys.readouterr().err


def test_command_line_alone():
    recipe, training = parse_config(TYPES, ["--corpus", "web", "--output_dir", "out"])
    assert (recipe.corpus, training.output_dir) == ("web", "out")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("corpus: web\nlerning_rate: 1.0\n", "unknown options: lerning_rate"),
        ("corpus: web\nlearning_rate: 1e-4\n", "learning_rate is the text '1e-4', not a number"),
        ("- corpus\n", "must map option names to values"),
        ("", "must map option names to values"),
        ("corpus: [\n", "is not valid YAML"),
    ],
)
def test_bad_files(tmp_path, text, message):
    with pytest.raises(ValueError, match=message):
        parse_config(TYPES, ["--config", write(tmp_path, "config.yaml", text)])


def test_sections(tmp_path):
    """A section overrides the rest of its file, and a later file overrides both."""
    base = write(tmp_path, "a.yaml", "corpus: web\nseed: 1\nteacher: {seed: 2}\nstudent: {seed: 3, block_size: 8}\n")
    smoke = write(tmp_path, "b.yaml", "max_steps: 4\noutput_dir: out\nteacher: {seed: 5}\n")
    names = ["teacher", "student"]

    def parse(*words, section):
        recipe, training = parse_config(TYPES, ["--config", *words], sections=names, section=section)
        return training.seed, training.max_steps, recipe.block_size

    assert parse(base, smoke, section="student") == (3, 4, 8)
    assert parse(base, smoke, section="teacher") == (5, 4, 512)
    assert parse(base, smoke, section=None) == (1, 4, 512)
    assert parse(smoke, base, section="teacher") == (2, 4, 512)
    assert parse(base, smoke, "--seed", "6", section="teacher") == (6, 4, 512)
    with pytest.raises(ValueError, match="unknown options: student, teacher"):
        parse_config(TYPES, ["--config", base])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("student: {lerning_rate: 1.0}", "unknown options: lerning_rate"),
        ("teacher: {learning_rate: 1e-4}", "learning_rate is the text '1e-4'"),
        ("student:", "has the section None: a section must map option names to values"),
    ],
)
def test_bad_sections(tmp_path, text, message):
    """Unknown options are errors also in sections that are not read."""
    words = ["--config", write(tmp_path, "config.yaml", text), "--corpus", "web"]
    with pytest.raises(ValueError, match=message):
        parse_config(TYPES, words, sections=["teacher", "student"], section="student")


def test_missing_file(tmp_path):
    with pytest.raises(ValueError, match="Config file not found"):
        parse_config(TYPES, ["--config", str(tmp_path / "none.yaml")])


def test_unknown_option_on_the_command_line(capsys):
    with pytest.raises(SystemExit):
        parse_config(TYPES, ["--corpus", "web", "--lerning_rate", "1"])
    said = capsys.readouterr().err
    assert "--lerning_rate" in said
    assert "Did you mean --learning_rate?" in said
    assert len(said.splitlines()) == 1  # not the list of all options


def test_required_option():
    with pytest.raises(ValueError, match="Missing options: corpus"):
        parse_config(TYPES, ["--output_dir", "out"])


def test_help(capsys):
    with pytest.raises(SystemExit):
        parse_config(TYPES, ["--help"], description="Trains a student.")
    printed = capsys.readouterr().out
    assert all(text in printed for text in ("Trains a student.", "--temperature", "--config"))
