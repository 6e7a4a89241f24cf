"""Files, as clients meet them: limits, forms that are wrong, and what a full disk does."""

import contextlib
import http.client
import io
import json
from pathlib import Path

import httpx
import openai
import pytest
from openai.types import FilePurpose

from tests.conftest import StartServer, wait_until
from tests.server.jobs.conftest import Client, jsonl, line, lines

pytestmark = pytest.mark.server


def test_a_file_comes_back_as_it_was_until_it_is_deleted(client: Client) -> None:
    content = bytes(range(256)) * 9000 + b"\r\n--not a boundary"
    expires = {"anchor": "created_at", "seconds": 3600}
    made = client.openai.files.create(file=("näme.jsonl", content), purpose="batch", expires_after=expires)  # type: ignore[arg-type]
    assert (made.bytes, made.filename, made.purpose, made.status) == (len(content), "näme.jsonl", "batch", "processed")
    assert made.expires_at == made.created_at + 3600
    assert client.openai.files.retrieve(made.id) == made
    assert client.read(made.id) == content
    assert made in client.openai.files.list(purpose="batch").data
    assert client.openai.files.delete(made.id).deleted
    for ask in (client.openai.files.retrieve, client.openai.files.content, client.openai.files.delete):
        with pytest.raises(openai.NotFoundError):
            ask(made.id)


def test_files_are_listed_in_either_order(client: Client) -> None:
    made = [client.upload([line("a")]) for _ in range(3)]
    newest = client.openai.files.list(limit=3, order="desc")
    assert [each.id for each in newest.data] == made[::-1]
    assert [each.id for each in client.openai.files.list(order="asc")][-3:] == made
    assert client.openai.files.list(after=made[1], limit=1).data[0].id == made[0]
    for query in ({"limit": 0}, {"limit": "x"}, {"order": "up"}, {"after": "x"}):
        answer = httpx.get(f"{client.url}/v1/files", params=query)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, next(iter(query)))


def test_a_file_in_use_stays(client: Client) -> None:
    batch = client.begin(lines(5000))
    with pytest.raises(openai.ConflictError, match=batch.id):
        client.openai.files.delete(batch.input_file_id)
    client.openai.batches.cancel(batch.id)
    client.wait(batch)
    assert client.openai.files.delete(batch.input_file_id).deleted


@pytest.mark.parametrize("purpose", ["fine-tune", "assistants"])
def test_other_purposes_are_refused(client: Client, purpose: FilePurpose) -> None:
    with pytest.raises(openai.BadRequestError, match="purpose"):
        client.openai.files.create(file=io.BytesIO(b"x"), purpose=purpose)


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"--x--"),
        ("multipart/form-data; boundary=x", b""),
        ("multipart/form-data; boundary=x", b"no form"),
        ("multipart/form-data; boundary=x", b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\nhalf'),
        (
            "multipart/form-data; boundary=x",
            b'--x\r\ncontent-disposition: form-data; name="purpose"\r\n\r\nbatch\r\n--x--',
        ),
        ("multipart/form-data; boundary=x", b"--x\r\ncontent-type: text/plain\r\n\r\na\r\n--x--"),
    ],
)
def test_a_form_that_is_wrong_leaves_nothing(client: Client, kind: str, body: bytes) -> None:
    before = len(client.openai.files.list().data)
    answer = httpx.post(f"{client.url}/v1/files", content=body, headers={"content-type": kind})
    assert answer.status_code == 400, answer.text
    assert len(client.openai.files.list().data) == before


def test_a_file_that_is_too_large_is_refused_by_its_head(client: Client) -> None:
    with contextlib.closing(http.client.HTTPConnection(client.url.removeprefix("http://"))) as connection:
        connection.putrequest("POST", "/v1/files")
        connection.putheader("content-type", "multipart/form-data; boundary=x")
        connection.putheader("content-length", "300000000")
        connection.endheaders()
        answer = connection.getresponse()
        assert (answer.status, json.loads(answer.read())["error"]["code"]) == (413, "request_too_large")


def test_of_an_upload_that_stops_nothing_is_left(tiny_path: str, start_server: StartServer, tmp_path: Path) -> None:
    uploads = tmp_path / "data" / "uploads"
    flags = ("--model-path", tiny_path, "--workers", "1", "--data-dir", str(tmp_path / "data"), "--timeout-ms", "500")
    with start_server(*flags, ready=False) as server:
        host = server.url.removeprefix("http://")
        for is_silent in (False, True):
            with contextlib.closing(http.client.HTTPConnection(host)) as connection:
                connection.putrequest("POST", "/v1/files")
                connection.putheader("content-type", "multipart/form-data; boundary=x")
                connection.putheader("content-length", "3000000")
                connection.endheaders(b'--x\r\ncontent-disposition: form-data; name="file"\r\n\r\n' + b"x" * 2_000_000)
                wait_until(lambda: any(each.stat().st_size for each in uploads.iterdir()), "some of it is written")
                if is_silent:
                    assert connection.getresponse().status == 408
            wait_until(lambda: not any(uploads.iterdir()), "it is deleted")


def test_a_full_folder_refuses_files_and_has_batches_wait(
    tiny_path: str, start_server: StartServer, tmp_path: Path
) -> None:
    flags = ("--model-path", tiny_path, "--workers", "1", "--data-dir", str(tmp_path / "data"))
    with start_server(*flags, "--data-bytes", "100000") as server, Client(server) as client:
        with pytest.raises(openai.APIStatusError, match="100000") as refused:
            client.openai.files.create(file=b"x" * 200_000, purpose="batch")
        assert (refused.value.status_code, refused.value.code) == (413, "storage_full")
        assert not list((tmp_path / "data" / "uploads").iterdir())
        other = client.openai.files.create(file=b"x" * 20_000, purpose="batch")
        asked = lines(90)  # their answers have more bytes than are left
        batch = client.begin(asked)
        while not (found := client.openai.batches.retrieve(batch.id)).errors:
            assert found.status in ("validating", "in_progress")
        assert found.errors.data
        assert [error.code for error in found.errors.data] == ["storage_full"]
        assert client.openai.files.delete(other.id).deleted
        client.openai.batches.cancel(batch.id)
        assert client.wait(batch).status == "cancelled"
        assert len(jsonl(asked)) < 100_000
