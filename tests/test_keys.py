"""The file of API keys: what may be in it, and what is said of what may not."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from embellama import ConfigError
from embellama.cli.main import main
from embellama.keys import KeyGrant, digest, new_key, read_keys, toml_entry

ENTRY = f'[[keys]]\nname = "a"\nsha256 = "{"0" * 64}"\n'


def test_the_command_makes_an_entry_that_knows_its_key(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["keys", "new", "alice", "--models", 'é"\\', "--tokens-per-day", "5", "--admin"])
    (tmp_path / "keys.toml").write_text(result.stdout)
    [entry] = read_keys(str(tmp_path / "keys.toml"))
    [key] = [line for line in result.stderr.splitlines() if line.startswith("embellama-")]
    assert entry.sha256 == digest(key.encode())
    assert key not in result.stdout
    assert (entry.name, entry.models, entry.tokens_per_day, entry.admin) == ("alice", ('é"\\',), 5, True)
    assert (entry.share_cache, entry.requests_per_minute) == (False, 0)


def test_every_field_that_is_not_as_by_default_is_written_and_read(tmp_path: Path) -> None:
    grant = KeyGrant(
        models=("x",),
        requests_per_minute=1,
        tokens_per_minute=2,
        tokens_per_day=3,
        max_concurrent=4,
        share_cache=True,
        admin=True,
    )
    _, entry = new_key("all", grant)
    (tmp_path / "keys.toml").write_text(toml_entry(entry))
    assert read_keys(str(tmp_path / "keys.toml")) == [entry]


def test_keys_are_long_and_never_the_same() -> None:
    keys = {new_key("a", KeyGrant())[0] for _ in range(100)}
    assert len(keys) == 100
    assert min(map(len, keys)) >= len("embellama-") + 43  # 256 bits


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "there is no table [[keys]]"),
        ("keys = 5", "there is no table [[keys]]"),
        ("x = 1", "only tables [[keys]] here, not 'x'"),
        ("[[keys]", "not TOML"),
        ('[[keys]]\nname = "a"', "keys[0]: object missing required field `sha256`"),
        (ENTRY + "token = 1", "keys[0]: object contains unknown field `token`"),
        (ENTRY + "max_concurrent = -1", "keys[0].max_concurrent is -1: expected `int` >= 0"),
        (ENTRY.replace('"a"', '"a b"'), "keys[0].name: it may have letters, digits and ."),
        (ENTRY.replace("0000", "secret"), "keys[0].sha256: it must be 64 digits"),
        (ENTRY + ENTRY.replace("000", "111"), "keys[1].name is that of keys[0], 'a', too"),
        (ENTRY + ENTRY.replace('"a"', '"b"'), "keys[1].sha256 is that of keys[0], 'a', too"),
    ],
)
def test_what_is_wrong_in_a_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(ConfigError) as raised:
        read_keys(str(path))
    assert str(raised.value).startswith(f"{path}: ")
    assert says in str(raised.value)
    assert "secret" not in str(raised.value)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.toml: No such file"):
        read_keys(str(tmp_path / "none.toml"))
