"""`Rate`: so many requests or tokens in a time, as users write it."""

import re
from typing import NamedTuple

from embellama.errors import ConfigError

SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class Rate(NamedTuple):
    """A limit.

    amount: How many requests or tokens.
    unit: ``requests`` or ``tokens``.
    seconds: In how many seconds.
    """

    amount: float
    unit: str
    seconds: int

    @classmethod
    def parse(cls, text: str) -> "Rate":
        """Read ``10/s``, ``2000/m``, ``100000tokens/m``; raise `ConfigError` if it is none of these."""
        found = re.fullmatch(r"(\d+(?:\.\d+)?) *(requests|tokens|) */ *([smhd])", text.strip())
        if not found or not float(found[1]):
            raise ConfigError(
                f"rate_limit is {text!r}; it must be as 10/s, 2000/m or 100000tokens/m: a number above 0 of requests "
                "or tokens in a second (s), minute (m), hour (h) or day (d)"
            )
        return cls(float(found[1]), found[2] or "requests", SECONDS[found[3]])
