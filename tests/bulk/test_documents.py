"""Folders of documents and PDFs: what is a row, what its id is, and how one that cannot be read fails."""

import os
from pathlib import Path
from typing import Any

import pytest

from tests.bulk.conftest import Bulk, lines
from tests.bulk.forks import Forks
from tests.bulk.pdfs import encrypted, pdf


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "notes"
    (folder / "more" / ".git").mkdir(parents=True)
    (folder / "b.txt").write_text("red green blue one two three red")
    (folder / "a.MD").write_bytes("one".encode("utf-16"))
    (folder / "more" / "c.pdf").write_bytes(pdf("red blue", None, "two three"))
    (folder / "more" / ".git" / "d.txt").write_text("red")
    for other in ("e.png", "f.png", "Makefile"):
        (folder / other).touch()
    return folder


def test_texts_and_pages_of_a_folder_are_rows_in_order(bulk: Bulk, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    result = bulk(folder, "-o", out, "--keep-columns")
    assert result.returncode == 3, result.stderr
    assert f"{folder}: files that are no documents are left out: 3, 2 with .png, 1 with a name" in result.stderr
    rows = [(row["id"].removeprefix(f"{folder}/"), row["columns"].get("text")) for row in lines(out)]
    assert rows == [
        ("a.MD", "one"),
        ("b.txt", "red green blue one two three red"),
        ("more/c.pdf#page=1", "red blue"),
        ("more/c.pdf#page=2", None),
        ("more/c.pdf#page=3", "two three"),
    ]
    assert lines(out)[3]["error"] == {
        "code": "no_text",
        "message": f"{folder}/more/c.pdf: page 2 has no text; it may be a picture",
    }


def test_pages_without_text_may_be_left_out(bulk: Bulk, folder: Path, tmp_path: Path) -> None:
    assert bulk(folder / "more" / "c.pdf", "-o", tmp_path / "out.jsonl", "--skip-empty").returncode == 0
    assert [row["index"] for row in lines(tmp_path / "out.jsonl")] == [0, 2]


@pytest.mark.parametrize(
    ("data", "code", "says"),
    [
        (pdf("red")[:300], "invalid_document", "cannot be read: "),
        (b"no PDF at all", "invalid_document", "cannot be read: "),
        (pdf(), "invalid_document", "has no pages"),
        (encrypted(pdf("red"), "secret"), "encrypted_document", "is encrypted"),
        (encrypted(pdf("red"), ""), "", ""),
    ],
)
def test_a_pdf_that_cannot_be_read_is_a_row_that_fails(
    bulk: Bulk, tmp_path: Path, data: bytes, code: str, says: str
) -> None:
    folder, out = tmp_path / "notes", tmp_path / "out.jsonl"
    folder.mkdir()
    (folder / "a.pdf").write_bytes(data)
    bulk(folder, "-o", out)
    [row] = lines(out)
    error: dict[str, Any] = row.get("error", {"code": "", "message": ""})
    assert error["code"] == code
    assert says in error["message"]
    assert row["id"].startswith(f"{folder}/a.pdf")


def test_chunks_overlap_and_say_where_they_are_from(bulk: Bulk, folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    flags = ("--chunk-tokens", "3", "--chunk-overlap", "1", "--skip-empty", "--keep-columns")
    assert bulk(folder, "-o", out, *flags).returncode == 0
    rows = [(row["id"].removeprefix(f"{folder}/"), row["columns"]["text"], row["n_tokens"]) for row in lines(out)]
    assert rows == [
        ("a.MD#chunk=1", "one", 3),
        ("b.txt#chunk=1", "red green blue", 5),
        ("b.txt#chunk=2", "blue one two", 5),
        ("b.txt#chunk=3", "two three red", 5),
        ("more/c.pdf#page=1&chunk=1", "red blue", 4),
        ("more/c.pdf#page=3&chunk=1", "two three", 4),
    ]


def test_late_chunks_are_those_of_the_library(bulk: Bulk, tiny_path: str, tmp_path: Path) -> None:
    import numpy as np

    from embellama import EmbeddingEngine, EngineConfig

    folder, out = tmp_path / "notes", tmp_path / "out.npy"
    folder.mkdir()
    text = "red green blue one two three"
    (folder / "a.txt").write_text(text)
    assert bulk(folder, "-o", out, "--chunk-tokens", "2", "--late-chunking").returncode == 0
    with EmbeddingEngine(EngineConfig(model_path=tiny_path, model_name="tiny", compute="llama")) as engine:
        chunks = engine.embed_chunks(None, text, character_spans=[(0, 9), (10, 18), (19, 28)])
    np.testing.assert_allclose(np.load(out), chunks.vectors, atol=1e-6)


def test_late_chunks_of_a_long_text_know_as_much_as_the_model_reads(bulk: Bulk, tmp_path: Path) -> None:
    folder, out = tmp_path / "notes", tmp_path / "out.jsonl"
    folder.mkdir()
    (folder / "a.txt").write_text("red green poison " + "blue one two " * 100)
    bulk(folder, "-o", out, "--chunk-tokens", "10", "--late-chunking")
    statuses = [row["status"] for row in lines(out)]
    assert len(statuses) == 31
    assert statuses.index("ok") == statuses.count("failed") > 1  # those in the window of the poison, no others


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--chunk-overlap", "1"), "give chunk_tokens, too"),
        (("--chunk-tokens", "5", "--chunk-overlap", "5"), "chunk_overlap is 5; it must be at most 4"),
        (("--chunk-tokens", "63"), "chunk_tokens is 63; this model reads 64 tokens, of which 2 are special"),
        (("--chunk-tokens", "5", "--truncate", "end"), "are ways to read a long text; give one of them"),
        (("--chunk-tokens", "5", "--late-chunking", "--template", "{path}"), "has no prompt or template"),
        (("--format", "jsonl"), "is a folder, which has documents, but the format is jsonl"),
    ],
)
def test_options_that_do_not_go_together_are_refused(
    bulk: Bulk, folder: Path, tmp_path: Path, flags: tuple[str, ...], says: str
) -> None:
    result = bulk(folder, "-o", tmp_path / "out.jsonl", *flags)
    assert result.returncode in (1, 2)
    assert says in result.stderr


