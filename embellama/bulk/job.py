"""`BulkJob`: the options of `embellama bulk`, each defined once: a flag, and a key of the file of `--job`."""

from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from embellama.errors import ConfigError, check_number
from embellama.options import EmbedOptions

Format = Literal["auto", "csv", "jsonl", "lines", "parquet", "arrow", "documents"]

# Options that change nothing in the output, so that a resumed run may have others; inputs have identities of their own.
FREE = ("inputs", "output", "resume", "overwrite", "allowed_failure_rate", "summary")


class BulkJob(EmbedOptions, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to embed, how, and where to.

    Attributes:
        inputs: Files, folders of documents, or "-" for standard input.
    """

    inputs: Annotated[tuple[str, ...], Meta(extra={"flag": ""})] = ()
    output: Annotated[
        str,
        Meta(
            description="File to write: .jsonl, .parquet, .arrow or .npy by its name, else JSONL; - for stdout.",
            extra={"short": "-o"},
        ),
    ] = ""
    format: Annotated[Format, Meta(description="Format of the inputs; auto finds it by their content.")] = "auto"
    chunk_tokens: Annotated[
        int | None, Meta(description="Cut documents into chunks of so many tokens at most, between words.")
    ] = None
    chunk_overlap: Annotated[
        int, Meta(ge=0, description="Begin a chunk with the last words of the one before, up to so many tokens.")
    ] = 0
    late_chunking: Annotated[
        bool, Meta(description="Compute chunks together, so that each knows what is around it.")
    ] = False
    encoding: Annotated[str, Meta(description="Encoding of CSV, JSONL and lines; found by default.")] = ""
    header: Annotated[
        bool | None, Meta(description="Whether a CSV's first row names its columns; found by default.")
    ] = None
    column: Annotated[str, Meta(description="Column of the texts; by default text, or the only one.")] = ""
    template: Annotated[str, Meta(description="Make each text of several columns: '{title} by {author}'.")] = ""
    id_column: Annotated[str, Meta(description="Column that is each row's id in the output.")] = ""
    keep_columns: Annotated[bool, Meta(description="Write the input's columns into the output, too.")] = False
    offset: Annotated[int, Meta(ge=0, description="Leave out so many rows at the beginning.")] = 0
    limit: Annotated[int | None, Meta(description="Read so many rows at most.")] = None
    skip_empty: Annotated[bool, Meta(description="Leave out rows without text; otherwise they fail.")] = False
    part_rows: Annotated[
        int,
        Meta(
            ge=2,
            le=1_000_000,
            description="Most rows that are computed again when a run goes on. Half as many are written at a time, and "
            "equal texts among those are computed once.",
        ),
    ] = 8192
    allowed_failure_rate: Annotated[
        float, Meta(ge=0, le=1, description="Share of rows that may fail before the exit status is 3.")
    ] = 0.0
    resume: Annotated[bool, Meta(description="Go on where an earlier run of the same job was ended.")] = False
    overwrite: Annotated[bool, Meta(description="Replace an output that is there.")] = False
    summary: Annotated[str, Meta(description="File to write the summary to, in JSON.")] = ""

    def checked(self) -> "BulkJob":
        """Return this job; raise `ConfigError` or `InvalidOption` if its options do not go together."""
        if not self.inputs:
            raise ConfigError("there is no input: name files, or - for standard input")
        if not self.output:
            raise ConfigError("output is missing: -o FILE, or -o - for standard output")
        if self.column and self.template:
            raise ConfigError(
                f"column {self.column!r} and template {self.template!r} are two ways to make a text; give one"
            )
        self._check_chunks()
        if self.limit is not None:
            check_number("limit", self.limit, "it must be at least 1", 1)
        if self.resume and self.overwrite:
            raise ConfigError("resume keeps an output and overwrite replaces it; give one of them")
        if self.resume and "-" in (*self.inputs, self.output):
            raise ConfigError("standard input and output cannot be gone on with; resume needs files")
        for path in self.inputs:
            for what, other in (("output", self.output), ("summary", self.summary)):
                if path != "-" and other not in ("-", "") and Path(path).resolve() == Path(other).resolve():
                    raise ConfigError(f"{path} is an input and the {what}")
        return self

    def _check_chunks(self) -> None:
        """Raise `ConfigError` or `InvalidOption` if the options for chunks do not go together."""
        if self.chunk_tokens is None:
            if self.chunk_overlap or self.late_chunking:
                raise ConfigError("chunk_overlap and late_chunking are of chunks; give chunk_tokens, too")
            return
        check_number("chunk_tokens", self.chunk_tokens, "it must be at least 1", 1)
        most = self.chunk_tokens - 1
        check_number("chunk_overlap", self.chunk_overlap, f"it must be at most {most}, less than chunk_tokens", 0, most)
        if self.truncate != "none" or self.window_overlap is not None:
            raise ConfigError(
                "chunk_tokens, truncate and window_overlap are ways to read a long text; give one of them"
            )
        if self.late_chunking and (self.prompt is not None or self.template):
            raise ConfigError("late_chunking computes a chunk in its text, so it has no prompt or template of its own")

    @property
    def embed_options(self) -> EmbedOptions:
        """The options for embedding alone."""
        return EmbedOptions(**{name: getattr(self, name) for name in EmbedOptions.__struct_fields__})

    def fixed_options(self) -> dict[str, object]:
        """Return what the output depends on, by name."""
        values = msgspec.to_builtins(self)
        return {name: value for name, value in values.items() if name not in FREE}
