"""What goes to the Hub and what never does, in one commit or not at all."""

import mmap
import os
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from fnmatch import fnmatchcase
from pathlib import Path
from shlex import quote
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HFValidationError
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel

from hf_distill.files import MANIFEST, read_json
from hf_distill.version import __version__

WEIGHTS = ("model.safetensors", "model-*-of-*.safetensors", "adapter_model.safetensors")
WEIGHTS_INDEX = "model.safetensors.index.json"
CONFIGS = ("config.json", "generation_config.json", "adapter_config.json")
VOCABULARIES = (
    *("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt", "*.model", "*.spm", "added_tokens.json"),
    *("bpe.codes", "dict.txt", "emoji.json", "entity_vocab.json", "normalizer.json", "prophetnet.tokenizer"),
    *("source_vocab.json", "target_vocab.json", "vocab-src.json", "vocab-tgt.json"),
    *("byte_maps.json", "word_pronunciation.json", "word_shape.json"),
)
PROCESSORS = (
    *VOCABULARIES,
    *("tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja", "chat_template.json"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
)
PLOTS = ("*.png",)
EXPORTS = (MANIFEST, "*.onnx", "*.onnx.data")
MODEL = (*WEIGHTS, WEIGHTS_INDEX, *CONFIGS, *PROCESSORS)

IN_FOLDER = (*MODEL, *EXPORTS, *PLOTS, "README.md", "report.json", "report.md")
IN_EXPORT_BELOW = (*EXPORTS, *CONFIGS, *PROCESSORS)
"""In a folder one level below that holds an export, beside the files that it names. Other weights there stay."""

WHY = {
    401: "the Hub does not accept the token, or there is none (401): set HF_TOKEN, or log in with `hf auth login`",
    403: "the token may not write there (403): use one with write access to the repository",
    404: "there is no such repository or revision, or the token may not see it (404)",
}


def files_to_push(folder: str | Path) -> list[str]:
    """What of a folder may go to the Hub: what is on the list, and nothing else.

    That is weights in safetensors, configs, tokenizer and processor, model card, report, plots and ONNX files. It is
    not what a training keeps for itself: its arguments, checkpoints, optimizer states and logs.

    Returns:
        Names relative to the folder, sorted.
    """
    folder = Path(folder)
    files = sorted(path for path in [*folder.glob("*"), *folder.glob("*/*")] if path.is_file())
    exports = {path.parent: _read_json(path).get("files", {}) for path in files if path.name == MANIFEST}
    chosen = []
    for path in files:
        if path.parent == folder:
            patterns: Sequence[str] = IN_FOLDER
        elif path.parent.name.startswith((".", "_", "checkpoint-")):
            patterns = ()
        else:
            patterns = [*PLOTS, *(IN_EXPORT_BELOW if path.parent in exports else ()), *exports.get(path.parent, ())]
        if any(fnmatchcase(path.name, pattern) for pattern in patterns):
            chosen.append(path.relative_to(folder).as_posix())
    return chosen


def push_folder(
    folder: str | Path,
    repo_id: str,
    *,
    private: bool | None = None,
    message: str = "Upload with hf_distill",
    token: str | None = None,
) -> CommitInfo:
    """Pushes a student or an export to the Hub, in one commit: all of it is there, or nothing.

    Only what `files_to_push` lists goes. A repository that does not exist is made.

    Args:
        folder: as `trainer.save_model()` or `hf-distill export` wrote it.
        repo_id: `name` or `organisation/name`.
        private: whether a repository that is made is private; by default as the account has it.
        message: the commit's.
        token: by default that of `HF_TOKEN` or of `hf auth login`.

    Returns:
        What `huggingface_hub` says of the commit; `.repo_url` is where the model is.

    Raises:
        ValueError: if the folder holds neither a student nor an export or holds half of one, if a file that would go
            has a token or a local path in it, or if `repo_id` is no name.
        OSError: if the Hub cannot be reached, or refuses.

    Example:
        >>> push_folder("student", "me/distilled-reviews").repo_url
    """
    folder = Path(folder)
    _check_whole(folder)
    _check_repo_id(repo_id)
    check_nothing_private(folder, files_to_push(folder), token)
    api = hub_api()
    with clear_errors(f"Pushing to {repo_id}", how_to_push_later(folder, repo_id)):
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True, token=token).repo_id
        return commit_files(folder, files_to_push(folder), repo_id, message, token)


def commit_files(
    folder: str | Path, files: Iterable[str], repo_id: str, message: str, token: str | None, revision: str | None = None
) -> CommitInfo:
    """Uploads files of a folder to a repository that exists, in one commit."""
    # Not `upload_folder`, which makes several commits of a large folder.
    additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=Path(folder, name)) for name in files]
    return hub_api().create_commit(repo_id, additions, commit_message=message, token=token, revision=revision)


def hub_api() -> HfApi:
    return HfApi(library_name="hf_distill", library_version=__version__)


