"""`Flights`: which rows are being computed, by whom they are awaited, and what happens when that ends.

   a request's unknown keys ──► board ──┬─► a place on a flight that computes the row already, where that costs nothing
                                        └─► a flight of its own: one request to the back end inside
                                               │
   land   its rows ──► every passenger's answer
   crash  an error ──► its owner, and whoever waits for the text at fault; the others go on by themselves
   leave  a passenger is gone ──► flights that nobody waits for any more

Pure logic: no clock, no locks, no futures that are waited for.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Generic

import numpy as np

from embellama.backend import Caller, Times
from embellama.batch import RowKind, Rows, Tokens, row_starts
from embellama.cache.futures import RowsFuture
from embellama.errors import EmbeddingFailed
from embellama.ledger import ProgressReport, set_outcome


class Asked(Generic[RowsFuture]):
    """A request for rows, of which some were unknown when it came.

    Attributes:
        future: Given to the caller; it gets the outcome.
        missing: The keys whose rows are not here yet, each with the positions of its texts.
        flights: What computes them.
        held: Whether `submit` has not returned yet, so that an error can still be raised there.
        has_left: Whether the caller has cancelled it.
        n_done: Texts that have their rows.
        n_computed: Tokens of the texts that were computed for it.
        outcome: The rows, or an error, once it is over.
    """

    def __init__(
        self,
        tokens: Sequence[Tokens],
        keys: Sequence[bytes],
        starts: Sequence[int],
        kind: RowKind,
        dim: int,
        future: RowsFuture,
        deadline: float,
        times: Times | None,
        report: ProgressReport | None,
        caller: Caller,
    ):
        self.tokens, self.kind, self.future, self.deadline, self.caller = tokens, kind, future, deadline, caller
        self.times = times or Times()
        self.report = report
        self.missing: dict[bytes, list[int]] = {}
        for position, key in enumerate(keys):
            self.missing.setdefault(key, []).append(position)
        self.flights: set[Flight[RowsFuture]] = set()
        self.held, self.has_left = True, False
        self.n_done = self.n_computed = 0
        self.outcome: Rows | Exception | None = None
        self._starts = starts
        self._dim = dim
        self._rows: Rows | None = None

    @property
    def is_over(self) -> bool:
        """Whether nothing of it is wanted any more."""
        return self.has_left or self.outcome is not None

    def text(self, key: bytes) -> Tokens:
        """Return a text whose rows are missing."""
        return self.tokens[self.missing[key][0]]

    def n_rows(self, key: bytes) -> int:
        """Return how many rows are missing for one key."""
        position = self.missing[key][0]
        return self._starts[position + 1] - self._starts[position]

    def put(self, key: bytes, rows: Rows) -> None:
        """Copy the rows of one missing key, ``(n_rows, dim)``, to where its texts are."""
        if self._rows is None:
            self._rows = np.empty((self._starts[-1], self._dim), np.float32)
        for position in self.missing[key]:
            self._rows[self._starts[position] : self._starts[position + 1]] = rows
        self.n_done += len(self.missing.pop(key))
        if not self.missing:
            self._finish(self._rows)

    def put_all(self, rows: Rows) -> None:
        """Take the rows of all texts, in order, as the answer itself."""
        self.n_done = len(self.tokens)
        self.missing.clear()
        self._finish(rows)

    def progressed(self, n_done: int) -> None:
        """Tell `progress` that so many texts have their rows, though these are not here yet."""
        if self.report and not self.is_over:
            self.report.tell(n_done)

    def settle(self) -> None:
        """Tell `progress` what has come and, if that is all, give the future its outcome."""
        if self.held or self.future.done():
            return
        if self.report:
            self.report.tell(self.n_done)
        if self.outcome is not None:
            set_outcome(self.future, self.outcome)

    def _finish(self, rows: Rows) -> None:
        self.outcome = rows
        self.times.cached_tokens += max(0, sum(map(len, self.tokens)) - self.n_computed)


class Flight(Generic[RowsFuture]):
    """One request to the back end inside: each text once.

    Attributes:
        owner: Who asked first; its deadline is the flight's.
        texts: Token ids by key, in the order in which their rows come.
        n_tokens: Of all texts.
        passengers: The requests that wait for it, its owner too while it does, each with its keys here.
        future: The back end's, once it has taken the request.
    """

    def __init__(self, owner: Asked[RowsFuture], keys: Sequence[bytes]):
        self.owner = owner
        self.texts = {key: owner.text(key) for key in keys}
        self.n_tokens = sum(map(len, self.texts.values()))
        self.passengers: dict[Asked[RowsFuture], list[bytes]] = {}
        self.future: RowsFuture | None = None

    @property
    def is_whole_request(self) -> bool:
        """Whether its rows are its owner's answer just as they come."""
        return not self.owner.n_done and len(self.texts) == len(self.owner.tokens)

    def blocks(self, rows: Rows) -> dict[bytes, Rows]:
        """Split the rows that came by key."""
        starts = row_starts(list(self.texts.values()), self.owner.kind)
        return {key: rows[start:end] for key, start, end in zip(self.texts, starts, starts[1:], strict=False)}


