"""Tokenize long texts in a thread, so that the event loop need not wait for them.

EmbeddingRoute ── TokenizeThread.run ──► one thread: Dialect.job ──► Job
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from embellama.deadline import Deadline, working_until
from embellama.errors import DeadlineExceeded, Overloaded
from embellama.jobs import Job
from embellama_server.config import ServerConfig


class TokenizeThread:
    """A thread that makes jobs of texts, with a bound on how many wait for it and for how long.

    With the workers busy there is no core for a second thread: it would only take turns with the event loop.
    """

    def __init__(self, config: ServerConfig):
        self._max_waiting, self._timeout_ms = config.queue_size, config.timeout_ms
        self._thread = ThreadPoolExecutor(1, "tokenize")
        self._n_waiting = 0
        self._n_characters = 0  # of those waiting
        self._s_per_character = 0.0  # lately

    async def run(self, make_job: Callable[[], Job[Any]], n_characters: int, deadline: float) -> Job[Any]:
        """Make a job in the thread.

        Args:
            make_job: Makes the job; runs in the thread.
            n_characters: Characters that it tokenizes.
            deadline: When to give up, on the event loop's clock.

        Raises:
            Overloaded: Too many requests wait already, or the deadline could not be kept.
            DeadlineExceeded: The deadline has come.
        """
        loop = asyncio.get_running_loop()
        wait_s = self._n_characters * self._s_per_character
        if self._n_waiting >= self._max_waiting:
            raise Overloaded(
                f"{self._n_waiting} requests are waiting to be tokenised, the most allowed", max(wait_s, 1.0)
            )
        if wait_s > deadline - loop.time():
            raise Overloaded(
                f"{self._n_characters} characters are waiting to be tokenised, {wait_s:.1f} s of work", wait_s
            )

        work = Deadline(time.monotonic() + deadline - loop.time(), self._timeout_ms)

        def timed() -> tuple[Job[Any], float]:
            start = time.perf_counter()
            with working_until(work):
                job = make_job()
            return job, time.perf_counter() - start

        self._n_waiting += 1
        self._n_characters += n_characters
        try:
            async with asyncio.timeout_at(deadline):
                job, seconds = await loop.run_in_executor(self._thread, timed)
        except TimeoutError:
            raise DeadlineExceeded(self._timeout_ms) from None
        finally:
            work.at = 0.0  # whether it is done, or nobody waits for it any more
            self._n_waiting -= 1
            self._n_characters -= n_characters
        pace = seconds / max(n_characters, 1)
        self._s_per_character = 0.9 * self._s_per_character + 0.1 * pace if self._s_per_character else pace
        return job
