"""The console script `hf-distill`."""

import argparse
import logging
import re
import sys
import tempfile
from pathlib import Path

from hf_distill.version import __version__

MAX_LENGTH = "default: as many as the model was trained with, or takes"


def main(arguments: list[str] | None = None) -> int:
    """Runs `hf-distill`. Errors in what the user gave are one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="hf-distill", description="Knowledge distillation for transformers.")
    parser.add_argument("--version", action="version", version=f"hf-distill {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    _add_inspect(commands)
    _add_make_student(commands)
    commands.add_parser("train", help="fine-tune or distil a text classifier, with options from YAML files")
    _add_evaluate(commands)
    _add_export(commands)
    _add_push(commands)
    _add_benchmark(commands)
    _add_report(commands)
    _add_serve(commands)
    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        if arguments[:1] == ["train"]:  # its options are those of dataclasses
            _train(arguments[1:])
        else:
            options = parser.parse_args(_with_dashes(arguments))
            options.run(options)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"hf-distill: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _with_dashes(words: list[str]) -> list[str]:
    """Options may have underscores too, as those of `train` have: `--text_column` is `--text-column`."""
    return [re.sub(r"^--[^=]+", lambda option: option.group().replace("_", "-"), word) for word in words]


def _add_inspect(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "inspect",
        help="show a model's modules, and the students that could be made of it",
        description="Show a model's modules with their parameters, its stacks of layers, and the students that could "
        "be made of it. Only the config is read, no weights.",
    )
    parser.add_argument("model", metavar="MODEL", help="a name on the Hub or a folder")
    parser.set_defaults(run=_inspect)


def _inspect(options: argparse.Namespace) -> None:
    import torch
    import transformers

    from hf_distill.student import describe

    config = transformers.AutoConfig.from_pretrained(options.model)
    with torch.device("meta"):
        model = _model_class(options.model, config)._from_config(config)
    print(describe(model))


def _add_make_student(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "make-student",
        help="cut a smaller model out of a teacher's layers",
        description="Cut a smaller model out of a teacher's layers, and save it with the teacher's tokenizer and a "
        "card that says where it is from. `hf-distill inspect` shows what there is to cut.",
    )
    parser.add_argument("teacher", metavar="TEACHER", help="a name on the Hub or a folder")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument(
        "--num-layers",
        metavar="N",
        nargs="+",
        help="how many layers to keep (default: half); by stack as encoder=6 decoder=2, and the others stay whole",
    )
    parser.add_argument(
        "--layers",
        metavar="WHICH",
        nargs="+",
        help="alternate (the default), spread, first, last or calibrated; or the indices to keep, such as 0 2 4; by "
        "stack as encoder=spread decoder=0,5",
    )
    parser.add_argument("--family", metavar="NAME", help="distilbert makes a DistilBERT of a BERT")
    parser.add_argument(
        "--calibration-file",
        metavar="FILE",
        type=Path,
        help="a text file with one example per line, for --layers calibrated; some hundred lines are enough",
    )
    parser.set_defaults(run=_make_student)


def _make_student(options: argparse.Namespace) -> None:
    import transformers

    from hf_distill.hub.cards import write_card
    from hf_distill.student import make_student
    from hf_distill.student.model_card import student_card

    if options.output.exists():
        raise ValueError(f"{options.output} exists already: choose another folder, or remove it first.")
    num_layers = _by_stack("--num-layers", options.num_layers, _number)
    layers = _by_stack("--layers", options.layers, _layers)

    is_folder = Path(options.teacher).is_dir()
    if is_folder and not list(Path(options.teacher).glob("*.safetensors")):
        raise ValueError(
            f"{options.teacher} has no weights in safetensors: give a folder that save_pretrained(...) wrote, or a "
            f"name on the Hub."
        )
    if transformers.utils.find_adapter_config_file(options.teacher) is not None:
        raise ValueError(
            f"{options.teacher} is a PEFT adapter, which does not say what head it belongs to: call make_student from "
            f"Python with the PeftModel, which it merges, or save the merged model first."
        )
    config = transformers.AutoConfig.from_pretrained(options.teacher)
    teacher = _model_class(options.teacher, config).from_pretrained(
        options.teacher, config=config, use_safetensors=True
    )
    inputs = {"model_input_names": ["input_ids", "attention_mask"]} if options.family == "distilbert" else {}
    processor = _processor(options.teacher, **inputs)
    batches = None
    if options.calibration_file is not None:
        batches = _batches(options.calibration_file, processor, teacher)
    student = make_student(
        teacher, num_layers=num_layers, layers=layers, family=options.family, calibration_data=batches
    )

    # Written beside its place and moved there at the end, so that a folder of that name is always whole.
    options.output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{options.output.name}-", dir=options.output.parent) as temporary:
        unfinished = Path(temporary) / options.output.name
        student.save_pretrained(unfinished)
        processor.save_pretrained(unfinished)
        write_card(student_card(student, None if is_folder else options.teacher), unfinished / "README.md")
        unfinished.rename(options.output)
    print(
        f"{options.output}: {type(student).__name__} with layers {student.config.distilled_from['layers']} of "
        f"{options.teacher}, {student.num_parameters():,} of {teacher.num_parameters():,} parameters"
    )


def _train(words: list[str]) -> None:
    from hf_distill.config_files import parse_config
    from hf_distill.tasks import TextClassificationArguments, train_text_classifier
    from hf_distill.training import DistillationTrainingArguments

    num_files = next((index for index, word in enumerate(words) if word.startswith("-")), len(words))
    files, options = words[:num_files], words[num_files:]
    task, training = parse_config(
        [TextClassificationArguments, DistillationTrainingArguments],
        [*(["--config", *files] if files else []), *options],
        description="Fine-tune a text classifier, or distil one from a teacher that was fine-tuned before, and save it "
        "to --output_dir. Files and command line have the same options, the later ones winning. With --push_to_hub it "
        "is pushed at the end. On several devices: accelerate launch -m hf_distill.cli train ...",
        usage="hf-distill train [CONFIG.yaml ...] [--key value ...]",
    )
    train_text_classifier(task, training)


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="say how good a text classifier is, and how near to its teacher",
        description="Say how good a text classifier is on labelled texts: accuracy, F1, Matthews correlation and "
        "calibration error; and, with its teacher, on how many texts both say the same, and how far apart they are.",
    )
    parser.add_argument("model", metavar="MODEL", help="a name on the Hub or a folder")
    _add_data(parser)
    parser.add_argument("--teacher", help="a name on the Hub or a folder")
    parser.add_argument("--max-length", metavar="TOKENS", type=int, help=MAX_LENGTH)
    parser.add_argument(
        "--truncation",
        choices=["head", "tail", "head_tail"],
        help="what is kept of longer texts (default: as the model was trained, or head)",
    )
    parser.add_argument("--batch-size", metavar="N", type=int, default=32, help="default: 32")
    parser.add_argument("--output", metavar="DIR", type=Path, help="a folder for evaluation.json and calibration.png")
    parser.set_defaults(run=_evaluate)


def _add_data(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data",
        required=True,
        help="CSV, JSON or Parquet, a folder with a folder of .txt files for each class, or a data set on the Hub",
    )
    parser.add_argument("--split", default="test", help="of a data set on the Hub (default: test)")
    parser.add_argument("--config-name", metavar="NAME", help="of a data set on the Hub")
    for name in ("text", "label"):
        help = f"default: the one that the model was trained on, or {name}"
        parser.add_argument(f"--{name}-column", metavar="NAME", help=help)


def _evaluate(options: argparse.Namespace) -> None:
    from hf_distill.tasks import evaluate_text_classifier

    given = {name: value for name, value in vars(options).items() if name not in ("command", "run")}
    for name, value in evaluate_text_classifier(**given).items():
        print(f"{name:<28}{value:,}" if isinstance(value, int) else f"{name:<28}{value:.4f}")


def _add_export(commands: argparse._SubParsersAction) -> None:
    from hf_distill.deployment.formats import export_formats

    parser = commands.add_parser(
        "export",
        help="write a student as ONNX or in int8, and prove it beside the student",
        description="Write a student as ONNX, which runs without PyTorch, or in int8, and prove it beside the student "
        "on real texts. Nothing is written that is not near enough.",
    )
    parser.add_argument("student", metavar="STUDENT", help="a name on the Hub or a folder")
    parser.add_argument(
        "--format",
        choices=export_formats(),
        default="onnx-int8",
        help="onnx in fp32; onnx-int8, the smallest and fastest on a CPU (the default); torch-int8 for transformers",
    )
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("--texts", metavar="FILE", type=Path, help="a text to try per line (default: prose)")
    parser.add_argument("--max-length", metavar="TOKENS", type=int, help=MAX_LENGTH)
    parser.add_argument(
        "--min-agreement",
        metavar="SHARE",
        type=float,
        default=0.95,
        help="of texts or tokens on which int8 has to decide as the student does (default: 0.95)",
    )
    parser.set_defaults(run=_export)


def _export(options: argparse.Namespace) -> None:
    from hf_distill.deployment import export_model

    export = export_model(
        options.student,
        options.output,
        options.format,
        texts=_lines(options.texts),
        max_length=options.max_length,
        min_agreement=options.min_agreement,
    )
    parity = export.parity
    print(
        f"{export.folder}: {export.num_bytes / 1e6:.1f} MB; beside the student on {parity.texts} texts, alone and in "
        f"batches: logits are off by {parity.largest_difference:.2g} at most (of {parity.largest_logit:.3g}), and "
        f"{parity.agreement:.1%} of {parity.decisions} decisions are the same"
    )


def _add_push(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "push",
        help="push a student or an export to the Hub",
        description="Push a student or an export to the Hub, in one commit: weights, configs, tokenizer, model card, "
        "report, plots and ONNX files, and nothing else that is in the folder. The token is that of HF_TOKEN or of "
        "`hf auth login`.",
    )
    parser.add_argument("folder", metavar="FOLDER", type=Path, help="what a training or `hf-distill export` wrote")
    parser.add_argument("repo_id", metavar="REPO", help="NAME or ORGANISATION/NAME; made if it does not exist")
    parser.add_argument("--private", action="store_true", default=None, help="if it is made, for your eyes only")
    parser.add_argument("--message", metavar="TEXT", default="Upload with hf_distill", help="the commit's")
    parser.set_defaults(run=_push)


def _push(options: argparse.Namespace) -> None:
    from hf_distill.hub.push import files_to_push, push_folder

    commit = push_folder(options.folder, options.repo_id, private=options.private, message=options.message)
    print("\n".join([*(f"  {name}" for name in files_to_push(options.folder)), str(commit.repo_url)]))


def _add_benchmark(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "benchmark",
        help="say how big and how fast models and exports are, beside each other",
        description="Measure models and exports beside each other on the CPU: parameters, bytes on disk, memory, cold "
        "start, latency of one text for several lengths, and throughput. The first is what the others are compared "
        "with: give the teacher first.",
    )
    parser.add_argument(
        "models", metavar="MODEL", nargs="+", help="folders, or names on the Hub, of models and exports"
    )
    parser.add_argument(
        "--name", metavar="NAME", nargs="+", help="what each is called in the tables (default: as its folder)"
    )
    _add_measuring(parser)
    parser.add_argument("--texts", metavar="FILE", type=Path, help="a text to read per line (default: prose)")
    parser.add_argument("--output", metavar="DIR", type=Path, help="a folder for benchmark.json and benchmark.md")
    parser.set_defaults(run=_benchmark)


def _add_measuring(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--lengths",
        metavar="TOKENS",
        nargs="+",
        type=int,
        help="for the latency (default: those of 16, 64, 128 and 256 that all models take)",
    )
    parser.add_argument("--threads", metavar="N", type=int, help="the same for all models (default: all cores)")
    parser.add_argument("--rounds", metavar="N", type=int, default=10, help="after one that warms up (default: 10)")


def _benchmark(options: argparse.Namespace) -> None:
    from hf_distill.evaluation import benchmark_models

    names = options.name or [Path(model).absolute().name if Path(model).is_dir() else model for model in options.models]
    if len(names) != len(options.models):
        raise ValueError(f"--name has {len(names)} names for {len(options.models)} models: give one for each.")
    if len(set(names)) < len(names):
        raise ValueError(f"Two models are called the same ({', '.join(names)}): give each its own --name.")
    texts = _lines(options.texts)
    measured = benchmark_models(
        dict(zip(names, options.models, strict=True)),
        lengths=options.lengths,
        threads=options.threads,
        rounds=options.rounds,
        **({} if texts is None else {"texts": texts}),
    )
    print(measured.table())
    if options.output is not None:
        measured.write(options.output)


def _add_report(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "report",
        help="put a text classifier and its exports beside the teacher, on one page",
        description="Put a text classifier and its exports beside the teacher: quality on labelled texts and the share "
        "retained, fidelity to the teacher and the texts where both part most, size and speed. Writes report.md, "
        "report.json and plots.",
    )
    parser.add_argument("--teacher", required=True, help="a name on the Hub or a folder")
    parser.add_argument("--student", required=True, help="a name on the Hub or a folder")
    parser.add_argument(
        "--export",
        dest="exports",
        metavar="DIR",
        nargs="+",
        default=[],
        help="what `hf-distill export` wrote; each is called as its folder",
    )
    _add_data(parser)
    parser.add_argument("--output", metavar="DIR", type=Path, required=True, help="a folder for the report")
    parser.add_argument(
        "--card", metavar="FILE", type=Path, help="the student's README.md, to put the comparison into as its results"
    )
    parser.add_argument(
        "--examples", dest="num_examples", metavar="N", type=int, default=10, help="texts to show (default: 10)"
    )
    _add_measuring(parser)
    parser.set_defaults(run=_report)


def _report(options: argparse.Namespace) -> None:
    from hf_distill.evaluation.report import comparison_table
    from hf_distill.tasks import write_report

    given = {name: value for name, value in vars(options).items() if name not in ("command", "run")}
    print(f"{comparison_table(write_report(**given))}\n\nWritten to {options.output}: report.md, report.json and plots")


def _add_serve(commands: argparse._SubParsersAction) -> None:
    from hf_distill.deployment.formats import FORMATS
    from hf_distill.serving.limits import Limits

    parser = commands.add_parser(
        "serve",
        help="answer over HTTP what a model makes of texts",
        description="Answer over HTTP what a student or an export makes of texts: POST /predict, a page to try it at "
        "/, the interface at /docs, and /health, /ready and /metrics. SIGTERM stops it, once it has answered what it "
        "has accepted.",
    )
    parser.add_argument("model", metavar="MODEL", help="a folder of a student or of an export, or a name on the Hub")
    parser.add_argument(
        "--host", metavar="ADDRESS", default="127.0.0.1", help="default: 127.0.0.1, for this machine alone"
    )
    parser.add_argument("--port", metavar="N", type=int, default=8000, help="default: 8000; 0 takes one that is free")
    parser.add_argument(
        "--format",
        choices=["auto", *FORMATS],
        default="auto",
        help="default: ONNX in int8 where it is there, else ONNX, else PyTorch",
    )
    parser.add_argument("--teacher", metavar="MODEL", help="to compare with, at /predict/teacher and on the page")
    parser.add_argument(
        "--workers", metavar="N", type=int, help="processes with the model (default: one for each core)"
    )
    parser.add_argument("--threads", metavar="N", type=int, default=1, help="of each worker (default: 1)")
    parser.add_argument(
        "--token-file", metavar="FILE", type=Path, help="a file with the bearer token that clients have to show"
    )
    Limits.add_options(parser)
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> None:
    from hf_distill.optional import optional
    from hf_distill.serving.limits import Limits

    for module in ("fastapi", "fastapi_offline", "httptools", "prometheus_client", "uvicorn"):
        optional(module, "serve")
    from hf_distill.serving import serve

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    limits = Limits.from_options(options)
    token = None
    if options.token_file is not None:
        token = options.token_file.read_text(encoding="utf-8").strip()
        if not token:
            raise ValueError(f"{options.token_file} is empty: it should have the token in it.")
    names = ("model", "host", "port", "format", "teacher", "workers", "threads")
    serve(**{name: getattr(options, name) for name in names}, token=token, limits=limits)


def _lines(file: Path | None) -> list[str] | None:
    """Those with something in them."""
    if file is None:
        return None
    return [line for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]


def _model_class(name: str, config: object) -> type:
    """The class that the config names under `architectures`."""
    import transformers

    architecture = (config.architectures or [None])[0]
    model_class = getattr(transformers, architecture or "", None)
    if model_class is None:
        raise ValueError(
            f"{name} is of the class {architecture}, which transformers does not have: its config should name one "
            f"under `architectures`, such as BertForMaskedLM."
        )
    return model_class


def _processor(name: str, **options: object) -> object:
    """The model's tokenizer, image processor or feature extractor, or the processor that unites them."""
    import transformers

    try:
        return transformers.AutoProcessor.from_pretrained(name, **options)
    except (OSError, TypeError, ValueError):  # as for Wav2Vec2 without a tokenizer
        return transformers.AutoFeatureExtractor.from_pretrained(name, **options)


