"""Prompts on the server: the header that names one, and a file that is read again while requests are open."""

import itertools
import json
import os
import re
import signal
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import msgspec
import numpy as np
import pytest
from embellama_server.models import ModelChanges
from embellama_server.state import ServerState
from numpy.typing import NDArray

from embellama.errors import ConfigError
from embellama.text.prompt import Prompt
from embellama.text.prompt_versions import PromptVersions
from embellama.text.prompts import Prompts
from tests.conftest import Server, running_server, wait_until
from tests.known import assert_alike, engine_of

pytestmark = pytest.mark.server

FILE = """
[[models]]
match = ["tiny"]
aliases = { query = "query@production", "query@production" = "query@1", passage = "document" }
[models.prompts]
"query@1" = "one {text}"
"query@2" = "two two {text}"
document = "three {text}"
"topic@1" = "a {text}"
"""


class Prompted(NamedTuple):
    """A server, and its file of prompts."""

    server: Server
    path: Path

    def write(self, content: str, says: str) -> None:
        """Write the file, and wait until the server has read it and says so."""
        seen = len(re.findall(says, self.server.log.read_text()))
        self.path.write_text(content)
        os.kill(self.server.process.pid, signal.SIGHUP)
        wait_until(lambda: len(re.findall(says, self.server.log.read_text())) > seen, f"the log has {says}")

    def post(self, path: str = "/v1/embeddings", **body: Any) -> httpx.Response:
        body = {"model": "tiny", "input": "red", **body} if path.endswith("/embeddings") else body
        return httpx.post(self.server.url + path, json=body, timeout=60)

    @property
    def prompts(self) -> Prompts:
        return Prompts.for_model("tiny", file=self.path)


READ = "the prompts of 'tiny' were read"
REFUSED = "the prompts that were read before stay"


@pytest.fixture(scope="module")
def running(tiny_path: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prompted]:
    folder = tmp_path_factory.mktemp("prompts")
    path = folder / "prompts.toml"
    path.write_text(FILE)
    flags = ("--model-path", tiny_path, "--workers", "1", "--prompts-file", str(path), "--access-log")
    with running_server(folder / "log", *flags) as server:
        yield Prompted(server, path)


@pytest.fixture
def prompted(running: Prompted) -> Iterator[Prompted]:
    yield running
    if running.path.read_text() != FILE:
        running.write(FILE, READ)


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/embeddings", {"prompt_name": "query"}, "query@1"),
        ("/v1/embeddings", {"prompt_name": "query@2"}, "query@2"),
        ("/v1/embeddings", {"input_type": "document"}, "document"),
        ("/v1/embeddings", {"task": "retrieval.query"}, "query@1"),
        ("/v1/embeddings", {"task": "retrieval.passage"}, "document"),
        ("/v1/embeddings", {"prompt_name": "query@2", "late_chunking": True}, "query@2"),
        ("/openai/deployments/tiny/embeddings", {"prompt_name": "passage"}, "document"),
        ("/v2/embed", {"model": "tiny", "texts": ["red"], "input_type": "search_query"}, "query@1"),
        ("/embed", {"inputs": "red", "prompt_name": "query@production"}, "query@1"),
        ("/embed_all", {"inputs": "red", "prompt_name": "query@2"}, "query@2"),
        (
            "/similarity",
            {"inputs": {"source_sentence": "red", "sentences": ["blue"]}, "parameters": {"prompt_name": "query@2"}},
            "query@2",
        ),
        ("/tokenize", {"inputs": "red", "prompt_name": "topic@1"}, "topic@1"),
        ("/v1/embeddings", {}, None),
        ("/v2/embed", {"model": "tiny", "texts": ["red"], "input_type": "classification"}, None),
        ("/embed", {"inputs": "red"}, None),
        ("/api/embed", {"model": "tiny", "input": "red"}, None),
        ("/detokenize", {"tokens": [5]}, None),
    ],
)
def test_the_header_names_the_prompt_in_every_dialect(
    prompted: Prompted, path: str, body: dict[str, Any], name: str | None
) -> None:
    answer = prompted.post(path, **body)
    assert answer.status_code == 200, answer.text
    expected = None if name is None else prompted.prompts[name].identity
    assert answer.headers.get("x-embellama-prompt") == expected


