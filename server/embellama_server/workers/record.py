"""What the supervisor knows of one worker process: its state, the batches it holds, when it was last heard of."""

import asyncio
from collections import deque
from typing import NamedTuple

from embellama.backend import WorkerStage
from embellama.batch import Batch
from embellama_server.workers.process import STOP_S, Process
from embellama_server.workers.restarts import pause_s

# A worker that has not loaded by then is started again. A model of many GB on a slow disk takes minutes.
START_S = 600.0

# Seconds of silence a token excuses, before anything is known of how fast this model is.
UNKNOWN_S_A_TOKEN = 0.5

# A worker may take this many times as long for a batch as batches of its size have taken.
PATIENCE = 20.0

# A worker that has to be replaced for its memory later than this was a long time good; sooner, pauses grow.
LONG_S = 60.0


class HeldBatch(NamedTuple):
    """A batch that was sent to a worker and not answered yet.

    id: The scheduler's number for the batch.
    texts: The batch.
    n_possible: Tokens it would have had with enough to do.
    sent_at: When it was sent, in seconds on the event loop's clock.
    """

    id: int
    texts: Batch
    n_possible: int
    sent_at: float


class WorkerRecord:
    """One worker process.

    Times are in seconds on the event loop's clock.

    Attributes:
        process: The process, set once it was started.
        number: The worker's number, never used again.
        place: The lowest place in the pool that was free when it started.
        state: How far it is in its life, which `supervisor.py` draws.
        started_at: When it was started.
        stopped_at: When it was told to stop.
        heard_at: When it last answered anything.
        held: Batches it holds, the one it computes first.
        n_done: Batches it answered.
        n_fruitless: Processes in its place that died in a row without having computed anything.
        replaces: The worker whose successor it is, until it is ready.
        n_replaced: Workers in its place that in a row were replaced for their memory soon after they started.
        replace_at: When it may be replaced for its memory at the earliest.
        settled: Set when it is ready, or gone.
        canary_at: When it was last asked for its canary.
        canary_sent: Whether it has not answered that yet.
        fault: Why it is being killed, or "".
        drifted: Whether its canary came out wrong while it served.
    """

    process: Process

    def __init__(self, number: int, place: int, now: float, n_fruitless: int, replaces: "WorkerRecord | None"):
        self.number = number
        self.place = place
        self.state: WorkerStage = "starting"
        self.started_at = self.heard_at = self.canary_at = now
        self.stopped_at = 0.0
        self.held: deque[HeldBatch] = deque()
        self.n_done = 0
        self.n_fruitless = n_fruitless
        self.replaces = replaces
        self.n_replaced = 0
        self.replace_at = now
        self.settled = asyncio.Event()
        self.canary_sent = False
        self.fault = ""
        self.drifted = False

    @property
    def is_at_canary(self) -> bool:
        """Whether it is computing its canary, and holds batches that wait for that."""
        return self.canary_sent and bool(self.held) and self.canary_at <= self.held[0].sent_at

    def computing_s(self, now: float) -> float:
        """Return for how long it has had the batch that it computes; 0 while it has none."""
        return max(now - max(self.held[0].sent_at, self.heard_at), 0.0) if self.held else 0.0

    def stop(self, now: float) -> None:
        """Ask the process to exit once it has computed the batches it holds."""
        self.state = "stopping"
        self.stopped_at = now
        self.process.stop()

    def kill(self, reason: str) -> None:
        """End the process now; of several reasons the first counts."""
        self.fault = self.fault or reason
        self.process.kill()

    def put_off_replacement(self, before: "WorkerRecord", now: float) -> None:
        """Set when this worker, started in place of `before`, may be replaced for its memory.

        Pauses grow between workers that are replaced soon after they started.
        """
        self.n_replaced = before.n_replaced + 1 if now - before.replace_at < LONG_S else 0
        self.replace_at = now + pause_s(self.n_replaced)

    def overdue(self, now: float, s_a_token: float, timeout_s: float) -> str:
        """Say for how long the worker has been silent, if that is too long; else return "".

        Args:
            now: The time.
            s_a_token: Seconds for a token, as measured lately; 0 when unknown.
            timeout_s: Silence it is allowed beyond what the batch it computes excuses.
        """
        if self.state == "starting":
            return f"it has not loaded within {START_S:.0f} s" if now - self.started_at > START_S else ""
        if self.state == "stopping":
            return f"it has not stopped within {STOP_S:.0f} s" if now - self.stopped_at > STOP_S else ""
        if self.held:
            asked_at = self.held[0].sent_at
            timeout_s += len(self.held[0].texts.tokens) * (PATIENCE * s_a_token or UNKNOWN_S_A_TOKEN)
        elif self.canary_sent:
            asked_at = self.canary_at
        else:
            return ""
        silent_s = now - max(asked_at, self.heard_at)
        return f"it has not answered within {timeout_s:.1f} s" if silent_s > timeout_s else ""
