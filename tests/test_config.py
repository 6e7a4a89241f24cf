"""Settings: defined once, checked, and reached by keyword, builder, flag and variable."""

import os
import re
from pathlib import Path
from typing import Any

import click
import msgspec
import pytest
from click.testing import CliRunner
from embellama_server.config import NEEDS, ServerConfig
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from embellama import ConfigError, EngineConfig
from embellama.bulk.cluster import ClusterConfig
from embellama.cli.flags import config_options, defaults, flags, left_out_variables, variable
from embellama.config import convert, n_cores
from tests.conftest import ROOT, tracked

FIELDS = tuple(flags(ServerConfig))
SOURCES = [path for path in tracked("embellama", "server") if path.suffix == ".py"]


@click.command()
@config_options(ServerConfig)
def show(config: ServerConfig) -> None:
    click.echo(msgspec.json.encode(config))


def shown(*arguments: str, **variables: str) -> dict[str, Any]:
    result = CliRunner().invoke(show, arguments, env=variables)
    assert result.exit_code == 0, result.output
    return msgspec.json.decode(result.output)  # type: ignore[no-any-return]


def test_builder_and_keywords_make_the_same_config() -> None:
    built = EngineConfig.builder().with_model_path("a/minilm.gguf").with_n_ctx(128).with_normalization("none").build()
    assert built == EngineConfig(model_path="a/minilm.gguf", n_ctx=128, normalization="none").checked()
    assert built.model_name == "minilm"


def test_builder_has_a_step_for_each_field() -> None:
    for field in EngineConfig.__struct_fields__:
        assert callable(getattr(EngineConfig.builder(), f"with_{field}"))
    with pytest.raises(AttributeError, match="no 'with_nothing'; it has build, with_model_path"):
        EngineConfig.builder().with_nothing(1)


def test_a_path_object_names_a_model() -> None:
    assert EngineConfig(model_path=Path("a/b.gguf")).checked().model_path == "a/b.gguf"  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "model_path is missing"),
        ({"model_path": ""}, "model_path is ''"),
        ({"model_path": "m", "n_ctx": -1}, "n_ctx is -1: expected `int` >= 0"),
        ({"model_path": "m", "max_batch_size": 257}, "max_batch_size is 257: expected `int` <= 256"),
        ({"model_path": "m", "num_workers": "two"}, "num_workers is 'two': expected `int`, got `str`"),
        ({"model_path": None}, "model_path is None: expected `str`"),
        ({"model_path": b"m"}, "model_path is b'm': expected `str`"),
        ({"model_path": "m\0"}, "model_path is 'm\\x00': expected `str` matching"),
        ({"model_path": "m", "model_name": None}, "model_name is None: expected `str`"),
        ({"model_path": "m", "num_workers": None}, "num_workers is None: expected `int`"),
        ({"model_path": "m", "normalization": "l0"}, "normalization is 'l0'; it must be l2, none, max-abs"),
        ({"model_path": "m", "pooling": "avg"}, "pooling is 'avg': it must be one of auto, "),
    ],
)
def test_a_wrong_setting_is_named_with_its_value_and_limit(settings: dict[str, Any], message: str) -> None:
    builder = EngineConfig.builder()
    for field, value in settings.items():
        getattr(builder, f"with_{field}")(value)
    with pytest.raises(ConfigError) as caught:
        builder.build()
    assert str(caught.value).startswith(message)


@settings(suppress_health_check=[HealthCheck.too_slow])  # there are many fields
@given(values=st.fixed_dictionaries({}, optional={name: st.integers(-5, 600) | st.text() for name in FIELDS}))
def test_any_values_give_a_config_or_a_config_error(values: dict[str, Any]) -> None:
    try:
        config = convert({"model_path": "m", **values}, ServerConfig).checked()
    except ConfigError:
        return
    assert config == config.checked()
    assert 1 <= config.num_workers <= 256


