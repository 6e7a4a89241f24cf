"""The pipes of a worker: the event loop never waits for one, whatever is in it."""

import asyncio
import fcntl
import multiprocessing
import os
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest
from embellama_server.workers.channel import Channel, TaskReader

from embellama.batch import Batch

N_TOKENS = 131_072


@pytest.fixture(params=["large pipes", "small pipes"])
def small(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "small pipes":

        def refuse(*_: Any) -> None:
            raise PermissionError

        monkeypatch.setattr(fcntl, "fcntl", refuse)


def batch(first: int) -> Batch:
    return Batch.join([np.arange(first, first + N_TOKENS, dtype=np.int32)])


class Worker:
    """The worker's ends of a channel, in this process."""

    def __init__(self, channel: Channel):
        reader, writer = channel.worker_end
        self._reader = Connection(os.dup(reader.fileno()), writable=False)
        self._writer = Connection(os.dup(writer.fileno()), readable=False)
        self.tasks = TaskReader(self._reader)

    def end(self) -> None:
        self._reader.close()
        self._writer.close()


@pytest.mark.usefixtures("small")
async def test_sending_waits_for_no_worker_and_loses_nothing() -> None:
    channel = Channel(multiprocessing.get_context("spawn"))
    worker = Worker(channel)
    channel.open(lambda _: None, lambda: None)
    for id in (1, 2):
        channel.send(id, 1, batch(id))
    channel.stop()
    for id in (1, 2):
        task = await asyncio.to_thread(worker.tasks.next)
        assert task
        assert task.id == id
        np.testing.assert_array_equal(task.batch.tokens, batch(id).tokens)
    assert await asyncio.to_thread(worker.tasks.next) is None
    channel.close()
    worker.end()


@pytest.mark.usefixtures("small")
async def test_a_worker_that_is_gone_is_written_to_no_more() -> None:
    channel, gone = Channel(multiprocessing.get_context("spawn")), asyncio.Event()
    worker = Worker(channel)
    channel.open(lambda _: None, gone.set)
    channel.send(1, 1, batch(1))
    worker.end()
    channel.send(2, 1, batch(2))
    await gone.wait()
    channel.send(3, 1, batch(3))