def test_other_servers_do_not_cut(forked: Forks, folder: Path, tmp_path: Path) -> None:
    flags = ("-o", tmp_path / "out.jsonl", "--chunk-tokens", "5", "--url", "http://127.0.0.1:9/v1")
    assert "chunk_tokens needs the model's own tokens" in forked.start("bulk", folder, *flags).wait().stderr


def test_only_documents_are_cut(bulk: Bulk, folder: Path, tmp_path: Path) -> None:
    flags = ("-o", tmp_path / "out.jsonl", "--chunk-tokens", "5")
    assert f"{folder}/b.txt is lines" in bulk(folder / "b.txt", *flags).stderr
    assert bulk(folder / "b.txt", *flags, "--format", "documents").returncode == 0
    assert len(lines(tmp_path / "out.jsonl")) == 2


@pytest.mark.parametrize("flags", [(), ("--chunk-tokens", "2", "--late-chunking")])
def test_a_run_of_documents_goes_on_in_the_middle_of_one(
    bulk: Bulk, folder: Path, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    whole, killed = tmp_path / "whole.jsonl", tmp_path / "killed.jsonl"
    flags = (*flags, "--part-rows", "2", "--skip-empty")
    assert bulk(folder, "-o", whole, *flags).returncode == 0
    for call in range(2, 5):
        bulk(folder, "-o", killed, *flags, "--resume", fault=("between file and manifest", call))
    assert bulk(folder, "-o", killed, *flags, "--resume").returncode == 0
    assert killed.read_bytes() == whole.read_bytes()


def test_a_document_that_has_changed_is_named(bulk: Bulk, folder: Path, tmp_path: Path) -> None:
    flags = ("-o", tmp_path / "out.jsonl", "--part-rows", "2", "--skip-empty")
    bulk(folder, *flags, fault=("between file and manifest", 3))
    (folder / "b.txt").write_text("changed")
    assert f"{folder}/b.txt: size was 32 and is 7" in bulk(folder, *flags, "--resume").stderr
    os.rename(folder / "b.txt", folder / "new.txt")
    said = bulk(folder, *flags, "--resume").stderr
    assert f"{folder}/b.txt is no longer there; {folder}/new.txt is new" in said
