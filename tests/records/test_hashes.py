"""Hashes of texts: one for a folder, none that others could make."""

import threading
from pathlib import Path

import pytest

from embellama.errors import ConfigError
from embellama.records.hashes import KEY_NAME, TextHash, make_key


def test_a_folder_has_one_key_however_many_make_it(tmp_path: Path) -> None:
    threads = [threading.Thread(target=make_key, args=(tmp_path,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first = TextHash(tmp_path)("red")
    make_key(tmp_path)
    assert TextHash(tmp_path)("red") == first != TextHash(tmp_path)("blue")
    assert [path.name for path in tmp_path.iterdir()] == [KEY_NAME]
    assert (tmp_path / KEY_NAME).stat().st_mode & 0o777 == 0o600


def test_another_folder_gives_other_hashes(tmp_path: Path) -> None:
    folders = [tmp_path / "a", tmp_path / "b"]
    for folder in folders:
        folder.mkdir()
        make_key(folder)
    a, b = (TextHash(folder)("red") for folder in folders)
    assert a != b
    assert len(a) == len(b) == 16


def test_token_ids_have_the_hash_of_their_json(tmp_path: Path) -> None:
    make_key(tmp_path)
    assert TextHash(tmp_path)([101, 102]) == TextHash(tmp_path)("[101,102]")


@pytest.mark.parametrize("content", ["", "not hexadecimal", "00ff"])
def test_a_key_that_is_none_is_named(tmp_path: Path, content: str) -> None:
    (tmp_path / KEY_NAME).write_text(content)
    with pytest.raises(ConfigError, match=r"hash\.key"):
        TextHash(tmp_path)
