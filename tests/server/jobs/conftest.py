"""What tests of files and batches share: lines, OpenAI's client, a server that keeps files."""

import json
import random
from collections.abc import Iterable, Iterator
from typing import Any

import openai
import pytest
from openai.types import Batch

from tests.conftest import Server, running_server, wait_until

ENDED = ("completed", "failed", "expired", "cancelled")


def line(custom_id: str, input: object = "red", **fields: Any) -> dict[str, Any]:
    """Make a line of a batch's file."""
    body = {"model": "tiny", "input": input}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body, **fields}


def lines(n: int, seed: int = 0) -> list[dict[str, Any]]:
    """Make lines of many lengths, the same for the same seed."""
    words, choose = ["red", "green", "blue", "one", "two", "three", *"abcdefgh"], random.Random(seed)
    return [line(f"line {i}", " ".join(choose.choices(words, k=choose.randint(1, 30)))) for i in range(n)]


def jsonl(lines: Iterable[object]) -> bytes:
    """Write lines, texts as they are."""
    return "\n".join(each if isinstance(each, str) else json.dumps(each) for each in lines).encode()


class Client:
    """OpenAI's own client, and what tests ask it for."""

    def __init__(self, server: Server, key: str = "none"):
        self.url = server.url
        self.openai = openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=30)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.openai.close()

    def upload(self, lines: Iterable[object]) -> str:
        """Upload a file of lines; return its id."""
        return self.openai.files.create(file=("in.jsonl", jsonl(lines)), purpose="batch").id

    def begin(self, lines: Iterable[object], **options: Any) -> Batch:
        """Begin with a batch of lines."""
        asked: dict[str, Any] = {"endpoint": "/v1/embeddings", "completion_window": "24h", **options}
        return self.openai.batches.create(input_file_id=self.upload(lines), **asked)

    def wait(self, batch: Batch) -> Batch:
        """Wait until a batch has ended."""
        found: list[Batch] = []

        def ended() -> bool:
            found[:] = [self.openai.batches.retrieve(batch.id)]
            return found[0].status in ENDED

        wait_until(ended, "the batch has ended")
        return found[0]

    def run(self, lines: Iterable[object], **options: Any) -> Batch:
        """Run a batch to its end."""
        return self.wait(self.begin(lines, **options))

    def read(self, file_id: str | None) -> bytes:
        """Download a file."""
        assert file_id
        return self.openai.files.content(file_id).read()

    def lines(self, file_id: str | None) -> list[Any]:
        """Download a file of JSON lines."""
        return [json.loads(each) for each in self.read(file_id).splitlines()]


@pytest.fixture(scope="module")
def client(tiny_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    folder = tmp_path_factory.mktemp("batches")
    flags = ("--model-path", tiny_path, "--workers", "1", "--data-dir", str(folder / "data"))
    with running_server(folder / "log", *flags) as server, Client(server) as client:
        yield client
        assert "unexpected error" not in (folder / "log").read_text()
