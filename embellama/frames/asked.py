"""`AskedVectors`: what a column of vectors is compared with: vectors that were given, or texts that a model embeds."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from numpy.typing import NDArray

from embellama.errors import InvalidOption
from embellama.frames.embedding import ColumnEmbedder
from embellama.frames.models import Model, model_of
from embellama.frames.numbers import vectors_of
from embellama.frames.texts import is_text
from embellama.options import EmbedOptions


class AskedVectors:
    """Queries or labels.

    Attributes:
        n: How many there are.
    """

    def __init__(self, given: Any, name: str, *, model: Model | None = None, prompt: str | None = None):
        """Prepare.

        Args:
            given: One text or several, in a list, an array or a column; or vectors, as `vectors_of` takes them.
            name: What they are called in errors.
            model: Embeds the texts, when they are needed; not given with vectors.
            prompt: The prompt to write around each text; None for none.

        Raises:
            InvalidOption: There are none, or not all are texts, or `model` is missing, or given in vain.
            InputError: They are no vectors.
        """
        texts = _texts_of(given, name)
        self._name, self._prompt = name, prompt
        self._texts: Sequence[str] = []
        if texts is not None:
            if not texts:
                raise InvalidOption(name, "are none; there must be at least 1")
            if model is None:
                raise InvalidOption("model", f"is missing: {name} are texts, which have to be embedded")
            self._texts, self._model, self.n = texts, model_of(model), len(texts)
            return
        if model is not None:
            raise InvalidOption("model", f"is for texts, and {name} are vectors")
        self._rows = vectors_of(given, name)
        self.n = len(self._rows)

    def rows(self, dim: int) -> NDArray[Any]:
        """Return them as rows, ``(n, dim)``, for comparison with vectors of `dim` numbers; texts are cut to as many.

        Raises:
            InputError, ModelError, ServiceError: A text cannot be embedded, or the model's vectors are shorter.
        """
        if not self._texts:
            return self._rows
        options = EmbedOptions(prompt=self._prompt)
        whole = self._model.dim(options)
        embedder = ColumnEmbedder(self._model, prompt=self._prompt, dimensions=None if dim == whole else dim)
        return vectors_of(embedder.embed(pa.array(self._texts, pa.large_string()), self._name), self._name)


def _texts_of(given: Any, name: str) -> list[str] | None:
    """Return texts as a list; None if the first of `given` is no text.

    Raises:
        InvalidOption: A later one is none.
    """
    if isinstance(given, str):
        return [given]
    if isinstance(given, Sequence) and not given:
        return []
    if isinstance(given, pa.Array | pa.ChunkedArray) and is_text(given.type):
        given = given.to_pylist()
    try:
        first = next(iter(given), None)
    except TypeError:  # not of several
        return None
    if not isinstance(first, str):
        return None
    texts = [*given]
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InvalidOption(name, f"has {text!r} at position {i}, which is no text")
    return [str(text) for text in texts]  # NumPy's are of a type of their own
