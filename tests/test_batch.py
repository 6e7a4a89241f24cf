"""Texts joined and grouped for one call."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from embellama.batch import Batch, plan_batches


def test_join_puts_texts_one_after_another() -> None:
    batch = Batch.join([np.array([1, 2], np.int32), np.array([3], np.int32)])
    assert batch.tokens.tolist() == [1, 2, 3]
    assert batch.lengths.tolist() == [2, 1]
    assert {batch.tokens.dtype, batch.lengths.dtype} == {np.dtype(np.int32)}


@given(n_tokens=st.lists(st.integers(1, 50)), max_tokens=st.integers(1, 60), max_texts=st.integers(1, 10))
def test_plan_batches_takes_each_text_once_within_the_limits(
    n_tokens: list[int], max_tokens: int, max_texts: int
) -> None:
    batches = list(plan_batches(n_tokens, max_tokens, max_texts))
    assert sorted(i for batch in batches for i in batch) == list(range(len(n_tokens)))
    for batch in batches:
        assert 1 <= len(batch) <= max_texts
        assert len(batch) == 1 or sum(n_tokens[i] for i in batch) <= max_tokens
