"""Settings on the command line: one flag and one `EMBELLAMA_*` variable for each field of a config struct.

`num_workers` has the flag `--workers` and the variable `EMBELLAMA_WORKERS`; a field's description is its help.
Flags win over variables, variables over the file of `--config`, the file over defaults. Where 0 lets the
engine choose, users read and write ``auto``.
"""

import functools
import os
import re
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import click
import msgspec
from click.core import ParameterSource
from msgspec.inspect import BoolType, FloatType, IntType, LiteralType, Metadata, NoneType, UnionType, VarTupleType

from embellama.cli.output import Command
from embellama.config import auto_fields, convert, fields
from embellama.errors import ConfigError, EmbellamaError

Function = TypeVar("Function", bound=Callable[..., Any])
Options = TypeVar("Options", bound=msgspec.Struct)

# For a Service named `x`, Kubernetes gives each container in its namespace a variable X_PORT: tcp://10.96.0.12:8000.
SERVICE_PORT = re.compile(r"(tcp|udp|sctp)://.*", re.DOTALL)


def flags(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Return the flag of each field of `kind`, without its dashes: ``num_workers`` has ``workers``.

    A field whose flag is empty is left out: it can only be in a file.
    """
    found = {field.name: _extra(field.type).get("flag", field.name.replace("_", "-")) for field in fields(kind)}
    return {field: flag for field, flag in found.items() if flag}


def variable(flag: str) -> str:
    """Return the environment variable of a flag: ``queue-size`` has ``EMBELLAMA_QUEUE_SIZE``."""
    return f"EMBELLAMA_{flag.upper().replace('-', '_')}"


def left_out_variables(kind: type[msgspec.Struct]) -> list[str]:
    """List the variables that are set but are no settings: they have the address of a Kubernetes Service."""
    names = [variable(flag) for flag in flags(kind).values()]
    return [name for name in names if _is_service_port(name, os.environ.get(name, ""))]


def defaults(kind: type[msgspec.Struct]) -> dict[str, str]:
    """Return the default of each field of `kind` as users write it; "" where it has none."""

    def written(field: msgspec.inspect.Field) -> str:
        value = "" if field.required or field.default in ((), None) else field.default
        if value == 0 and field.name in auto_fields(kind):
            return "auto"
        return str(value).lower() if isinstance(value, bool) else str(value)

    return {field.name: written(field) for field in fields(kind)}


class SectionedCommand(Command):
    """A command whose help lists its options in sections.

    `sections` has each one's title and the names of its parameters; those in none come last, as Options.
    """

    def __init__(self, *args: Any, sections: Mapping[str, Collection[str]], **options: Any):
        super().__init__(*args, **options)
        self._sections = sections

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        left = {param.name: param.get_help_record(ctx) for param in self.get_params(ctx)}
        for title, names in self._sections.items():
            with formatter.section(title):
                formatter.write_dl([record for name in names if (record := left.pop(name, None))])
        with formatter.section("Options"):
            formatter.write_dl([record for record in left.values() if record])


class _Option(click.Option):
    """An option whose variable is not read where Kubernetes has set it."""

    def resolve_envvar_value(self, ctx: click.Context) -> str | None:
        value = super().resolve_envvar_value(ctx)
        return None if isinstance(self.envvar, str) and _is_service_port(self.envvar, value or "") else value


def config_options(
    *kinds: type[msgspec.Struct], argument: str | None = None, file: bool = False, unused: Collection[str] = ()
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a click command an option for each field of a kind of config, and call it with the checked config.

    The field named `argument` is an argument of the command instead; with `file`, ``--config`` names a TOML file whose
    keys are fields. Of several kinds, the config is of the one whose required field is given. Fields in `unused` mean
    nothing to the command: they have no flag, and are refused in a file.
    The command gets the config as its first argument. A wrong setting ends it with click's usage error,
    which names the flag; any other `EmbellamaError` ends it with one line and exit status 1.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(**options: Any) -> Any:
            values = {field: options.pop(field) for field in names}
            given = {field: value for field, value in values.items() if value is not None and value != ()}
            try:
                if path := options.pop("config_file", None):
                    given = {**_read(path, *kinds, unused=unused), **given}
                kind = _asked_for(kinds, given) if len(kinds) > 1 else kinds[0]
                given = {field: value for field, value in given.items() if field in kind.__struct_fields__}
                config = convert(given, kind, strict=False).checked()  # type: ignore[attr-defined]
            except EmbellamaError as error:
                field = str(error).partition(" ")[0]
                raise click.UsageError(f"--{names[field]}: {error}" if field in names else str(error)) from None
            try:
                return command(config, **options)
            except EmbellamaError as error:
                raise click.ClickException(str(error)) from error

        if file:
            run = click.option(
                "--config",
                "config_file",
                type=click.Path(exists=True, dir_okay=False),
                envvar="EMBELLAMA_CONFIG",
                show_envvar=True,
                help="TOML file of settings, named as in the documentation with underscores.",
            )(run)
        for option in reversed(
            [option for kind in kinds for option in _options(kind, argument, kinds=kinds, unused=unused)]
        ):
            run = option(run)
        return run

    names = {field: flag for kind in kinds for field, flag in flags(kind).items() if field not in unused}
    return decorate


def _asked_for(kinds: Sequence[type[msgspec.Struct]], given: Mapping[str, Any]) -> type[msgspec.Struct]:
    """Return the kind of config whose required field is given: on the command line, or else in any way."""
    context = click.get_current_context()
    written = [field for field in given if context.get_parameter_source(field) is ParameterSource.COMMANDLINE]
    required = {field.name: kind for kind in kinds for field in fields(kind) if field.required}
    found = [field for field in required if field in written] or [field for field in required if field in given]
    if len(found) != 1:
        shown = " and ".join(f"--{_required(kind)}" for kind in kinds)
        raise click.UsageError(f"{'both' if found else 'none'} of {shown} given; give one of them")
    kind = required[found[0]]
    for other in kinds:
        for field in written:
            if field in other.__struct_fields__ and field not in kind.__struct_fields__:
                raise click.UsageError(f"--{flags(other)[field]} does not go with --{_required(kind)}")
    return kind


def _description(name: str, kind: type[msgspec.Struct], others: Sequence[type[msgspec.Struct]]) -> str:
    """Describe a field of `kind`, and what it is in other kinds where that is something else."""
    text = _descriptions(kind)[name]
    for other in others:
        if (more := _descriptions(other)[name]) not in text:
            text += f" With --{_required(other)}: {more}"
    return text


def _required(kind: type[msgspec.Struct]) -> str:
    """Return the flag of the one field that a kind of config must have."""
    return next(flags(kind)[field.name] for field in fields(kind) if field.required)


def _descriptions(kind: type[msgspec.Struct]) -> dict[str, str]:
    properties = msgspec.json.schema(kind)["$defs"][kind.__name__]["properties"]
    return {name: each["description"] for name, each in properties.items() if "description" in each}


def call_options(kind: type[Options], *, file: str = "") -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a click command a flag for each field of `kind`, and call it with ``options: kind``.

    Options belong to one call, so no variable sets them; the flag `file`, if given, names a TOML file whose keys are
    fields. A wrong value ends the command with click's usage error.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(*args: Any, **values: Any) -> Any:
            given = {field: value for field in names if (value := values.pop(field)) is not None}
            try:
                if file and (path := values.pop(f"{file}_file")):
                    given = {**_read(path, kind), **given}
                options = msgspec.convert(given, kind, strict=False)
            except ConfigError as error:
                raise click.UsageError(str(error)) from None
            except msgspec.ValidationError as error:
                field = str(error).partition(" - at `$.")[2].rstrip("`")
                allowed = _allowed(_plain_types(kind)[field])
                raise click.UsageError(f"--{names[field]} is {given[field]!r}; it must be {allowed}") from None
            return command(*args, options=options, **values)

        if file:
            run = click.option(
                f"--{file}",
                f"{file}_file",
                type=click.Path(exists=True, dir_okay=False),
                help="TOML file of these options, named as the flags with underscores.",
            )(run)
        for option in reversed(_options(kind, None, variables=False)):
            run = option(run)
        return run

    names = flags(kind)
    return decorate


def _read(path: str, *kinds: type[msgspec.Struct], unused: Collection[str] = ()) -> dict[str, Any]:
    """Read a file of settings of any kind; raises `ConfigError`."""
    try:
        with open(path, "rb") as stream:
            values = tomllib.load(stream)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:  # no TOML, or no UTF-8
        raise ConfigError(f"{path}: not TOML: {error}") from None
    for name in values:
        if not any(name in kind.__struct_fields__ for kind in kinds):
            raise ConfigError(f"{path}: there is no setting {name!r}")
        if name in unused:
            raise ConfigError(f"{path}: {name!r} means nothing to this command")
    return values


def _is_service_port(name: str, value: str) -> bool:
    return name.endswith("_PORT") and bool(SERVICE_PORT.fullmatch(value))


def _extra(type: msgspec.inspect.Type) -> dict[str, Any]:
    return (type.extra or {}) if isinstance(type, Metadata) else {}


def _plain_types(kind: type[msgspec.Struct]) -> dict[str, msgspec.inspect.Type]:
    """Return the type of each field of `kind`, without its description and, if it may be None, without that."""
    plain = {}
    for field in fields(kind):
        type: Any = field.type.type if isinstance(field.type, Metadata) else field.type
        others = [each for each in getattr(type, "types", ()) if not isinstance(each, NoneType)]
        plain[field.name] = others[0] if len(others) == 1 else type
    return plain


def _allowed(type: msgspec.inspect.Type) -> str:
    """Describe in words the values that a flag takes."""
    if isinstance(type, UnionType):
        return " or ".join(map(_allowed, type.types))
    if isinstance(type, LiteralType):
        return ", ".join(map(str, type.values))
    if isinstance(type, IntType | FloatType):
        number = "a whole number" if isinstance(type, IntType) else "a number"
        least = "" if type.ge is None else f" of at least {type.ge}"
        return number + least + ("" if type.le is None else f" and at most {type.le}")
    return "a text"


def _options(
    kind: type[msgspec.Struct],
    argument: str | None,
    *,
    variables: bool = True,
    kinds: Sequence[type[msgspec.Struct]] = (),
    unused: Collection[str] = (),
) -> list[Callable[[Function], Function]]:
    """Return options for the fields of `kind`; what an earlier one of `kinds` has too is left to that one."""
    options = []
    for field in fields(kind):
        if field.name == argument:
            options.append(click.argument(field.name))
            continue
        name = flags(kind).get(field.name)
        owners = [each for each in kinds if field.name in each.__struct_fields__]
        if name is None or field.name in unused or (owners and owners[0] is not kind):
            continue
        inner = _plain_types(kind)[field.name]
        names = f"--{name}/--no-{name}" if isinstance(inner, BoolType) else f"--{name}"
        type: Any = None
        if isinstance(inner, LiteralType):
            type = click.Choice(inner.values)
        elif isinstance(inner, IntType) and field.name not in auto_fields(kind):
            type = int
        listed = isinstance(inner, VarTupleType)
        text = _description(field.name, kind, owners[1:])
        if default := defaults(kind)[field.name]:
            shown = {"true": name, "false": f"no-{name}"}.get(default, default)
            text = f"{text}  [default: {shown}]"
        short, alone = (_extra(field.type).get(key) for key in ("short", "alone"))
        options.append(
            click.option(
                names,
                *([short] if short else []),
                field.name,
                cls=_Option,
                type=type,
                multiple=listed,
                metavar="AUTO|INTEGER" if field.name in auto_fields(kind) else None,
                # What the flag means where no value follows it.
                **({"is_flag": False, "flag_value": alone} if alone else {}),
                # None means "not given"; an explicit default would make click think a required option was.
                **({"required": True} if field.required and len(kinds) < 2 else {"default": None}),
                envvar=variable(name) if variables else None,
                show_envvar=variables,
                help=text,
            )
        )
    return options
