"""Requests of all kinds, and a check of each answer against a server that keeps no rows.

   reference server ──► Known: every text's vectors and tokens, each asked for alone
                          │
   Mixed ── requests ──► the server under test ──► answers ── check ──► wrong: what was wrong, and in which request

Used by `test_server.py`, and by `benchmarks/cache_soak.py` for many more requests.
"""

import asyncio
import base64
import contextlib
import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import httpx
import numpy as np
import orjson
from numpy.typing import NDArray

from tests.tiny.vocabularies import POISON, WORDS

# Vectors of a text differ by its neighbours in a batch, in their last digits.
MIN_COSINE = 0.999

KINDS = ("embeddings", "short", "unscaled", "tokens", "ids")


class Known:
    """What a server without a cache says of each text of a pool.

    Attributes:
        texts: The texts; the last ones make the model fail.
        vectors: Of each text that does not fail.
        unscaled: The same, as the model pooled them.
        token_vectors: Of each text's tokens.
        ids: Token ids of each text.
    """

    def __init__(self, url: str, n_texts: int, n_poisoned: int):
        choose = random.Random(1)
        words = [word for word in WORDS if word != POISON]
        self.texts = [" ".join(choose.choices(words, k=choose.choice((1, 3, 9, 30, 50)))) for _ in range(n_texts)]
        self.texts += [f"{POISON} {word}" for word in words[:n_poisoned]]
        self.n_good = n_texts
        good = self.texts[:n_texts]
        with httpx.Client(base_url=url, timeout=60) as http:

            def post(path: str, **body: object) -> Any:
                answer = http.post(path, json=body)
                assert answer.status_code == 200, answer.text
                return answer.json()

            def embed(text: str, **options: object) -> list[float]:
                answer = post("/v1/embeddings", model="tiny", input=text, **options)
                return answer["data"][0]["embedding"]  # type: ignore[no-any-return]

            self.vectors = np.array([embed(text) for text in good])
            self.unscaled = np.array([embed(text, normalized=False) for text in good])
            self.token_vectors = [np.array(post("/embed_all", inputs=text)[0]) for text in good]
            self.ids = [[token["id"] for token in post("/tokenize", inputs=text)[0]] for text in self.texts]

    def n_tokens(self, picked: Sequence[int]) -> int:
        """Count the tokens of some texts."""
        return sum(len(self.ids[i]) for i in picked)


