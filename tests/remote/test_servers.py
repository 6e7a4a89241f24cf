"""Which servers are asked together, with what, and what is told of them."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from click.testing import CliRunner

from embellama import EmbeddingEngine
from embellama.bulk.backend import Embedded
from embellama.bulk.remote import RemoteBackend
from embellama.cli.flags import defaults, flags, variable
from embellama.cli.main import main
from embellama.errors import ConfigError, Unavailable
from embellama.options import EmbedOptions
from embellama.remote.config import RemoteConfig
from tests.bulk.conftest import PROGRAM, texts
from tests.conftest import ROOT, Reference, Server
from tests.remote.conftest import FaultyServer, StartFaulty, computed

KEY = "sk-a-secret-that-nobody-sees"


@pytest.mark.parametrize(
    ("plans", "says"),
    [
        (
            [{"weights": "a" * 64}, {"weights": None}, {"weights": "b" * 64}],
            r"url names servers whose weights of 'm' have different hashes: \S+ aaaaaaaaaaaa…, \S+ bbbbbbbbbbbb…$",
        ),
        ([{}, {"model": "n"}], "model_name is missing|different models: for the same text, the vectors of http"),
    ],
)
def test_servers_of_different_weights_are_refused_and_named(
    faulty: StartFaulty, tmp_path: Path, plans: list[dict[str, Any]], says: str
) -> None:
    servers = [faulty(**plan) for plan in plans]
    with pytest.raises(ConfigError, match=says) as caught:
        computed(tmp_path, ["red"], *servers, model_name="m")
    assert all(server.url in str(caught.value) for server in servers if server.plan.weights or len(servers) == 2)


def test_a_run_goes_on_with_other_servers_of_the_same_weights_only(faulty: StartFaulty, tmp_path: Path) -> None:
    computed(tmp_path, asked := texts(5), faulty(weights="a" * 64), limit=3)
    computed(tmp_path, asked, faulty(weights="a" * 64), limit=3, resume=True)
    with pytest.raises(ConfigError, match=r"model\.weights_sha256 was 'aaa.* and is 'bbb"):
        computed(tmp_path, asked, faulty(weights="b" * 64), limit=3, resume=True)


def test_a_run_does_not_go_on_with_another_model_of_that_name(faulty: StartFaulty, tmp_path: Path) -> None:
    computed(tmp_path, texts(5), faulty(), limit=3)
    with pytest.raises(ConfigError, match=r"model\.probe was '"):
        computed(tmp_path, [], faulty(model="n"), limit=3, resume=True, model_name="m")


def test_servers_whose_prompts_differ_are_refused_and_so_is_one_that_changes(
    faulty: StartFaulty, tmp_path: Path
) -> None:
    first, second = (faulty(prompts=(f"query@{i}; sha256={i}",)) for i in (1, 2))
    with pytest.raises(ConfigError, match=r"prompts differ: \S+ writes query@1; sha256=1, \S+ query@2; sha256=2$"):
        computed(tmp_path, texts(5), first, second, model_name="m")
    changing = faulty(prompts=("query@1; sha256=1", "query@1; sha256=1", "query@2; sha256=2"))
    with pytest.raises(Unavailable, match=r"another prompt .* it was query@1; sha256=1 and is query@2; sha256=2"):
        computed(tmp_path, texts(5), changing, max_batch_size=1, concurrency=1)
    with pytest.raises(ConfigError, match=r"model\.prompt_identity was 'query@1; sha256=1' and is 'query@2; sha256=2'"):
        computed(tmp_path, texts(5), second, max_batch_size=1, concurrency=1, resume=True)


def bulk(server: FaultyServer, folder: Path, *more: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    source = folder / "in.txt"
    source.write_text("red\nblue\n")
    flags = [str(source), "-o", str(folder / "out.jsonl"), "--url", server.url, *more]
    command = [sys.executable, "-c", PROGRAM, "bulk", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env={**os.environ, **variables})


def test_a_key_is_sent_and_never_told(faulty: StartFaulty, tmp_path: Path) -> None:
    server = faulty(key=KEY)
    good = bulk(server, tmp_path, EMBELLAMA_API_KEY=KEY)
    assert good.returncode == 0, good.stderr
    wrong = bulk(server, tmp_path, "--overwrite", "--api-key", f"{KEY}-not")
    assert (wrong.returncode, wrong.stderr.startswith(f"Error: {server.url} answers 401")) == (1, True)
    assert KEY not in wrong.stderr + good.stderr + "".join(
        path.read_text() for path in tmp_path.iterdir() if "server" not in path.name
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--model-path", "m.gguf"), "both of --model-path and --url given; give one of them"),
        (("--workers", "2"), "--workers does not go with --url"),
        (("--rate-limit", "fast"), "--rate-limit: rate_limit is 'fast'; it must be as 10/s, 2000/m"),
        (("--prompt", "query"), "prompt is 'query'; only embellama's servers have it"),
        (("--dimensions", "9"), "dimensions is 9; this model gives 1 to 8"),
        (("--url", "ftp://x"), "--url: url is 'ftp://x'; it must be as http://host:8000/v1"),
    ],
)
def test_what_servers_cannot_do_is_refused_before_any_work(
    faulty: StartFaulty, tmp_path: Path, flags: tuple[str, ...], says: str
) -> None:
    server = faulty()
    (tmp_path / "in.txt").write_text("red\n")
    command = ["bulk", f"{tmp_path}/in.txt", "-o", f"{tmp_path}/out.jsonl", "--url", server.url, *flags]
    result = CliRunner().invoke(main, command)
    assert result.exit_code in (1, 2)
    assert says in result.output
    assert server.requests() == []


def test_the_last_word_on_a_server_that_is_not_there_comes_soon(faulty: StartFaulty, tmp_path: Path) -> None:
    server = faulty()
    server.kill()
    with pytest.raises(Unavailable, match=f"{server.url}: .*[Cc]onnect"):
        computed(tmp_path, ["red"], server, retry_s=0.5)


@pytest.mark.parametrize("dtype", ["float16", "int8", "ubinary"])
def test_vectors_of_any_server_are_cut_and_quantized_here(faulty: StartFaulty, dtype: Any) -> None:
    import embellama.outputs as outputs
    from tests.remote.faulty import vector

    backend = RemoteBackend(RemoteConfig(url=(faulty().url,)), EmbedOptions(dimensions=4, dtype=dtype), {})
    [found] = backend.submit(["red"]).result()
    backend.close()
    assert isinstance(found, Embedded)
    expected = outputs.quantize(outputs.cut(vector("red")[None], 4), dtype)
    np.testing.assert_array_equal(found.vector, expected[0])


@pytest.mark.model
@pytest.mark.server
@pytest.mark.parametrize("options", [EmbedOptions(), EmbedOptions(dimensions=64, truncate=9, normalize=True)])
def test_embellamas_server_gives_the_rows_of_the_engine(
    server: Server, engine: EmbeddingEngine, reference: Reference, options: EmbedOptions
) -> None:
    backend = RemoteBackend(RemoteConfig(url=(server.url,), max_batch_size=16), options, {})
    outcomes = backend.submit(reference.texts).result()
    facts = backend.facts()
    backend.close()
    vectors = engine.embed_batch(None, reference.texts, **msgspec.structs.asdict(options))
    assert [each for each in outcomes if not isinstance(each, Embedded)] == []
    np.testing.assert_allclose([each.vector for each in outcomes if isinstance(each, Embedded)], vectors, atol=1e-6)
    if options.truncate == "none":
        counts = [(each.n_tokens, each.n_cut) for each in outcomes if isinstance(each, Embedded)]
        assert counts == [(len(ids), 0) for ids in reference.ids]
    assert len(str(facts["weights_sha256"])) == 64


def test_a_text_that_is_too_long_for_embellamas_server_fails_as_it_does_here(server: Server) -> None:
    backend = RemoteBackend(RemoteConfig(url=(server.url,)), EmbedOptions(), {})
    first, long, last = backend.submit(["red", "a " * 600, "blue"]).result()
    backend.close()
    assert isinstance(first, Embedded)
    assert isinstance(last, Embedded)
    assert not isinstance(long, Embedded)
    assert (long.code, str(long)) == ("context_length_exceeded", "the text has 602 tokens; the limit is 512")


def test_every_setting_of_servers_is_documented() -> None:
    rows = (ROOT / "docs" / "settings.md").read_text().splitlines()
    schema = msgspec.json.schema(RemoteConfig)["$defs"]["RemoteConfig"]["properties"]
    for field, name in flags(RemoteConfig).items():
        default = "required" if "default" not in schema[field] else defaults(RemoteConfig)[field] or "—"
        assert f"| `--{name}` | `{variable(name)}` | {default} | {schema[field]['description']} |" in rows
