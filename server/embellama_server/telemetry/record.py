"""`RequestRecord`: what is known of a request of a dialect once it is over, for metrics, logs and traces.

Exchange ──► RequestRecord ──► Metrics.request, the access log's line, RequestLog.add, Trace.end
"""

from collections.abc import Sequence
from typing import NamedTuple

#: What a request's time is spent on, one after another, and all of it.
PHASES = ("tokenization", "queue", "inference", "encoding", "total")


class Timeline(NamedTuple):
    """When a request came to each point of its way, in order, on `time.monotonic`'s clock.

    A point that it did not come to has the time of the next one that it did come to; the last one is its end.

    came: The request came.
    tokenized: Its texts were tokens.
    looked_up: The cache had been asked for its rows; without a cache, as soon as they were tokens.
    started: A worker got the first of them.
    computed: All rows were there.
    ended: It was answered, or given up.
    """

    came: float
    tokenized: float
    looked_up: float
    started: float
    computed: float
    ended: float

    @property
    def seconds(self) -> tuple[float, float, float, float, float]:
        """How long each of `PHASES` took; the cache is asked while it queues."""
        return (
            self.tokenized - self.came,
            self.started - self.tokenized,
            self.computed - self.started,
            self.ended - self.computed,
            self.ended - self.came,
        )


class RequestRecord(NamedTuple):
    """A request of a dialect that is over.

    request_id: The client's id for it, or ours.
    operation: What its dialect does: ``embeddings``, ``rerank`` and so on (`Dialect.operation`).
    key: Name of its API key; empty without keys, or where it was not known.
    client: Address of its client; empty if that is not known.
    n_retries: How often the client has sent it before, as far as it says so.
    path: The path of its route, in which names of models are left open.
    status: The status of the answer; 0 for a client that hung up.
    error: The code of the error it was answered with, if any.
    asked_model: The model's name as the client wrote it; empty where it wrote none, or was not read.
    model: Name of the model; empty if there was none.
    weights_sha256: Hash of the content of the model's files, likewise.
    prompt: The prompt written around its texts, as ``name@version``, or its name where it has no versions; empty for
        none. Documents that are ordered by cosines have two: ``query, document``.
    prompt_hash: Its SHA-256 (`Prompt.sha256`), in hexadecimal digits; empty for none, two where there are two.
    dimensions: Length of the vectors it is answered with; 0 where it asks for none.
    formats: How the client asked for vectors to be written; empty where it did not say.
    n_texts: Texts, once they are tokens.
    n_tokens: Tokens of all texts.
    n_truncated: Texts of which tokens were left out.
    n_cached_tokens: Tokens of texts whose rows were not computed for it.
    texts: Its first texts, or lists of token ids, as they were sent; empty unless there is a request log.
    times: When it came to each point of its way.
    """

    request_id: str
    operation: str
    key: str
    client: str
    n_retries: int
    path: str
    status: int
    error: str
    asked_model: str
    model: str
    weights_sha256: str
    prompt: str
    prompt_hash: str
    dimensions: int
    formats: tuple[str, ...]
    n_texts: int
    n_tokens: int
    n_truncated: int
    n_cached_tokens: int
    texts: Sequence[str | Sequence[int]]
    times: Timeline