class Flights(Generic[RowsFuture]):
    """All flights of one back end."""

    def __init__(self, full_batch: int):
        """Start with none; a batch of `full_batch` tokens is a full one."""
        self._full_batch = full_batch
        self._by_key: dict[bytes, Flight[RowsFuture]] = {}

    def __len__(self) -> int:
        """Count the rows that are being computed."""
        return len(self._by_key)

    def join(self, asked: Asked[RowsFuture], keys: Sequence[bytes]) -> list[bytes]:
        """Let a request wait for those of `keys` that are being computed already; return the others.

        All rows of a flight come at its end. So nobody joins one that is longer than both a full batch and what he
        would compute himself: he would wait for texts that are none of his. Nor one with a later deadline than his own,
        because nobody else watches over deadlines.
        """
        if not self._by_key:
            return list(keys)
        n_own = sum(len(asked.text(key)) for key in keys)
        left = []
        for key in keys:
            flight = self._by_key.get(key)
            if (
                flight is None
                or flight.owner.deadline > asked.deadline
                or flight.n_tokens > max(n_own, self._full_batch)
            ):
                left.append(key)
            else:
                self._seat(asked, flight, key)
        return left

    def open(self, asked: Asked[RowsFuture], keys: Sequence[bytes]) -> Flight[RowsFuture]:
        """Open a flight for a request's `keys`; the next who asks for them may join it."""
        flight = Flight(asked, keys)
        for key in keys:
            self._by_key[key] = flight
            self._seat(asked, flight, key)
        asked.n_computed += flight.n_tokens
        return flight

    def land(self, flight: Flight[RowsFuture], rows: Rows, blocks: Mapping[bytes, Rows]) -> Sequence[Asked[RowsFuture]]:
        """Give a flight's rows, and the same by key, to its passengers; return them, to be told."""
        self._close(flight)
        passengers = list(flight.passengers)
        if flight.owner in flight.passengers and flight.is_whole_request:
            flight.owner.put_all(rows)
            del flight.passengers[flight.owner]
        for asked, keys in flight.passengers.items():
            for key in keys:
                asked.put(key, blocks[key])
        for asked in passengers:
            asked.flights.discard(flight)
        return passengers

    def crash(
        self, flight: Flight[RowsFuture], error: Exception
    ) -> tuple[list[Asked[RowsFuture]], list[tuple[Asked[RowsFuture], list[bytes]]]]:
        """End a flight that failed.

        Returns:
            The requests that failed with it, to be told, and those that are to go on for keys of theirs.
        """
        self._close(flight)
        key = list(flight.texts)[error.index] if isinstance(error, EmbeddingFailed) else None
        failed, stranded = [], []
        for asked, keys in flight.passengers.items():
            asked.flights.discard(flight)
            if key in keys and isinstance(error, EmbeddingFailed):
                asked.outcome = EmbeddingFailed(asked.missing[key][0], error.reason)
            elif asked is flight.owner:
                asked.outcome = error
            else:
                stranded.append((asked, keys))
                continue
            failed.append(asked)
        return failed, stranded

    def leave(self, asked: Asked[RowsFuture]) -> list[RowsFuture]:
        """Take a request that is over off its flights; return the futures of those that nobody waits for any more."""
        unwanted = []
        for flight in asked.flights:
            flight.passengers.pop(asked, None)
            if not flight.passengers:
                self._close(flight)
                if flight.future is not None:
                    unwanted.append(flight.future)
        asked.flights.clear()
        return unwanted

    def _seat(self, asked: Asked[RowsFuture], flight: Flight[RowsFuture], key: bytes) -> None:
        flight.passengers.setdefault(asked, []).append(key)
        asked.flights.add(flight)

    def _close(self, flight: Flight[Any]) -> None:
        """Let nobody join a flight any more."""
        for key in flight.texts:
            if self._by_key.get(key) is flight:
                del self._by_key[key]