def _by_stack(option: str, words: list[str] | None, parse: object) -> object:
    """`["6"]` as `parse` has it, `["encoder=6", "decoder=2"]` as a mapping of it."""
    if words is None:
        return None
    if not any("=" in word for word in words):
        return parse(option, words)
    values = {}
    for word in words:
        stack, separator, value = word.partition("=")
        if not separator or stack in values:
            raise ValueError(f"{option}: {' '.join(words)!r} should have one NAME=VALUE for each stack that it names.")
        values[stack] = parse(option, value.split(","))
    return values


def _number(option: str, words: list[str]) -> int:
    if len(words) != 1:
        raise ValueError(f"{option}: {' '.join(words)!r} should be one number, or NAME=NUMBER for stacks.")
    return _integer(option, words[0])


def _layers(option: str, words: list[str]) -> str | list[int]:
    if len(words) == 1 and not words[0].lstrip("-").isdigit():
        return words[0]
    return [_integer(option, word) for word in words]


def _integer(option: str, word: str) -> int:
    try:
        return int(word)
    except ValueError:
        raise ValueError(
            f"{option}: {word!r} is not a whole number: numbers such as 0 2 4 belong here, or NAME=VALUE for stacks."
        ) from None


def _batches(file: Path, tokenizer: object, teacher: object, batch_size: int = 32) -> list[dict]:
    """The lines of a text file as batches of the teacher's inputs."""
    from transformers import PreTrainedTokenizerBase

    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        raise ValueError(
            f"--calibration-file is for texts, but {type(teacher).__name__} does not read any: call make_student(..., "
            f"layers='calibrated', calibration_data=batches) from Python."
        )
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    max_length = min(tokenizer.model_max_length, getattr(teacher.config, "max_position_embeddings", 512), 512)
    return [
        dict(
            tokenizer(
                lines[start : start + batch_size],
                padding=True,
                truncation=True,
                max_length=max_length,
                return_tensors="pt",
            )
        )
        for start in range(0, len(lines), batch_size)
    ]
