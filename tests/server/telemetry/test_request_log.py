"""The request log: a line for each request, whole, true, in files that are kept for some days."""

import collections
import datetime
import json
import os
import resource
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from embellama_server.config import ServerConfig
from embellama_server.telemetry import request_log
from embellama_server.telemetry.day_file import DayFile
from embellama_server.telemetry.log_lines import ALL_CHARACTERS, HASHED_TEXTS, TEXT_CHARACTERS, LineWriter
from embellama_server.telemetry.record import RequestRecord, Timeline
from embellama_server.telemetry.request_log import RequestLog
from hypothesis import given, settings
from hypothesis import strategies as st

from embellama.errors import ConfigError
from embellama.records.hashes import TextHash, make_key
from embellama.records.line import RequestLine, file_name
from tests.conftest import Server, StartServer, running_server, wait_until
from tests.server.gateway.conftest import Keys

DECODER = msgspec.json.Decoder(RequestLine)


def lines_of(folder: Path) -> list[RequestLine]:
    """Read all lines of a log; each must be whole."""
    found = []
    for path in sorted(folder.glob("requests-*.jsonl")):
        data = path.read_bytes()
        assert not data or data.endswith(b"\n")
        found += [DECODER.decode(line) for line in data.splitlines()]
    return found


def record(**fields: Any) -> RequestRecord:
    """Make a record of a request that ended now and took 15 ms."""
    now = time.monotonic()
    told: dict[str, Any] = dict.fromkeys(RequestRecord._fields, "")
    told |= {"status": 200, "n_retries": 0, "dimensions": 0, "formats": (), "texts": (), "n_texts": 1, "n_tokens": 5}
    told |= {"n_truncated": 0, "n_cached_tokens": 0}
    told["times"] = Timeline(*(now - ms / 1000 for ms in (15, 14, 13, 12, 8, 0)))
    return RequestRecord(**(told | fields))


NewLog = Callable[..., RequestLog]


@pytest.fixture
def new_log(tmp_path: Path) -> Iterator[NewLog]:
    """Begin logs in a folder, which are closed at the end."""
    logs = []

    def begin(days: int = 30, *, with_texts: bool = False) -> RequestLog:
        logs.append(RequestLog(tmp_path / "log", days, with_texts=with_texts))
        return logs[-1]

    yield begin
    for log in logs:
        log.close()


TEXTS = st.one_of(st.text(max_size=30), st.lists(st.integers(0, 2**31 - 1), max_size=5))


@settings(max_examples=50, deadline=None)
@given(texts=st.lists(TEXTS, max_size=5), model=st.text(max_size=10), n_tokens=st.integers(0, 10**9), data=st.data())
def test_a_record_comes_back_from_its_line(texts: list[Any], model: str, n_tokens: int, data: st.DataObject) -> None:
    ends = sorted(data.draw(st.lists(st.floats(0, 1e6), min_size=6, max_size=6)))
    with tempfile.TemporaryDirectory() as folder:
        make_key(Path(folder))
        [made] = LineWriter(Path(folder), with_texts=True).lines(
            [record(texts=texts, model=model, n_tokens=n_tokens, times=Timeline(*ends), request_id="1", key="alice")]
        )
        text_hash = TextHash(folder)
    assert made.data.count(b"\n") == 1
    line = DECODER.decode(made.data)
    assert (line.id, line.model, line.n_tokens, line.key) == ("1", model, n_tokens, "alice")
    assert line.hashes == [text_hash(text) for text in texts]
    assert line.texts == [text if isinstance(text, str) else json.dumps(text).replace(" ", "") for text in texts]
    assert line.total_ms == pytest.approx(1000 * (ends[-1] - ends[0]), abs=0.001)
    phases = (line.tokenization_ms, line.queue_ms, line.inference_ms, line.encoding_ms)
    assert sum(phases) == pytest.approx(line.total_ms, abs=0.01)
    assert line.time.startswith(made.day)
    assert len(line.time) == 24


