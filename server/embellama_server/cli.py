"""The `embellama-server` command.

settings ──► vocabulary (checks the file before anything starts) ──► socket ──► workers ──► uvicorn  (serve.py)
"""

from embellama_server import hangups  # before all that takes time

# isort: split

import click
import msgspec

from embellama import __version__
from embellama.cli.flags import SectionedCommand, config_options
from embellama.cli.output import write_line
from embellama.config import CACHE_SETTINGS, EngineConfig
from embellama_server.config import ServerConfig

SECTIONS = {
    "Model": (
        "model_path",
        "config_file",
        "aliases",
        *(name for name in EngineConfig.__struct_fields__ if name not in CACHE_SETTINGS),
        "models_dir",
    ),
    "Cache": CACHE_SETTINGS,
    "Address": ("host", "port", "tls_cert", "tls_key", "keep_alive_s"),
    "In front of it": ("root_path", "trusted_proxies", "cors_origins", "page"),
    "Limits": ("queue_size", "queue_tokens", "queue_bytes", "max_request_tokens", "max_body_bytes", "timeout_ms"),
    "Batches": ("data_dir", "data_bytes"),
    "Keys": ("keys_file", "cached_token_price", "limits_without_redis", "open_metrics"),
    "Workers": ("worker_timeout_ms", "max_worker_memory", "drain_timeout_ms"),
    "Log": ("log_level", "log_format", "access_log", "request_log", "request_log_days", "log_texts"),
    "Traces": ("otlp_endpoint", "otlp_sample_ratio"),
}


def _show_schema(context: click.Context, _: click.Parameter, name: str | None) -> None:
    """Print a JSON Schema instead of serving."""
    if name is None:
        return
    from embellama.cli.schema import schema_of
    from embellama_server.schemas import TYPES

    write_line(msgspec.json.format(msgspec.json.encode(schema_of(TYPES[name]))).decode())
    context.exit()


@click.command(
    cls=SectionedCommand,
    sections=SECTIONS,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
)
@click.version_option(__version__, prog_name="embellama-server")
@click.option(
    "--schema",
    type=click.Choice(["request", "response", "config"]),
    is_eager=True,
    expose_value=False,
    callback=_show_schema,
    help="Show a JSON Schema: of POST /v1/embeddings, or of the file of --config.",
)
@config_options(ServerConfig, file=True)
def main(config: ServerConfig) -> None:
    """Serve embeddings of GGUF models over HTTP, to clients of OpenAI, Cohere, Jina, Voyage, Ollama and TEI.

    Each model is loaded by worker processes of its own; requests wait for them in a bounded room. One model is named by
    --model-path, several by tables [[models]] in the file of --config.
    """
    hangups.imported()
    # Worker processes import this module too, as their main one: what they do not need is imported here instead.
    try:
        from embellama_server.serve import serve
    except ModuleNotFoundError as error:
        raise click.ClickException(f"{error.name} is not installed: pip install 'embellama[server]'") from None

    serve(config)
