"""`Texts`: the different texts of a column, and which of them each row has.

strings ─────────────────────────────────┐
dictionaries (Categorical, Enum) ────────┼──► dictionary ──► Texts: values, codes
structs ── Template ──► strings ─────────┘
"""

import string
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from embellama.errors import InputError, InvalidOption


class Texts(NamedTuple):
    """The texts of a column.

    values: Those that differ, in the order in which they come first.
    codes: For each row the position of its text in `values`, ``(n_rows,) int64``; -1 where it is null.
    """

    values: list[str]
    codes: NDArray[np.int64]

    @classmethod
    def of(cls, array: Any, name: str, template: "Template | None") -> "Texts":
        """Read a column.

        Args:
            array: An Arrow array, without chunks.
            name: What the column is called in errors.
            template: Makes a text of a struct; None where the column has texts.

        Raises:
            InputError: It has no texts, or `template` is not for it.
        """
        if pa.types.is_null(array.type):
            return cls([], np.full(len(array), -1, np.int64))
        if pa.types.is_dictionary(array.type):
            array = array.dictionary_decode()
        if template:
            array = template.apply(array, name)
        elif pa.types.is_struct(array.type):
            raise InputError(f"column {name!r} is {array.type}: say with template='{{field}} …' what its text is")
        if not is_text(array.type):
            raise InputError(f"column {name!r} is {array.type}, which is no text")
        # The largest there are: in an array of plain strings offsets are 32 bits.
        encoded = array.cast(pa.large_string()).dictionary_encode()
        codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False)
        return cls(encoded.dictionary.to_pylist(), codes.astype(np.int64))


class Template:
    """Makes a text of the fields of a struct: ``{title}: {text}``. Braces are written twice: ``{{`` and ``}}``.

    A row is null if any of the fields that are named is.
    """

    def __init__(self, template: str):
        """Read a template; raise `InvalidOption` if it is wrong, or names no field."""
        self._template = template
        self._parts: list[tuple[str, str | None]] = []
        try:
            for literal, field, spec, conversion in string.Formatter().parse(template):
                if field is not None and (not field or spec or conversion):
                    raise InvalidOption("template", f"is {template!r}; it may have only names of fields in braces")
                self._parts.append((literal, field))
        except ValueError as error:
            raise InvalidOption("template", f"is {template!r}; its braces are not paired: {error}") from None
        self.fields = list(dict.fromkeys(field for _, field in self._parts if field is not None))
        if not self.fields:
            raise InvalidOption("template", f"is {template!r}; it names no field of the struct, as {{text}} does")

    def apply(self, array: Any, name: str) -> Any:
        """Return the texts of a struct array, ``large_string``; `name` is what its column is called in errors.

        Raises:
            InputError: It is no struct, or a field is missing, or cannot be written as text.
        """
        if not pa.types.is_struct(array.type):
            raise InputError(f"column {name!r} is {array.type}; a template is for structs")
        # Flattened, a field is null where the struct is.
        there = dict(zip([field.name for field in array.type], array.flatten(), strict=True))
        pieces = []
        for literal, field in self._parts:
            pieces.append(pa.scalar(literal, pa.large_string()))
            if field is None:
                continue
            if field not in there:
                raise InputError(
                    f"template {self._template!r} has the field {field!r}; column {name!r} has {', '.join(there)}"
                )
            pieces.append(_written(there[field], f"field {field!r} of column {name!r}"))
        return pc.binary_join_element_wise(*pieces, pa.scalar("", pa.large_string()))


def _written(array: Any, what: str) -> Any:
    try:
        return (array.dictionary_decode() if pa.types.is_dictionary(array.type) else array).cast(pa.large_string())
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):
        raise InputError(f"{what} is {array.type}, which cannot be written as text") from None


def is_text(type: Any) -> bool:
    """Tell whether an Arrow type is one of texts."""
    return bool(pa.types.is_string(type) or pa.types.is_large_string(type) or pa.types.is_string_view(type))
