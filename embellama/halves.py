"""Find the texts at fault among many, where a failure may name no more than one of them."""

from collections.abc import Callable, Sequence
from typing import TypeVar

from embellama.errors import EmbeddingFailed, EmbellamaError, InputError

Item = TypeVar("Item")
Result = TypeVar("Result")


def by_halves(
    items: Sequence[Item], attempt: Callable[[Sequence[Item]], Sequence[Result]]
) -> list[Result | EmbellamaError]:
    """Attempt items together, and where one is at fault each half by itself, until it is alone.

    Args:
        items: What is attempted.
        attempt: Returns a result for each item, or raises `InputError` or `EmbeddingFailed`.

    Returns:
        For each item its result, or the error it is at fault for.

    Raises:
        InputError: No one item is at fault (`index` is None): an option is wrong, say.
    """
    try:
        return list(attempt(items)) if items else []
    except (InputError, EmbeddingFailed) as error:
        if error.index is None:
            raise
        if len(items) == 1:
            return [error]
        half = len(items) // 2
        return by_halves(items[:half], attempt) + by_halves(items[half:], attempt)
