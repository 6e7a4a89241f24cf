"""What is kept of files and batches, and how clients are told of them, in OpenAI's words.

FileRecord, BatchRecord ── JSON, beside what they describe ──► DataFolder
                       └── told ──► FileObject, BatchObject: bodies of replies
"""

from typing import Literal, TypedDict

import msgspec

from embellama.text.prompt import Prompt
from embellama.text.prompts import Prompts

BatchStatus = Literal[
    "validating", "failed", "in_progress", "finalizing", "completed", "expired", "cancelling", "cancelled"
]

# In these, nothing more happens.
ENDED: frozenset[BatchStatus] = frozenset({"failed", "completed", "expired", "cancelled"})

Purpose = Literal["batch", "batch_output"]


class FileObject(TypedDict):
    """A file, as OpenAI describes one; times are seconds since 1970."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int
    expires_at: int | None
    filename: str
    purpose: Purpose
    status: Literal["processed"]


class DeletedFile(TypedDict):
    """A file that is no more."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class LineError(TypedDict):
    """What is wrong with a batch, and in which line of its file, from 1; None if it is none of them."""

    code: str
    message: str
    param: str | None
    line: int | None


class LineErrors(TypedDict):
    """All that was found wrong."""

    object: Literal["list"]
    data: list[LineError]


class LineCounts(TypedDict):
    """How many lines a batch has, and what became of them."""

    total: int
    completed: int
    failed: int


class CachedTokens(TypedDict):
    """Tokens that were not computed: none, as lines of a batch are always computed."""

    cached_tokens: int


class ReasoningTokens(TypedDict):
    """Tokens of thoughts: embeddings have none."""

    reasoning_tokens: int


class BatchUsage(TypedDict):
    """Tokens of the lines that were answered."""

    input_tokens: int
    input_tokens_details: CachedTokens
    output_tokens: int
    output_tokens_details: ReasoningTokens
    total_tokens: int


class BatchObject(TypedDict):
    """A batch, as OpenAI describes one; times are seconds since 1970."""

    id: str
    object: Literal["batch"]
    endpoint: str
    model: str | None
    errors: LineErrors | None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: LineCounts
    usage: BatchUsage
    metadata: dict[str, str] | None


class FilePage(TypedDict):
    """A part of the list of files, and whether more come after it."""

    object: Literal["list"]
    data: list[FileObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BatchPage(TypedDict):
    """A part of the list of batches, and whether more come after it."""

    object: Literal["list"]
    data: list[BatchObject]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A file that is kept.

    Attributes:
        owner: Name of the key that it belongs to; empty without keys.
        n_bytes: Its size.
        created_at: When it came, in seconds since 1970.
        expires_at: When it goes; None for never.
    """

    id: str
    owner: str
    filename: str
    purpose: Purpose
    n_bytes: int
    created_at: int
    expires_at: int | None = None

    def told(self) -> FileObject:
        """Describe it to a client."""
        return {
            "id": self.id,
            "object": "file",
            "bytes": self.n_bytes,
            "created_at": self.created_at,
            "expires_at": self.expires_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
        }


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """How far a batch is: all that is on disk of it, and where it goes on.

    Attributes:
        at: The byte of the input after the last line that was done.
        line: The number of that line, from 1.
        completed: Lines that were answered.
        failed: Lines that were not.
        n_tokens: Tokens of the lines that were answered.
        lengths: Bytes of the output and of the errors that count.
    """

    at: int = 0
    line: int = 0
    completed: int = 0
    failed: int = 0
    n_tokens: int = 0
    lengths: tuple[int, int] = (0, 0)


class KeptPrompts(msgspec.Struct, frozen=True):
    """The prompts of a model, as they were when a batch began."""

    prompts: list[Prompt]
    aliases: dict[str, str]

    @classmethod
    def of(cls, prompts: Prompts) -> "KeptPrompts":
        """Keep prompts as they are."""
        return cls(prompts.prompts, prompts.aliases)

    def restored(self) -> Prompts:
        """Return what was kept."""
        return Prompts(self.prompts, self.aliases)


class BatchRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A batch.

    Attributes:
        owner: Name of the key that it belongs to; empty without keys.
        window: How long it may take, as the client wrote it.
        output_seconds: How long its outputs are kept; None for ever.
        times: When it came into each status after the first, in seconds since 1970.
        model: The model that its lines ask for, once they were read; None for the first one.
        total: Its lines, once they were read.
        batch_limits: Most tokens and texts that are computed together: those of the model when the batch began. With
            others, vectors would differ in their last digits from those that are written.
        prompts: Those of the model when the batch began, until it has ended: lines of one batch never have two contents
            of one name, though the file of prompts may change meanwhile.
    """

    id: str
    owner: str
    endpoint: str
    input_file_id: str
    window: str
    created_at: int
    expires_at: int
    output_seconds: int | None = None
    metadata: dict[str, str] | None = None
    status: BatchStatus = "validating"
    times: dict[str, int] = {}
    errors: list[LineError] = []
    model: str | None = None
    total: int = 0
    batch_limits: tuple[int, int] = (0, 0)
    prompts: KeptPrompts | None = None
    progress: Progress = Progress()
    output_file_id: str | None = None
    error_file_id: str | None = None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens to it."""
        return self.status in ENDED

    def told(self, trouble: LineError | None = None) -> BatchObject:
        """Describe it to a client; `trouble` is why it does not go on now, if it does not."""
        errors = [*self.errors, *([trouble] if trouble else [])]
        done = self.progress
        return {
            "id": self.id,
            "object": "batch",
            "endpoint": self.endpoint,
            "model": self.model,
            "errors": {"object": "list", "data": errors} if errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": self.window,
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "in_progress_at": self.times.get("in_progress"),
            "expires_at": self.expires_at,
            "finalizing_at": self.times.get("finalizing"),
            "completed_at": self.times.get("completed"),
            "failed_at": self.times.get("failed"),
            "expired_at": self.times.get("expired"),
            "cancelling_at": self.times.get("cancelling"),
            "cancelled_at": self.times.get("cancelled"),
            "request_counts": {"total": self.total, "completed": done.completed, "failed": done.failed},
            "usage": {
                "input_tokens": done.n_tokens,
                "input_tokens_details": {"cached_tokens": 0},
                "output_tokens": 0,
                "output_tokens_details": {"reasoning_tokens": 0},
                "total_tokens": done.n_tokens,
            },
            "metadata": self.metadata,
        }
