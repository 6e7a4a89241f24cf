"""`embellama embed` on what is no text, and where nothing can be read or written."""

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import BIN

COMMAND = str(BIN / "embellama")


def embed(tiny_path: str, data: bytes, **options: object) -> "subprocess.CompletedProcess[bytes]":
    command = [COMMAND, "embed", "--model-path", tiny_path, "--workers", "1"]
    return subprocess.run(command, input=data, capture_output=True, timeout=60, **options)  # type: ignore[call-overload, no-any-return]


@pytest.mark.parametrize("locale", ["C.UTF-8", "C", "POSIX"])
@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"red\nblu\xe9\n", "Error: line 2 is not UTF-8: its byte 3 is 0xe9"),
        (b"\xff\xfer\x00e\x00d\x00", "Error: line 1 is not UTF-8: its byte 0 is 0xff"),
        (b"red\n\nblue\n", "Error: line 2 is empty"),
        (b"\xef\xbb\xbf\n", "Error: line 1 is empty"),
    ],
)
def test_a_line_that_is_no_text_is_named(tiny_path: str, data: bytes, says: str, locale: str) -> None:
    result = embed(tiny_path, data, env={**os.environ, "LC_ALL": locale})
    assert (result.returncode, result.stderr.decode()) == (1, f"{says}\n")


def test_a_text_among_the_arguments_is_named_by_its_index(tiny_path: str) -> None:
    command = [COMMAND, "embed", "--model-path", tiny_path, "--workers", "1", "red", ""]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert (result.returncode, result.stderr) == (1, "Error: text 1 is empty\n")


def test_a_byte_order_mark_and_carriage_returns_are_no_text(tiny_path: str) -> None:
    marked, plain = (embed(tiny_path, data).stdout for data in (b"\xef\xbb\xbfred\r\nblue", b"red\nblue\n"))
    assert marked == plain
    assert len(plain.splitlines()) == 2


@pytest.mark.parametrize("command", [("embed", "red"), ("inspect",), ("devices",)])
def test_a_full_disk_is_told_in_one_line(tiny_path: str, command: tuple[str, ...]) -> None:
    name, *rest = command
    model = {"embed": ["--model-path", tiny_path], "inspect": [tiny_path]}.get(name, [])
    with Path("/dev/full").open("w") as full:
        result = subprocess.run([COMMAND, name, *model, *rest], stdout=full, stderr=subprocess.PIPE, text=True)
    assert (result.returncode, result.stderr) == (
        1,
        "Error: the output cannot be written: No space left on device\n",
    )


def test_a_reader_that_goes_ends_it_without_a_word(tiny_path: str) -> None:
    command = f"yes red | head -2000 | {COMMAND} embed --model-path {tiny_path} | head -1"
    result = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60)
    assert len(json.loads(result.stdout)) == 32
    assert result.stderr == ""


def test_a_closed_input_is_told(tiny_path: str) -> None:
    result = subprocess.run(
        ["bash", "-c", f"{COMMAND} embed --model-path {tiny_path} <&-"], capture_output=True, text=True
    )
    assert result.returncode == 2
    assert result.stderr.endswith("Error: standard input is closed; give TEXTS\n")
