"""`ActorPool`: actors that compute parts, and what becomes of a part whose actor dies.

submit ──► waiting ──► an idle actor ══► compute ══► its rows ──► the part's future
              ▲                             ║ it dies
              ╰── first in line ◄───────────╨──► Ray starts it again ── describe ──► idle

One thread decides, whenever a part comes or a call of an actor has ended.
"""

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from embellama.bulk.backend import Embedded, Outcome, Text
from embellama.errors import ConfigError, EmbellamaError, Unavailable

logger = logging.getLogger("embellama.bulk.ray")

# So long may it take until there is an actor: a cluster may have to start a node, and fetch a model to it.
START_S = 600.0

# A part that so many actors died of is not given to one more.
MOST_DEATHS = 3


class Packed(NamedTuple):
    """Outcomes as they are sent: arrays instead of thousands of objects.

    vectors: Those of the texts that have one, ``(n_embedded, width)``.
    n_tokens: Their tokens, ``(n_embedded,)``.
    n_cut: Their tokens that were left out, ``(n_embedded,)``.
    errors: Of the others by their number.
    """

    vectors: NDArray[Any]
    n_tokens: NDArray[np.int64]
    n_cut: NDArray[np.int64]
    errors: dict[int, EmbellamaError]


def packed(outcomes: Sequence[Outcome]) -> Packed:
    """Pack outcomes of `EngineBackend`."""
    found = [each for each in outcomes if isinstance(each, Embedded)]
    errors = {number: each for number, each in enumerate(outcomes) if not isinstance(each, Embedded)}
    vectors = np.stack([each.vector for each in found]) if found else np.empty((0, 0), np.float32)
    counts = np.array([(each.n_tokens, each.n_cut) for each in found], np.int64).reshape(-1, 2)
    return Packed(vectors, counts[:, 0], counts[:, 1], errors)


def unpacked(given: Packed) -> list[Outcome]:
    """Return the outcomes that were packed, in their order."""
    found = iter(map(Embedded, given.vectors, given.n_tokens.tolist(), given.n_cut.tolist()))
    n = len(given.vectors) + len(given.errors)
    return [given.errors[number] if number in given.errors else next(found) for number in range(n)]


class _Task:
    """A part: its texts, its future, and how many actors died while they computed it."""

    def __init__(self, texts: Sequence[Text]):
        self.texts = texts
        self.future: Future[list[Outcome]] = Future()
        self.n_deaths = 0


