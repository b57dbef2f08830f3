"""`python -m recipes.benchmarks.serve_load`: `hf-distill serve` under load, compared with Flask and LitServe.

The student is that of the quickstart, and the texts are its test sentences, one per request. A second process
(`http_load.py`) generates the load over loopback, on the same cores as the servers. It measures:

- Closed loop, 16 clients: requests per second of `hf-distill serve` with the int8 student, of the tutorial's Flask loop
  with the PyTorch student (`tutorial_flask.py`), and of LitServe with the int8 student (`litserve_peer.py`). The
  servers take turns, and ratios are computed within a round. Servers that wait for their turn are suspended.
- Open loop: latency at 70% of the saturation rate, then at twice the saturation rate, and right after the overload; and
  at twice the rate with `--max-wait 0.5`.
- Company: 10,000 requests of 1 to 900 words, 32 at a time. Each answer is compared, bit for bit, with the answer for
  the text alone. A refused request is sent again after `Retry-After` seconds.
- With `--soak SECONDS`: errors and memory growth at 70% of the saturation rate.
"""

import asyncio
import json
import os
import random
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

from hf_distill import export_model, load_predictor
from recipes.benchmarks._common import PACKAGES, add_fetched, all_exist, make_parser, print_versions, table, write_json
from recipes.benchmarks.http_load import Answer, Load
from recipes.quickstart.data import load_corpus

OURS, FLASK, FLASK_ALONE, LITSERVE = "hf-distill serve", "Flask", "Flask, one at a time", "LitServe"
HURRIED = "hf-distill serve --max-wait 0.5"
MODULES = {
    OURS: ["hf_distill.cli", "serve", "{int8}", "--port", "{port}"],
    HURRIED: ["hf_distill.cli", "serve", "{int8}", "--port", "{port}", "--max-wait", "0.5"],
    FLASK: ["recipes.benchmarks.tutorial_flask", "{student}", "{port}"],
    FLASK_ALONE: ["recipes.benchmarks.tutorial_flask", "{student}", "{port}", "--one-at-a-time"],
    LITSERVE: ["recipes.benchmarks.litserve_peer", "{int8}", "{port}"],
}
CLIENTS = 16
PATH = "/predict"
SHARE, OVERLOAD, RECOVERY = 0.7, 2.0, 0.5
"""Shares of the saturation rate: steady load, overload, and the load after it."""
PHASES = {"steady": (SHARE, 1.0), "overload": (OVERLOAD, 1.0), "recovery": (RECOVERY, 0.25)}
"""Shares of the saturation rate and of the time."""

COMPANY = 10_000
COMPANY_CLIENTS = 32
LONGEST = 900
"""Longest text in words; about twice what the model reads."""

PATIENCE = 120.0
"""Seconds to wait for a server to start, and to repeat a refused request."""
MEMORY_EVERY = 2.0
"""Seconds between two measurements of memory."""

Figures = dict[str, object]


class Server:
    """One of the servers, in its own process, with all its child processes."""

    def __init__(self, name: str, **folders: Path):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        words = [word.format(port=self.port, **folders) for word in MODULES[name]]
        quiet = subprocess.DEVNULL
        self.process = subprocess.Popen([sys.executable, "-m", *words], stdout=quiet, stderr=quiet)
        self.name = name

    def wait(self) -> None:
        """Waits until the server answers."""
        give_up = time.monotonic() + PATIENCE
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}{PATH}", b'{"text": "Fine."}', {"Content-Type": "application/json"}
        )
        while True:
            try:
                urllib.request.urlopen(request, timeout=5).close()
                return
            except (urllib.error.URLError, OSError):
                if time.monotonic() > give_up or self.process.poll() is not None:
                    raise RuntimeError(f"{self.name} does not answer.") from None
                time.sleep(0.1)

    def family(self) -> list[psutil.Process]:
        parent = psutil.Process(self.process.pid)
        return [parent, *parent.children(recursive=True)]

    def suspend(self) -> None:
        for process in self.family():
            process.suspend()

    def resume(self) -> None:
        for process in self.family():
            process.resume()

    def memory(self) -> int:
        """Memory of all its processes together, in bytes."""
        return sum(process.memory_info().rss for process in self.family())

    def stop(self) -> None:
        family = self.family()
        self.process.send_signal(signal.SIGTERM)
        _, alive = psutil.wait_procs(family, 5)
        for process in alive:
            process.kill()
        self.process.wait()


def load_from_a_second_process(
    port: int, texts: Sequence[str], phases: Sequence[Figures], meanwhile: Callable[[], None] = lambda: None
) -> list[Figures]:
    """Runs the phases with `http_load` and returns their results. Calls `meanwhile` repeatedly."""
    asked = {"address": ["127.0.0.1", port], "path": PATH, "bodies": [{"text": text} for text in texts]}
    command = [sys.executable, "-m", "recipes.benchmarks.http_load"]
    with tempfile.TemporaryFile("w+") as given, tempfile.TemporaryFile("w+") as measured:
        json.dump({**asked, "phases": phases}, given)
        given.seek(0)
        process = subprocess.Popen(command, stdin=given, stdout=measured)
        while process.poll() is None:
            meanwhile()
            time.sleep(0.1)
        if process.returncode:
            raise RuntimeError(f"The process that generates the load ended with exit code {process.returncode}.")
        measured.seek(0)
        return json.load(measured)


