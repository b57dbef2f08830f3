"""A service from start to end, with and without load; and services that fail to start."""

import asyncio
import resource
import shutil
import signal
import socket
import sys
import threading
import time

import pytest

from hf_distill import push_folder
from hf_distill.cli import main
from hf_distill.serving import Limits
from hf_distill.serving.metrics import Metrics
from hf_distill.serving.service import Service
from recipes.benchmarks.http_load import NOT_SENT, Load
from tests.conftest import make_texts
from tests.serving.running import RunningService

BODIES = [{"text": text} for text in make_texts(50)]


def load_on(service, clients=8, seconds=2.0, then=lambda: None):
    """The outcomes of some clients' requests when something happens to the service after half a second."""

    async def run():
        load = Load("127.0.0.1", service.port, "/predict", BODIES)
        asyncio.get_running_loop().call_later(0.5, then)
        try:
            return await load.closed_loop(clients, seconds)
        finally:
            load.close()

    return asyncio.run(run()).statuses


@pytest.fixture
def ask():
    """Sends requests in threads. The answers are complete after the threads are joined."""
    answers, threads = [], []

    def ask(service, times=1, body=None):
        for _ in range(times):
            target = lambda: answers.append(service.post(body or {"text": "w5 w6"}))  # noqa: E731
            threads.append(threading.Thread(target=target))
            threads[-1].start()

    def join():
        for thread in threads:
            thread.join()
        return answers

    ask.join = join
    return ask


def test_sigterm_under_load(int8, tmp_path):
    """Every request sent before the stop is answered. Later clients are not accepted."""
    with RunningService(tmp_path, int8, "--workers", "2") as service:
        statuses = load_on(service, then=lambda: service.process.send_signal(signal.SIGTERM))
        assert service.process.wait(10) == 0
        assert statuses.keys() <= {200, NOT_SENT}
        assert statuses[200] > 100
        assert service.said("Stopping after all accepted requests are answered")
        assert not service.said("Traceback")


def test_what_was_accepted_is_finished(int8, tmp_path, ask):
    """A slow worker finishes its request. Meanwhile `/ready` answers 503."""
    with RunningService(tmp_path, int8, "--workers", "1") as service:
        (worker,) = service.workers()
        worker.suspend()
        ask(service, times=5)
        service.wait_until(lambda: service.metric("hf_distill_queue_texts") >= 1)
        service.process.send_signal(signal.SIGTERM)
        service.wait_until(lambda: service.get("/ready").status == 503)
        assert service.get("/health").headers["connection"] == "close"
        time.sleep(1.5)  # no new connections any more
        worker.resume()
        assert [answer.status for answer in ask.join()] == [200] * 5
        assert service.process.wait(10) == 0


def test_interrupt_stops_it_too(int8, tmp_path):
    with RunningService(tmp_path, int8, "--workers", "1") as service:
        (worker,) = service.workers()
        service.process.send_signal(signal.SIGINT)
        assert service.process.wait(10) == 0
        assert not service.said("Traceback")
        assert not worker.is_running()


def test_workers_do_not_outlive_a_service_that_is_killed(int8, tmp_path):
    with RunningService(tmp_path, int8, "--workers", "1") as service:
        (worker,) = service.workers()
        service.process.kill()
        worker.wait(10)


def test_a_worker_killed_under_load(int8, tmp_path):
    """The batch of a dead worker is answered with an error, the other worker continues, and a new one starts."""
    with RunningService(tmp_path, int8, "--workers", "2") as service:
        service.wait_until(lambda: service.metric("hf_distill_workers") == 2)
        statuses = load_on(service, then=lambda: service.workers()[0].kill())
        assert statuses.keys() <= {200, 503}
        assert statuses[200] > 100
        assert statuses[503] < 20
        service.wait_until(lambda: service.metric("hf_distill_workers") == 2)
        assert service.metric("hf_distill_worker_restarts_total") == 1
        assert service.post({"text": "w5"}).status == 200


def test_the_only_worker_killed_while_it_has_a_request(int8, tmp_path, ask):
    """The slow request is lost. Waiting requests are answered by the next worker."""
    with RunningService(tmp_path, int8, "--workers", "1") as service:
        (worker,) = service.workers()
        worker.suspend()
        ask(service)
        time.sleep(0.5)
        ask(service, times=2)
        service.wait_until(lambda: service.metric("hf_distill_queue_texts") == 2)
        worker.kill()
        answers = sorted(ask.join(), key=lambda answer: answer.status)
        assert [answer.status for answer in answers] == [200, 200, 503]
        assert answers[2].json["detail"] == "The worker died: try again."
        assert answers[2].headers["retry-after"] == "1"
        assert 'kind="worker_lost"} 1.0' in service.get("/metrics").body.decode()


def test_an_idle_worker_killed_loses_nothing(int8, tmp_path):
    with RunningService(tmp_path, int8, "--workers", "1") as service:
        (worker,) = service.workers()
        worker.kill()
        service.wait_until(lambda: service.metric("hf_distill_worker_restarts_total") == 1)
        answer = service.post({"text": "w5"})
        assert answer.status == 503
        assert answer.json["detail"] == "The student is still loading."
        assert answer.headers["retry-after"] == "1"
        service.wait_until(service.is_ready)
        assert service.post({"text": "w5"}).status == 200


