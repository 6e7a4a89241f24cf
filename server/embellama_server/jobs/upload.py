"""`Upload`: a file's way from a request to disk, in pieces, as `multipart/form-data`.

body ── python-multipart ──► fields: purpose, expires_after[seconds]
                        └──► the file's bytes ── bounded by `MAX_FILE_BYTES` and the folder's room ──► DATA/uploads/
"""

import asyncio
import os
from pathlib import Path
from typing import BinaryIO

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.types import Receive, Scope

from embellama.errors import Unavailable
from embellama_server.jobs.folder import DataFolder, full_disk_named
from embellama_server.jobs.lines import MAX_FILE_BYTES
from embellama_server.problems import BadRequest, BodyTooLarge, BodyTooSlow
from embellama_server.reading import ClientGone
from embellama_server.state import ServerState

# Fields beside the file, and bytes of each: there are three, and all are short.
MAX_FIELDS = 16
MAX_FIELD_BYTES = 1024

# What comes beside the file's bytes: boundaries and fields.
MAX_OTHER_BYTES = 64 * 1024

# Bytes that are written at once, in a thread: a disk may take its time.
WRITE_BYTES = 1024 * 1024


class Upload:
    """One file that comes, used as a context manager: what was not `taken` is deleted.

    Attributes:
        fields: The other fields of the form.
        filename: The file's name, as the client calls it; None while there is none.
        n_bytes: Bytes of the file so far.
        path: Where they are.
    """

    def __init__(self, folder: DataFolder):
        self._folder = folder
        self.path: Path = folder.new_upload()
        self.fields: dict[str, str] = {}
        self.filename: str | None = None
        self.n_bytes = 0
        self._stream: BinaryIO | None = None
        self._held = bytearray()
        self._header = self._value = b""
        self._name = ""
        self._is_file = self._is_whole = False
        self._field = bytearray()
        self._n_parts = 0

    async def read(self, state: ServerState, scope: Scope, receive: Receive) -> None:
        """Read the whole body.

        Raises:
            BadRequest: It is no form, or has no file.
            BodyTooLarge, StorageFull: The file is too large, or there is no room for it.
            BodyTooSlow: Nothing came for `timeout_ms`.
            Unavailable: The server stops.
            ClientGone: The client hung up.
        """
        parser = self._parser(scope)
        loop, patience = asyncio.get_running_loop(), state.config.timeout_ms / 1000
        self._stream = await asyncio.to_thread(self._open)
        try:
            async with asyncio.timeout(0 if state.stopping else patience) as timeout:
                state.reading.add(timeout)
                try:
                    more = True
                    while more:
                        message = await receive()
                        if message["type"] == "http.disconnect":
                            raise ClientGone
                        self._parse(parser, message.get("body", b""))
                        more = message.get("more_body", False)
                        if len(self._held) >= WRITE_BYTES or not more:
                            await asyncio.to_thread(self._write, sync=not more)
                        if not state.stopping:
                            timeout.reschedule(loop.time() + patience)
                finally:
                    state.reading.discard(timeout)
        except TimeoutError:
            if state.stopping:
                raise Unavailable("the server is shutting down") from None
            raise BodyTooSlow(f"nothing of the body came for {state.config.timeout_ms} ms") from None
        if not self._is_whole:
            raise BadRequest("the body ends before the form does")
        if self.filename is None:
            raise BadRequest("file is missing: the form must have a file of that name", "file")

    def taken(self) -> None:
        """Take note that the file was put in its place, and keeps its room."""
        self.n_bytes = 0

    def __enter__(self) -> "Upload":
        return self

    def __exit__(self, *_: object) -> None:
        if self._stream:
            self._stream.close()
        self.path.unlink(missing_ok=True)
        self._folder.release(self.n_bytes)

    def _parser(self, scope: Scope) -> MultipartParser:
        headers = dict(scope["headers"])
        kind, options = parse_options_header(headers.get(b"content-type", b"").decode("latin-1"))
        if kind != b"multipart/form-data" or not options.get(b"boundary"):
            raise BadRequest("content-type must be multipart/form-data, with a boundary")
        declared, limit = int(headers.get(b"content-length", 0)), MAX_FILE_BYTES + MAX_OTHER_BYTES
        if declared > limit:
            raise BodyTooLarge(f"the body has {declared} bytes; the limit is {MAX_FILE_BYTES} for a file")
        callbacks = {
            "on_part_begin": self._begin_part,
            "on_header_field": lambda data, start, end: self._add_header(data[start:end], b""),
            "on_header_value": lambda data, start, end: self._add_header(b"", data[start:end]),
            "on_header_end": self._end_header,
            "on_headers_finished": self._end_headers,
            "on_part_data": self._add_data,
            "on_part_end": self._end_part,
            "on_end": self._end,
        }
        try:
            return MultipartParser(options[b"boundary"], callbacks, limit)  # type: ignore[arg-type]
        except FormParserError as error:
            raise BadRequest(f"the form cannot be read: {error}") from None

    def _parse(self, parser: MultipartParser, data: bytes) -> None:
        try:
            n_read = parser.write(data) if data else 0
        except FormParserError as error:
            raise BadRequest(f"the form cannot be read: {error}") from None
        if n_read < len(data):
            raise BodyTooLarge(f"the body has more bytes than {MAX_FILE_BYTES}, the limit for a file")

    def _begin_part(self) -> None:
        self._n_parts += 1
        if self._n_parts > MAX_FIELDS:
            raise BadRequest(f"the form has more than {MAX_FIELDS} fields")
        self._name, self._is_file, self._field = "", False, bytearray()
        self._header = self._value = b""

    def _add_header(self, name: bytes, value: bytes) -> None:
        self._header += name
        self._value += value

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            _, options = parse_options_header(self._value.decode("latin-1"))
            self._name = options.get(b"name", b"").decode("utf-8", "replace")
            if self._name == "file":
                if self.filename is not None:
                    raise BadRequest("the form has more than one file", "file")
                name = options.get(b"filename", b"").decode("utf-8", "replace")
                self._is_file, self.filename = True, name[:MAX_FIELD_BYTES]
        self._header = self._value = b""

    def _end_headers(self) -> None:
        if not self._name:
            raise BadRequest("a field of the form has no name")

    def _add_data(self, data: bytes, start: int, end: int) -> None:
        n = end - start
        if self._is_file:
            if self.n_bytes + n > MAX_FILE_BYTES:
                raise BodyTooLarge(f"the file has more bytes than {MAX_FILE_BYTES}, the most allowed")
            self._folder.reserve(n)
            self.n_bytes += n
            self._held += data[start:end]
            return
        self._field += data[start:end]
        if len(self._field) > MAX_FIELD_BYTES:
            raise BadRequest(f"{self._name[:100]} has more bytes than {MAX_FIELD_BYTES}", self._name[:100])

    def _end_part(self) -> None:
        if not self._is_file:
            self.fields[self._name] = self._field.decode("utf-8", "replace")

    def _end(self) -> None:
        self._is_whole = True

    def _open(self) -> BinaryIO:
        with full_disk_named():
            return open(self.path, "xb", buffering=0)

    def _write(self, *, sync: bool) -> None:
        assert self._stream
        with full_disk_named():
            left = memoryview(bytes(self._held))
            while left:
                left = left[self._stream.write(left) :]
            self._held.clear()
            if sync:
                os.fsync(self._stream.fileno())