def measure_throughput(
    servers: Mapping[str, Server], texts: Sequence[str], rounds: int, seconds: float
) -> dict[str, Figures]:
    """Requests per second of each server over the rounds, and our speed-up over each of the others."""
    per_second: dict[str, list[float]] = {name: [] for name in servers}
    p99: dict[str, list[float]] = {name: [] for name in servers}
    for server in servers.values():
        server.suspend()
    for round_ in range(rounds + 1):  # the first round is for warm-up
        for name, server in servers.items():
            server.resume()
            (outcome,) = load_from_a_second_process(
                server.port, texts, [{"clients": CLIENTS, "seconds": seconds if round_ else seconds / 2}]
            )
            server.suspend()
            if set(outcome["statuses"]) != {"200"}:
                raise RuntimeError(f"{name} answered {outcome['statuses']}.")
            if round_:
                per_second[name].append(outcome["per_second"])
                p99[name].append(outcome["latency_ms"]["p99"])
    for server in servers.values():
        server.resume()
    return {
        name: {
            "per_second": per_second[name],
            "p99_ms": p99[name],
            "ours_is_times_as_fast": [ours / other for ours, other in zip(per_second[OURS], own, strict=True)],
        }
        for name, own in per_second.items()
    }


def measure_latency(
    server: Server, texts: Sequence[str], rate: float, seconds: float, phases: Mapping[str, tuple[float, float]]
) -> dict[str, Figures]:
    """Results of the open loop, by phase. A phase is a share of the rate and of the seconds."""
    asked = [{"rate": share * rate, "seconds": part * seconds} for share, part in phases.values()]
    measured = load_from_a_second_process(server.port, texts, asked)
    return {name: {"rate": own["rate"], **outcome} for name, own, outcome in zip(phases, asked, measured, strict=True)}


