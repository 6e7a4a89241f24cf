"""A batch has the prompts that it began with, whatever its model's file says later, and through a restart."""

import json
from pathlib import Path
from typing import Any

import pytest
from embellama_server.application import build
from embellama_server.jobs import parts
from embellama_server.jobs.records import BatchRecord
from embellama_server.state import ServerState

from embellama.text.prompt import Prompt
from embellama.text.prompts import Prompts
from tests.server.conftest import InstantBackend
from tests.server.jobs.conftest import jsonl, line
from tests.server.jobs.test_service import Site, eventually

ONE, TWO = Prompt("query@1", "one {text}"), Prompt("query@2", "two two {text}")
WITH_ONE, WITH_TWO = (Prompts([ONE, TWO], {"query": name}) for name in ("query@1", "query@2"))


def asking(n: int) -> bytes:
    body = {"model": "tiny", "input": "red", "prompt_name": "query"}
    return jsonl([line(f"line {i}", body=body) for i in range(n)])


def serve(state: ServerState, prompts: Prompts) -> None:
    state.serve(state.model(None).with_prompts(prompts))


def state_like(state: ServerState) -> ServerState:
    """Make the state of a server that is started again."""
    again = build(state.config)
    model = again.model(None)
    backend: Any = InstantBackend(model.info.dim)
    return ServerState(again.config, [model._replace(dispatcher=backend, backend=backend)], again.metrics)


def answered(site: Site, batch: BatchRecord) -> list[tuple[str, int]]:
    """Return the prompt that each line names, and its tokens, one of which is the text's and two are special."""
    lines = [each["response"] for each in site.read(batch.output_file_id)]
    return [(each["prompt"], each["body"]["usage"]["prompt_tokens"]) for each in lines]


async def test_a_batch_keeps_its_prompts_when_the_file_changes_and_when_the_server_is_started_again(
    state: ServerState, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parts, "PART_LINES", 10)
    serve(state, WITH_ONE)
    site = Site(state, tmp_path / "data")
    site.service.start()
    site.backend.may_answer.clear()
    await site.begin(asking(60))
    await eventually(lambda: site.backend.n_asked == 2)
    serve(state, WITH_TWO)
    site.backend.may_answer.set()
    await eventually(lambda: site.batch.progress.completed >= 30)
    site.backend.may_answer.clear()
    await site.service.stop()
    assert 30 <= site.batch.progress.completed < 60

    started = state_like(state)
    serve(started, WITH_TWO)
    again = Site(started, tmp_path / "data")
    again.service.start()
    batch = await again.until("completed")
    assert answered(again, batch) == [(ONE.identity, 4)] * 60
    assert batch.prompts is None  # they are kept no longer
    later = json.loads((tmp_path / "data" / "batches" / "batch_a.json").read_bytes())
    assert later["prompts"] is None
    await again.service.stop()


async def test_a_line_without_a_prompt_names_none(state: ServerState, tmp_path: Path) -> None:
    site = Site(state, tmp_path / "data")
    site.service.start()
    await site.begin(jsonl([line("a")]))
    batch = await site.until("completed")
    [told] = site.read(batch.output_file_id)
    assert "prompt" not in told["response"]
    await site.service.stop()


async def test_a_batch_of_an_earlier_version_takes_the_prompts_that_there_are(
    state: ServerState, tmp_path: Path
) -> None:
    serve(state, WITH_TWO)
    site = Site(state, tmp_path / "data")
    record = BatchRecord(
        id="batch_a",
        owner="",
        endpoint="/v1/embeddings",
        input_file_id=site.keep(asking(2)).id,
        window="1h",
        created_at=0,
        expires_at=2**40,
        status="in_progress",
        total=2,
        batch_limits=(192, 8),
        model="tiny",
    )
    site.folder.save(record)
    site.folder.batches[record.id] = record
    site.service.start()
    batch = await site.until("completed")
    assert answered(site, batch) == [(TWO.identity, 5)] * 2
    await site.service.stop()
