"""Find out the encoding of a text by its first bytes."""

import codecs

from embellama.bulk.extra import extra
from embellama.errors import ConfigError

BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def encoding_of(head: bytes, given: str = "") -> str:
    """Return Python's name of the encoding of a text that begins with `head`, or of the one that is `given`.

    Raises:
        ConfigError: Python does not know the one that is given.
    """
    if given:
        try:
            return codecs.lookup(given).name
        except LookupError:
            raise ConfigError(f"encoding is {given!r}, which Python does not know") from None
    for mark, name in BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return name
    try:
        # A character may be cut in two at the end.
        codecs.getincrementaldecoder("utf-8")().decode(head)
        return "utf-8"
    except UnicodeDecodeError:
        best = extra("charset_normalizer", "files that are not UTF-8").from_bytes(head).best()
        # Where nothing fits, rows that are not UTF-8 fail one by one.
        return best.encoding if best and len(head) > 64 else "utf-8"