def test_texts_are_hashes_unless_asked_for(new_log: NewLog, tmp_path: Path) -> None:
    log = new_log()
    log.add(record(texts=["a secret text"]))
    log.close()
    [line] = lines_of(tmp_path / "log")
    assert line.hashes == [TextHash(tmp_path / "log")("a secret text")]
    assert line.texts == []
    assert all(b"secret" not in path.read_bytes() for path in (tmp_path / "log").iterdir())


def test_what_a_line_has_of_texts_is_bounded(new_log: NewLog, tmp_path: Path) -> None:
    log = new_log(with_texts=True)
    log.add(record(texts=["x" * 5000] * HASHED_TEXTS))
    log.close()
    [line] = lines_of(tmp_path / "log")
    assert len(line.hashes) == HASHED_TEXTS
    assert line.texts == ["x" * TEXT_CHARACTERS] * (ALL_CHARACTERS // TEXT_CHARACTERS)


def test_lines_go_to_the_file_of_their_day(tmp_path: Path) -> None:
    make_key(tmp_path)
    midnight = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=1)).replace(hour=0, minute=0, second=0)
    until = midnight.timestamp() - time.time() + time.monotonic()
    records = [record(times=Timeline(*[until + seconds] * 6)) for seconds in (-2, 2, -3, 3)]
    before, after = LineWriter(tmp_path, with_texts=False).lines(records)
    assert (before.n, after.n) == (2, 2)
    assert datetime.date.fromisoformat(after.day) - datetime.date.fromisoformat(before.day) == datetime.timedelta(1)


