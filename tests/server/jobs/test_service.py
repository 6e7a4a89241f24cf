"""Whose time is over, who may go on, what a full disk leaves: the service itself, with a clock that the test moves."""

import asyncio
import contextlib
import json
import os
import resource
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from embellama_server.jobs import parts
from embellama_server.jobs.folder import DataFolder
from embellama_server.jobs.lines import MAX_ERRORS, MAX_LINES, LineCheck, NumberedLine
from embellama_server.jobs.records import BatchRecord, FileRecord
from embellama_server.jobs.service import KEPT_S, BatchService
from embellama_server.problems import RateLimited, StorageFull
from embellama_server.state import ServerState

from embellama.errors import Unavailable
from tests.conftest import StartServer, wait_until
from tests.server.gateway.conftest import Keys
from tests.server.jobs.conftest import Client, jsonl, line, lines

START = 1_000_000_000


async def eventually(true: Callable[[], bool]) -> None:
    """Wait for something to become true."""
    async with asyncio.timeout(20):
        while not true():  # noqa: ASYNC110
            await asyncio.sleep(0)


@contextlib.contextmanager
def largest_file(n_bytes: int) -> Iterator[None]:
    """Let no file grow beyond so many bytes: the system refuses it as it does when the disk is full."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


class Clock:
    """A clock that stands still."""

    def __init__(self) -> None:
        self.now = float(START)

    def __call__(self) -> float:
        return self.now


class Backend:
    """A back end that answers as the one inside, but only while it may, and else as it is told."""

    def __init__(self, inside: Any):
        self._inside = inside
        self.errors: list[Exception] = []
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.n_asked = 0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inside, name)

    def submit(self, tokens: Any, **options: Any) -> "asyncio.Future[Any]":
        assert options["caller"].background
        self.n_asked += 1
        if self.errors:
            raise self.errors.pop(0)

        async def answer() -> Any:
            await self.may_answer.wait()
            return await self._inside.submit(tokens, **options)

        return asyncio.ensure_future(answer())


class Site:
    """A service over a folder of its own."""

    def __init__(self, state: ServerState, path: Path, max_bytes: int = 10**9):
        model = state.model(None)
        self.backend = Backend(model.backend)
        served: Any = model._replace(backend=self.backend)
        state.serve(served)
        self.state, self.path, self.clock = state, path, Clock()
        self.folder = DataFolder(path, max_bytes)
        self.service = BatchService(state, self.folder, clock=self.clock)

    @property
    def batch(self) -> BatchRecord:
        return self.folder.batches["batch_a"]

    def keep(self, content: bytes) -> FileRecord:
        record = FileRecord(
            id="file-in", owner="", filename="in", purpose="batch", n_bytes=len(content), created_at=START
        )
        upload = self.folder.new_upload()
        upload.write_bytes(content)
        self.folder.keep(record, upload)
        self.folder.files[record.id] = record
        return record

    async def begin(self, content: bytes) -> str:
        record = BatchRecord(
            id="batch_a",
            owner="",
            endpoint="/v1/embeddings",
            input_file_id=self.keep(content).id,
            window="1h",
            created_at=START,
            expires_at=START + 3600,
            output_seconds=7200,
        )
        return (await self.service.create(record)).id

    async def until(self, *statuses: str) -> BatchRecord:
        await eventually(lambda: self.batch.status in statuses)
        return self.batch

    def read(self, id: str | None) -> list[Any]:
        assert id
        return [json.loads(each) for each in self.folder.path(id).read_bytes().splitlines()]


@pytest.fixture
async def site(state: ServerState, tmp_path: Path) -> AsyncIterator[Site]:
    site = Site(state, tmp_path / "data")
    site.service.start()
    yield site
    await site.service.stop()


def test_a_file_has_at_most_50_000_lines_and_a_hundred_errors_are_told() -> None:
    check = LineCheck("/v1/embeddings")
    for number in range(1, MAX_LINES + 2):
        assert not check.is_hopeless
        check.add(
            NumberedLine(b'{"custom_id":"%d","method":"POST","url":"/v1/embeddings","body":{}}' % number, number, 0)
        )
    assert check.is_hopeless
    assert [(error["code"], error["line"]) for error in check.errors] == [("too_many_lines", None)]
    check = LineCheck("/v1/embeddings")
    for number in range(1, MAX_ERRORS + 2):
        check.add(NumberedLine(b"{", number, 0))
    assert ([error["line"] for error in check.errors], check.is_hopeless) == ([*range(1, MAX_ERRORS + 1)], True)


async def test_a_batch_whose_time_is_over_says_so_of_every_line_that_is_left(site: Site) -> None:
    site.backend.may_answer.clear()
    await site.begin(jsonl(lines(600)))
    await site.until("in_progress")
    site.clock.now += 3599
    await site.service.expire()
    assert site.batch.status == "in_progress"
    site.clock.now += 1
    await site.service.expire()
    batch = await site.until("expired")
    assert (batch.progress.completed, batch.progress.failed, batch.output_file_id) == (0, 600, None)
    told = site.read(batch.error_file_id)
    assert [each["line"] for each in told] == list(range(1, 601))
    assert {each["error"]["code"] for each in told} == {"batch_expired"}


async def test_what_was_done_before_its_time_was_over_is_kept(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "PART_LINES", 10)
    answered = site.backend.may_answer
    await site.begin(jsonl(lines(1000)))
    await eventually(lambda: site.batch.progress.completed > 0)
    answered.clear()
    await asyncio.sleep(0.05)
    site.clock.now += 3600
    await site.service.expire()
    batch = await site.until("expired")
    assert [each["custom_id"] for each in [*site.read(batch.output_file_id), *site.read(batch.error_file_id)]] == [
        f"line {i}" for i in range(1000)
    ]
    assert batch.progress.completed > 0 < batch.progress.failed


async def test_files_go_when_their_time_is_over(site: Site) -> None:
    await site.begin(jsonl([line("a")]))
    batch = await site.until("completed")
    assert batch.output_file_id in site.folder.files
    before = site.folder.n_bytes
    site.clock.now += 7200
    await site.service.expire()
    assert list(site.folder.files) == ["file-in"]
    assert site.folder.n_bytes < before
    site.clock.now += KEPT_S
    await site.service.expire()
    assert not site.folder.batches
    assert [each.name for each in site.path.rglob("*.json")] == ["file-in.json"]


async def test_a_batch_waits_for_workers_and_for_its_keys_limit(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embellama_server.jobs.compute.RETRY_S", 0.01)
    site.backend.errors = [Unavailable("no worker is ready"), RateLimited("too many", 0.01)]
    await site.begin(jsonl([line("a")]))
    batch = await site.until("completed")
    assert (batch.progress.completed, site.backend.n_asked) == (1, 3)


async def test_more_than_a_limit_ever_allows_fails_its_lines(site: Site) -> None:
    site.backend.errors = [RateLimited("never", float("inf"))]
    await site.begin(jsonl([line("a")]))
    batch = await site.until("completed")
    assert [each["response"]["status_code"] for each in site.read(batch.error_file_id)] == [429]


async def test_a_batch_goes_on_once_the_disk_has_room(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("embellama_server.jobs.run.FULL_RETRY_S", 0.05)
    site.backend.may_answer.clear()
    await site.begin(jsonl(lines(300)))
    await site.until("in_progress")
    before = site.folder.n_bytes
    site.folder.reserve(10**9 - before)
    site.backend.may_answer.set()
    await eventually(lambda: site.service.told(site.batch)["errors"] is not None)
    errors = site.service.told(site.batch)["errors"]
    assert errors
    assert errors["data"][0]["code"] == "storage_full"
    with pytest.raises(StorageFull):
        site.folder.reserve(1)
    site.folder.release(10**9 - before)
    batch = await site.until("completed")
    assert batch.progress.completed == len(site.read(batch.output_file_id)) == 300


async def test_a_file_that_may_grow_no_more_is_gone_on_with(
    state: ServerState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_LINES", 10)
    monkeypatch.setattr("embellama_server.jobs.run.FULL_RETRY_S", 0.05)
    outputs = []
    for name, limit in (("whole", resource.RLIM_INFINITY), ("full", 70_000)):
        site = Site(state, tmp_path / name)
        site.service.start()
        with largest_file(limit):
            await site.begin(jsonl(lines(300)))
            if name == "full":
                await eventually(lambda site=site: site.service.told(site.batch)["errors"] is not None)  # type: ignore[misc]
                assert 0 < site.batch.progress.completed < 300
        batch = await site.until("completed")
        await site.service.stop()
        outputs.append(site.folder.path(str(batch.output_file_id)).read_bytes())
    assert outputs[0] == outputs[1]


async def test_a_stopped_service_goes_on_in_the_next_one(state: ServerState, tmp_path: Path) -> None:
    first = Site(state, tmp_path / "data")
    first.service.start()
    first.backend.may_answer.clear()
    await first.begin(jsonl(lines(300)))
    await first.until("in_progress")
    async with asyncio.timeout(1):
        await first.service.stop()
    (tmp_path / "data" / "files" / "file-left.partial").write_bytes(b"nobody's")
    first.backend.may_answer.set()
    second = Site(state, tmp_path / "data")
    second.service.start()
    assert (await second.until("completed")).progress.completed == 300
    expected = second.folder.n_bytes
    await second.service.stop()
    folder = DataFolder(tmp_path / "data", 10**9)
    assert folder.n_bytes == expected
    folder.close()
    assert "file-left.partial" not in os.listdir(tmp_path / "data" / "files")


@pytest.mark.server
def test_each_key_sees_its_own_and_pays_for_it(tiny_path: str, start_server: StartServer, tmp_path: Path) -> None:
    keys = Keys(tmp_path, one={"tokens_per_minute": 10_000}, two={}, elsewhere={"models": ("other",)})
    flags = ("--model-path", tiny_path, "--workers", "1", "--data-dir", str(tmp_path / "data"))
    with (
        start_server(*flags, "--keys-file", str(keys.path)) as server,
        Client(server, keys["one"]) as one,
        Client(server, keys["two"]) as two,
        Client(server, keys["elsewhere"]) as elsewhere,
    ):
        batch = one.run(lines(10))
        assert batch.usage
        file_id, output_id = batch.input_file_id, batch.output_file_id
        assert output_id
        headers = {"authorization": f"Bearer {keys['one']}"}
        told = httpx.get(f"{server.url}/v1/models", headers=headers).headers
        assert int(told["x-ratelimit-remaining-tokens"]) == 10_000 - batch.usage.total_tokens
        assert [each.id for each in two.openai.files.list()] == [each.id for each in two.openai.batches.list()] == []
        for ask in (
            lambda: two.openai.files.content(output_id),
            lambda: two.openai.files.delete(file_id),
            lambda: two.openai.batches.retrieve(batch.id),
            lambda: two.openai.batches.cancel(batch.id),
            lambda: two.openai.batches.create(
                input_file_id=file_id, endpoint="/v1/embeddings", completion_window="24h"
            ),
        ):
            with pytest.raises(openai.NotFoundError):
                ask()
        refused = elsewhere.run([line("a")])
        assert refused.errors
        assert refused.errors.data
        assert (refused.status, refused.errors.data[0].code) == ("failed", "not_allowed")
        long = two.begin(lines(8000))
        wait_until(lambda: bool(_completed(two, long.id)), "it has done something")
        keys.path.write_text(keys.path.read_text().replace('name = "two"', 'name = "new"'))
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: "is failed" in server.log.read_text(), "its batch ends")
    record = json.loads((tmp_path / "data" / "batches" / f"{long.id}.json").read_bytes())
    assert (record["status"], record["errors"][0]["code"]) == ("failed", "invalid_api_key")
    assert record["output_file_id"]


def _completed(client: Client, batch_id: str) -> int:
    counts = client.openai.batches.retrieve(batch_id).request_counts
    return counts.completed if counts else 0


def test_a_first_line_that_is_wrong_is_not_what_others_are_compared_with() -> None:
    check = LineCheck("/v1/embeddings")
    good = {"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": {"model": "tiny", "input": "red"}}
    other = {**good, "custom_id": "b", "body": {"model": "gpt", "input": "red"}}
    for number, content in enumerate((b"{oops", json.dumps(good).encode(), json.dumps(other).encode()), 1):
        check.add(NumberedLine(content, number, 0))
    assert [(error["line"], error["code"]) for error in check.errors] == [
        (1, "invalid_json_line"),
        (3, "mismatched_model"),
    ]
    assert check.errors[1]["message"] == "model is 'gpt'; line 2 has 'tiny'"
