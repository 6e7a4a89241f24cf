"""Whatever servers do, each row ends with its vector or with a reason."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from embellama.errors import Unavailable
from tests.bulk.conftest import texts
from tests.conftest import wait_until
from tests.remote.conftest import StartFaulty, computed, rows_of
from tests.remote.faulty import n_tokens, vector

QUICK = {"timeout_s": 0.5, "retry_s": 60.0}


def test_every_row_ends_right_or_failed_whatever_a_server_does(
    faulty: StartFaulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embellama.remote.servers.MAX_PAUSE_S", 0.1)
    turns = "ok, 429 0.2, 503, reset, ok, garbage, half, ok, silent, fewer, ok, 502, shorter, ok, ok"
    server = faulty(turns=turns.split(", "))
    asked = texts(200)
    asked[7], asked[50], asked[51], asked[120] = "named red", "unnamed", "unnamed blue", "poison one"
    rows = rows_of(tmp_path, asked, server, max_batch_size=10, concurrency=16, allowed_failure_rate=1.0, **QUICK)
    assert {row["turn"] for row in server.requests()} == {turn.split()[0] for turn in server.plan.turns}
    failed = {row["index"]: row["error"] for row in rows if row["status"] == "failed"}
    assert {index: error["code"] for index, error in failed.items()} == {
        7: "bad_text",
        50: "bad_text",
        51: "bad_text",
        120: "unavailable",
    }
    assert failed[7]["message"] == "the text is bad"
    assert failed[120]["message"].endswith("answers 500: it broke")
    for index, text in enumerate(asked):
        if index not in failed:
            np.testing.assert_array_equal(np.array(rows[index]["embedding"], np.float32), vector(text))


def test_told_to_wait_once_all_wait_once(faulty: StartFaulty, tmp_path: Path) -> None:
    server = faulty(turns=["ok", "ok", "ok", "ok", "429 1.0", *["ok"] * 100], delay_s=0.05)
    computed(tmp_path, texts(40), server, max_batch_size=1, concurrency=4)
    came = [(row["at"], row["turn"]) for row in server.requests()]
    [told] = [at for at, turn in came if turn == "429"]
    # When the answer came, 0.05 s later, some were on their way.
    assert [at - told for at, _ in came if 0.1 < at - told < 1.0] == []
    assert max(at for at, _ in came) - told < 10


def test_a_server_that_wants_nothing_for_long_ends_the_run(faulty: StartFaulty, tmp_path: Path) -> None:
    server = faulty(turns=["ok", "ok", *["429 3600"] * 100])
    with pytest.raises(Unavailable, match=rf"{server.url}: not to be asked for 3\d\d\d s; retry_s is 10"):
        computed(tmp_path, texts(9), server, max_batch_size=1, retry_s=10)


def test_a_server_that_is_silent_holds_up_one_request(faulty: StartFaulty, tmp_path: Path) -> None:
    works, silent = faulty(), faulty(turns=["ok", *["silent"] * 100])
    rows = rows_of(tmp_path, texts(100), works, silent, max_batch_size=1, concurrency=4, timeout_s=0.3)
    assert [row["status"] for row in rows] == ["ok"] * 100
    assert len(silent.requests()) < 8


def test_a_server_that_is_killed_costs_no_row(faulty: StartFaulty, tmp_path: Path) -> None:
    stays, dies = faulty(delay_s=0.02), faulty(delay_s=0.02)

    def kill() -> None:
        wait_until(lambda: len(dies.requests()) > 20, "it has work")
        dies.kill()

    with ThreadPoolExecutor(1) as thread:
        killed = thread.submit(kill)
        rows = rows_of(tmp_path, asked := texts(300), stays, dies, max_batch_size=2, concurrency=4, **QUICK)
        killed.result()
    assert [row["status"] for row in rows] == ["ok"] * 300
    assert len(stays.requests()) > 100 > len(dies.requests())
    np.testing.assert_array_equal(np.array(rows[299]["embedding"], np.float32), vector(asked[299]))


def test_a_run_whose_servers_are_gone_ends_and_goes_on_to_the_same_bytes(faulty: StartFaulty, tmp_path: Path) -> None:
    (whole := tmp_path / "whole").mkdir()
    server = faulty()
    job = {"max_batch_size": 5, "concurrency": 2, "part_rows": 50, "retry_s": 0.5}
    computed(whole, asked := texts(400), server, **job)
    server.kill()
    server.plan.turns = ("ok",) * 35 + ("503",) * 10_000
    server.start()
    with pytest.raises(Unavailable, match=r"no server answers any more: http.*answers 503: not now"):
        computed(tmp_path, asked, server, **job)
    server.kill()
    server.plan.turns = ("ok",)
    server.start()
    assert 0 < computed(tmp_path, asked, server, resume=True, **job).resumed_at < 400
    assert (tmp_path / "out.jsonl").read_bytes() == (whole / "out.jsonl").read_bytes()


def test_a_server_that_takes_few_texts_and_no_base64_gets_what_it_takes(faulty: StartFaulty, tmp_path: Path) -> None:
    server = faulty(most=3, floats=True)
    rows = rows_of(tmp_path, asked := texts(20), server, max_batch_size=10)
    for row, text in zip(rows, asked, strict=True):
        np.testing.assert_array_equal(np.array(row["embedding"], np.float32), vector(text))


def test_tokens_are_counted_for_a_row_alone_and_else_for_all(faulty: StartFaulty, tmp_path: Path) -> None:
    server = faulty()
    asked = texts(33)
    summary = computed(tmp_path, asked, server, max_batch_size=8)
    assert summary.counts.tokens == n_tokens(asked)
    rows = rows_of(tmp_path, asked, server, max_batch_size=8, overwrite=True)
    assert [row.get("n_tokens") for row in rows] == [None] * 32 + [n_tokens(asked[32:])]
