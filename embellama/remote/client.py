"""`RemoteClient`: texts in, a future of a vector or an error for each out; from any thread.

embed(texts) ──► requests of so many texts ── Servers.ask ──► rows ── RemoteVectors ──► one outcome for each text
                    ▲                              │
                    └── without the text at fault, or in halves, where the server refuses them

rows(tokens) ───► requests of so many tokens ── Servers.ask ──► rows, all or none

An event loop in a thread of its own does the work. A text fails by itself; the future fails where nothing can be
computed any more.
"""

import asyncio
import itertools
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple, TypeVar

import httpx
import numpy as np
from numpy.typing import NDArray

from embellama.backend import Progress, Times
from embellama.batch import Rows, Tokens
from embellama.errors import DeadlineExceeded, EmbeddingFailed, EmbellamaError, Unavailable
from embellama.options import EmbedOptions
from embellama.remote.answers import Answer
from embellama.remote.config import RemoteConfig
from embellama.remote.faults import Refused, Transient, Unusable
from embellama.remote.server import ModelEntry
from embellama.remote.servers import Servers
from embellama.remote.vectors import RemoteVectors

Result = TypeVar("Result")
Text = TypeVar("Text", str, Tokens)

# A request ends at so many characters, too: about 8,000 tokens, a second or two of work. More of them, as many requests
# are open at once, would wait for longer than servers let them.
REQUEST_CHARACTERS = 32 * 1024
REQUEST_TOKENS = 8 * 1024


class RemoteVector(NamedTuple):
    """A text's vector.

    vector: ``(dim,)``, of the dtype that was asked for.
    n_tokens: Tokens computed; None where the server counts only all texts of a request.
    n_cut: Tokens left out; None where the server does not say.
    mean_tokens: Tokens of the request's texts, on average.
    """

    vector: NDArray[Any]
    n_tokens: int | None
    n_cut: int | None
    mean_tokens: float


RemoteOutcome = RemoteVector | EmbellamaError


