"""The content type of an answer that a client likes best, by the `accept` header of its request (RFC 9110, 12.5.1)."""

import functools
import re

# What stands between commas, or between semicolons, that are in no quoted string.
_RANGES = re.compile(r'(?:[^,"]|"(?:\\.|[^"\\])*"?)+')
_PARTS = re.compile(r'(?:[^;"]|"(?:\\.|[^"\\])*"?)+')

_WEIGHT = re.compile(r"[01]?\.?[0-9]{0,9}")


@functools.lru_cache(64)  # most clients send one of a few; a header may have 64 kB, so no more are kept
def best_type(accept: str, offers: tuple[str, ...]) -> str:
    """Return the offer with the highest weight, the first of several; the first of all if none is accepted.

    Args:
        accept: The header in lower case, several joined with commas; parameters other than ``q`` are left aside.
        offers: Content types without parameters.
    """
    weights: dict[str, float] = {}
    for media_range in _RANGES.findall(accept):
        kind, *parameters = [part.strip() for part in _PARTS.findall(media_range)] or [""]
        weights[kind] = max(weights.get(kind, 0.0), _weight(parameters))

    def weight(offer: str) -> float:
        # The most particular range counts, whatever the others say.
        ranges = (offer, f"{offer.partition('/')[0]}/*", "*/*")
        return next((weights[each] for each in ranges if each in weights), 0.0)

    return max(offers, key=weight)  # the first of the best


def _weight(parameters: list[str]) -> float:
    """Return the weight that a range's parameters give it, from 0 to 1: 1 where there is none, or one that is wrong."""
    for parameter in parameters:
        name, _, value = (piece.strip() for piece in parameter.partition("="))
        if name == "q":
            return min(float(value), 1.0) if _WEIGHT.fullmatch(value) and value.strip(".") else 1.0
    return 1.0
