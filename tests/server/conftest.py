"""What tests of the front share: its state, with a back end that computes nothing in the place of worker processes."""

import asyncio
import os
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from embellama_server.application import build
from embellama_server.config import ServerConfig
from embellama_server.state import ServerState

from embellama.backend import ANYONE, Caller, PoolState
from embellama.batch import Rows, Tokens


class InstantBackend:
    """A back end that gives the same rows for every job at once, and has room for all."""

    def __init__(self, dim: int):
        self._dim = dim

    @property
    def state(self) -> PoolState:
        return PoolState(status="ok", n_workers=1, n_ready=1, n_open=0, n_waiting=0, waiting_tokens=0)

    def check_room(self, caller: Caller = ANYONE) -> None:
        pass

    def submit(self, tokens: Sequence[Tokens], **options: Any) -> "asyncio.Future[Rows]":
        future = asyncio.get_running_loop().create_future()
        future.set_result(np.ones((len(tokens), self._dim), np.float32))
        return future

    def close(self) -> None:
        pass


@pytest.fixture
def state(tiny_path: str, monkeypatch: pytest.MonkeyPatch) -> ServerState:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", os.environ.get("TOKENIZERS_PARALLELISM", "false"))  # as `build` does
    state = build(ServerConfig(model_path=tiny_path, max_batch_tokens=192, num_workers=1).checked())
    model = state.model(None)
    backend: Any = InstantBackend(model.info.dim)
    return ServerState(state.config, [model._replace(dispatcher=backend, backend=backend)], state.metrics)