@pytest.mark.parametrize("path", ["/v1/rerank", "/v2/rerank", "/rerank"])
def test_documents_ordered_by_cosines_name_both_prompts(prompted: Prompted, path: str) -> None:
    told = prompted.post(path, model="tiny", query="red", documents=["blue"]).headers["x-embellama-prompt"]
    assert told.split(", ") == [prompted.prompts[name].identity for name in ("query@1", "document")]


@pytest.mark.parametrize(
    ("path", "body", "says"),
    [
        (
            "/v1/embeddings",
            {"prompt_name": "query@3"},
            "prompt_name 'query@3' is not one of this model's: document, query@1, query@2, ",
        ),
        ("/v1/embeddings", {"prompt_name": "topic"}, "prompt_name 'topic' has versions: name one of topic@1"),
        ("/v1/embeddings", {"input": [[5]], "prompt_name": "query"}, "prompt_name does not go with token ids"),
    ],
)
def test_a_prompt_that_cannot_be_is_named_and_no_header_tells_it(
    prompted: Prompted, path: str, body: dict[str, Any], says: str
) -> None:
    answer = prompted.post(path, **body)
    assert (answer.status_code, "x-embellama-prompt" in answer.headers) == (400, False)
    assert answer.json()["error"]["message"].startswith(says)


def test_the_access_log_names_the_prompt(prompted: Prompted) -> None:
    prompted.post(prompt_name="query@2")
    wait_until(lambda: "model=tiny prompt=query@2 texts=1" in prompted.server.log.read_text(), "it is logged")


def test_an_answer_line_by_line_and_one_in_bytes_name_it_too(prompted: Prompted) -> None:
    for accept in ("application/x-ndjson", "application/octet-stream"):
        body = {"model": "tiny", "input": ["red"] * 200, "prompt_name": "query"}
        answer = httpx.post(f"{prompted.server.url}/v1/embeddings", json=body, headers={"accept": accept})
        assert answer.headers["x-embellama-prompt"] == prompted.prompts["query@1"].identity


def test_a_changed_version_or_a_wrong_file_leaves_everything_as_it_was(prompted: Prompted) -> None:
    was = prompted.prompts
    moved = FILE.replace('"query@production" = "query@1"', '"query@production" = "query@2"').replace("three", "blue")
    prompted.write(moved.replace('"one {text}"', '"three {text}"'), REFUSED)
    now = prompted.prompts["query@1"].sha256
    last = [line for line in prompted.server.log.read_text().splitlines() if REFUSED in line][-1]
    assert "prompt 'query@1' of 'tiny' may not change" in last
    assert f"its sha256 was {was['query@1'].sha256} and is {now}" in last
    for wrong in ("[[models]", moved.replace("{text}", "{test}"), moved.replace('= "query@2"', '= "query@9"')):
        prompted.write(wrong, REFUSED)
    prompted.path.unlink()
    os.kill(prompted.server.process.pid, signal.SIGHUP)
    wait_until(lambda: f"{prompted.path}: No such file" in prompted.server.log.read_text(), "it says so")
    for name in ("query", "document"):
        assert prompted.post(prompt_name=name).headers["x-embellama-prompt"] == was[name].identity
    prompted.write(moved, READ)
    assert prompted.post(prompt_name="query").headers["x-embellama-prompt"] == was["query@2"].identity
    assert prompted.post(prompt_name="document").headers["x-embellama-prompt"] == prompted.prompts["document"].identity
    # One that was taken out is remembered.
    without = re.sub('"topic@1".*\n', "", moved)
    prompted.write(without, READ)
    assert "topic@1" not in httpx.get(f"{prompted.server.url}/v1/models").json()["data"][0]["prompts"]
    prompted.write(moved.replace('"a {text}"', '"b {text}"'), REFUSED)


