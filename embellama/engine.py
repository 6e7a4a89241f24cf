"""Embed from any thread, and from asyncio, on models that are confined to threads of their own.

   any thread, any task                 │ threads of one loaded model, each with its own context
                                        │
   embed, embed_batch, aembed…          │
      │ Tokenizer.encode                │
      ▼                                 │
   _Pool.submit ──► Scheduler ═════════════► inbox ──► EmbeddingModel.encode
      │ a future                        │                 │
      ▼                                 │                 ▼
   (n_texts, dim) ◄── rows ◄═══════════════ Scheduler.complete

Nothing waits here that no caller is waiting for, so the library's waiting room has no limit of its own.
"""

import asyncio
import atexit
import os
import queue
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import NamedTuple

import numpy as np

from embellama.batch import Batch, Tokens
from embellama.config import EngineConfig
from embellama.errors import ConfigError, EmbeddingFailed, ModelNotFound, Unavailable
from embellama.model import EmbeddingModel, Rows
from embellama.scheduler import Assignment, Limits, Scheduler
from embellama.tokenizer import Tokenizer
from embellama.weights import Weights


class EmbeddingEngine:
    """Loaded models, ready to embed from any thread and from asyncio.

    Use it as a context manager, or call `close()`: each loaded model keeps threads of its own.
    """

    def __init__(self, config: EngineConfig | None = None):
        """Load the model of `config`, if given; more with `load_model`. Raises as `load_model` does."""
        self._pools: dict[str, _Pool] = {}
        self._lock = threading.Lock()
        self._closed = False
        if config is not None:
            self.load_model(config)

    @property
    def models(self) -> list[str]:
        """Names of the loaded models, in the order they were loaded."""
        return list(self._pools)

    def load_model(self, config: EngineConfig) -> None:
        """Load one more model and start its threads.

        Raises:
            ConfigError: A setting is wrong, or the name is taken.
            ModelLoadError: The file cannot be loaded, or is no embedding model.
        """
        if not isinstance(config, EngineConfig):
            raise ConfigError(f"config is {config!r}, not an EngineConfig: EngineConfig(model_path=…) makes one")
        config = config.checked()
        with self._lock:
            if self._closed:
                raise Unavailable("the engine is closed")
            if config.model_name in self._pools:
                raise ConfigError(f"model_name is {config.model_name!r}: a model of that name is loaded already")
            self._pools[config.model_name] = _Pool(config)

    def unload_model(self, model: str) -> None:
        """Answer what was asked of a model, then free it.

        Raises:
            ModelNotFound: No model of that name is loaded.
        """
        with self._lock:
            pool = self._pool(model)
            del self._pools[model]
        pool.close()

    def embed(self, model: str, text: str) -> Rows:
        """Embed one text; ``(dim,) float32``, unit length when `normalize` is set. Raises as `embed_batch` does."""
        return self.embed_batch(model, [text])[0]  # type: ignore[no-any-return]

    def embed_batch(self, model: str, texts: Iterable[str]) -> Rows:
        """Embed texts.

        Returns:
            ``(n_texts, dim) float32``, one row per text in the order given; unit length when `normalize` is set.

        Raises:
            ModelNotFound: No model of that name is loaded.
            InputError: A text is empty, too long or not valid; `index` says which.
            EmbeddingFailed: The model gave no usable vector for a text.
        """
        pool = self._pool(model)
        future = pool.submit(pool.tokenize(texts))
        try:
            return future.result()
        except BaseException:
            future.cancel()  # interrupted while waiting: what is queued need not run
            raise

    async def aembed(self, model: str, text: str) -> Rows:
        """Embed one text without blocking the event loop; as `embed`."""
        return (await self.aembed_batch(model, [text]))[0]  # type: ignore[no-any-return]

    async def aembed_batch(self, model: str, texts: Iterable[str]) -> Rows:
        """Embed texts without blocking the event loop; as `embed_batch`. Cancelling drops what is still queued."""
        pool = self._pool(model)
        tokens = await asyncio.to_thread(pool.tokenize, texts)
        return await asyncio.wrap_future(pool.submit(tokens))

    def close(self) -> None:
        """Answer what was asked, then free every model. Calling it again does nothing."""
        with self._lock:
            self._closed = True
            pools = list(self._pools.values())
            self._pools.clear()
        for pool in pools:
            pool.close()

    def __enter__(self) -> "EmbeddingEngine":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _pool(self, model: str) -> "_Pool":
        try:
            return self._pools[model]
        except KeyError:
            if self._closed:
                raise Unavailable("the engine is closed") from None
            raise ModelNotFound(model, self.models) from None


class _Request:
    def __init__(self, tokens: Sequence[Tokens], dim: int):
        self.tokens = tokens
        self.rows = np.empty((len(tokens), dim), np.float32)
        self.future: Future[Rows] = Future()


