"""Effects of imports, and the content of the installed package."""

import ast
import doctest
import re
import subprocess
import sys
from configparser import ConfigParser
from graphlib import TopologicalSorter
from importlib.metadata import entry_points
from pathlib import Path

import datasets
import transformers

import hf_distill
from hf_distill.student import layer_selection
from hf_distill.training.losses import attention, embeddings, hidden_states, logits, ranking, task
from hf_distill.training.losses.divergences import log_probabilities, standardization
from hf_distill.training.losses.divergences import logits as divergences_of_logits
from hf_distill.training.scoring.heads import Head
from hf_distill.training.teacher import means
from tests.conftest import make_model
from tests.training.teacher.test_live import make_tokenizer

ROOT = Path(__file__).parents[1]


def test_public_names():
    assert set(hf_distill.__all__) == {
        "Benchmark",
        "Compressed",
        "compress",
        "EmbeddingModel",
        "EmbeddingArguments",
        "load_texts_to_embed",
        "fit_dense",
        "reduce_width",
        "write_anchors",
        "Loss",
        "Needs",
        "Stage",
        "make_stages",
        "suggest_weights",
        "summarization_metrics",
        "answer_metrics",
        "benchmark_models",
        "check_split_invariance",
        "write_report",
        "DataCollatorForCausalLM",
        "DataCollatorForMaskedLM",
        "DataCollatorForRankings",
        "DistillationTrainer",
        "DistillationTrainingArguments",
        "Export",
        "Predictor",
        "Progress",
        "SeparateDocuments",
        "TASKS",
        "CausalLMArguments",
        "FillMaskArguments",
        "Task",
        "TextClassificationArguments",
        "TokenClassificationArguments",
        "ImageClassificationArguments",
        "SpeechRecognitionArguments",
        "SummarizationArguments",
        "TrainingRun",
        "TranslationArguments",
        "Axis",
        "TrimmedVocabulary",
        "find_axes",
        "__version__",
        "add_teacher_targets",
        "add_teacher_texts",
        "add_teacher_transcripts",
        "classify_texts",
        "evaluate_model",
        "export_model",
        "train_model",
        "classification_metrics",
        "collate_speech",
        "convert_gguf",
        "count_tokens",
        "describe",
        "draft_metrics",
        "encode_chats",
        "encode_images",
        "encode_sounds",
        "load_labelled_sounds",
        "load_unlabelled_sounds",
        "AudioClassificationArguments",
        "encode_text_pairs",
        "encode_texts",
        "encode_transcripts",
        "glue_metric",
        "import_teacher_targets",
        "join_teacher_targets",
        "load_chats",
        "load_corpus",
        "load_labelled_images",
        "load_labelled_texts",
        "QuestionAnsweringArguments",
        "RerankingArguments",
        "TextPairClassificationArguments",
        "ranking_metrics",
        "agreement_metrics",
        "retrieval_metrics",
        "retrieval_of_rankings",
        "similarity_metrics",
        "load_unlabelled_questions",
        "load_unlabelled_rankings",
        "load_questions",
        "load_rankings",
        "load_tagged_words",
        "load_untagged_words",
        "encode_questions",
        "encode_rankings",
        "encode_tagged_words",
        "tagging_metrics",
        "load_unlabelled_pairs",
        "load_labelled_pairs",
        "encode_pairs",
        "load_predictor",
        "load_text_pairs",
        "load_transcribed_sounds",
        "load_unlabelled_images",
        "load_unlabelled_texts",
        "make_student",
        "model_identity",
        "pack_chats",
        "pack_documents",
        "parse_config",
        "plot_calibration",
        "plot_quality_against_latency",
        "plot_training_curves",
        "product_seconds",
        "push_folder",
        "quiet_libraries",
        "show_completions",
        "show_progress",
        "track",
        "transcription_metrics",
        "translation_metrics",
        "trim_vocabulary",
        "truncate_documents",
    }
    assert all(hasattr(hf_distill, name) for name in hf_distill.__all__)