def test_no_request_mixes_versions_while_the_file_changes(prompted: Prompted, tiny_path: str) -> None:
    words = ("green", "blue", "three", "red")
    contents = {Prompt("topic", f"{word} {{text}}").sha256: f"{word} {{text}}" for word in words}
    contents |= {prompt.sha256: prompt.template for prompt in prompted.prompts.prompts}
    # A streamed answer has 64 rows a part.
    texts = [" ".join(each) for each in itertools.product("abcdef", words, "abc")]
    found: dict[str, list[NDArray[Any]]] = {}
    n_answers: Counter[tuple[str, bool]] = Counter()
    over = threading.Event()

    def ask(name: str, streams: bool) -> None:
        body = {"model": "tiny", "input": texts, "prompt_name": name}
        headers = {"accept": "application/x-ndjson" if streams else "application/json"}
        with httpx.Client(base_url=prompted.server.url, headers=headers, timeout=60) as client:
            while not over.is_set():
                answer = client.post("/v1/embeddings", json=body)
                assert answer.status_code == 200, answer.text
                rows = map(json.loads, answer.text.splitlines()[:-1]) if streams else answer.json()["data"]
                vectors = np.array([row["embedding"] for row in rows])
                found.setdefault(answer.headers["x-embellama-prompt"], []).append(vectors)
                n_answers[name, streams] += 1

    with ThreadPoolExecutor() as clients:
        ways = [("query@production", True), ("query@production", False), ("document", True)]
        asked = [clients.submit(ask, *way) for way in ways]
        try:
            for number, word in enumerate(words):
                changed = FILE.replace("three {text}", f"{word} {{text}}")
                prompted.write(changed.replace('" = "query@1"', f'" = "query@{1 + number % 2}"'), READ)
                seen = dict(n_answers)
                # The first answer after it may be to a request that came before it.
                wait_until(lambda: all(n_answers[way] >= seen.get(way, 0) + 2 for way in ways), "all were answered")  # noqa: B023
        finally:
            over.set()
        for each in asked:
            each.result()
    assert {identity.partition(";")[0] for identity in found} == {"query@1", "query@2", "document"}
    assert len(found) == 2 + len(words)
    with engine_of(tiny_path) as engine:
        for identity, answers in found.items():
            template = contents[identity.partition("sha256=")[2]]
            expected = engine.embed_batch(None, [template.replace("{text}", text) for text in texts])
            for vectors in answers:
                assert_alike(vectors, expected)


def test_versions_are_compared_for_each_model_by_itself() -> None:
    one, other = (Prompts([Prompt("topic@1", template)]) for template in ("a {text}", "b {text}"))
    versions = PromptVersions()
    versions.note("m", one)
    versions.check("m", one)
    versions.check("n", other)
    versions.check("m", Prompts([Prompt("query", "b {text}")]))  # it has no version
    with pytest.raises(ConfigError, match=rf"was {one['topic@1'].sha256} and is {other['topic@1'].sha256}; give"):
        versions.check("m", other)


async def test_a_model_is_not_swapped_for_one_whose_versions_say_something_else(
    state: ServerState, tmp_path: Path
) -> None:
    model = state.model(None)
    state.serve(model.with_prompts(Prompts([Prompt("topic@1", "a {text}")])))
    path = tmp_path / "prompts.toml"
    path.write_text('[[models]]\nmatch = ["tiny"]\nprompts = { "topic@1" = "b {text}" }\n')
    os.link(model.config.model_path, tmp_path / "tiny.gguf")
    config = msgspec.structs.replace(state.config, models_dir=str(tmp_path))
    changes = ModelChanges(ServerState(config, [state.model(None)], state.metrics))
    with pytest.raises(ConfigError, match="prompt 'topic@1' of 'tiny' may not change once it was offered"):
        await changes.load("tiny", {"path": "tiny.gguf", "prompts_file": "prompts.toml"})