def test_a_worker_that_hangs_is_replaced(int8, tmp_path):
    with RunningService(tmp_path, int8, "--workers", "1", "--timeout", "1") as service:
        (worker,) = service.workers()
        worker.suspend()
        started = time.monotonic()
        answer = service.post({"text": "w5"})
        assert 0.9 < time.monotonic() - started < 5
        assert answer.status in (503, 504)  # the request and its batch end in the same second
        service.wait_until(lambda: worker.pid not in {own.pid for own in service.workers()} and service.is_ready())
        assert service.post({"text": "w5"}).status == 200


def test_a_full_queue(int8, tmp_path, ask):
    """Requests that fit are answered, and others are refused at once."""
    with RunningService(tmp_path, int8, "--workers", "1", "--max-queue", "4", "--max-texts", "4") as service:
        (worker,) = service.workers()
        worker.suspend()
        ask(service)
        time.sleep(0.5)
        ask(service, body={"texts": ["w5"] * 3})
        service.wait_until(lambda: service.metric("hf_distill_queue_texts") == 3)
        started = time.monotonic()
        refused = service.post({"texts": ["w5"] * 2})
        assert time.monotonic() - started < 1
        assert refused.status == 503
        assert refused.headers["retry-after"] == "1"
        assert refused.json["detail"] == "Too many texts are waiting: try again in 1 s."
        worker.resume()
        assert [answer.status for answer in ask.join()] == [200, 200]
        assert service.post({"texts": ["w5"] * 4}).status == 200


def test_more_clients_than_files_that_a_process_may_open_at_first(int8, tmp_path):
    """Each waiting client has a connection. Most systems allow 1,024 open files, and more if the process asks."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, hard))
    try:
        running = RunningService(tmp_path, int8, "--workers", "1", wait=False)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    with running as service:
        service.wait_until(lambda: service.said("is ready"))
        (worker,) = service.workers()
        worker.suspend()
        assert load_on(service, clients=400, seconds=0.4, then=worker.resume) == {200: 400}


def test_alive_before_it_is_ready(student, tmp_path):
    """Stopping works while PyTorch is still being imported."""
    with RunningService(tmp_path, student, "--workers", "1", wait=False) as service:
        service.wait_until(lambda: service.answers("/health"))
        assert service.get("/ready").status == 503
        assert service.get("/ready").json["detail"] == "The student is still loading."
        assert service.post({"text": "w5"}).status == 503
        service.process.send_signal(signal.SIGTERM)  # it need not wait until it is loaded
        assert service.process.wait(10) == 0


def test_from_the_hub(hub, student, int8, tmp_path, monkeypatch):
    """The revision is the commit on the Hub."""
    commit = push_folder(int8, "small-reviews")
    for name, value in {"HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    with RunningService(tmp_path, "tester/small-reviews", "--workers", "1") as service:
        headers = service.post({"text": "w5"}).headers
        assert headers["x-model-name"] == "tester/small-reviews"
        assert headers["x-model-revision"] == commit.oid


def fails(capsys, *options):
    """Runs `hf-distill serve`, and returns the single line of its error."""
    assert main(["serve", *map(str, options)]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    return line.removeprefix("hf-distill: ")


def test_what_does_not_start(int8, tmp_path, capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        expected = f"Cannot listen on 127.0.0.1, port {port}: the port is in use. Choose another with --port."
        assert fails(capsys, int8, "--port", port) == expected
    assert fails(capsys, int8, "--port", "70000") == "port=70000 must be from 0 to 65535."
    assert "--host must be an address of this machine" in fails(capsys, int8, "--host", "203.0.113.1", "--port", "0")
    assert "no_such_file" in fails(capsys, int8, "--token-file", tmp_path / "no_such_file")
    (tmp_path / "empty").write_text("\n")
    assert "empty is empty: write the bearer token into it" in fails(capsys, int8, "--token-file", tmp_path / "empty")
    assert fails(capsys, int8, "--timeout", "0") == "timeout is 0.0: it must be above 0."
    assert fails(capsys, int8, "--workers", "0") == "workers is 0: it must be above 0."
    assert fails(capsys, int8, "--threads", "-1") == "threads is -1: it must be above 0."


def test_a_model_that_cannot_be_served(int8, tmp_path, capfd):
    """The worker finds that the model cannot be served."""
    folder = shutil.copytree(int8, tmp_path / "unnamed")
    manifest = (folder / "export.json").read_text()
    (folder / "export.json").write_text(manifest.replace('"bad"', '"LABEL_0"').replace('"good"', '"LABEL_1"'))
    assert main(["serve", str(folder), "--port", "0"]) == 2
    (line,) = capfd.readouterr().err.strip().splitlines()
    assert line.startswith(f"hf-distill: {folder} has no class names, only LABEL_0, LABEL_1: set id2label")


def test_a_worker_that_dies_while_it_loads():
    service = Service("student", "model", "auto", 1, 1, Limits(), Metrics())
    service.command = [sys.executable, "-c", "raise SystemExit(3)"]
    with pytest.raises(ValueError, match="that loads the student ended with exit code 3: see its output above"):
        asyncio.run(service.start())


def test_no_model(tmp_path, capfd):
    assert main(["serve", str(tmp_path / "nothing"), "--port", "0"]) == 2
    assert "neither as a local folder nor on the Hub" in capfd.readouterr().err


def test_a_missing_extra(int8, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "fastapi", None)
    assert fails(capsys, int8) == "fastapi is not installed: pip install 'hf_distill[serve]'."
