"""Pushes a folder to the Hub in one commit. Only files on a list are pushed."""

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

from hf_distill.files import MANIFEST, MODULES, read_json
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
EMBEDDER = (MODULES, "config_sentence_transformers.json", "sentence_bert_config.json")
OF_MODULE = ("config.json", *WEIGHTS)
MODEL = (*WEIGHTS, WEIGHTS_INDEX, *CONFIGS, *PROCESSORS, *EMBEDDER)

IN_FOLDER = (*MODEL, *EXPORTS, *PLOTS, "README.md", "report.json", "report.md")
IN_EXPORT_BELOW = (*EXPORTS, *CONFIGS, *PROCESSORS)
"""Files to push from a subfolder with an export, in addition to the files that its manifest lists."""

WHY = {
    401: "the token is missing or invalid (401): set HF_TOKEN, or log in with `hf auth login`",
    403: "the token has no write access (403): use a token with write access to the repository",
    404: "the repository or revision does not exist, or the token has no access to it (404)",
}


def files_to_push(folder: str | Path) -> list[str]:
    """Lists the files of a folder that may be pushed to the Hub.

    These are safetensors weights, configs, tokenizer and processor, the modules of a `SentenceTransformer`, model card,
    report, plots and ONNX files. Training arguments, checkpoints, optimizer states and logs are never pushed.

    Returns:
        Names relative to the folder, sorted.
    """
    folder = Path(folder)
    files = sorted(path for path in [*folder.glob("*"), *folder.glob("*/*")] if path.is_file())
    modules = {path.parent / own["path"] for path in files if path.name == MODULES for own in _read_json(path)}
    exports = {path.parent: _read_json(path).get("files", {}) for path in files if path.name == MANIFEST}
    chosen = []
    for path in files:
        if path.parent == folder:
            patterns: Sequence[str] = IN_FOLDER
        elif path.parent.name.startswith((".", "_", "checkpoint-")):
            patterns = ()
        else:
            patterns = [
                *PLOTS,
                *(OF_MODULE if path.parent in modules else ()),
                *(IN_EXPORT_BELOW if path.parent in exports else ()),
                *exports.get(path.parent, ()),
            ]
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
    """Pushes a student or an export to the Hub in one commit. Either all files are pushed or none.

    Only weights, configs, tokenizer, model card, report, plots and ONNX files are pushed. A repository that does not
    exist is created.

    Args:
        folder: a folder from `trainer.save_model()` or `hf-distill export`.
        repo_id: `name` or `organisation/name`.
        private: True makes a new repository private. Default: the setting of the account.
        message: commit message.
        token: Hub token. Default: the token from `HF_TOKEN` or `hf auth login`.

    Returns:
        The commit, from `huggingface_hub`; `.repo_url` is the address of the model.

    Raises:
        ValueError: if the folder contains neither a student nor an export, or an incomplete one; if a file to push
            contains a token or a local path; or if `repo_id` is not a valid name.
        OSError: if the Hub cannot be reached or refuses the push.

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
    """Uploads files of a folder to an existing repository in one commit."""
    # Not `upload_folder`, which splits a large folder into several commits.
    additions = [CommitOperationAdd(path_in_repo=name, path_or_fileobj=Path(folder, name)) for name in files]
    return hub_api().create_commit(repo_id, additions, commit_message=message, token=token, revision=revision)


def hub_api() -> HfApi:
    return HfApi(library_name="hf_distill", library_version=__version__)


def check_nothing_private(folder: str | Path, files: Iterable[str], token: str | None = None) -> None:
    """Checks that files contain nothing private.

    Raises:
        ValueError: if a file contains a token; the path of the folder, the working directory, the installed packages or
            anything below the home directory; or, as a JSON value, an absolute path that exists on this machine.
    """
    folder = Path(folder)
    tokens = [token, get_token()]
    # ONNX files can contain stack traces. Paths as short as /out reveal nothing, and occur in large files by chance.
    here = [folder.absolute(), folder.resolve(), Path.cwd(), sysconfig.get_path("purelib")]
    paths = [path for path in [*map(str, here), os.path.join(os.path.expanduser("~"), "")] if len(path) > 5]
    for name in files:
        found = ["a token"] if _holds_any(folder / name, tokens) else []
        if not any(fnmatchcase(Path(name).name, pattern) for pattern in VOCABULARIES):  # vocabularies contain any word
            found += ["a local path"] if _holds_any(folder / name, paths) else []
            found += _local_paths(_read_json(folder / name)) if name.endswith(".json") else []
        if found:
            raise ValueError(
                f"{folder / name} contains {' and '.join(found)}, so nothing was pushed: remove it first. (An adapter "
                f"names its base model, which must be on the Hub; or merge both with trainer.save_merged_model.)"
            )


def how_to_push_later(folder: str | Path, repo_id: str) -> str:
    return f"The model is saved in {folder}; push it later with: hf-distill push {quote(str(folder))} {repo_id}"


@contextmanager
def clear_errors(what: str, then: str) -> Iterator[None]:
    """Turns any error of the Hub client into an `OSError` with what failed, why, and what to do."""
    try:
        yield
    except Exception as error:  # the client, its HTTP library and its wrappers raise unrelated classes
        raise OSError(f"{what} failed: {_reason(error)}. {then}") from error


def is_on_hub(name_or_path: str) -> bool:
    """True if this is a valid Hub name and not a local folder."""
    if os.path.isdir(name_or_path):
        return False
    try:
        validate_repo_id(name_or_path)
    except HFValidationError:
        return False
    return True


def public_name(name_or_path: str) -> str:
    """Hub names as they are, and local paths without their parent folders, because configs are published."""
    is_public = not name_or_path or is_on_hub(name_or_path)
    return name_or_path if is_public else os.path.basename(os.path.abspath(name_or_path))


def revision_on_hub(model: PreTrainedModel) -> str | None:
    """The commit that a model was loaded from; None for a local folder, or if the commit is unknown."""
    name = model.name_or_path
    if not is_on_hub(name):
        return None
    if commit := getattr(model.config, "_commit_hash", None):
        return commit
    # Newer versions of transformers do not record it. If the cache holds only one commit, it is that one.
    snapshots = Path(constants.HF_HUB_CACHE, repo_folder_name(repo_id=name, repo_type="model"), "snapshots")
    commits = [config.parent.name for config in snapshots.glob("*/config.json")]
    return commits[0] if len(commits) == 1 else None


def _check_whole(folder: Path) -> None:
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder: give one from trainer.save_model() or `hf-distill export`.")
    index = folder / WEIGHTS_INDEX
    shards = set(_read_json(index)["weight_map"].values()) if index.is_file() else set()
    if missing := sorted(name for name in shards if not (folder / name).is_file()):
        raise ValueError(
            f"{folder} is incomplete: {', '.join(missing)} from {WEIGHTS_INDEX} is missing. Save the model again."
        )
    weights = sorted({path for pattern in WEIGHTS for path in folder.glob(pattern)})
    for path in weights:
        try:
            with safe_open(path, "numpy"):
                pass
        except SafetensorError as error:
            raise ValueError(f"{path} is damaged ({error}): save the model again.") from None
    for manifest in [*folder.glob(MANIFEST), *folder.glob(f"*/{MANIFEST}")]:
        for name, size in _read_json(manifest).get("files", {}).items():
            file = manifest.with_name(name)
            if not file.is_file() or file.stat().st_size != size:
                raise ValueError(
                    f"{manifest.parent} is incomplete: {name} must have {size:,} bytes. Export the student again."
                )
    is_student = weights and any((folder / name).is_file() for name in ("config.json", "adapter_config.json"))
    if not is_student and not (folder / MANIFEST).is_file():
        raise ValueError(
            f"{folder} contains neither a student (config.json and model.safetensors) nor an export ({MANIFEST}): give "
            f"a folder from trainer.save_model() or `hf-distill export`."
        )


def _check_repo_id(repo_id: str) -> None:
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} is not a valid Hub name: {error}") from None


def _holds_any(path: Path, texts: Iterable[str | None]) -> bool:
    if path.stat().st_size == 0:
        return False
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return any(text and content.find(text.encode()) >= 0 for text in texts)


def _read_json(path: Path) -> Any:
    try:
        return read_json(path)
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}.") from None


def _local_paths(value: object) -> list[str]:
    """The strings in JSON data that are absolute paths to something that exists on this machine."""
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
    told = chain[:2] if type(error) is RuntimeError else [error]  # a bare RuntimeError only names the file
    return ": ".join(" ".join(str(own).split()).rstrip(".") or type(own).__name__ for own in told)