def test_threads_share_the_cores_unless_told() -> None:
    shared = EngineConfig(model_path="m", num_workers=2)
    assert (shared.n_threads_busy, shared.n_threads_alone) == (max(1, n_cores() // 2), n_cores())
    told = EngineConfig(model_path="m", n_threads=3)
    assert (told.n_threads_busy, told.n_threads_alone) == (3, 3)


def test_flags_win_over_variables_and_variables_over_defaults() -> None:
    variables = {"EMBELLAMA_MODEL_PATH": "env.gguf", "EMBELLAMA_QUEUE_SIZE": "7", "EMBELLAMA_PORT": "9000"}
    config = shown("--port", "9001", **variables)
    assert (config["model_path"], config["queue_size"], config["port"]) == ("env.gguf", 7, 9001)
    assert config["timeout_ms"] == 30_000


@pytest.mark.parametrize("value", ["tcp://10.96.0.12:8000", "udp://10.96.0.12:53", "tcp://[fd00::1]:8000"])
def test_the_address_of_a_kubernetes_service_is_no_setting(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("EMBELLAMA_PORT", value)
    monkeypatch.setenv("EMBELLAMA_PORT_8000_TCP", value)
    monkeypatch.setenv("EMBELLAMA_SERVICE_HOST", "10.96.0.12")
    assert shown("--model-path", "m.gguf")["port"] == 8000
    assert shown("--model-path", "m.gguf", "--port", "9000")["port"] == 9000
    assert left_out_variables(ServerConfig) == ["EMBELLAMA_PORT"]
    for wrong in ("--port", value), ("--workers", value):
        assert CliRunner().invoke(show, ["--model-path", "m.gguf", *wrong]).exit_code == 2


def test_the_issue_names_of_flags_exist() -> None:
    names = (
        "model-path model-name host port workers queue-size timeout-ms max-batch-size n-threads n-gpu-layers log-level"
    )
    assert set(names.split()) <= set(flags(ServerConfig).values())


@pytest.mark.parametrize("field", FIELDS)
def test_every_setting_has_a_working_variable(field: str) -> None:
    value = {"model_path": "x.gguf", "model_name": "x", "host": "::1", "normalization": "l1", "log_level": "error"}
    value |= {
        "pooling": "cls",
        "compute": "llama",
        "int8_limit": "0.5",
        "prompts_file": "p.toml",
        "worker_timeout_ms": "500",
    }
    value |= {
        "log_format": "json",
        "access_log": "true",
        "limits_without_redis": "closed",
        "open_metrics": "true",
        "page": "false",
    }
    value |= {"cached_token_price": "0.5", "otlp_endpoint": "http://a:4318", "otlp_sample_ratio": "0.5"}
    value |= {"log_texts": "true", "root_path": "/a", "trusted_proxies": "::1", "cors_origins": "https://a"}
    beside = {"EMBELLAMA_TLS_CERT": "c", "EMBELLAMA_TLS_KEY": "k"}  # neither goes without the other
    if other := NEEDS.get(field):
        beside[variable(flags(ServerConfig)[other])] = value.get(other, "5")
    variables = {
        "EMBELLAMA_MODEL_PATH": "m.gguf",
        **beside,
        variable(flags(ServerConfig)[field]): value.get(field, "5"),
    }
    found = shown(**variables)[field]
    assert str(found[0] if isinstance(found, list) else found).lower() == value.get(field, "5")


def test_zero_is_written_auto_where_it_leaves_the_choice_to_us() -> None:
    config = shown("--model-path", "m", "--n-threads", "auto", "--max-batch-tokens", "auto", EMBELLAMA_WORKERS="auto")
    assert (config["n_threads"], config["max_batch_tokens"]) == (0, 0)
    assert config["num_workers"] == shown("--model-path", "m", "--workers", "0")["num_workers"]
    assert EngineConfig(model_path="m", n_threads="auto").checked().n_threads == 0  # type: ignore[arg-type]
    help = " ".join(CliRunner().invoke(show, ["--help"]).output.split())
    assert "--max-batch-tokens AUTO|INTEGER" in help
    assert (
        help.count("default: auto") == list(defaults(ServerConfig).values()).count("auto") == 6
    )  # pooling and compute are two


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "no model to serve: give --model-path, or [[models]] in the file of --config"),
        (["--workers", "-1"], "--workers: num_workers is -1: expected `int` >= 0"),
        (["--workers", "many"], "--workers: num_workers is many: expected `int`"),
        (["--queue-size", "auto"], "Invalid value for '--queue-size'"),
        (["--port", "x"], "Invalid value for '--port'"),
        (["--port", "70000"], "--port: port is 70000: expected `int` <= 65535"),
        (["--log-level", "loud"], "Invalid value for '--log-level'"),
    ],
)
def test_a_wrong_flag_is_a_usage_error(arguments: list[str], message: str) -> None:
    given_model = ["--model-path", "m"] if arguments else []
    result = CliRunner().invoke(show, [*given_model, *arguments], env={"EMBELLAMA_MODEL_PATH": None})
    assert result.exit_code == 2
    assert message in result.output


@pytest.mark.parametrize("field", FIELDS)
def test_every_setting_is_read_somewhere(field: str) -> None:
    for path in SOURCES:
        reader = "(config|self)" if path.name == "config.py" else "config"
        if re.search(rf"\b_?{reader}\.{field}\b", path.read_text()):
            return
    pytest.fail(f"nobody reads {field}")


@pytest.mark.parametrize("kind", [ServerConfig, ClusterConfig])
def test_every_setting_is_documented(kind: type[EngineConfig]) -> None:
    rows = (ROOT / "docs" / "settings.md").read_text().splitlines()
    schema = msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"]
    for field, name in flags(kind).items():
        if kind is ClusterConfig and field in EngineConfig.__struct_fields__:
            continue  # as the server's, in its words
        shown_default = "required" if "default" not in schema[field] else defaults(kind)[field] or "—"
        row = f"| `--{name}` | `{variable(name)}` | {shown_default} | {schema[field]['description']} |"
        assert row in rows


@pytest.mark.parametrize(
    ("field", "value", "other"), [("open_metrics", True, "keys_file"), ("data_bytes", 5, "data_dir")]
)
def test_what_means_nothing_without_another_setting_is_refused(field: str, value: object, other: str) -> None:
    with pytest.raises(ConfigError, match=f"{field} is {value}, but there is no {other}"):
        ServerConfig(model_path="m.gguf", **{field: value}).checked()  # type: ignore[arg-type]


@pytest.mark.parametrize(("field", "value"), [("model_name", "x"), ("aliases", ("x",))])
def test_a_name_beside_models_is_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{field} is .*each of them has names of its own"):
        ServerConfig(models=({"model_path": "m.gguf"},), **{field: value}).checked()  # type: ignore[arg-type]


def test_a_file_name_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(ConfigError, match="the file's name is not UTF-8"):
        ServerConfig(model_path=os.fsdecode(b"m\xff.gguf")).checked()


@pytest.mark.parametrize(("field", "value"), [("model_name", "x\udcff"), ("aliases", ("x", "y\udcff"))])
def test_a_name_that_is_not_utf_8_is_refused(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"{field} is .*not UTF-8"):
        ServerConfig(**{"model_path": "m.gguf", field: value}).checked()  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=rf"models\[0\].{field} is .*not UTF-8"):
        ServerConfig(models=({"model_path": "m.gguf", field: value},)).checked().pools()
