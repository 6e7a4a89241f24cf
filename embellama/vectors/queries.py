"""Embed texts so that their vectors can be compared with those of an output: by the same model, as many numbers."""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from embellama.bulk.backend import Embedded
from embellama.bulk.backends import backend_of
from embellama.bulk.writers import problem_of
from embellama.config import EngineConfig
from embellama.errors import ConfigError, InputError
from embellama.options import EmbedOptions
from embellama.remote.config import RemoteConfig
from embellama.vectors.block import Floats
from embellama.vectors.stored import StoredVectors


def embed_for(
    stored: StoredVectors,
    config: EngineConfig | RemoteConfig,
    texts: Sequence[str],
    *,
    prompt: str | None,
    what: str,
) -> Floats:
    """Embed texts with the model of `config`.

    Args:
        stored: What they will be compared with.
        config: The model, or servers that have it. A pooling that it leaves open is that of the output.
        texts: The texts.
        prompt: Name of the prompt to write around each; None for none.
        what: What a text is called in errors.

    Returns:
        ``(n_texts, stored.dim) float32``. Floats, whatever the dtype of the output.

    Raises:
        ConfigError: The model is not the one that made the output, or gives vectors of another length.
        InputError: A text is empty, too long, or the model gives no vector for it; or an option is wrong.
        ModelLoadError, Unavailable: The model cannot be loaded, or no server answers.
    """
    for number, text in enumerate(texts):
        if not text.strip():
            raise InputError(f"{what} {number} is empty")
    made: Mapping[str, Any] = stored.manifest.model if stored.manifest else {}
    dimensions = stored.manifest.options.get("dimensions") if stored.manifest else None
    options = EmbedOptions(prompt=prompt, dimensions=dimensions)
    with contextlib.closing(backend_of(config, options, {**made, "settings": _pooling(made)})) as backend:
        _check_same(stored, made, backend.facts())
        if backend.dim != stored.dim:
            raise ConfigError(f"{stored.path} has {stored.dim} dimensions and the model gives {backend.dim}")
        different = list(dict.fromkeys(texts))
        outcomes = dict(zip(different, backend.submit(different).result(), strict=True))
    rows = np.empty((len(texts), stored.dim), np.float32)
    for number, text in enumerate(texts):
        outcome = outcomes[text]
        if not isinstance(outcome, Embedded):
            raise InputError(f"{what} {number} has no vector: {problem_of(outcome).message}")
        rows[number] = outcome.vector
    return rows


def _check_same(stored: StoredVectors, made: Mapping[str, Any], given: Mapping[str, Any]) -> None:
    """Raise `ConfigError` if facts of a model show that it is not the one that made an output."""
    for name, called in (("weights_sha256", "weights"), ("probe", "first numbers of a text's vector")):
        if made.get(name) and given.get(name) and made[name] != given[name]:
            raise ConfigError(
                f"{stored.path} was made with another model: {made.get('name')!r}, whose {called} are {made[name]}; "
                f"those of {given.get('name')!r} are {given[name]}"
            )
    theirs, mine = _pooling(made).get("pooling"), _pooling(given).get("pooling")
    # A server tells what a model does; of one in this process it may only be known that it was left to its file.
    alike = ("settings" in made) == ("settings" in given)
    if theirs and mine and theirs != mine and (alike or "auto" not in (theirs, mine)):
        raise ConfigError(f"pooling is {mine!r}; that of {stored.path} is {theirs!r}")


def _pooling(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return the pooling that facts tell, as a setting."""
    pooling = facts.get("pooling") or facts.get("settings", {}).get("pooling")
    return {"pooling": pooling} if pooling else {}
