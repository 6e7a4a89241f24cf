"""Models in shared storage are fetched once, whole, and checked."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from embellama.bulk.fetch import check_weights, fetched
from embellama.cache.key import weights_hash
from embellama.errors import ConfigError, ModelLoadError


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "embellama" / "models"


def stored(tmp_path: Path, name: str = "model.gguf", content: bytes = b"weights") -> Path:
    path = tmp_path / "storage" / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def test_a_path_is_itself() -> None:
    assert fetched("models/minilm.gguf") == "models/minilm.gguf"


def test_a_file_is_fetched_once(tmp_path: Path) -> None:
    source = stored(tmp_path)
    path = Path(fetched(source.as_uri()))
    assert path.read_bytes() == b"weights"
    assert path.name == "model.gguf"
    before = path.stat()
    assert fetched(source.as_uri()) == str(path)
    assert path.stat().st_ino == before.st_ino


def test_a_file_that_was_replaced_is_fetched_again(tmp_path: Path) -> None:
    first = fetched(stored(tmp_path).as_uri())
    source = stored(tmp_path, content=b"others!")
    os.utime(source, ns=(0, 0))
    second = fetched(source.as_uri())
    assert [Path(path).read_bytes() for path in (first, second)] == [b"weights", b"others!"]


def test_a_copy_that_was_ended_is_begun_anew(tmp_path: Path) -> None:
    path = Path(fetched(stored(tmp_path).as_uri()))
    path.with_name("model.gguf.partial").write_bytes(b"wei")
    path.unlink()
    assert Path(fetched(stored(tmp_path).as_uri())).read_bytes() == b"weights"


def test_all_parts_of_a_model_come(tmp_path: Path) -> None:
    names = [f"m-{i:05}-of-00002.gguf" for i in (1, 2)]
    first, _ = (stored(tmp_path, name, name.encode()) for name in names)
    folder = Path(fetched(first.as_uri())).parent
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {name: name.encode() for name in names}


def test_processes_that_want_it_at_once_copy_it_once(tmp_path: Path, cache: Path) -> None:
    source = stored(tmp_path, content=os.urandom(20_000_000))
    program = (
        "import sys, shutil; from embellama.bulk import fetch; copy = shutil.copyfileobj; "
        "fetch.shutil.copyfileobj = lambda *a: (print('copied'), copy(*a)); fetch.fetched(sys.argv[1])"
    )
    command = [sys.executable, "-c", program, source.as_uri()]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    assert sorted(process.communicate()[0] for process in processes) == ["", "", "copied\n"]


def test_what_is_not_there_or_cannot_be_read_is_named_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match=r"cannot load file:///.*/nothing.gguf: there is no file /"):
        fetched((tmp_path / "nothing.gguf").as_uri())
    with pytest.raises(ConfigError, match=r"nowhere://bucket/m\.gguf cannot be read: ") as refused:
        fetched("nowhere://key:secret@bucket/m.gguf")
    assert "secret" not in str(refused.value).partition(" cannot be read")[0]


def test_other_weights_are_refused(tmp_path: Path) -> None:
    path = str(stored(tmp_path))
    check_weights(path, weights_hash(path).hex().upper())
    check_weights(path, "")
    with pytest.raises(ModelLoadError, match=r"its weights_sha256 is .*, and 00 was asked for"):
        check_weights(path, "00")