class _Task(NamedTuple):
    assignment: Assignment
    tokens: list[Tokens]


class _Pool:
    """One model's weights, its threads, and the scheduler between callers and threads."""

    def __init__(self, config: EngineConfig):
        self._config = config
        self._pid = os.getpid()
        self._weights = Weights(config)
        self._tokenizer = Tokenizer(self._weights, config.n_ctx)
        self._changed = threading.Condition()  # guards everything below; notified when requests go
        self._scheduler = Scheduler(Limits.of(config))
        self._requests: dict[int, _Request] = {}
        self._closing = False
        self._abandoned = False
        self._inboxes = [queue.SimpleQueue[_Task | None]() for _ in range(config.num_workers)]
        started: list[Future[None]] = [Future() for _ in self._inboxes]
        self._threads = [
            threading.Thread(target=self._run, args=(worker, future), name=f"{config.model_name}-{worker}", daemon=True)
            for worker, future in enumerate(started)
        ]
        atexit.register(self._abandon)
        for thread in self._threads:
            thread.start()
        errors = [error for future in started if (error := future.exception())]
        if errors:
            self.close()
            raise errors[0]

    def tokenize(self, texts: Iterable[str]) -> list[Tokens]:
        return self._tokenizer.encode(texts)

    def submit(self, tokens: Sequence[Tokens]) -> "Future[Rows]":
        if os.getpid() != self._pid:
            name = self._config.model_name
            raise Unavailable(f"model {name!r} was loaded in process {self._pid} and its threads do not follow a fork")
        request = _Request(tokens, self._weights.dim)
        if not tokens:
            request.future.set_result(request.rows)
            return request.future
        with self._changed:
            if self._closing:
                raise Unavailable(f"model {self._config.model_name!r} is being unloaded")
            id = self._scheduler.submit([len(t) for t in tokens])
            self._requests[id] = request
            self._hand_out()
        request.future.add_done_callback(lambda future: self._cancel(id) if future.cancelled() else None)
        return request.future

    def close(self) -> None:
        """Wait for every answer, then stop the threads. The weights go with the last user of this pool."""
        with self._changed:
            self._closing = True
            self._changed.wait_for(lambda: not self._requests)
        self._stop()

    def _abandon(self) -> None:
        """Stop at interpreter exit, once the running batches are done: a thread inside llama.cpp would crash it."""
        if os.getpid() != self._pid:
            return  # a fork has none of the threads
        with self._changed:
            self._closing = self._abandoned = True
        self._stop()

    def _stop(self) -> None:
        atexit.unregister(self._abandon)
        for inbox in self._inboxes:
            inbox.put(None)
        for thread in self._threads:
            thread.join()

    def _cancel(self, id: int) -> None:
        with self._changed:
            self._scheduler.cancel(id)
            self._requests.pop(id, None)
            self._changed.notify_all()

    def _hand_out(self) -> None:
        if self._abandoned:
            return
        for assignment in self._scheduler.assign():
            tokens = [self._requests[text.request].tokens[text.position] for text in assignment.texts]
            self._inboxes[assignment.worker].put(_Task(assignment, tokens))

    def _run(self, worker: int, started: "Future[None]") -> None:
        try:
            model = EmbeddingModel(self._config, self._weights)
        except BaseException as error:
            started.set_exception(error)
            return
        with model:
            with self._changed:
                self._scheduler.worker_ready(worker)
            started.set_result(None)
            while task := self._inboxes[worker].get():
                try:
                    rows = model.encode(Batch.join(task.tokens), task.assignment.n_threads)
                except Exception as error:  # whatever it is, it must reach the caller
                    self._fail(task.assignment, error)
                else:
                    self._answer(task.assignment, rows)

    def _answer(self, assignment: Assignment, rows: Rows) -> None:
        with self._changed:
            answer = self._scheduler.complete(assignment.batch, assignment.worker)
            for row, text in answer.rows:
                self._requests[text.request].rows[text.position] = rows[row]
            finished = [self._requests.pop(id) for id in answer.finished]
            self._hand_out()
            self._changed.notify_all()
        for request in finished:
            if request.future.set_running_or_notify_cancel():
                request.future.set_result(request.rows)

    def _fail(self, assignment: Assignment, error: Exception) -> None:
        with self._changed:
            failures = self._scheduler.fail(assignment.batch, assignment.worker)
            failed = [(self._requests.pop(request), position) for request, position in failures]
            self._hand_out()
            self._changed.notify_all()
        reason = error.reason if isinstance(error, EmbeddingFailed) else str(error)
        for request, position in failed:
            if request.future.set_running_or_notify_cancel():
                request.future.set_exception(EmbeddingFailed(position, reason))
