"""The options of a call, defined once."""

from typing import get_type_hints

import msgspec
import pytest

from embellama import EmbeddingEngine, options
from embellama.options import ChunkOptions, EmbedOptions, OutputOptions, TokenOptions


@pytest.mark.parametrize("struct", [OutputOptions, TokenOptions, EmbedOptions, ChunkOptions])
def test_keywords_are_the_fields_of_the_options(struct: type[msgspec.Struct]) -> None:
    keywords = getattr(options, struct.__name__.replace("Options", "Keywords"))
    assert get_type_hints(keywords) == get_type_hints(struct)


def test_a_keyword_that_is_no_option_is_refused(engine: EmbeddingEngine) -> None:
    with pytest.raises(TypeError, match="dimension"):
        engine.embed("minilm", "text", dimension=3)  # type: ignore[call-arg]
