"""`PartComputer`: the texts of a part to a model's back end, in the background, until each has its rows or its error.

Texts.packed ──► one request a batch ── ServedModel.backend ──► rows
                    ▲ again: no worker is ready; the key's limit; without the text at fault
"""

import asyncio
import math
from collections.abc import Callable
from typing import NamedTuple

from embellama.backend import Caller
from embellama.batch import RowKind, row_starts
from embellama.errors import EmbeddingFailed, EmbellamaError, ServiceError
from embellama_server.jobs.parts import Outcome, Part
from embellama_server.problems import RateLimited
from embellama_server.state import ServedModel

# When it is tried again where no worker is ready.
RETRY_S = 1.0

# Longest that a batch waits for its key's limit before it asks again: the limit may have been raised.
MAX_LIMIT_S = 60.0


class ModelAndCaller(NamedTuple):
    """The model that a batch asks for, and who asks it."""

    model: ServedModel
    caller: Caller


class ModelChanged(Exception):
    """Another model has the name now, so what was read for the one before is to be read again."""


class PartComputer:
    """Computes parts for one model; used on the event loop."""

    def __init__(self, found: ModelAndCaller, find: Callable[[], ModelAndCaller], limits: tuple[int, int]):
        """Compute with a model.

        Args:
            found: The model, and who asks.
            find: Finds them again, or raises what has become of them.
            limits: Most tokens and texts of a batch.
        """
        self.model, self._caller = found
        self._find, self._limits = find, limits

    async def outcomes(self, part: Part) -> list[Outcome]:
        """Compute the texts of a part; return the rows of each, or its error.

        Raises:
            ModelChanged: Another model has the name.
            Exception: What `find` raises.
        """
        outcomes: dict[int, Outcome] = {}
        try:
            async with asyncio.TaskGroup() as group:
                for kind, places in part.texts.packed(*self._limits):
                    group.create_task(self._batch(part, kind, places, outcomes))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        return [outcomes[place] for place in range(len(part.texts.tokens))]

    async def _batch(self, part: Part, kind: RowKind, places: list[int], outcomes: dict[int, Outcome]) -> None:
        """Compute texts together until all have an outcome."""
        left = list(places)
        while left:
            tokens = [part.texts.tokens[place] for place in left]
            try:
                with self.model.requests:
                    rows = await self.model.backend.submit(tokens, kind=kind, caller=self._caller)
            except EmbeddingFailed as error:
                outcomes[left.pop(error.index)] = error
            except RateLimited as error:
                if math.isinf(error.retry_after_s):
                    outcomes |= dict.fromkeys(left, error)
                    return
                await asyncio.sleep(min(error.retry_after_s, MAX_LIMIT_S))
                self._check_unchanged()
            except ServiceError:
                self._check_unchanged()
                await asyncio.sleep(RETRY_S)
            except EmbellamaError as error:
                outcomes |= dict.fromkeys(left, error)
                return
            else:
                starts = row_starts(tokens, kind)
                outcomes |= {place: rows[starts[i] : starts[i + 1]] for i, place in enumerate(left)}
                return

    def _check_unchanged(self) -> None:
        if self._find().model.backend is not self.model.backend:  # it may have other prompts
            raise ModelChanged
