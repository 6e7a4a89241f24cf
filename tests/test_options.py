"""The options of a call, defined once."""

from collections.abc import Callable
from typing import Any, get_type_hints

import msgspec
import numpy as np
import pytest

from embellama import EmbeddingEngine, InvalidOption, options
from embellama.options import ChunkOptions, EmbedOptions, OutputOptions, TokenOptions
from tests.conftest import TinyModel
from tests.known import engine_of


@pytest.mark.parametrize("struct", [OutputOptions, TokenOptions, EmbedOptions, ChunkOptions])
def test_keywords_are_the_fields_of_the_options(struct: type[msgspec.Struct]) -> None:
    keywords = getattr(options, struct.__name__.replace("Options", "Keywords"))
    assert get_type_hints(keywords) == get_type_hints(struct)


def test_a_keyword_that_is_no_option_is_refused(engine: EmbeddingEngine) -> None:
    with pytest.raises(TypeError, match="dimension"):
        engine.embed("minilm", "text", dimension=3)  # type: ignore[call-arg]


@pytest.mark.parametrize("value", [0, 2.5, "3", True])
def test_options_are_whole_numbers(value: Any, tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean")) as engine:
        asked: dict[str, Callable[[], object]] = {
            "dimensions": lambda: engine.embed("tiny", "red", dimensions=value),
            "chunk_size": lambda: engine.embed_chunks("tiny", "red", chunk_size=value),
            "top_n": lambda: engine.rerank("tiny", "red", ["blue"], value),
        }
        if value != 0:
            asked["window_overlap"] = lambda: engine.embed("tiny", "red", window_overlap=value)
        for option, ask in asked.items():
            with pytest.raises(InvalidOption, match=f"^{option} is {value!r}; "):
                ask()


def test_a_whole_number_may_be_numpy_s(tiny: TinyModel) -> None:
    with engine_of(tiny("bert-mean")) as engine:
        assert engine.embed("tiny", "red", dimensions=np.int64(4), truncate=np.int32(5)).shape == (4,)  # type: ignore[arg-type]