class ActorPool:
    """Actors that have the same model.

    Attributes:
        n_actors: Actors that were asked for.
        first: What the first one's `describe` returned.
    """

    def __init__(self, kind: type, arguments: tuple[Any, ...], n_cpus: int, n_actors: int):
        """Start actors, and wait until the first one has its model.

        Args:
            kind: Their class, which has `describe`, repeated until it ends, and `compute`.
            arguments: Of its constructor: a config, options and settings.
            n_cpus: CPUs of each.
            n_actors: How many.

        Raises:
            EmbellamaError: As `describe` does on the first one.
            Unavailable: It could not be started in time.
        """
        self.n_actors, self._n_cpus = n_actors, n_cpus
        # What died is started again for ever; a part is not sent again to the actor that it was sent to, which may be
        # long in coming back.
        remote = ray.remote(kind).options(num_cpus=n_cpus, max_restarts=-1, max_task_retries=0)
        self._actors = [remote.remote(*arguments)]
        self._idle: deque[Any] = deque(self._actors)
        self._waiting: deque[_Task] = deque()
        self._open: set[_Task] = set()
        self._n_ready = 1
        self._no_actor: threading.Timer | None = None
        self._failed: EmbellamaError | None = None
        self._thread = ThreadPoolExecutor(1, "bulk-ray")
        try:
            self.first = self._described_first()
        except BaseException:
            self.close()
            raise
        config, options, _ = arguments
        settings = self.first[1]["settings"]  # the others', too, whatever their nodes would choose
        for _ in range(n_actors - 1):
            actor = remote.remote(config, options, settings)
            self._actors.append(actor)
            self._when_done(actor.describe.remote(), self._described, actor)

    def submit(self, texts: Sequence[Text]) -> "Future[list[Outcome]]":
        """Compute a part's texts. The future fails with `Unavailable` where no actor could."""
        task = _Task(texts)
        self._thread.submit(self._add, task)
        return task.future

    def close(self) -> None:
        """Drop what was submitted, and end the actors."""
        self._thread.shutdown(cancel_futures=True)
        self._stop_waiting()
        for task in self._open:
            task.future.cancel()
        for actor in self._actors:
            try:
                ray.kill(actor)
            except (RayError, ValueError) as error:  # the cluster has gone
                logger.debug("an actor could not be ended: %s", error)

    def _described_first(self) -> Any:
        try:
            return ray.get(self._actors[0].describe.remote(), timeout=START_S)
        except GetTimeoutError:
            free = ray.available_resources().get("CPU", 0.0)
            raise Unavailable(
                f"no actor was started in {START_S:.0f} s: each needs {self._n_cpus} CPUs, and {free:g} are free"
            ) from None
        except RayTaskError as error:
            raise _cause(error) from None
        except RayError as error:
            raise Unavailable(f"no actor could be started: {_told(error)}") from None

    def _when_done(self, call: Any, decide: Callable[..., None], *of: Any) -> None:
        """Have the thread decide once a call has ended: Ray's own, which tells of it, must not call actors."""

        def told(done: "Future[Any]") -> None:
            with contextlib.suppress(RuntimeError):  # the pool is closed
                self._thread.submit(decide, *of, done)

        call.future().add_done_callback(told)

    def _add(self, task: _Task) -> None:
        self._open.add(task)
        if self._failed:
            self._end(task, self._failed)
        else:
            self._waiting.append(task)
            self._give()

    def _give(self) -> None:
        """Give what waits to idle actors."""
        while self._idle and self._waiting:
            actor, task = self._idle.popleft(), self._waiting.popleft()
            self._when_done(actor.compute.remote(task.texts), self._computed, actor, task)

    def _computed(self, actor: Any, task: _Task, done: "Future[Packed]") -> None:
        error = done.exception()
        if error is None:
            self._idle.append(actor)
            self._give()
            self._open.discard(task)
            task.future.set_result(unpacked(done.result()))
        elif isinstance(error, RayTaskError):  # what was raised there would be raised anywhere
            self._idle.append(actor)
            self._end(task, _cause(error))
        else:
            self._died(actor, task, error)
        self._give()

    def _died(self, actor: Any, task: _Task, error: BaseException) -> None:
        logger.warning("an actor died, and its part is computed by another: %s", _told(error))
        task.n_deaths += 1
        if task.n_deaths < MOST_DEATHS:
            self._waiting.appendleft(task)
        else:
            self._end(task, Unavailable(f"{MOST_DEATHS} actors died of the same part, the last one so: {_told(error)}"))
        self._n_ready -= 1
        if not self._n_ready:
            self._no_actor = threading.Timer(START_S, self._thread.submit, (self._gave_up,))
            self._no_actor.daemon = True
            self._no_actor.start()
        self._when_done(actor.describe.remote(), self._described, actor)

    def _described(self, actor: Any, done: "Future[Any]") -> None:
        """Take an actor that was started, or started again."""
        error = done.exception()
        if error is not None:
            failed = _cause(error) if isinstance(error, RayTaskError) else Unavailable(_told(error))
            logger.error("an actor is left out, as it has no model: %s", failed)
            self._actors.remove(actor)
            if not self._actors:
                self._fail(failed)
        elif told := _difference(self.first[1], done.result()[1]):
            self._fail(ConfigError(f"the cluster's nodes would not compute the same: {told}"))
        else:
            self._stop_waiting()
            self._n_ready += 1
            self._idle.append(actor)
            self._give()

    def _end(self, task: _Task, error: BaseException) -> None:
        self._open.discard(task)
        task.future.set_exception(error)

    def _fail(self, error: EmbellamaError) -> None:
        self._failed = error
        self._waiting.clear()
        for task in list(self._open):
            self._end(task, error)

    def _gave_up(self) -> None:
        if not self._n_ready:
            self._fail(Unavailable(f"for {START_S:.0f} s no actor of the cluster was there to compute"))

    def _stop_waiting(self) -> None:
        if self._no_actor:
            self._no_actor.cancel()
            self._no_actor = None


def _cause(error: RayTaskError) -> EmbellamaError:
    """Return what a call raised in an actor."""
    cause = error.cause
    return cause if isinstance(cause, EmbellamaError) else Unavailable(f"an actor failed: {_told(error)}")


def _told(error: BaseException) -> str:
    """Tell what an error of Ray says in its last line, which is the one that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _difference(first: dict[str, Any], other: dict[str, Any]) -> str:
    """Say which of two actors' facts differ; "" if none."""
    return "; ".join(f"{key} is {first[key]!r} and {other[key]!r}" for key in first if first[key] != other[key])
