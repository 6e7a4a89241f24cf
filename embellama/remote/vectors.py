"""`RemoteVectors`: what options ask of a server, and what is made of the rows that come back.

EmbedOptions ── fields ──► RequestBody ──► servers ──► rows ── write: cut, quantize ──► vectors

Any server has the model; only embellama's has prompts, truncation and vectors that are not scaled. What follows from
the rows alone is done here, so that it is the same with all.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from embellama.batch import Rows
from embellama.errors import EmbeddingFailed, EmbellamaError, InvalidOption
from embellama.options import EmbedOptions
from embellama.outputs import check_dimensions, check_dtype, cut, normalization_of_call, normalize, quantize
from embellama.remote.answers import RequestBody
from embellama.remote.server import ModelEntry

# So much may a vector's length differ from 1 that was scaled, and then written by whatever server.
UNIT = 1e-3


class RemoteVectors:
    """Makes vectors of rows, as options say."""

    def __init__(self, options: EmbedOptions, int8_limit: float, entry: ModelEntry, embellama: bool):
        """Prepare for servers of a model.

        Args:
            options: How texts are read and vectors written.
            int8_limit: The value that 127 stands for in int8.
            entry: What the servers tell of the model.
            embellama: Whether all of them are embellama's.

        Raises:
            InvalidOption: They cannot do what an option asks.
        """
        self._options, self._limit = options, int8_limit
        self._embellama = embellama
        for option in ("window_overlap", "fields"):
            if getattr(options, option) is not None:
                raise InvalidOption(option, f"is {getattr(options, option)!r}; servers do not have it")
        foreign = {"prompt": options.prompt is not None, "truncate": options.truncate != "none"}
        foreign["normalize"] = options.normalize is False
        for option, given in foreign.items():
            if given and not embellama:
                raise InvalidOption(option, f"is {getattr(options, option)!r}; only embellama's servers have it")
        #: How rows are scaled; "" where only they themselves tell.
        self._mode = ""
        if embellama or options.normalize is not None:
            self._mode = normalization_of_call(options.normalize, (embellama and entry.normalization) or "none")

    @property
    def fields(self) -> RequestBody:
        """What each request asks for beside texts."""
        options = self._options
        if not self._embellama:
            return RequestBody("", [])
        return RequestBody(
            "",
            [],
            normalized=options.normalize,
            prompt_name=options.prompt,
            truncate=None if options.truncate == "none" else options.truncate,
            return_truncated=True,
        )

    def prepare(self, probe: Rows) -> None:
        """Prepare for rows like this one, ``(dim,)``; raise `InvalidOption` if what is asked cannot be made of them."""
        if not self._mode:
            self._mode = "l2" if abs(np.linalg.norm(probe.astype(np.float64)) - 1) < UNIT else "none"
        check_dimensions(self._options.dimensions, len(probe))
        check_dtype(self._options.dtype, self._mode, self._limit)

    def write(self, rows: Rows) -> list[NDArray[Any] | EmbellamaError]:
        """Make a vector of each row, ``(n, dim) float32``, or say why that cannot be."""
        try:
            return list(self._written(rows))
        except EmbeddingFailed as error:
            if len(rows) == 1:
                return [error]
            half = len(rows) // 2
            return self.write(rows[:half]) + self.write(rows[half:])

    def _written(self, rows: Rows) -> NDArray[Any]:
        if not self._embellama and self._options.normalize:
            rows = normalize(rows, self._mode)
        return quantize(cut(rows, self._options.dimensions, self._mode), self._options.dtype, self._limit)
