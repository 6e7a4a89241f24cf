"""Every architecture, against its definition: what llama.cpp computes is what `tests/forward` computes."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray

from embellama.llama import c_api
from tests.forward import forward, pooled, score
from tests.forward.model import Model
from tests.tiny import ARCHITECTURES, POISON

NAMES = list(ARCHITECTURES)
EMBEDDERS = [name for name in NAMES if not ARCHITECTURES[name].reranker]
RERANKERS = [name for name in NAMES if ARCHITECTURES[name].reranker]

Text = list[int]
TinyModel = Callable[[str], Path]

# The least cosine of a token vector. llama.cpp rounds keys and values to float16 and takes GELU from a table in
# float16; measured, that leaves 0.99997 in the worst of these models. Shuffling any one tensor leaves less than 0.9999.
CLOSE = 0.9999


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyModel:
    """Return the path of a tiny model, written on first use."""
    folder = tmp_path_factory.mktemp("architectures")

    def path_of(name: str) -> Path:
        path = folder / f"{name}.gguf"
        return path if path.exists() else ARCHITECTURES[name].write(path)

    return path_of


@pytest.mark.parametrize("name", NAMES)
def test_token_vectors_are_those_of_the_definition(name: str, tiny: TinyModel) -> None:
    path, n_ctx = tiny(name), ARCHITECTURES[name].n_ctx
    for text in texts(path, 1, 5, 40, n_ctx):
        with Llama(path, gguf.PoolingType.NONE) as llama:
            (vectors,) = llama.token_vectors([text])
        assert cosines(vectors, forward(path, text)).min() >= CLOSE, f"{len(text)} tokens"


@pytest.mark.parametrize("name", NAMES)
def test_texts_of_a_batch_do_not_see_each_other(name: str, tiny: TinyModel) -> None:
    path = tiny(name)
    batch = texts(path, 40, 1, 17, 1, 64)
    with Llama(path, gguf.PoolingType.NONE) as llama:
        # Twice: the memory of decoders must not remember the first batch.
        for _ in range(2):
            for vectors, text in zip(llama.token_vectors(batch), batch, strict=True):
                assert cosines(vectors, forward(path, text)).min() >= CLOSE, f"{len(text)} tokens"


@pytest.mark.parametrize("name", EMBEDDERS)
def test_embeddings_are_those_of_the_definition(name: str, tiny: TinyModel) -> None:
    path = tiny(name)
    batch = texts(path, 40, 1, 17, 64)
    with Llama(path) as llama:
        assert llama.pooling == ARCHITECTURES[name].pooling
        for row, text in zip(llama.rows(batch), batch, strict=True):
            assert cosines(row, pooled(path, text)) >= CLOSE, f"{len(text)} tokens"


@pytest.mark.parametrize("name", RERANKERS)
def test_scores_are_those_of_the_definition(name: str, tiny: TinyModel) -> None:
    path = tiny(name)
    batch = texts(path, 40, 1, 17, 64)
    with Llama(path) as llama:
        for row, text in zip(llama.rows(batch), batch, strict=True):
            assert row == pytest.approx(score(path, text), abs=0.005), f"{len(text)} tokens"


@pytest.mark.parametrize("name", [name for name in NAMES if ARCHITECTURES[name].causal])
def test_text_of_a_causal_model_may_be_computed_in_pieces(name: str, tiny: TinyModel) -> None:
    path = tiny(name)
    batch = texts(path, 40, 1, 17)
    with Llama(path, gguf.PoolingType.NONE, n_ubatch=16) as llama:
        for vectors, text in zip(llama.token_vectors(batch), batch, strict=True):
            assert cosines(vectors, forward(path, text)).min() >= CLOSE, f"{len(text)} tokens"


@pytest.mark.parametrize("name", EMBEDDERS)
def test_definition_tells_texts_apart(name: str, tiny: TinyModel) -> None:
    path = tiny(name)
    rows = np.array([pooled(path, text) for text in texts(path, 12, 12, 12, 40, 40)])
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    assert (rows @ rows.T - np.eye(len(rows))).max() < 0.97


@pytest.mark.parametrize("name", RERANKERS)
def test_definition_scores_texts_apart(name: str, tiny: TinyModel) -> None:
    path = tiny(name)
    scores = [score(path, text)[0] for text in texts(path, 12, 12, 12, 40, 40)]
    assert np.ptp(scores) > 0.3


@pytest.mark.parametrize("name", NAMES)
def test_definition_knows_the_order_of_tokens(name: str, tiny: TinyModel) -> None:
    (text,) = texts(tiny(name), 12)
    turned = [text[0], *text[-2:0:-1], text[-1]]
    same_tokens = cosines(forward(tiny(name), text)[1:-1], forward(tiny(name), turned)[-2:0:-1])
    assert same_tokens.min() < 0.98


@pytest.mark.parametrize("name", NAMES)
def test_definition_needs_every_tensor(name: str, tiny: TinyModel) -> None:
    model = Model(tiny(name))
    (text,) = texts(tiny(name), 40)
    expected = forward(model, text)
    random = np.random.default_rng(2)
    for tensor, values in list(model.tensors.items()):
        # A bias of keys adds the same to all that a query is compared with, so attention stays what it was, unless
        # positions turn the keys. Heads are tested by their scores; rolled token embeddings would be another text.
        if tensor.endswith(("attn_k.bias", "attn_k_norm.bias")) or tensor.startswith(("cls", "token_embd.")):
            continue
        model.tensors[tensor] = random.permutation(values.ravel()).reshape(values.shape)
        assert cosines(forward(model, text), expected).min() < CLOSE, tensor
        model.tensors[tensor] = values


@pytest.mark.parametrize("name", NAMES)
def test_words_are_tokens(name: str, tiny: TinyModel) -> None:
    with Llama(tiny(name)) as llama:
        pieces = [piece.lstrip("▁Ġ") for piece in llama.tokenize(f"red three {POISON}")]
    assert [piece for piece in pieces if piece in ("red", "three", POISON)] == ["red", "three", POISON]
    assert len(pieces) <= 5


@pytest.mark.parametrize("name", NAMES)
def test_files_are_small_and_always_the_same(name: str, tiny: TinyModel, tmp_path: Path) -> None:
    path = tiny(name)
    assert path.stat().st_size < 300_000
    assert path.read_bytes() == ARCHITECTURES[name].write(tmp_path / "again.gguf").read_bytes()


def texts(path: Path, *lengths: int) -> list[Text]:
    """Return texts of random tokens, the same on every call; none has the token for "poison"."""
    usable = np.flatnonzero(np.isfinite(Model(path)["token_embd"]).all(1))
    random = np.random.default_rng(1)
    return [random.choice(usable, n).tolist() for n in lengths]


def cosines(a: NDArray[Any], b: NDArray[Any]) -> NDArray[np.float64]:
    """Return the cosine between each row of `a` and its row of `b`."""
    return np.asarray(np.sum(a * b, -1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1))


class Llama(contextlib.AbstractContextManager["Llama"]):
    """llama.cpp on one file, batch by batch."""

    def __init__(self, path: Path, pooling: int = c_api.LLAMA_POOLING_TYPE_UNSPECIFIED, n_ubatch: int = 256):
        self._model = c_api.llama_model_load_from_file(str(path).encode(), c_api.llama_model_default_params())
        assert self._model, path
        params = c_api.llama_context_default_params()
        params.n_ctx = params.n_batch = 256
        params.n_ubatch = n_ubatch
        params.n_seq_max = 8
        params.kv_unified = True
        params.embeddings = True
        params.pooling_type = pooling
        params.flash_attn_type = c_api.LLAMA_FLASH_ATTN_TYPE_ENABLED
        params.n_threads = params.n_threads_batch = 1
        self._context = c_api.llama_init_from_model(self._model, params)
        assert self._context, path
        self.pooling = c_api.llama_pooling_type(self._context)

    def __exit__(self, *_: object) -> None:
        c_api.llama_free(self._context)
        c_api.llama_model_free(self._model)

    def token_vectors(self, batch: Sequence[Text]) -> Iterator[NDArray[np.float32]]:
        """Yield each text's token vectors, ``(n_tokens, dim) float32``."""
        self._compute(batch)
        n_tokens = sum(map(len, batch))
        vectors = np.ctypeslib.as_array(c_api.llama_get_embeddings(self._context), (n_tokens, self._dim)).copy()
        start = 0
        for text in batch:
            yield vectors[start : start + len(text)]
            start += len(text)

    def rows(self, batch: Sequence[Text]) -> Iterator[NDArray[np.float32]]:
        """Yield each text's embedding, ``(dim,) float32``, or a reranker's scores."""
        self._compute(batch)
        n = c_api.llama_model_n_cls_out(self._model) if self.pooling == gguf.PoolingType.RANK else self._dim
        for i in range(len(batch)):
            yield np.ctypeslib.as_array(c_api.llama_get_embeddings_seq(self._context, i), (n,)).copy()

    def tokenize(self, text: str) -> list[str]:
        """Return the pieces of `text`, special tokens included."""
        vocab, data = c_api.llama_model_get_vocab(self._model), text.encode()
        tokens = (c_api.llama_token * 64)()
        n = c_api.llama_tokenize(vocab, data, len(data), tokens, len(tokens), True, True)
        return [c_api.llama_vocab_get_text(vocab, token).decode() for token in tokens[:n]]

    @property
    def _dim(self) -> int:
        return int(c_api.llama_model_n_embd_out(self._model))

    def _compute(self, batch: Sequence[Text]) -> None:
        tokens = c_api.llama_batch_init(256, 0, 1)
        for text_index, text in enumerate(batch):
            for position, token in enumerate(text):
                i = tokens.n_tokens
                tokens.token[i] = token
                tokens.pos[i] = position
                tokens.n_seq_id[i] = 1
                tokens.seq_id[i][0] = text_index
                tokens.logits[i] = 1
                tokens.n_tokens += 1
        memory = c_api.llama_get_memory(self._context)
        # T5's encoder has a memory too, but decoding it hides what comes later from each token.
        if memory and not c_api.llama_model_has_encoder(self._model):
            c_api.llama_memory_clear(memory, True)
            assert c_api.llama_decode(self._context, tokens) == 0
        else:
            assert c_api.llama_encode(self._context, tokens) == 0
        c_api.llama_batch_free(tokens)
