"""Everything embellama raises.

EmbellamaError
├── ConfigError            a setting is wrong
├── WrongThread            a model was used away from the thread that owns it
├── InputError             the caller's input is wrong
│   ├── EmptyInput             there is nothing to embed
│   ├── TextTooLong            more tokens than the model reads at once
│   ├── InvalidText            not text, not valid Unicode, or not to be tokenized
│   ├── InvalidOption          an option of the call is wrong
│   ├── InvalidToken           a token id the vocabulary does not have
│   ├── PromptError            no prompt of that name, or its fields are not those given
│   └── ModelNotFound          no model of that name is loaded
├── ModelError             the model could not do its part
│   ├── ModelLoadError         the file cannot be loaded as an embedding model
│   └── EmbeddingFailed        the model gave no usable vector for one text
└── ServiceError           no worker could answer now; the same call may work later
    ├── Overloaded             the waiting room is full
    ├── Unavailable            starting, shutting down, or no worker left
    └── DeadlineExceeded       the answer did not come in time

Every error keeps its values as attributes and survives pickling, so it can cross processes. The library
knows no HTTP; the server gives each error its status in `embellama_server.problems.STATUSES`.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np


class EmbellamaError(Exception):
    """The root of everything embellama raises on purpose."""

    #: The error in one word, for programs: in answers of the server, and in failed rows of `embellama bulk`.
    code: ClassVar[str | None] = None


class ConfigError(EmbellamaError):
    """A setting is wrong. The message names the setting, its value and what is allowed."""


class WrongThread(EmbellamaError):
    """An `EmbeddingModel` was used away from the thread that owns it, or pickled."""

    def __init__(self, model_name: str, owner: str, attempt: str):
        super().__init__(model_name, owner, attempt)
        self.model_name, self.owner, self.attempt = model_name, owner, attempt

    def __str__(self) -> str:
        return (
            f"model {self.model_name!r} belongs to {self.owner} and cannot be {self.attempt}; "
            "use an EmbeddingEngine to share a model between threads"
        )


class InputError(EmbellamaError):
    """The caller's input is wrong; the same call will fail again."""

    #: Position in the caller's list of the text at fault; None when no one text is.
    index: int | None = None
    #: Name of the argument or option at fault; None when it is a text, or more than one thing.
    option: str | None = None


class EmptyInput(InputError):
    """A text is empty, or there is no text at all (`index` is None)."""

    def __init__(self, index: int | None):
        super().__init__(index)
        self.index = index

    def __str__(self) -> str:
        return "there is no text to embed" if self.index is None else f"text {self.index} is empty"


class TextTooLong(InputError):
    """One text has more tokens than the model reads at once; with `at_least`, more than `n_tokens`."""

    code: ClassVar[str | None] = "context_length_exceeded"

    def __init__(self, index: int, n_tokens: int, limit: int, at_least: bool = False):
        super().__init__(index, n_tokens, limit, at_least)
        self.index, self.n_tokens, self.limit, self.at_least = index, n_tokens, limit, at_least

    def __str__(self) -> str:
        count = f"more than {self.n_tokens}" if self.at_least else self.n_tokens
        return f"text {self.index} has {count} tokens; the limit is {self.limit}"


class InvalidText(InputError):
    """One text is not a `str`, not valid Unicode, or cannot be tokenized; `reason` says which."""

    def __init__(self, index: int, reason: str):
        super().__init__(index, reason)
        self.index, self.reason = index, reason

    def __str__(self) -> str:
        return f"text {self.index} {self.reason}"


class InvalidToken(InputError):
    """One list of token ids holds an id the model's vocabulary does not have."""

    def __init__(self, index: int, token: int, n_vocab: int):
        super().__init__(index, token, n_vocab)
        self.index, self.token, self.n_vocab = index, token, n_vocab

    def __str__(self) -> str:
        return (
            f"text {self.index} has token id {self.token}, which is not in this model's vocabulary "
            f"(0 to {self.n_vocab - 1}); were the ids made by another model's tokenizer?"
        )


class PromptError(InputError):
    """The model has no prompt of that name, or its fields are not those given."""

    def __init__(self, prompt: str, reason: str):
        super().__init__(prompt, reason)
        self.prompt, self.reason = prompt, reason

    def __str__(self) -> str:
        return f"prompt {self.prompt!r} {self.reason}"


class InvalidOption(InputError):
    """An option of the call is wrong."""

    def __init__(self, option: str, reason: str):
        super().__init__(option, reason)
        self.option, self.reason = option, reason

    def __str__(self) -> str:
        return f"{self.option} {self.reason}"


def check_number(option: str, value: object, allowed: str, least: int, most: float = float("inf")) -> None:
    """Raise `InvalidOption`, which says what is `allowed`, unless `value` is a whole number from `least` to `most`."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or not least <= value <= most:
        raise InvalidOption(option, f"is {value!r}; {allowed}")


class ModelNotFound(InputError):
    """No model of that name is loaded."""

    code: ClassVar[str | None] = "model_not_found"

    def __init__(self, model_name: str, loaded: Sequence[str]):
        super().__init__(model_name, loaded)
        self.model_name, self.loaded = model_name, loaded

    def __str__(self) -> str:
        loaded = ", ".join(repr(name) for name in self.loaded) or "none"
        return f"model {self.model_name!r} is not loaded; loaded: {loaded}"


class ModelError(EmbellamaError):
    """The model could not do its part."""

    code: ClassVar[str | None] = "model_error"


class ModelLoadError(ModelError):
    """A file cannot be loaded as an embedding model."""

    def __init__(self, path: str, reason: str):
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"cannot load {self.path}: {self.reason}"


class EmbeddingFailed(ModelError):
    """The model gave no usable vector for one text: not finite or all zeros, or a worker died computing it."""

    def __init__(self, index: int, reason: str):
        super().__init__(index, reason)
        self.index, self.reason = index, reason

    def __str__(self) -> str:
        return f"the model failed on text {self.index}: {self.reason}"


class ServiceError(EmbellamaError):
    """No worker could answer now; the same call may work later."""

    code: ClassVar[str | None] = "unavailable"


class Overloaded(ServiceError):
    """More is asked than can be done in time. `retry_after_s` is when there may be room."""

    code: ClassVar[str | None] = "overloaded"

    def __init__(self, reason: str, retry_after_s: float = 1.0):
        super().__init__(reason, retry_after_s)
        self.reason, self.retry_after_s = reason, retry_after_s

    def __str__(self) -> str:
        return self.reason


class Unavailable(ServiceError):
    """Starting, shutting down, or no worker left."""

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason


class DeadlineExceeded(ServiceError):
    """The answer did not come in time."""

    code: ClassVar[str | None] = "timeout"

    def __init__(self, timeout_ms: int):
        super().__init__(timeout_ms)
        self.timeout_ms = timeout_ms

    def __str__(self) -> str:
        return f"no answer within {self.timeout_ms} ms"