def measure_soak(server: Server, texts: Sequence[str], rate: float, seconds: float) -> Figures:
    """Errors and memory at a steady load. The first tenth, in which caches fill, is not counted."""
    samples: list[tuple[float, int]] = []
    started = time.monotonic()

    def look() -> None:
        if not samples or time.monotonic() - started - samples[-1][0] > MEMORY_EVERY:
            samples.append((time.monotonic() - started, server.memory()))

    (outcome,) = load_from_a_second_process(server.port, texts, [{"rate": rate, "seconds": seconds}], look)
    warm = [memory for at, memory in samples if at > seconds / 10]
    few = max(1, len(warm) // 10)
    first, last = statistics.median(warm[:few]), statistics.median(warm[-few:])
    return {"rate": rate, **outcome, "memory_first": first, "memory_last": last, "growth": last / first - 1}


def measure_company(server: Server, folder: Path, texts: Sequence[str], num_requests: int) -> Figures:
    """Sends texts of mixed lengths at once, and compares each answer with the answer for the text alone."""
    chance = random.Random(0)
    words = " ".join(texts).split()
    mixed = []
    for _ in range(num_requests):  # log-uniform lengths: as many texts of 1 to 9 words as of 90 to 900 words
        length = round(LONGEST ** chance.random())
        start = chance.randrange(len(words) - length)
        mixed.append(" ".join(words[start : start + length]))
    answers: dict[int, Answer] = {}

    async def ask() -> Counter:
        load = Load("127.0.0.1", server.port, PATH, [{"text": text, "top_k": 1000} for text in mixed])
        outcome = await load.closed_loop(COMPANY_CLIENTS, 3600, num_requests, answers.__setitem__, PATIENCE)
        load.close()
        return outcome.statuses

    refused = asyncio.run(ask())[503]
    server.suspend()
    predictor = load_predictor(folder, threads=1)
    compared = compare(answers, lambda number: predictor.predict([mixed[number]], top_k=None)[0])
    server.resume()
    return {"requests": len(answers), "clients": COMPANY_CLIENTS, "refused": refused, **compared}


def compare(answers: Mapping[int, Answer], expected_scores: Callable[[int], object]) -> Figures:
    """Counts the answers, the answers with different scores, and the outcomes of the other requests."""
    unanswered = Counter(str(answer.status) for answer in answers.values() if answer.status != 200)
    scores = {
        number: json.loads(answer.body).get("scores") for number, answer in answers.items() if answer.status == 200
    }
    different = sum(own != expected_scores(number) for number, own in scores.items())
    return {"answered": len(scores), "different": different, "unanswered": dict(unanswered)}


def run(
    student: Path,
    texts: Sequence[str],
    output: Path,
    rivals: Sequence[str] = (FLASK, FLASK_ALONE, LITSERVE),
    rounds: int = 5,
    seconds: float = 10.0,
    soak: float = 0.0,
    company: int = COMPANY,
) -> Figures:
    """Measures, prints the tables, and writes the figures to `output`.

    Args:
        student: a PyTorch classifier with its tokenizer.
        texts: texts sent in turn, one per request.
        output: JSON file to write.
        rivals: servers to compare with.
        rounds: measured rounds, after one warm-up round.
        seconds: seconds per turn; phases of the open loop take twice as long.
        soak: seconds of steady load. Default: none.
        company: number of requests of mixed lengths whose answers are checked.
    """
    with tempfile.TemporaryDirectory() as folder:
        int8 = export_model(student, Path(folder, "student-int8"), "onnx-int8", min_agreement=0.0).folder
        servers = {name: Server(name, student=student, int8=int8) for name in (OURS, *rivals)}
        try:
            for server in servers.values():
                server.wait()
            throughput = measure_throughput(servers, texts, rounds, seconds)
            for name in rivals:
                servers[name].stop()
            ours = servers[OURS]
            rate = statistics.median(throughput[OURS]["per_second"])
            figures: Figures = {"throughput": throughput, "saturation": rate}
            figures["latency"] = measure_latency(ours, texts, rate, 2 * seconds, PHASES)
            figures["company"] = measure_company(ours, int8, texts, company)
            if soak:
                figures["soak"] = measure_soak(ours, texts, SHARE * rate, soak)
            ours.stop()
            servers[HURRIED] = Server(HURRIED, int8=int8)
            servers[HURRIED].wait()
            too_much = {"overload, --max-wait 0.5": (OVERLOAD, 1.0)}
            figures["latency"] |= measure_latency(servers[HURRIED], texts, rate, 2 * seconds, too_much)
        finally:
            for server in servers.values():
                if server.process.poll() is None:
                    server.stop()
    _print(figures)
    versions = print_versions([*PACKAGES, "onnxruntime", "fastapi", "uvicorn", "flask", "litserve"])
    write_json(output, {**figures, "cores": len(os.sched_getaffinity(0)), "versions": versions})
    return figures


def _print(figures: Figures) -> None:
    header = ["", "requests per second", "p99, ms", "our speed-up"]
    print(f"Closed loop, {CLIENTS} clients\n")
    print(table(header, [_throughput_cells(name, own) for name, own in figures["throughput"].items()]))
    header = ["open loop", "requests per second", "answered", "refused", "otherwise", "p50, ms", "p99, ms", "highest"]
    print(f"\nSaturation rate: {figures['saturation']:.0f} requests per second\n")
    rows = [_latency_cells(name, own) for name, own in figures["latency"].items()]
    if "soak" in figures:
        rows.append(_latency_cells("soak", figures["soak"]))
    print(table(header, rows))
    company = figures["company"]
    print(f"\n{company['different']} of {company['answered']:,} answers differ from the answer for the text alone.")
    print(f"{company['refused']:,} refusals (503); each request was sent again for up to {PATIENCE:.0f} s.")
    if company["unanswered"]:
        print(f"{sum(company['unanswered'].values()):,} requests got no answer: {company['unanswered']}.")
    if "soak" in figures:
        soak = figures["soak"]
        print(
            f"In {soak['seconds']:.0f} seconds memory went from {soak['memory_first'] / 1e6:.1f} to "
            f"{soak['memory_last'] / 1e6:.1f} MB ({soak['growth']:+.2%})."
        )


def _throughput_cells(name: str, own: Mapping[str, list[float]]) -> list[str]:
    ratios = own["ours_is_times_as_fast"]
    return [
        name,
        f"{statistics.median(own['per_second']):.0f}",
        f"{statistics.median(own['p99_ms']):.0f}",
        f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})",
    ]


def _latency_cells(name: str, own: Figures) -> list[str]:
    statuses = dict(own["statuses"])
    answered, refused = statuses.pop("200", 0), statuses.pop("503", 0)
    latency = [f"{own['latency_ms'][quantile]:.0f}" for quantile in ("p50", "p99", "highest")]
    return [name, f"{own['rate']:.0f}", f"{answered:,}", f"{refused:,}", f"{sum(statuses.values()):,}", *latency]


def main() -> int:
    parser = make_parser("serve_load", __doc__)
    parser.add_argument("--student", type=Path, default=Path("outputs/quickstart/student"), help="of the quickstart")
    add_fetched(parser)
    parser.add_argument("--rivals", nargs="*", choices=[FLASK, FLASK_ALONE, LITSERVE], default=[FLASK, FLASK_ALONE])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=10.0, help="seconds per turn (default: 10)")
    parser.add_argument(
        "--soak", metavar="SECONDS", type=float, default=0.0, help="length of the steady load (default: none)"
    )
    options = parser.parse_args()
    if not all_exist(options.student, options.fetched / "sentences"):
        return 1
    texts = list(load_corpus(options.fetched / "sentences").test["text"])
    run(options.student, texts, options.output, options.rivals, options.rounds, options.seconds, options.soak)
    return 0


if __name__ == "__main__":
    sys.exit(main())
