"""`ColumnTokenizer`: a column of texts in, a column of their token ids out."""

from typing import Any

import numpy as np
import pyarrow as pa

from embellama.errors import EmbellamaError
from embellama.frames.embedding import OnError, check_on_error, named
from embellama.frames.lists import one_array
from embellama.frames.models import FrameModel
from embellama.frames.texts import Texts
from embellama.halves import by_halves
from embellama.options import Truncate

#: What a row becomes.
TOKENS = pa.large_list(pa.int32())


class ColumnTokenizer:
    """Tokenizes columns with one model."""

    def __init__(self, model: FrameModel, *, truncate: Truncate = "none", on_error: OnError = "raise"):
        """Prepare. `truncate` is as in `EmbedOptions`; `on_error` as in `ColumnEmbedder`."""
        check_on_error(on_error)
        self._model, self._truncate, self._on_error = model, truncate, on_error

    def tokens(self, column: Any, name: str) -> Any:
        """Return the token ids of each row, special ones included, as embedding it would compute: an Arrow array.

        Raises:
            InputError: The column has no texts; or one cannot be tokenized, unless that makes a null.
        """
        texts = Texts.of(one_array(column), name, None)
        found = by_halves(texts.values, self._of) if texts.values else []
        for i, each in enumerate(found):
            if isinstance(each, EmbellamaError) and self._on_error == "raise":
                row = int(np.argmax(texts.codes == i))
                raise named(each, name, row, len(texts.codes), texts.values[i])
        failed = np.array([isinstance(each, EmbellamaError) for each in found], bool)
        ids = [np.empty(0, np.int32) if isinstance(each, EmbellamaError) else each for each in found]
        ends = np.cumsum([0, *map(len, ids)])
        items = pa.array(np.concatenate([np.empty(0, np.int32), *ids]))
        lists = pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), items, mask=pa.array(failed))
        return lists.take(pa.array(texts.codes, mask=texts.codes < 0))

    def _of(self, texts: Any) -> Any:
        return self._model.tokenize(texts, self._truncate).tokens
