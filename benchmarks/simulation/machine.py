"""`Machine`: cores that processes share; `Process`: work that is done one piece after another.

Process.do ── its queue ──► Machine: those that have work run at the same rate, nice ones at a lower one ──► done

So do Linux's schedulers, but for slices of a few milliseconds.
"""

import heapq
import itertools
from collections import deque
from collections.abc import Sequence

from benchmarks.simulation.clock import Action, Clock

# Where cores are short, a process of the server's workers' niceness, 5, gets so much of what another one gets (Linux,
# kernel/sched/core.c: weights of 335 and 1024).
NICE_WEIGHT = 335 / 1024


class Machine:
    """Cores of one machine.

    Attributes:
        clock: Its clock.
    """

    def __init__(self, clock: Clock, speeds: Sequence[float]):
        """Make an idle machine.

        Args:
            clock: Of all that is simulated.
            speeds: For each core one number: the seconds of work that so many busy cores do in a second, all together.
                For two whole cores that is ``(1, 2)``; where two get in each other's way, less.
        """
        self.clock, self._speeds = clock, tuple(speeds)
        self._classes = (_Class(), _Class())  # the nice come second
        self._at = 0.0
        self._version = 0

    def start(self, process: "Process", seconds: float) -> int:
        """Let a process run that did not, for so many seconds of a core to itself; return the number of this run."""
        self._pass()
        number = self._classes[process.nice].add(process, seconds)
        self._plan()
        return number

    def stop(self, process: "Process", number: int) -> None:
        """End a run before it is done."""
        self._pass()
        self._classes[process.nice].remove(number)
        self._plan()

    def _pass(self) -> None:
        """Do the work of the time that went by."""
        for each in self._classes:
            each.done += (self.clock.now - self._at) * each.rate
        self._at = self.clock.now

    def _plan(self) -> None:
        """Share the cores anew, and plan the next end of a run."""
        first, nice = self._classes
        n_cores, n_first, n_nice = len(self._speeds), len(first), len(nice)
        n_busy = min(n_cores, n_first + n_nice)
        speed = self._speeds[n_busy - 1] / n_busy if n_busy else 0.0
        share = n_cores / (n_first + NICE_WEIGHT * n_nice) if n_busy else 0.0
        first.rate = speed * min(1.0, share)
        # No process gets more than a core; what others leave is for the nice.
        nice.rate = speed * min(1.0, NICE_WEIGHT * share if share < 1 else (n_cores - n_first) / max(n_nice, 1))
        self._version += 1
        version = self._version
        left = [(each.left / each.rate, each) for each in self._classes if len(each)]
        if left:
            seconds, soonest = min(left, key=lambda pair: pair[0])
            self.clock.after(seconds, lambda: self._finish(version, soonest))

    def _finish(self, version: int, soonest: "_Class") -> None:
        if version == self._version:
            self._pass()
            process = soonest.pop()
            self._plan()
            process.finished()


class _Class:
    """Runs that get the same rate.

    Attributes:
        done: Seconds of work that each of them has done since the beginning of time.
        rate: Seconds of work that each of them does in a second.
    """

    def __init__(self) -> None:
        self.done = self.rate = 0.0
        self._runs: list[tuple[float, int, Process]] = []  # heap, by the `done` at which a run ends
        self._numbers = itertools.count()

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def left(self) -> float:
        """Seconds of work until the next one is done; there must be one."""
        return max(self._runs[0][0] - self.done, 0.0)

    def add(self, process: "Process", seconds: float) -> int:
        number = next(self._numbers)
        heapq.heappush(self._runs, (self.done + seconds, number, process))
        return number

    def remove(self, number: int) -> None:
        self._runs = [each for each in self._runs if each[1] != number]
        heapq.heapify(self._runs)

    def pop(self) -> "Process":
        end, _, process = heapq.heappop(self._runs)
        self.done = max(self.done, end)  # whatever was rounded
        return process


class Process:
    """Something that does one piece of work after another, such as an event loop or a worker.

    Attributes:
        nice: Whether it leaves the cores to others, as the server's workers do.
        busy_s: Seconds of a core that its work took.
    """

    def __init__(self, machine: Machine, slowness: float = 1.0, *, wake_s: float = 0.0, nice: bool = False):
        """Make an idle process.

        Args:
            machine: Where it runs.
            slowness: How many times as long its work takes as on other machines.
            wake_s: Seconds of a core that it takes to wake up, once it had nothing to do.
            nice: Whether it leaves the cores to others.
        """
        self._machine, self._slowness, self._wake_s = machine, slowness, wake_s
        self._queue: deque[tuple[float, Action]] = deque()  # the first one is being done
        self._run = 0
        self.nice = nice
        self.busy_s = 0.0

    def do(self, seconds: float, done: Action) -> None:
        """Do a piece of work after all before it, and then `done`."""
        if self._queue:
            self._queue.append((seconds * self._slowness, done))
        else:
            self._queue.append(((seconds + self._wake_s) * self._slowness, done))
            self._next()

    def kill(self) -> None:
        """Forget all work."""
        if self._queue:
            self._machine.stop(self, self._run)
            self._queue.clear()

    def finished(self) -> None:
        """Called by the machine when the first piece is done."""
        seconds, done = self._queue.popleft()
        self.busy_s += seconds
        if self._queue:
            self._next()
        done()

    def _next(self) -> None:
        self._run = self._machine.start(self, self._queue[0][0])