def test_old_days_go_and_other_files_stay(new_log: NewLog, tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    today = datetime.datetime.now(datetime.UTC).date()
    names = [file_name(str(today - datetime.timedelta(days=days)), "f" * 16) for days in (0, 1, 7, 8, 400)]
    others = ["notes.txt", "requests-2020-01-01.jsonl", "requests-2020-01-01-x.jsonl", f"{names[4]}.gz"]
    for name in (*names, *others):
        (tmp_path / "log" / name).touch()
    new_log(days=7)
    left = {path.name for path in (tmp_path / "log").iterdir()}
    assert left == {*names[:3], *others, "hash.key"}


def test_a_deleted_file_is_made_again(new_log: NewLog, tmp_path: Path) -> None:
    log = new_log()
    log.add(record(request_id="1"))
    wait_until(lambda: log.n_written == 1, "it is written")
    for path in (tmp_path / "log").glob("requests-*"):
        path.unlink()
    log.add(record(request_id="2"))
    wait_until(lambda: log.n_written == 2, "it is written")
    assert [line.id for line in lines_of(tmp_path / "log")] == ["2"]


def test_what_does_not_fit_on_the_disk_is_cut_off_to_the_last_whole_line(tmp_path: Path) -> None:
    file = DayFile(tmp_path, "f" * 16)
    file.append("2026-11-20", b"first\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            file.append("2026-11-20", b"second\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    [path] = tmp_path.iterdir()
    assert path.read_bytes() == b"first\n"
    file.append("2026-11-20", b"third\n")
    file.close()
    assert path.read_bytes() == b"first\nthird\n"


def test_a_full_disk_costs_no_line_while_there_is_room_in_the_queue(
    new_log: NewLog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    full = threading.Event()
    append = DayFile.append

    def appended(self: DayFile, day: str, data: bytes) -> None:
        if full.is_set():
            raise OSError(28, "No space left on device")
        append(self, day, data)

    monkeypatch.setattr(DayFile, "append", appended)
    monkeypatch.setattr(request_log, "QUEUED", 100)
    monkeypatch.setattr(request_log, "FLUSH_S", 0.01)
    log = new_log()
    full.set()
    for i in range(50):
        log.add(record(request_id=f"a{i}"))
    wait_until(lambda: "No space left" in caplog.text, "it is told")
    for i in range(200):
        log.add(record(request_id=f"b{i}"))
    n_dropped = log.n_dropped
    assert n_dropped >= 100
    full.clear()
    wait_until(lambda: log.n_written == 250 - n_dropped, "what is left is written")
    wait_until(lambda: f"{n_dropped} requests have no line" in caplog.text, "it is told")
    assert caplog.text.count("No space left") == 1
    ids = [line.id for line in lines_of(tmp_path / "log")]
    assert ids == [*(f"a{i}" for i in range(50)), *(f"b{i}" for i in range(200 - n_dropped))]


def test_texts_that_wait_are_bounded(new_log: NewLog, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(request_log, "QUEUED_CHARACTERS", 100)
    monkeypatch.setattr(request_log, "FLUSH_S", 0.1)
    log = new_log()
    log.add(record(texts=["x" * 60]))
    log.add(record(texts=["x" * 60]))
    wait_until(lambda: log.n_written == 2, "they are written")
    log.add(record(texts=["x" * 60]))
    log.close()
    assert [len(line.hashes) for line in lines_of(tmp_path / "log")] == [1, 0, 1]


def test_a_record_that_cannot_be_written_ends_nothing(new_log: NewLog, tmp_path: Path) -> None:
    log = new_log()
    log.add(record(model=object(), request_id="bad"))  # a bug
    wait_until(lambda: log.n_dropped == 1, "it is given up")
    log.add(record(request_id="good"))
    log.close()
    assert [line.id for line in lines_of(tmp_path / "log")] == ["good"]


@pytest.mark.parametrize("what", ["a file", "below a file"])
def test_a_folder_that_cannot_be_is_named_at_the_start(tiny_path: str, tmp_path: Path, what: str) -> None:
    (tmp_path / "file").touch()
    place = tmp_path / "file" / ("below" if what == "below a file" else "")
    with pytest.raises(ConfigError, match="request_log is "):
        RequestLog(place, 1, with_texts=False)


@pytest.mark.parametrize("setting", [{"log_texts": True}, {"request_log_days": 3}])
def test_settings_of_no_log_are_refused(tiny_path: str, setting: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="there is no request_log"):
        ServerConfig(model_path=tiny_path, **setting).checked()


BODY = {"model": "tiny", "input": "red"}
LONG = "red " * 500


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return Keys(tmp_path_factory.mktemp("keys"), alice={}, bob={"requests_per_minute": 1}, admin={"admin": True})


@pytest.fixture(scope="module")
def logged(tiny_path: str, keys: Keys, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Server, Path]]:
    """A server with keys, and the folder of its log."""
    folder = tmp_path_factory.mktemp("logged")
    flags = ("--workers", "1", "--keys-file", str(keys.path), "--request-log", str(folder / "log"))
    with running_server(folder / "server.log", "--model-path", tiny_path, *flags) as server:
        yield server, folder / "log"


def line_of(folder: Path, request_id: str) -> RequestLine:
    """Wait for the line of a request."""
    found: list[RequestLine] = []

    def written() -> bool:
        found[:] = [line for line in lines_of(folder) if line.id == request_id]
        return bool(found)

    wait_until(written, "it is written")
    [line] = found
    return line


@pytest.mark.server
def test_fields_are_what_the_client_got(logged: tuple[Server, Path], keys: Keys) -> None:
    server, folder = logged
    headers = {"authorization": f"Bearer {keys['alice']}", "x-stainless-retry-count": "2"}
    texts = ["red green blue", "blue " * 100, "red green blue"]
    body = {"model": "tiny", "input": texts, "truncate": "end", "encoding_format": "base64", "prompt_name": "query"}
    before = time.time()
    for n_cached in (0, 1):  # the second time, all rows are known
        answer = httpx.post(f"{server.url}/v1/embeddings", json=body, headers=headers)
        assert answer.status_code == 200, answer.text
        line = line_of(folder, answer.headers["x-request-id"])
        assert (line.status, line.error, line.path) == (200, "", "/v1/embeddings")
        assert (line.key, line.client, line.n_retries) == ("alice", "127.0.0.1", 2)
        admin = {"authorization": f"Bearer {keys['admin']}"}
        [model] = httpx.get(f"{server.url}/v1/models", headers=admin).json()["data"]
        assert (line.model, line.weights_sha256) == (model["id"], model["weights_sha256"])
        assert f"{line.prompt}; sha256={line.prompt_hash}" == answer.headers["x-embellama-prompt"]
        assert (line.n_texts, line.n_tokens) == (3, answer.json()["usage"]["prompt_tokens"])
        assert line.n_cached_tokens == int(answer.headers["x-embellama-cached-tokens"])
        assert (line.n_cached_tokens == line.n_tokens) == bool(n_cached)
        assert line.hashes == [TextHash(folder)(text) for text in texts]
        told = (line.tokenization_ms, line.queue_ms, line.inference_ms)
        for name, ms in zip(("tokenization", "queue", "inference"), told, strict=True):
            assert ms == pytest.approx(float(answer.headers[f"x-{name}-time"]), abs=0.06)
        assert line.total_ms >= float(answer.headers["x-total-time"]) - 0.06
        ended = datetime.datetime.fromisoformat(line.time).timestamp()
        assert before - 0.01 <= ended <= time.time() + 0.01


@pytest.mark.server
@pytest.mark.parametrize(
    ("key", "path", "body", "status", "error", "fields"),
    [
        ("", "/v1/embeddings", BODY, 401, "invalid_api_key", {"key": "", "model": ""}),
        ("", "/openai/deployments/a/b/embeddings", BODY, 401, "invalid_api_key", {"n_texts": 0}),
        ("alice", "/v1/embeddings", {"model": "other", "input": "red"}, 404, "model_not_found", {"model": ""}),
        ("alice", "/v1/embeddings", {"model": "tiny", "input": LONG}, 400, "context_length_exceeded", {"n_texts": 0}),
        ("alice", "/v1/embeddings", {"model": "tiny", "input": []}, 400, "invalid_request_error", {"key": "alice"}),
        ("alice", "/v1/embeddings", {"model": "tiny", "input": ["poison"]}, 500, "model_error", {"n_texts": 1}),
        ("alice", "/rerank", {"query": "red", "texts": ["blue"]}, 200, "", {"n_texts": 2}),
        ("alice", "/tokenize", {"inputs": "red"}, 200, "", {"inference_ms": 0.0}),
    ],
)  # fmt: skip
def test_every_answer_of_a_dialect_has_a_line(
    logged: tuple[Server, Path], keys: Keys, key: str, path: str, body: Any, status: int, error: str, fields: Any
) -> None:
    server, folder = logged
    headers = {"authorization": f"Bearer {keys[key]}"} if key else {}
    answer = httpx.post(server.url + path, json=body, headers=headers)
    line = line_of(folder, answer.headers["x-request-id"])
    assert (answer.status_code, line.status, line.error) == (status, status, error)
    expected = path.replace("/a/b/", "/{model}/")
    assert line.path == expected
    assert {name: getattr(line, name) for name in fields} == fields


@pytest.mark.server
def test_a_request_beyond_a_keys_limit_has_a_line_with_its_name(logged: tuple[Server, Path], keys: Keys) -> None:
    server, folder = logged
    headers = {"authorization": f"Bearer {keys['bob']}"}
    answers = [httpx.post(f"{server.url}/v1/embeddings", json=BODY, headers=headers) for _ in range(2)]
    line = line_of(folder, answers[1].headers["x-request-id"])
    assert (line.status, line.error, line.key) == (429, "rate_limit_exceeded", "bob")


@pytest.mark.server
def test_the_first_texts_of_many_are_hashed(logged: tuple[Server, Path], keys: Keys) -> None:
    server, folder = logged
    body = {"model": "tiny", "input": ["red", "blue"] * 100}
    answer = httpx.post(f"{server.url}/v1/embeddings", json=body, headers={"api-key": keys["alice"]})
    line = line_of(folder, answer.headers["x-request-id"])
    assert line.n_texts == 200
    assert line.hashes == [TextHash(folder)(text) for text in ("red", "blue")] * (HASHED_TEXTS // 2)


@pytest.mark.server
def test_a_client_that_hangs_up_has_a_line(logged: tuple[Server, Path], keys: Keys) -> None:
    server, folder = logged
    host, port = server.url.removeprefix("http://").split(":")
    head = f"POST /v1/embeddings HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {keys['alice']}\r\nx-request-id: left\r\n"
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(f"{head}content-length: 100\r\n\r\nhalf".encode())
    assert line_of(folder, "left").status == 0


@pytest.mark.server
def test_metrics_count_lines(logged: tuple[Server, Path], keys: Keys) -> None:
    server, _ = logged
    page = httpx.get(f"{server.url}/metrics", headers={"authorization": f"Bearer {keys['admin']}"}).text
    assert "embellama_request_log_lines_total" in page
    assert "embellama_request_log_dropped_total 0.0" in page


class Clients:
    """Clients that ask a server again and again, and remember when each of their requests was answered.

    Attributes:
        answered: The time of each answer, by request id, on `time.monotonic`'s clock.
    """

    def __init__(self, server: Server, n: int):
        self.answered: dict[str, float] = {}
        self._url, self._stop = f"{server.url}/v1/embeddings", threading.Event()
        self._threads = [threading.Thread(target=self._ask) for _ in range(n)]
        for thread in self._threads:
            thread.start()

    def _ask(self) -> None:
        with httpx.Client() as client:
            while not self._stop.is_set():
                try:
                    answer = client.post(self._url, json={"model": "tiny", "input": f"red {len(self.answered)}"})
                except httpx.HTTPError:  # the server was killed
                    return
                self.answered[answer.headers["x-request-id"]] = time.monotonic()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()


@pytest.mark.server
def test_a_killed_server_loses_no_more_than_a_second_and_the_other_nothing(tiny_path: str, tmp_path: Path) -> None:
    folder = tmp_path / "log"
    flags = ("--model-path", tiny_path, "--workers", "1", "--request-log", str(folder))
    with running_server(tmp_path / "a.log", *flags) as killed, running_server(tmp_path / "b.log", *flags) as other:
        clients = [Clients(killed, 3), Clients(other, 3)]
        wait_until(lambda: all(len(each.answered) > 100 for each in clients), "there is something to lose")
        time.sleep(1.2)  # longer than may be lost
        killed.process.kill()
        killed_at = time.monotonic()
        for each in clients:
            each.stop()
        other.process.terminate()
        other.process.wait()
    counts = collections.Counter(line.id for line in lines_of(folder))
    assert max(counts.values()) == 1
    lost = [at for request_id, at in clients[0].answered.items() if request_id not in counts]
    assert all(at > killed_at - 1 for at in lost)
    assert len(lost) < len(clients[0].answered)
    assert clients[1].answered.keys() <= counts.keys()
    assert len(list(folder.glob("requests-*"))) == 2


@pytest.mark.server
def test_a_full_disk_stops_no_request_and_costs_no_line(
    start_server: StartServer, tiny_path: str, tmp_path: Path
) -> None:
    folder = tmp_path / "log"
    with (
        start_server("--model-path", tiny_path, "--workers", "1", "--request-log", str(folder)) as server,
        httpx.Client() as client,
    ):
        ids = []

        def ask(n: int) -> None:
            for _ in range(n):
                answer = client.post(f"{server.url}/v1/embeddings", json={"model": "tiny", "input": "red"})
                assert answer.status_code == 200
                ids.append(answer.headers["x-request-id"])

        ask(20)
        wait_until(lambda: len(lines_of(folder)) == 20, "they are written")
        [path] = folder.glob("requests-*")
        limits = server.process.rlimit(resource.RLIMIT_FSIZE)
        # The file may grow by a part of a line; the server's own log is shorter.
        server.process.rlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, limits[1]))
        assert path.stat().st_size > os.stat(server.log).st_size + 1000
        ask(5)
        wait_until(lambda: "the request log is not written" in server.log.read_text(), "it is told")
        assert len(lines_of(folder)) == 20
        server.process.rlimit(resource.RLIMIT_FSIZE, limits)
        wait_until(lambda: len(lines_of(folder)) == 25, "they are written")
        assert "written again; 0 requests have no line" in server.log.read_text()
    assert [line.id for line in lines_of(folder)] == ids