def check_nothing_private(folder: str | Path, files: Iterable[str], token: str | None = None) -> None:
    """Looks through files for what should not be published.

    Raises:
        ValueError: if a file holds a token; or the path of the folder, of the working directory, of the installed
            packages or of something below the home directory; or, as a value in JSON, of anything on this machine.
    """
    folder = Path(folder)
    tokens = [token, get_token()]
    # ONNX files come with stack traces, unless they are taken out. Paths as short as /out tell nothing, and stand in
    # any large file by chance.
    here = [folder.absolute(), folder.resolve(), Path.cwd(), sysconfig.get_path("purelib")]
    paths = [path for path in [*map(str, here), os.path.join(os.path.expanduser("~"), "")] if len(path) > 5]
    for name in files:
        found = ["a token"] if _holds_any(folder / name, tokens) else []
        if not any(fnmatchcase(Path(name).name, pattern) for pattern in VOCABULARIES):  # words of any text
            found += ["a local path"] if _holds_any(folder / name, paths) else []
            found += _local_paths(_read_json(folder / name)) if name.endswith(".json") else []
        if found:
            raise ValueError(
                f"{folder / name} has {' and '.join(found)} in it, so nothing was pushed: take it out first. (An "
                f"adapter names its base model, which has to be on the Hub; save_merged_model makes one whole model.)"
            )


def how_to_push_later(folder: str | Path, repo_id: str) -> str:
    return f"The model is safe in {folder}; push it later with: hf-distill push {quote(str(folder))} {repo_id}"


@contextmanager
def clear_errors(what: str, then: str) -> Iterator[None]:
    """Whatever goes wrong with the Hub becomes an `OSError` that says what failed, why, and what there is to do."""
    try:
        yield
    except Exception as error:  # the client's own, those of its HTTP library, and bare ones round both
        raise OSError(f"{what} failed: {_reason(error)}. {then}") from error


def is_on_hub(name_or_path: str) -> bool:
    """Whether it reads as the name of a model on the Hub, and is no folder here."""
    if os.path.isdir(name_or_path):
        return False
    try:
        validate_repo_id(name_or_path)
    except HFValidationError:
        return False
    return True


def public_name(name_or_path: str) -> str:
    """A model's name on the Hub as it is; of a local folder only its own name, since configs get published."""
    is_public = not name_or_path or is_on_hub(name_or_path)
    return name_or_path if is_public else os.path.basename(os.path.abspath(name_or_path))


def revision_on_hub(model: PreTrainedModel) -> str | None:
    """The commit that a model was loaded from; None if it is from a folder, or if that is not known."""
    name = model.name_or_path
    if not is_on_hub(name):
        return None
    if commit := getattr(model.config, "_commit_hash", None):
        return commit
    # Newer versions of transformers do not say. Where only one commit is in the cache, it is that one.
    snapshots = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"), "snapshots")
    commits = [config.parent.name for config in snapshots.glob("*/config.json")]
    return commits[0] if len(commits) == 1 else None


def _check_whole(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder: give one that trainer.save_model() or `hf-distill export` wrote.")
    index = folder / WEIGHTS_INDEX
    shards = set(_read_json(index)["weight_map"].values()) if index.is_file() else set()
    if missing := sorted(name for name in shards if not (folder / name).is_file()):
        raise ValueError(f"{folder} is not whole: {WEIGHTS_INDEX} names {', '.join(missing)}, which is not there.")
    weights = sorted({path for pattern in WEIGHTS for path in folder.glob(pattern)})
    for path in weights:
        try:
            with safe_open(path, "numpy"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is not whole ({error}): save the model again.") from None
    for manifest in [*folder.glob(MANIFEST), *folder.glob(f"*/{MANIFEST}")]:
        for name, size in _read_json(manifest).get("files", {}).items():
            file = manifest.with_name(name)
            if not file.is_file() or file.stat().st_size != size:
                raise ValueError(f"{manifest.parent} is not whole: {name} should have {size:,} bytes: export it again.")
    is_student = weights and any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
    if not is_student and not (folder / MANIFEST).is_file():
        raise ValueError(
            f"{folder} holds neither a student, which has config.json and model.safetensors, nor an export, which has "
            f"{MANIFEST}: give a folder that trainer.save_model() or `hf-distill export` wrote."
        )


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} cannot be a name on the Hub: {error}") from None


def _holds_any(path: Path, texts: Iterable[str | None]) -> bool:
    if path.stat().st_size == 0:
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(text and content.find(text.encode()) >= 0 for text in texts)


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is not whole: {error}.") from None


def _local_paths(value: object) -> list[str]:
    """The strings in what was JSON that are absolute paths to something that is there."""
    if isinstance(value, dict | list):
        inside = value.values() if isinstance(value, dict) else value
        return [path for own in inside for path in _local_paths(own)]
    if not isinstance(value, str) or len(value) >= 4096 or "\0" in value or not Path(value).is_absolute():
        return []
    return [value] if len(Path(value).parts) > 2 and os.path.exists(value) else []


def _reason(error: BaseException) -> str:
    chain = [error]
    while chain[-1].__cause__ is not None:
        chain.append(chain[-1].__cause__)
    for own in chain:
        status = getattr(getattr(own, "response", None), "status_code", None)
        if status in WHY:
            return WHY[status]
    told = chain[:2] if type(error) is RuntimeError else [error]  # which only says with which file it happened
    return ": ".join(" ".join(str(own).split()).rstrip(".") or type(own).__name__ for own in told)
