"""Set up logging: each line as text, or as a JSON object."""

import datetime
import logging
from typing import Any

import orjson

from embellama.cli.output import printable
from embellama_server.config import ServerConfig

TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def set_up_logging(config: ServerConfig) -> None:
    """Log to standard error as `config` says."""
    handler = logging.StreamHandler()
    handler.setFormatter(_Json() if config.log_format == "json" else logging.Formatter(TEXT))
    logging.basicConfig(level=config.log_level.upper(), handlers=[handler])
    logging.getLogger("embellama.access").setLevel(logging.INFO if config.access_log else logging.WARNING)


class _Json(logging.Formatter):
    """Formats each record as one JSON object; the keys of its `fields`, if it has any, are keys of the object."""

    def format(self, record: logging.LogRecord) -> str:
        time = datetime.datetime.fromtimestamp(record.created, datetime.UTC).isoformat(timespec="milliseconds")
        entry: dict[str, Any] = {"time": time, "level": record.levelname.lower(), "logger": record.name}
        entry |= getattr(record, "fields", None) or {"message": record.getMessage()}
        if record.exc_info:
            entry["error"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(entry, default=str).decode()
        except TypeError:  # the name of a file is not UTF-8
            return orjson.dumps({key: printable(str(value)) for key, value in entry.items()}).decode()
