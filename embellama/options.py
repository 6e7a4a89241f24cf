"""Settings on the command line: one flag and one `EMBELLAMA_*` variable for each field of a config struct.

`num_workers` has the flag `--workers` and the variable `EMBELLAMA_WORKERS`; a field's description is its help.
Flags win over variables, variables over defaults.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
import msgspec
from msgspec.inspect import BoolType, IntType, LiteralType, Metadata

from embellama.config import Config, convert
from embellama.errors import EmbellamaError

Function = TypeVar("Function", bound=Callable[..., Any])


def flags(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Return the flag of each field of `kind`, without its dashes: ``num_workers`` has ``workers``."""
    return {field.name: _extra(field.type).get("flag", field.name.replace("_", "-")) for field in _fields(kind)}


def variable(flag: str) -> str:
    """Return the environment variable of a flag: ``queue-size`` has ``EMBELLAMA_QUEUE_SIZE``."""
    return f"EMBELLAMA_{flag.upper().replace('-', '_')}"


def config_options(
    kind: type[Config], *, argument: str | None = None
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a click command an option for each field of `kind`, and call it with the checked config.

    The field named `argument` is an argument of the command instead.
    The command gets ``config: kind`` as its first argument. A wrong setting ends it with click's usage error,
    which names the flag; any other error of ours ends it with one line and exit status 1.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(**options: Any) -> Any:
            values = {field: options.pop(field) for field in names}
            given = {field: value for field, value in values.items() if value is not None}
            try:
                config = convert(given, kind, strict=False).checked()
            except EmbellamaError as error:
                field = str(error).partition(" ")[0]
                raise click.UsageError(f"--{names[field]}: {error}" if field in names else str(error)) from None
            try:
                return command(config, **options)
            except EmbellamaError as error:
                raise click.ClickException(str(error)) from error

        for option in reversed(_options(kind, argument)):
            run = option(run)
        return run

    names = flags(kind)
    return decorate


def _fields(kind: type[msgspec.Struct]) -> Sequence[msgspec.inspect.Field]:
    info = msgspec.inspect.type_info(kind)
    assert isinstance(info, msgspec.inspect.StructType)
    return info.fields


def _extra(type: msgspec.inspect.Type) -> dict[str, Any]:
    return (type.extra or {}) if isinstance(type, Metadata) else {}


def _options(kind: type[msgspec.Struct], argument: str | None) -> list[Callable[[Function], Function]]:
    options = []
    schema = msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"]
    for field in _fields(kind):
        if field.name == argument:
            options.append(click.argument(field.name))
            continue
        name = flags(kind)[field.name]
        inner = field.type.type if isinstance(field.type, Metadata) else field.type
        names = f"--{name}/--no-{name}" if isinstance(inner, BoolType) else f"--{name}"
        type: Any = None
        if isinstance(inner, LiteralType):
            type = click.Choice(inner.values)
        elif isinstance(inner, IntType):
            type = int
        default = None if field.required or field.default == "" else field.default
        text = schema[field.name]["description"]
        if default is not None:
            shown = f"{'' if default else 'no-'}{name}" if isinstance(default, bool) else default
            text = f"{text}  [default: {shown}]"
        options.append(
            click.option(
                names,
                field.name,
                type=type,
                # None means "not given"; an explicit default would make click think a required option was.
                **({"required": True} if field.required else {"default": None}),
                envvar=variable(name),
                show_envvar=True,
                help=text,
            )
        )
    return options
