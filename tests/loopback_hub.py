"""A local Hub server for the real `huggingface_hub` client: repositories, large files, commits.

It follows the source of the client (huggingface_hub 2.4: `hf_api.py`, `_commit_api.py`, `lfs.py`, `file_download.py`),
without Xet. It can also fail on demand: drop the connection during an upload, or answer with an error.
"""

import base64
import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

USER = "tester"
RELATIONS = {"adapter", "merge", "quantized", "finetune"}


class LoopbackHub:
    """A server that runs inside its context.

    Attributes:
        token: token with write access.
        read_token: token without write access.
        repos: commits by repository, oldest first, each `(oid, message, {path: bytes})`.
        lfs_over: larger files, in bytes, are uploaded as large files.
        part_size: larger large files, in bytes, are uploaded in parts; None for no parts.
        lose: number of further uploads of large files that lose their connection half-way.
        answers: `{(method, part of the path): status}`, errors to answer with.
        requests: received requests, `(method, path)`.
        uploads: complete uploads, `(oid, part)`.
    """

    def __init__(self):
        self.token, self.read_token = "hf_thisonemaywrite", "hf_thisonemayread"
        self.repos: dict[str, list[tuple[str, str, dict[str, bytes]]]] = {}
        self.private: set[str] = set()
        self.large_files: dict[str, bytes] = {}
        self.parts: dict[str, dict[int, bytes]] = {}
        self.lfs_over, self.part_size, self.lose = 1000, None, 0
        self.answers: dict[tuple[str, str], int] = {}
        self.requests: list[tuple[str, str]] = []
        self.uploads: list[tuple[str, int]] = []
        self.lock = threading.Lock()

    def __enter__(self) -> "LoopbackHub":
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.hub = self
        self.endpoint = f"http://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error) -> None:
        self.server.shutdown()
        self.server.server_close()

    def files(self, repo: str) -> dict[str, bytes]:
        """The files on the main branch of a repository."""
        return self.repos[repo][-1][2] if self.repos[repo] else {}

    def messages(self, repo: str) -> list[str]:
        return [message for _, message, _ in self.repos[repo]]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    @property
    def hub(self) -> LoopbackHub:
        return self.server.hub

    def log_message(self, *args) -> None:
        pass

    def do(self) -> None:
        url = urlsplit(self.path)
        path = unquote(url.path)
        self.hub.requests.append((self.command, path))
        for (method, part), status in self.hub.answers.items():
            if method == self.command and part in path:
                self.body()
                self.error(status, f"status {status} was asked for")
                return
        sent = self.headers.get("Authorization", "").removeprefix("Bearer ")
        is_storage = path.startswith("/storage/")  # its URLs are signed
        if sent and sent not in (self.hub.token, self.hub.read_token):
            self.body()
            self.error(401, "Invalid credentials in Authorization header")
        elif self.command in ("POST", "PUT") and not is_storage and path != "/api/validate-yaml" and not sent:
            self.body()
            self.error(401, "Invalid username or password.")
        elif self.command in ("POST", "PUT") and sent == self.hub.read_token:
            self.body()
            self.error(403, "You don't have the rights to create a model under this namespace")
        else:
            self.route(path, parse_qs(url.query))

    do_GET = do_HEAD = do_POST = do_PUT = do  # noqa: N815 (the names that http.server looks for)

    def route(self, path: str, query: dict) -> None:
        words = path.strip("/").split("/")
        repo = "/".join(words[2:4] if words[0] == "api" else words[:2])
        match [self.command, *words]:
            case ["POST", "api", "repos", "create"]:
                self.create(json.loads(self.body()))
            case ["GET", "api", "whoami-v2"]:
                self.reply({"type": "user", "name": USER, "auth": {"accessToken": {"role": "write"}}})
            case ["POST", "api", "validate-yaml"]:
                errors = metadata_errors(json.loads(self.body())["content"])
                self.reply({"warnings": [], "errors": [{"message": error} for error in errors]}, 400 if errors else 200)
            case ["POST", "api", "models", _, _, "preupload", _] if self.has(repo):
                self.preupload(repo, json.loads(self.body())["files"])
            case ["POST", _, _, "info", "lfs", "objects", "batch"]:
                self.lfs_batch(json.loads(self.body())["objects"])
            case ["PUT", "storage", oid, part]:
                self.store(oid, int(part))
            case ["POST", "storage", oid, "complete"]:
                self.complete(oid, json.loads(self.body())["parts"])
            case ["POST", "storage-verify", oid]:
                size = json.loads(self.body())["size"]
                self.reply({}, 200 if len(self.hub.large_files.get(oid, b"")) == size else 404)
            case ["POST", "api", "models", _, _, "commit", _] if self.has(repo):
                self.commit(repo, [json.loads(line) for line in self.body().splitlines()])
            case ["GET", "api", "models", _, _, *_] if self.has(repo):
                self.info(repo, words[4:])
            case ["GET" | "HEAD", _, _, "resolve", revision, *file] if self.has(repo):
                self.resolve(repo, revision, "/".join(file))
            case _:
                self.body()
                self.error(404, "Repository not found", "RepoNotFound")

    def has(self, repo: str) -> bool:
        return repo in self.hub.repos

    def create(self, asked: dict) -> None:
        repo = f"{asked.get('organization') or USER}/{asked['name']}"
        is_new = repo not in self.hub.repos
        if is_new:
            self.hub.repos[repo] = []
            if asked.get("visibility") == "private":
                self.hub.private.add(repo)
        self.reply({"url": f"{self.hub.endpoint}/{repo}", "error": None}, 200 if is_new else 409)

    def preupload(self, repo: str, files: list[dict]) -> None:
        there = self.hub.files(repo)

        def answer(file: dict) -> dict:
            is_large = file["size"] > self.hub.lfs_over
            answer = {"path": file["path"], "uploadMode": "lfs" if is_large else "regular", "shouldIgnore": False}
            if file["path"] in there:
                answer["oid"] = etag_of(there[file["path"]], is_large)
            return answer

        self.reply({"files": [answer(file) for file in files]})

    def lfs_batch(self, objects: list[dict]) -> None:
        answers = []
        for asked in objects:
            oid, size, place = asked["oid"], asked["size"], f"{self.hub.endpoint}/storage/{asked['oid']}"
            answer = {"oid": oid, "size": size}
            if oid not in self.hub.large_files:
                upload = {"href": f"{place}/1"}
                part_size = self.hub.part_size
                if part_size is not None and size > part_size:
                    parts = range(1, -(-size // part_size) + 1)
                    header = {"chunk_size": str(part_size)} | {str(part): f"{place}/{part}" for part in parts}
                    upload = {"href": f"{place}/complete", "header": header}
                verify = {"href": f"{self.hub.endpoint}/storage-verify/{oid}"}
                answer["actions"] = {"upload": upload, "verify": verify}
            answers.append(answer)
        self.reply({"transfer": "basic", "objects": answers})

    def store(self, oid: str, part: int) -> None:
        with self.hub.lock:
            is_lost = self.hub.lose > 0
            self.hub.lose -= is_lost
        if is_lost:
            self.rfile.read(int(self.headers.get("Content-Length", 2)) // 2)
            self.close_connection = True
            self.connection.close()
            return
        data = self.body()
        self.hub.uploads.append((oid, part))
        if hashlib.sha256(data).hexdigest() == oid:
            self.hub.large_files[oid] = data
        else:
            self.hub.parts.setdefault(oid, {})[part] = data
        self.reply({}, headers={"ETag": hashlib.md5(data).hexdigest()})

    def complete(self, oid: str, parts: list[dict]) -> None:
        there = self.hub.parts.get(oid, {})
        data = b"".join(there.get(part["partNumber"], b"") for part in parts)
        if hashlib.sha256(data).hexdigest() != oid:
            self.error(400, "The parts are not the file")
            return
        self.hub.large_files[oid] = data
        self.reply({})

    def commit(self, repo: str, lines: list[dict]) -> None:
        files = dict(self.hub.files(repo))
        message = None
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                message = value["summary"]
            elif line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif value["oid"] in self.hub.large_files:
                files[value["path"]] = self.hub.large_files[value["oid"]]
            else:
                self.error(400, f"{value['path']} was not uploaded")
                return
        oid = hashlib.sha1(repr((repo, len(self.hub.repos[repo]), sorted(files))).encode()).hexdigest()
        self.hub.repos[repo].append((oid, message, files))
        self.reply({"success": True, "commitOid": oid, "commitUrl": f"{self.hub.endpoint}/{repo}/commit/{oid}"})

    def info(self, repo: str, words: list[str]) -> None:
        revision = words[1] if len(words) > 1 else "main"
        if (commit := self.find(repo, revision)) is None:
            return
        oid, _, files = commit
        if words[:1] == ["tree"]:
            entries = [
                {"type": "file", "path": path, "oid": etag_of(data, False), "size": len(data)}
                for path, data in files.items()
            ]
            self.reply(entries)
            return
        siblings = [{"rfilename": path} for path in files]
        self.reply(
            {"_id": "0", "id": repo, "modelId": repo, "sha": oid, "siblings": siblings, "private": False, "tags": []}
        )

    def resolve(self, repo: str, revision: str, path: str) -> None:
        if (commit := self.find(repo, revision)) is None:
            return
        oid, _, files = commit
        if path not in files:
            self.error(404, "Entry not found", "EntryNotFound", {"X-Repo-Commit": oid})
            return
        data = files[path]
        is_large = len(data) > self.hub.lfs_over
        etag = etag_of(data, is_large)
        headers = {"X-Repo-Commit": oid, "ETag": f'"{etag}"', "Accept-Ranges": "bytes"}
        if is_large:
            headers |= {"X-Linked-ETag": f'"{etag}"', "X-Linked-Size": str(len(data))}
        self.send(200, data, headers, "application/octet-stream")

    def find(self, repo: str, revision: str) -> tuple[str, str, dict[str, bytes]] | None:
        commits = self.hub.repos[repo]
        if revision in ("main", "HEAD"):
            return commits[-1] if commits else ("0" * 40, "", {})
        for commit in commits:
            if commit[0] == revision:
                return commit
        self.error(404, "Revision not found", "RevisionNotFound")
        return None

    def body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            data = b""
            while size := int(self.rfile.readline(), 16):
                data += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return data
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def error(self, status: int, message: str, code: str | None = None, headers: dict | None = None) -> None:
        headers = {"X-Error-Message": message, **(headers or {})} | ({"X-Error-Code": code} if code else {})
        self.reply({"error": message}, status, headers)

    def reply(self, answer: object, status: int = 200, headers: dict | None = None) -> None:
        self.send(status, json.dumps(answer).encode(), headers or {}, "application/json")

    def send(self, status: int, data: bytes, headers: dict, kind: str) -> None:
        self.send_response(status)
        for name, value in {"Content-Type": kind, "Content-Length": str(len(data)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def etag_of(data: bytes, is_large: bool) -> str:
    """The object id of a file in git or in LFS."""
    return hashlib.sha256(data).hexdigest() if is_large else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def metadata_errors(content: str) -> list[str]:
    """The Hub's objections to a card's metadata, according to its known rules."""
    _, _, rest = content.partition("---\n")
    header, separator, _ = rest.partition("\n---")
    if not content.startswith("---\n") or not separator:
        return ["There is no metadata"]
    metadata = yaml.safe_load(header)
    errors = []
    texts = {"license": str, "library_name": str, "pipeline_tag": str, "base_model": (str, list), "tags": list}
    for name, kind in texts.items():
        if name in metadata and not isinstance(metadata[name], kind):
            errors.append(f'"{name}" is of the wrong type')
    if metadata.get("base_model_relation", "finetune") not in RELATIONS:
        errors.append(f'"base_model_relation" must be one of {sorted(RELATIONS)}')
    for model in metadata.get("model-index", []):
        if not isinstance(model.get("name"), str):
            errors.append('"model-index[0].name" is required')
        for result in model.get("results", []):
            if not {"type"} <= result.get("task", {}).keys():
                errors.append('"model-index[0].results[0].task.type" is required')
            if not {"type", "name"} <= result.get("dataset", {}).keys():
                errors.append('"model-index[0].results[0].dataset" needs a type and a name')
            for metric in result.get("metrics", [{}]):
                if not {"type", "value"} <= metric.keys() or not isinstance(metric["value"], int | float | str):
                    errors.append('"model-index[0].results[0].metrics[0]" needs a type and a value')
    return errors
