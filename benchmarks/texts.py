"""Texts to embed: sentences from the standard library's docstrings, the same on every run of one Python version."""

import importlib
import inspect
import random
import re

MODULES = """
argparse ast asyncio base64 bisect calendar cmath collections concurrent.futures configparser contextlib copy
csv dataclasses datetime decimal difflib dis email.message enum fractions functools glob gzip heapq html
http.client inspect io ipaddress itertools json locale logging mailbox math mimetypes multiprocessing numbers
operator os pathlib pickle pprint queue random re sched selectors shelve shutil signal smtplib socket sqlite3
ssl statistics string struct subprocess tarfile tempfile textwrap threading time timeit tokenize traceback
types typing unittest urllib.parse urllib.request uuid warnings weakref xml.dom.minidom zipfile
"""


def sentences() -> list[str]:
    """Return different sentences of 40 to 90 characters (about 16 tokens), in an order that is always the same."""
    found: set[str] = set()
    for name in MODULES.split():
        for value in vars(importlib.import_module(name)).values():
            for holder in (value, *(vars(value).values() if inspect.isclass(value) else ())):
                text = re.sub(r"\s+", " ", (inspect.getdoc(holder) or "") if callable(holder) else "")
                found.update(s for s in re.split(r"(?<=\.) ", text) if 40 <= len(s) <= 90)
    ordered = sorted(found)
    random.Random(0).shuffle(ordered)
    return ordered


def joined(pool: list[str], counts: list[int]) -> list[str]:
    """Return one text for each count: that many sentences, taken from `pool` round and round."""
    texts, at = [], 0
    for count in counts:
        texts.append(" ".join(pool[(at + i) % len(pool)] for i in range(count)))
        at += count
    return texts


def mixed(pool: list[str], n: int) -> list[str]:
    """Return `n` texts of 1 to 16 sentences."""
    choose = random.Random(1)
    return joined(pool, [choose.randint(1, 16) for _ in range(n)])