class RemoteClient:
    """Servers that compute vectors.

    Attributes:
        entry: What the servers tell of the model.
        dim: Numbers of a vector as the servers give it.
        probe: The vector of `servers.PROBE`, ``(dim,) float32``.
        prompt: Identity of the prompt that the servers write around texts; "" for none, or where they do not say.
        embellama: Whether all servers are embellama's.
        weights: The hashes of weights that they tell; "" of those that tell none.
    """

    entry: ModelEntry
    dim: int
    probe: Rows
    prompt: str
    embellama: bool
    weights: set[str]

    def __init__(self, config: RemoteConfig, options: EmbedOptions):
        """Ask the servers of a checked config which model they have.

        Raises:
            ConfigError: They do not have the same model, or refuse what is asked.
            InvalidOption: They cannot do what an option asks.
            Unavailable: One does not answer.
        """
        self._config, self._options = config, options
        self._http: httpx.AsyncClient | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="remote", daemon=True)
        self._thread.start()
        try:
            self._run(self._open()).result()
        except (Transient, Unusable) as error:
            self.close()
            raise Unavailable(str(error)) from error
        except BaseException:
            self.close()
            raise

    def embed(self, texts: Sequence[str]) -> "Future[list[RemoteOutcome]]":
        """Have texts computed, none of them twice at once; the future fails with `Unavailable`."""
        return self._run(self._embed(list(texts)))

    def rows(
        self, tokens: Sequence[Tokens], *, scaled: bool, deadline: float, times: Times, progress: Progress | None
    ) -> "Future[Rows]":
        """Have the rows of token ids computed, all or none, by embellama's servers.

        Args:
            tokens: Token ids of each text, ``(n_tokens,) int32``, special tokens included.
            scaled: Whether rows are scaled as the model says.
            deadline, times, progress: As `Backend.submit` takes them.

        Returns:
            A future of ``(n_texts, dim) float32``. It fails with `EmbeddingFailed`, which names a position in `tokens`,
            with `Unavailable`, or with `DeadlineExceeded`.
        """
        return self._run(self._rows_until(deadline, self._rows(list(tokens), scaled, times, progress)))

    def close(self) -> None:
        """Drop what is not computed yet, and hang up."""
        if self._loop.is_closed():
            return
        self._run(self._close()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self, work: Coroutine[Any, Any, Result]) -> "Future[Result]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    async def _open(self) -> None:
        key = self._config.api_key
        headers = {"content-type": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        # Each of the requests that are open has a connection; how long it may take is `RemoteServer`'s business.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=self._config.concurrency)
        self._http = httpx.AsyncClient(headers=headers, timeout=None, limits=limits)
        self._servers = servers = Servers(self._config, self._http)
        await servers.describe()
        self._vectors = RemoteVectors(self._options, self._config.int8_limit, servers.entry, servers.embellama)
        await servers.prepare(self._vectors.fields)
        self.entry, self.dim, self.probe = servers.entry, len(servers.probe), servers.probe
        self.prompt = servers.prompt
        self.embellama, self.weights = servers.embellama, servers.weights
        self._vectors.prepare(self.probe)

    async def _close(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        if self._http:
            await self._http.aclose()
        await self._loop.shutdown_asyncgens()

    async def _embed(self, texts: list[str]) -> list[RemoteOutcome]:
        requests = _requests(texts, self._config.max_batch_size, REQUEST_CHARACTERS)
        tasks = [asyncio.ensure_future(self._outcomes(request)) for request in requests]
        try:
            return list(itertools.chain.from_iterable(await asyncio.gather(*tasks)))
        except Unusable as error:
            raise Unavailable(str(error)) from error
        finally:
            for task in tasks:
                task.cancel()

    async def _rows_until(self, deadline: float, rows: Coroutine[Any, Any, Rows]) -> Rows:
        left = deadline - time.monotonic()
        try:
            async with asyncio.timeout(left if left < float("inf") else None):
                return await rows
        except TimeoutError:
            raise DeadlineExceeded(max(round(left * 1000), 0)) from None

    async def _rows(self, tokens: list[Tokens], scaled: bool, times: Times, progress: Progress | None) -> Rows:
        rows = np.empty((len(tokens), self.dim), np.float32)
        n_done = 0

        async def compute(first: int, request: Sequence[Tokens]) -> None:
            nonlocal n_done
            times.started = times.started or time.monotonic()
            found = (await self._asked(first, request, scaled)).rows
            rows[first : first + len(request)] = found
            n_done += len(request)
            if progress:
                progress(n_done, len(tokens))

        requests = list(_requests(tokens, self._config.max_batch_size, REQUEST_TOKENS))
        firsts = itertools.accumulate(map(len, requests[:-1]), initial=0)
        tasks = [asyncio.ensure_future(compute(*each)) for each in zip(firsts, requests, strict=False)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
        return rows

    async def _asked(self, first: int, request: Sequence[Tokens], scaled: bool) -> Answer:
        """Have a request's rows computed, all of them usable; its first text is number `first` in errors."""
        try:
            answer = await self._servers.ask([ids.tolist() for ids in request], scaled=scaled)
        except Refused as error:
            if error.index is None or not 0 <= error.index < len(request):
                raise Unavailable(error.reason) from error
            raise EmbeddingFailed(first + error.index, error.reason) from error
        except (Transient, Unusable) as error:
            raise Unavailable(str(error)) from error
        usable = np.isfinite(answer.rows).all(axis=1) & answer.rows.any(axis=1)
        if not usable.all():
            raise EmbeddingFailed(first + int(usable.argmin()), "its vector is not finite, or all zeros")
        return answer

    async def _outcomes(self, texts: list[str]) -> list[RemoteOutcome]:
        """Have the texts of one request computed; each that is refused is left out of those that are sent again."""
        left = list(range(len(texts)))
        refused: dict[int, RemoteOutcome] = {}
        found: list[RemoteOutcome] = []
        while left:
            sent = [texts[i] for i in left]
            try:
                found = self._made(await self._servers.ask(sent))
                break
            except Refused as error:
                if len(left) > 1 and (error.index is None or not 0 <= error.index < len(left)):
                    found = await self._halves(sent)
                    break
                refused[left.pop(error.index if len(left) > 1 and error.index is not None else 0)] = error
            except Transient as error:
                if len(left) > 1 and error.status == 500:
                    found = await self._halves(sent)
                else:
                    found = [Unavailable(str(error)) for _ in left]
                break
        outcomes = refused | dict(zip(left, found, strict=True))
        return [outcomes[i] for i in range(len(texts))]

    async def _halves(self, texts: list[str]) -> list[RemoteOutcome]:
        half = len(texts) // 2
        one, other = await asyncio.gather(self._outcomes(texts[:half]), self._outcomes(texts[half:]))
        return one + other

    def _made(self, answer: Answer) -> list[RemoteOutcome]:
        n = len(answer.rows)
        mean = answer.total_tokens / n
        n_tokens: Sequence[int | None] = answer.n_tokens or [(answer.total_tokens or None) if n == 1 else None] * n
        n_cut: Sequence[int | None] = answer.n_cut or [None] * n
        return [
            vector if isinstance(vector, EmbellamaError) else RemoteVector(vector, tokens, cut, mean)
            for vector, tokens, cut in zip(self._vectors.write(answer.rows), n_tokens, n_cut, strict=True)
        ]


def _requests(texts: Sequence[Text], max_texts: int, max_length: int) -> Iterator[list[Text]]:
    """Group texts, in their order, into those of one request each; what is in a group follows from the texts alone."""
    held: list[Text] = []
    length = 0
    for text in texts:
        if held and (len(held) == max_texts or length + len(text) > max_length):
            yield held
            held, length = [], 0
        held.append(text)
        length += len(text)
    if held:
        yield held
