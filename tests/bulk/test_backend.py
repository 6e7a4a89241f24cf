"""The vectors of a part follow from its texts alone, down to the last digit."""

import numpy as np

from embellama import EngineConfig
from embellama.bulk.backend import EngineBackend, Outcome
from embellama.errors import EmbellamaError
from embellama.options import EmbedOptions

WORDS = ["red", "green", "blue", "a", "the"]


def test_texts_at_fault_change_no_digit_of_the_others(tiny_path: str) -> None:
    random = np.random.default_rng(0)
    texts = list(dict.fromkeys(" ".join(random.choice(WORDS, random.integers(2, 12))) for _ in range(600)))
    for i in range(40, len(texts), 60):
        texts[i] = f"poison {texts[i]}"
    # llama.cpp's own code, whose last digits depend on what is beside a text.
    config = EngineConfig(model_path=tiny_path, num_workers=2, max_batch_tokens=64, compute="llama")
    backend = EngineBackend(config, EmbedOptions(), {})
    found = {written(backend.submit(texts).result()) for _ in range(8)}
    backend.close()
    assert len(found) == 1


def written(outcomes: list[Outcome]) -> bytes:
    """Return the bytes of the vectors, and of errors their messages."""
    parts = (str(each).encode() if isinstance(each, EmbellamaError) else each.vector.tobytes() for each in outcomes)
    return b"\n".join(parts)
