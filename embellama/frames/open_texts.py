"""`OpenTexts`: texts that are being computed now, so that no two slices of a frame compute the same one.

a slice's texts ──┬── those that nobody computes ──► compute ──────────────► found
                  └── those of another slice ──► wait for it ──► its rows ──► found

Who computes a text does so at once and waits for nobody before, so slices cannot wait for each other in a circle.
Once rows are found the model's cache has them.
"""

import os
import threading
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import NamedTuple

from embellama.frames.models import Found


class _Slice(NamedTuple):
    """What was found of a slice's own texts: the position of each in it, and all of it."""

    positions: dict[str, int]
    found: Found


class OpenTexts:
    """The texts that are being computed with the same model and options."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open: dict[str, Future[_Slice]] = {}

    def find(self, texts: Sequence[str], compute: Callable[[Sequence[str]], Found]) -> Found:
        """Find what comes of texts, no two of them equal; `compute` is called with those that nobody else computes.

        Raises whatever `compute` does. Where another slice's raised, its texts are computed here.
        """
        mine: Future[_Slice] = Future()
        with self._lock:
            owners = [self._open.setdefault(text, mine) for text in texts]
        own = [i for i, owner in enumerate(owners) if owner is mine]
        parts = [(own, self._own(mine, [texts[i] for i in own], compute))] if own else []
        if len(own) == len(texts) and parts:
            return parts[0][1]
        for other in {owner for owner in owners if owner is not mine}:
            theirs = [i for i, owner in enumerate(owners) if owner is other]
            parts.append((theirs, self._others(other, [texts[i] for i in theirs], compute)))
        return _joined(len(texts), parts)

    def _own(self, mine: "Future[_Slice]", texts: Sequence[str], compute: Callable[[Sequence[str]], Found]) -> Found:
        try:
            found = compute(texts)
            mine.set_result(_Slice({text: i for i, text in enumerate(texts)}, found))
            return found
        except BaseException as error:
            mine.set_exception(error)
            raise
        finally:
            with self._lock:
                for text in texts:
                    del self._open[text]

    def _others(
        self, other: "Future[_Slice]", texts: Sequence[str], compute: Callable[[Sequence[str]], Found]
    ) -> Found:
        if other.exception(threading.TIMEOUT_MAX):  # waits; see `runner._finished`
            return self.find(texts, compute)
        positions, found = other.result()
        taken = [positions[text] for text in texts]
        errors = {i: found.errors[at] for i, at in enumerate(taken) if at in found.errors}
        return Found(found.vectors[taken], found.n_tokens[taken], found.n_cut[taken], errors)


def _joined(n_texts: int, parts: Sequence[tuple[Sequence[int], Found]]) -> Found:
    some = next((found for _, found in parts if found.vectors.shape[1]), parts[0][1])
    whole = Found.empty(n_texts, some.vectors.shape[1], some.vectors.dtype)
    for places, found in parts:
        if found.vectors.shape[1]:
            whole.vectors[places] = found.vectors
        whole.n_tokens[places], whole.n_cut[places] = found.n_tokens, found.n_cut
        whole.errors.update({places[i]: error for i, error in found.errors.items()})
    return whole


#: By what computes, then by how.
_tables: "weakref.WeakKeyDictionary[object, dict[bytes, OpenTexts]]" = weakref.WeakKeyDictionary()
_making = threading.Lock()


def open_texts(computer: object, how: bytes) -> OpenTexts:
    """Return the one table of what computes (an engine, a client) in one way."""
    with _making:
        return _tables.setdefault(computer, {}).setdefault(how, OpenTexts())


def _after_fork() -> None:
    """Forget what the parent's threads, which are not here, were computing."""
    global _making
    _making = threading.Lock()
    _tables.clear()


os.register_at_fork(after_in_child=_after_fork)