class Mixed:
    """Clients that ask for random texts in random ways.

    Attributes:
        seen: How many answers of each kind came.
        wrong: What was wrong, in words.
        n_cached: Tokens that answers said were known.
        n_tokens: Tokens of all good answers.
    """

    def __init__(self, url: str, known: Known, *, seed: int = 0, leaving: float = 0.05, allowed: Sequence[int] = ()):
        """Prepare.

        Args:
            url: The server under test.
            known: What is right.
            seed: Of the choices.
            leaving: The share of requests whose client hangs up.
            allowed: Statuses that are no mistake, beside those that each request should get.
        """
        self._url, self._known, self._leaving, self._allowed = url, known, leaving, allowed
        self._random = random.Random(seed)
        self.seen: Counter[str] = Counter()
        self.wrong: list[str] = []
        self.n_cached = self.n_tokens = 0

    async def ask(self, n_requests: int, n_clients: int) -> None:
        """Send so many requests, from clients that each wait for their answer."""
        left = iter(range(n_requests))

        async def client() -> None:
            async with httpx.AsyncClient(base_url=self._url, timeout=60) as http:
                for _ in left:
                    await self._one(http)

        await asyncio.gather(*(client() for _ in range(n_clients)))

    async def _one(self, http: httpx.AsyncClient) -> None:
        choose, known = self._random, self._known
        kind = choose.choice(KINDS)
        n = choose.choice((1, 1, 2, 5, 20))
        # Some texts are asked for much more often than others.
        picked = [min(int(choose.paretovariate(0.7)) - 1, known.n_good - 1) for _ in range(n)]
        if choose.random() < 0.05:
            picked[choose.randrange(n)] = choose.randrange(known.n_good, len(known.texts))
        path, body = self._request(kind, picked)
        if choose.random() < self._leaving:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(http.post(path, json=body), choose.uniform(0, 0.02))
            self.seen["left"] += 1
            return
        answer = await http.post(path, json=body)
        self.seen[f"{kind} {answer.status_code}"] += 1
        try:
            problem = self._problem(kind, picked, answer)
        except (LookupError, ValueError, TypeError) as error:
            problem = f"{type(error).__name__}: {error}: {answer.text[:200]}"
        if problem:
            self.wrong.append(f"{kind} {picked}: {problem}")

    def _request(self, kind: str, picked: Sequence[int]) -> tuple[str, dict[str, Any]]:
        texts = [self._known.texts[i] for i in picked]
        if kind == "tokens":
            return "/embed_all", {"inputs": texts}
        body: dict[str, Any] = {"model": "tiny", "input": texts}
        if kind == "short":
            body |= {"dimensions": 8, "encoding_format": "base64"}
        elif kind == "unscaled":
            body |= {"normalized": False}
        elif kind == "ids":
            body |= {"input": [self._known.ids[i] for i in picked]}
        return "/v1/embeddings", body

    def _problem(self, kind: str, picked: Sequence[int], answer: httpx.Response) -> str:
        """Say what is wrong with an answer, or nothing."""
        known = self._known
        poisoned = [place for place, i in enumerate(picked) if i >= known.n_good]
        if answer.status_code in self._allowed:
            return ""
        if answer.status_code != (500 if poisoned else 200):
            return f"status {answer.status_code}: {answer.text[:200]}"
        body = answer.json()
        if poisoned:
            if kind == "tokens":
                return ""  # its dialect names no text
            return "" if body["error"]["index"] in poisoned else f"{body['error']} is not about one of {poisoned}"
        n_tokens, n_cached = known.n_tokens(picked), int(answer.headers["x-embellama-cached-tokens"])
        self.n_tokens += n_tokens
        self.n_cached += n_cached
        if not 0 <= n_cached <= n_tokens or int(answer.headers["x-compute-tokens"]) != n_tokens:
            return f"{n_cached} cached of {answer.headers['x-compute-tokens']} tokens, which are {n_tokens}"
        if kind == "tokens":
            return _difference([np.array(rows) for rows in body], [known.token_vectors[i] for i in picked])
        if body["usage"]["total_tokens"] != n_tokens:
            return f"usage is {body['usage']}, not {n_tokens}"
        if [item["index"] for item in body["data"]] != list(range(len(picked))):
            return f"indices are {[item['index'] for item in body['data']]}"
        rows = [_vector(item["embedding"]) for item in body["data"]]
        vectors = known.unscaled if kind == "unscaled" else known.vectors
        return _difference(rows, [vectors[i, :8] if kind == "short" else vectors[i] for i in picked])


def _vector(written: Any) -> NDArray[Any]:
    return np.frombuffer(base64.b64decode(written), "<f4") if isinstance(written, str) else np.array(written)


def _difference(rows: Sequence[NDArray[Any]], expected: Sequence[NDArray[Any]]) -> str:
    """Say which text's rows are not as expected, or nothing."""
    for place, (got, wanted) in enumerate(zip(rows, expected, strict=True)):
        if got.shape != wanted.shape:
            return f"text {place} has rows of shape {got.shape}, not {wanted.shape}"
        products = np.sum(got * wanted, axis=-1)
        cosine = products / (np.linalg.norm(got, axis=-1) * np.linalg.norm(wanted, axis=-1))
        if not np.min(cosine) > MIN_COSINE:
            return f"text {place} has a cosine of {np.min(cosine)}"
    return ""


def as_lines(mixed: Mixed) -> str:
    """Write what came, for people."""
    counts = orjson.dumps(mixed.seen, option=orjson.OPT_SORT_KEYS).decode()
    return f"{counts}, {mixed.n_cached} of {mixed.n_tokens} tokens cached, {len(mixed.wrong)} wrong"
