"""`PromptVersions`: the content of each version of a prompt that was offered, so that it is never another one's.

a model is loaded, or served ── note ──► PromptVersions ◄── check ── prompts of the same model that were read again

What is remembered ends with the engine, or the server.
"""

from embellama.errors import ConfigError
from embellama.text.prompts import Prompts


class PromptVersions:
    """The hash of each version, for each model's name; used by one thread at a time."""

    def __init__(self) -> None:
        self._known: dict[tuple[str, str], str] = {}

    def check(self, model: str, prompts: Prompts) -> None:
        """Refuse prompts of which a version has another content than it had.

        Raises:
            ConfigError: The message names the file, the version and both hashes.
        """
        for prompt in prompts.prompts:
            known = self._known.get((model, prompt.name), prompt.sha256)
            if prompt.is_version and known != prompt.sha256:
                raise ConfigError(
                    f"{prompts.file}: prompt {prompt.name!r} of {model!r} may not change once it was offered: its "
                    f"sha256 was {known} and is {prompt.sha256}; give what has changed a version of its own"
                )

    def note(self, model: str, prompts: Prompts) -> None:
        """Remember versions that may be asked for from now on."""
        self._known |= {(model, prompt.name): prompt.sha256 for prompt in prompts.prompts if prompt.is_version}
