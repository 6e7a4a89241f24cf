"""Names of models, with Ollama's tags: `x` and `x:latest` are one name, everywhere.

a name in a request ── without_default_tag ──► ServerState.model
a model's name ── with_tag ──► Ollama's lists
"""

DEFAULT_TAG = ":latest"


def without_default_tag(name: str) -> str:
    """Return the name that `name` is another way to write: ``"minilm"`` for ``"minilm:latest"``."""
    return name.removesuffix(DEFAULT_TAG)


def with_tag(name: str) -> str:
    """Return a name as Ollama lists it: with the default tag, unless it has a tag already."""
    has_tag = ":" in name.rpartition("/")[2]  # a colon before a slash belongs to a host
    return name if has_tag else f"{name}{DEFAULT_TAG}"