def test_importing_changes_nothing():
    code = """
import logging, random, os, sys
import numpy, torch, transformers
before = (
    logging.getLogger().level, transformers.logging.get_verbosity(), logging.getLogger("hf_distill").level,
    random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
    torch.is_grad_enabled(), torch.get_default_dtype(), dict(os.environ),
)
import hf_distill
for name in hf_distill.__all__:
    getattr(hf_distill, name)
after = (
    logging.getLogger().level, transformers.logging.get_verbosity(), logging.getLogger("hf_distill").level,
    random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist(),
    torch.is_grad_enabled(), torch.get_default_dtype(), dict(os.environ),
)
assert before == after
optional = {"matplotlib", "sklearn", "onnxruntime", "fastapi", "recipes"}
assert not optional & set(sys.modules), "an optional package was imported"
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr


def test_loading_an_export_imports_no_torch():
    """Nor transformers, whose import takes longer than loading the model. The same holds for a service."""
    code = """
import sys
from hf_distill import Predictor, load_predictor
import hf_distill.serving.server, hf_distill.serving.worker
assert not {"torch", "transformers", "datasets", "onnx"} & set(sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert run.returncode == 0, run.stderr


FLOORS = (
    ("version", "answers", "words", "optional"),
    ("fingerprints",),
    ("images", "sounds", "files", "adapters", "copies", "lengths", "loading", "config_files", "overflow"),
    ("machine", "progress", "quiet"),
    ("data", "hub"),
    ("embedding",),
    ("student",),
    ("training", "deployment"),
    ("evaluation", "serving"),
    ("tasks",),
    ("compression",),
    ("cli",),
)
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
"""Order of the packages: imports go only to packages further down."""


def imports_of(file: Path) -> set[str]:
    """The imports of a file, at its top or in functions: modules, and the names imported from them."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file} has a relative import"
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
    return found


def import_graph() -> dict[str, set[str]]:
    """For each module of hf_distill, the modules of hf_distill that it imports."""
    files = {
        ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): file
        for file in (ROOT / "hf_distill").rglob("*.py")
    }
    return {module: imports_of(file) & files.keys() - {module} for module, file in files.items()}


def test_rooms_import_downwards():
    """No import goes up. Since every import goes down, none goes up through a third file either."""
    edges = {(module, imported) for module, others in import_graph().items() for imported in others}
    rooms = [(importer.split(".")[1:2], imported.split(".")[1:2]) for importer, imported in edges]
    between = [(importer, imported) for importer, imported in rooms if importer and imported and importer != imported]
    upwards = [(a, b) for (a,), (b,) in between if FLOOR[a] <= FLOOR[b]]
    assert upwards == []
    assert len(between) >= 80
    assert {room for edge in between for (room,) in edge} == FLOOR.keys()


def test_no_module_imports_itself_through_others():
    """The same holds for the folders and files of `training`."""
    graph = import_graph()
    TopologicalSorter({module: others - {"hf_distill"} for module, others in graph.items()}).prepare()

    def part(module: str) -> str:
        return ".".join(module.split(".")[:3])

    parts = {}
    for module, others in graph.items():
        if module.startswith("hf_distill.training.") and module.count(".") >= 2:
            inside = {part(other) for other in others if other.startswith("hf_distill.training.")}
            parts.setdefault(part(module), set()).update(inside - {part(module)})
    TopologicalSorter(parts).prepare()
    assert sum(map(len, parts.values())) > 20


def subclasses_of(cls: type) -> set[type]:
    return {kind for direct in cls.__subclasses__() for kind in {direct, *subclasses_of(direct)}}


def test_heads_answer_for_themselves():
    """No file outside `training/scoring` names a kind of head, so a new head needs no changes elsewhere."""
    kinds = {cls.__name__ for cls in subclasses_of(Head) if cls.__module__.startswith("hf_distill.")}
    assert len(kinds) >= 9
    naming = {}
    for file in (ROOT / "hf_distill").rglob("*.py"):
        nodes = list(ast.walk(ast.parse(file.read_text())))
        names = {node.id for node in nodes if isinstance(node, ast.Name)}
        names |= {node.attr for node in nodes if isinstance(node, ast.Attribute)}
        names |= {name.split(".")[-1] for name in imports_of(file)}
        naming[file.relative_to(ROOT / "hf_distill")] = kinds & names
    scoring = {file for file in naming if file.parts[:2] == ("training", "scoring")}
    assert set().union(*(naming[file] for file in scoring)) == kinds
    assert {file: names for file, names in naming.items() if names and file not in scoring} == {}


def test_files_stay_small():
    files = list((ROOT / "hf_distill").rglob("*.py"))
    assert len(files) > 100
    assert {file.name: lines for file in files if (lines := len(file.read_text().splitlines())) > 400} == {}
    entries = [path for path in (ROOT / "hf_distill" / "training").iterdir() if path.name != "__pycache__"]
    assert len(entries) <= 12


def test_a_recipe_imports_only_what_the_package_exports():
    files = list((ROOT / "recipes").rglob("*.py"))
    assert len(files) > 20
    inside = {(file.name, name) for file in files for name in imports_of(file) if name.startswith("hf_distill.")}
    assert {
        (file, name) for file, name in inside if name.removeprefix("hf_distill.") not in hf_distill.__all__
    } == set()


def test_console_script():
    (script,) = entry_points(group="console_scripts", name="hf-distill")
    assert script.value == "hf_distill.cli:main"


def test_every_requirement_has_a_known_good_version():
    config = ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = {_plain(line.split("==")[0]) for line in lines if "==" in line}
    required = config["options"]["install_requires"].split()
    for extra in config["options.extras_require"].values():
        required += [line for line in extra.split() if not line.startswith("%")]
    names = {_plain(re.split("[>!]", requirement)[0]) for requirement in required}
    assert len(names) >= 9
    assert names <= pinned


def _plain(name: str) -> str:
    return name.lower().replace("_", "-")


def test_example_in_the_readme(tmp_path, monkeypatch):
    """The example runs unchanged, with tiny local models in place of those from the Hub."""
    monkeypatch.chdir(tmp_path)
    rows = [{"text": "a b c" if i % 2 else "c c", "label": i % 2} for i in range(16)]
    imdb = datasets.DatasetDict(dict.fromkeys(("train", "test"), datasets.Dataset.from_list(rows)))
    tokenizer = make_tokenizer(["a", "b", "c"])
    tokenizer.pad_token = "a"
    teacher = make_model("bert", "classification")
    pushed = []
    monkeypatch.setattr(datasets, "load_dataset", lambda name: imdb)
    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", lambda name: tokenizer)
    monkeypatch.setattr(transformers.AutoModelForSequenceClassification, "from_pretrained", lambda name: teacher)
    monkeypatch.setattr(hf_distill.DistillationTrainer, "push_to_hub", lambda trainer: pushed.append(trainer))

    (example,) = re.findall(r"```python\n(from datasets.*?)```", (ROOT / "README.md").read_text(), flags=re.DOTALL)
    names = {}
    exec(example, names)
    trainer = names["trainer"]
    assert pushed == [trainer]
    assert trainer.state.global_step == 6  # 16 rows in batches of 8, three times
    assert trainer.model.config.num_hidden_layers == 2


def test_version_is_in_the_changelog():
    assert f"## {hf_distill.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_examples_in_docstrings():
    """Those that need nothing from the Hub."""
    losses = [hidden_states, attention, embeddings, logits, ranking, task]
    divergences = [log_probabilities, divergences_of_logits, standardization]
    modules = [*losses, *divergences, means, layer_selection]
    results = [doctest.testmod(module) for module in modules]
    assert [result.failed for result in results] == [0] * len(modules)
    assert min(result.attempted for result in results) > 0
