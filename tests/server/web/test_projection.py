"""Points in a plane for vectors: the right ones, always the same, and a clear word for what are no vectors."""

import asyncio
import threading
from collections.abc import AsyncIterator
from typing import Any

import httpx
import numpy as np
import pytest
from embellama_server.app import build_app
from embellama_server.state import ServerState
from embellama_server.web import projection
from embellama_server.web.projection import principal_plane
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays, floating_dtypes
from numpy.typing import NDArray

BINARY = {"accept": "application/octet-stream"}
SHAPES = st.tuples(st.integers(1, 12), st.integers(1, 12))


@pytest.fixture
async def http(state: ServerState) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(transport=httpx.ASGITransport(build_app(state)), base_url="http://test") as client:
        yield client


def headers(rows: NDArray[Any]) -> dict[str, str]:
    return {"x-embedding-shape": f"{rows.shape[0]},{rows.shape[1]}", "x-embedding-dtype": rows.dtype.name}


@given(arrays(floating_dtypes(endianness="<", sizes=(16, 32)), SHAPES, elements={"allow_nan": False}))
def test_any_finite_rows_have_finite_points(rows: NDArray[Any]) -> None:
    if np.isfinite(rows).all():
        points, explained = principal_plane(rows)
        assert points.shape == (len(rows), 2)
        assert np.isfinite(points).all()
        assert explained.min() >= 0
        assert explained.sum() <= 1.0001


@pytest.mark.parametrize("shape", [(40, 8), (8, 40), (3, 3), (2, 5), (5, 1)])
@pytest.mark.parametrize("scale", [1e-6, 1, 1e30])
def test_the_axes_are_those_along_which_rows_differ_most(shape: tuple[int, int], scale: float) -> None:
    rows = (np.random.default_rng(0).normal(size=shape) * scale).astype(np.float32)
    points, explained = principal_plane(rows)
    u, s, _ = np.linalg.svd(rows - rows.mean(axis=0, dtype=np.float64), full_matrices=False)
    np.testing.assert_allclose(np.abs(points[:, : len(s)]), np.abs(u * s)[:, :2], atol=1e-5 * scale)
    np.testing.assert_allclose(explained[: len(s)], (s**2 / np.sum(s**2))[:2], atol=1e-5)


def test_the_order_of_rows_turns_no_axis_round() -> None:
    rows = np.random.default_rng(1).normal(size=(30, 6)).astype(np.float32)
    order = np.random.default_rng(2).permutation(30)
    np.testing.assert_allclose(principal_plane(rows[order]).points, principal_plane(rows).points[order], atol=1e-5)


def test_rows_that_are_all_the_same_are_one_point() -> None:
    points, explained = principal_plane(np.full((5, 3), 0.1, np.float32))
    assert not points.any()
    assert not explained.any()


@pytest.mark.parametrize("dtype", ["float", "float16"])
async def test_an_answer_in_bytes_can_be_sent_as_it_is(http: httpx.AsyncClient, dtype: str) -> None:
    body = {"model": "tiny", "input": ["red", "blue", "green"], "output_dtype": dtype}
    vectors = await http.post("/v1/embeddings", json=body, headers=BINARY)
    same = {name: vectors.headers[name] for name in ("x-embedding-shape", "x-embedding-dtype")}
    answer = await http.post("/projection", content=vectors.content, headers=same)
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["points"]) == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"x-embedding-shape": ""}, "x-embedding-shape is ''; it must be rows, columns, such as 100,384"),
        ({"x-embedding-shape": "-2,4"}, "x-embedding-shape is '-2,4'; it must be rows, columns, such as 100,384"),
        ({"x-embedding-shape": "2001,4"}, "x-embedding-shape has 2001 rows; it must be 1 to 2000"),
        ({"x-embedding-shape": "2,0"}, "x-embedding-shape has 0 columns; it must be 1 to 16384"),
        ({"x-embedding-dtype": "int8"}, "x-embedding-dtype is 'int8'; it must be one of float32, float16"),
        ({"x-embedding-shape": "2,5"}, "the body has 32 bytes; x-embedding-shape and x-embedding-dtype say 40"),
    ],
)
async def test_what_are_no_rows_is_refused(http: httpx.AsyncClient, wrong: dict[str, str], message: str) -> None:
    rows = np.ones((2, 4), np.float32)
    answer = await http.post("/projection", content=rows.tobytes(), headers=headers(rows) | wrong)
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, message)


@pytest.mark.parametrize("value", [np.nan, np.inf])
async def test_a_row_that_is_no_vector_is_named(http: httpx.AsyncClient, value: float) -> None:
    rows = np.ones((3, 4), np.float32)
    rows[1, 2] = value
    answer = await http.post("/projection", content=rows.tobytes(), headers=headers(rows))
    assert (answer.status_code, answer.json()["error"]["message"]) == (400, "row 1 has a number that is not finite")


async def test_others_are_answered_while_one_is_computed(
    http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(rows: NDArray[Any]) -> projection.Plane:
        begun.set()
        go_on.wait(30)
        return principal_plane(rows)

    monkeypatch.setattr(projection, "principal_plane", slow)
    rows = np.ones((2, 4), np.float32)
    asked = asyncio.create_task(http.post("/projection", content=rows.tobytes(), headers=headers(rows)))
    await asyncio.to_thread(begun.wait)
    assert (await http.get("/livez")).status_code == 200
    assert not asked.done()
    go_on.set()
    assert (await asked).status_code == 200
