"""No text, of whatever length and on whatever vocabulary, ends or stalls the process that reads it."""

import gc
import os
import re
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from embellama import EmbeddingEngine, EngineConfig, InputError
from embellama.config import EngineConfig as Config
from embellama.deadline import Deadline, working_until
from embellama.errors import DeadlineExceeded, InvalidText, ModelError, Unavailable
from embellama.gguf.weights import Weights
from embellama.machine.isolated import IsolatedProcess
from embellama.text.hazards import MAX_WORD_CHARACTERS, SPLIT_IN_CODE
from embellama.text.llama_tokenize import llama_tokenize
from embellama.text.llama_vocabulary import LlamaVocabulary
from embellama.text.tokenizer import Tokenizer
from tests.conftest import ROOT, TinyModel, run
from tests.text.pre_tokenizers import PRE_TOKENIZERS, tokenizer_of
from tests.tiny import write_qwen3_reranker


@pytest.mark.timeout(300)
@pytest.mark.parametrize("n", [MAX_WORD_CHARACTERS - 1, 40_000])
def test_runs_of_every_class_on_every_pre_tokenizer_end_nothing(n: int) -> None:
    result = run(sys.executable, "-m", "tests.text.pre_tokenizers", str(n), cwd=ROOT)
    assert result.returncode == 0, result.stderr
    *failed, last = result.stdout.splitlines()
    assert last == "all of them were tried"
    # This one takes time that grows with the square of a number's length; all else is read at any of these lengths.
    assert [line for line in failed if not line.startswith("superbpe, digits")] == []
    assert len(failed) == (n == 40_000)


def test_pre_tokenizers_that_are_read_here_are_llama_cpps() -> None:
    assert set(PRE_TOKENIZERS) >= SPLIT_IN_CODE


@pytest.mark.parametrize("pre", ["gpt-4o", "tekken", "default", "granite-embed-multi-97m"])
@pytest.mark.parametrize("text", ["a" * 36_000, "漢" * 36_000, "." * 36_000, " " * 36_000])
def test_a_text_read_in_a_process_of_its_own_has_the_same_ids(pre: str, text: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of(pre, tmp_path)
    # On a stack that is large enough, llama.cpp reads it here too.
    found: list[np.ndarray] = []
    before = threading.stack_size(64 << 20)
    try:
        vocab = tokenizer._weights.vocab
        thread = threading.Thread(target=lambda: found.append(llama_tokenize(vocab, text)))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert tokenizer.bare([text])[0].tolist() == found[0].tolist()


def test_a_text_that_crashes_the_tokenizer_is_named_and_the_next_one_is_read(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("gpt-4o", tmp_path)
    word = "a" * 8_000_000  # takes more stack than there is
    with pytest.raises(InvalidText, match=r"text 1 cannot be tokenized: .* \(SIGSEGV\)") as error:
        tokenizer.encode(["red", word], truncate="end")
    assert error.value.index == 1
    assert tokenizer.encode(["red", "a" * 50_000], truncate="end").n_cut.tolist()[0] == 0


def test_a_text_that_stalls_the_tokenizer_is_named(tiny: TinyModel) -> None:
    weights = Weights(Config(model_path=str(tiny("gemma-embedding"))).checked(), vocab_only=True)
    tokenizer = Tokenizer(weights)
    with pytest.raises(InvalidText, match=r"text 0 cannot be tokenized: .* no answer in 2\.5 s"):
        tokenizer.encode(["漢" * 300_000], truncate="end")
    assert tokenizer.encode(["red " * 100_000], truncate="end").n_cut[0] > 0


def test_tokenizing_stops_at_the_deadline_of_its_work(tiny: TinyModel) -> None:
    tokenizer = Tokenizer(Weights(Config(model_path=str(tiny("gemma-embedding"))).checked(), vocab_only=True))
    deadline = Deadline(time.monotonic() + 60, 1234)
    threading.Timer(1.0, lambda: setattr(deadline, "at", 0.0)).start()  # nobody waits for it any more
    with working_until(deadline), pytest.raises(DeadlineExceeded, match="1234 ms"):
        tokenizer.encode(["漢" * 300_000] * 100, truncate="end")


def test_a_text_waits_for_no_other_and_no_longer_than_its_deadline(
    tiny: TinyModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("embellama.text.isolated_vocabulary.PATIENCE_S", 60.0)
    tokenizer = Tokenizer(Weights(Config(model_path=str(tiny("gemma-embedding"))).checked(), vocab_only=True))
    nobody_waits = Deadline(time.monotonic() + 60, 1)

    def stall() -> None:
        with working_until(nobody_waits), pytest.raises(DeadlineExceeded):
            tokenizer.bare(["漢" * 300_000])

    stalled = [threading.Thread(target=stall)]
    stalled[0].start()
    assert len(tokenizer.bare(["red " * 10_000])[0]) > 0  # in another process
    stalled.append(threading.Thread(target=stall))
    stalled[1].start()
    time.sleep(0.5)
    with working_until(Deadline(time.monotonic() + 0.5, 500)), pytest.raises(DeadlineExceeded, match="500 ms"):
        tokenizer.bare(["red " * 10_000])
    nobody_waits.at = 0.0
    for thread in stalled:
        thread.join(timeout=10)
        assert not thread.is_alive()


def test_a_fork_reads_hazardous_texts_while_its_parent_does(tmp_path: Path) -> None:
    path = tokenizer_of("gpt-4o", tmp_path)._weights.path
    program = tmp_path / "program.py"
    program.write_text(
        "import os, sys, threading, time\n"
        "from embellama.config import EngineConfig\n"
        "from embellama.gguf.weights import Weights\n"
        "from embellama.text import isolated_vocabulary\n"
        "from embellama.text.tokenizer import Tokenizer\n"
        f"tokenizer = Tokenizer(Weights(EngineConfig(model_path={path!r}), vocab_only=True))\n"
        "vocabulary = tokenizer._vocabulary._isolated\n"
        "tokenizer.bare(['a' * 1000])\n"
        "for _ in range(isolated_vocabulary.N_PROCESSES):\n"
        "    vocabulary._turns.acquire()\n"
        "if child := os.fork():\n"
        "    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "print(len(tokenizer.bare(['a' * 1000])[0]), flush=True)\n"
    )
    result = run(sys.executable, program, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert (result.returncode, result.stdout, result.stderr) == (0, "1000\n", "")


def test_a_tokenizer_without_a_process_is_unavailable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = tokenizer_of("gpt-4o", tmp_path)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "missing"))
    with pytest.raises(Unavailable, match=r"no process to tokenize in can be started: .*No such file"):
        tokenizer.encode(["a" * 1000], truncate="end")


def test_an_error_of_the_tokenizer_itself_is_told(tmp_path: Path) -> None:
    vocabulary = tokenizer_of("gpt-4o", tmp_path)._vocabulary
    assert isinstance(vocabulary, LlamaVocabulary)
    with pytest.raises(ModelError, match="AttributeError: 'int' object has no attribute 'encode'"):
        vocabulary._isolated.tokenize(IntWithLength(3))  # type: ignore[arg-type]


class IntWithLength(int):
    """What no tokenizer can read."""

    def __len__(self) -> int:
        return 1

    def __reduce__(self) -> tuple[type[int], tuple[int]]:
        return int, (int(self),)


def test_processes_that_ended_are_forgotten(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("gpt-4o", tmp_path)
    for _ in range(3):
        with pytest.raises(InvalidText):
            tokenizer.bare(["a" * 8_000_000])
    gc.collect()
    assert not [each for each in gc.get_objects() if type(each) is IsolatedProcess]


@pytest.mark.parametrize("use", ["pieces", "within"])
def test_a_text_that_cannot_be_tokenized_is_named_wherever_it_is_read(use: str, tmp_path: Path) -> None:
    tokenizer = tokenizer_of("superbpe", tmp_path)
    text = "1" * 36_000
    with pytest.raises(InvalidText, match="text 0 cannot be tokenized"):
        tokenizer.pieces(text) if use == "pieces" else tokenizer.within(text, [(0, 3)])


def test_spaces_that_llama_cpp_asserts_are_left_out(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("whitespace", tmp_path)
    [ids] = tokenizer.bare(["red blue"])
    for text in ("red  blue", "red \n blue", "red\n blue", "red\t \u00a0 blue"):
        assert tokenizer.bare([text])[0].tolist() == ids.tolist()


def test_the_engine_survives_what_its_tokenizer_does_not(tmp_path: Path) -> None:
    path = tokenizer_of("tekken", tmp_path)._weights.path
    with EmbeddingEngine(EngineConfig(model_path=path, model_name="tiny", num_workers=1)) as engine:
        for truncate in ("end", "start"):
            assert engine.embed("tiny", "A" * 300_000, truncate=truncate).shape == (32,)
        with pytest.raises(InputError, match="the limit is"):
            engine.embed("tiny", "A" * 300_000)
        assert engine.embed("tiny", "red").shape == (32,)


def test_a_program_without_a_main_guard_reads_hazardous_texts(tmp_path: Path) -> None:
    path = tokenizer_of("gpt-4o", tmp_path)._weights.path
    program = tmp_path / "program.py"
    program.write_text(
        "from embellama import EmbeddingEngine, EngineConfig\n"
        f"with EmbeddingEngine(EngineConfig(model_path={path!r}, model_name='tiny', num_workers=1)) as engine:\n"
        "    print(engine.embed('tiny', 'a' * 200_000, truncate='end').shape)\n"
    )
    result = run(sys.executable, program, cwd=tmp_path)
    assert (result.stdout, result.stderr) == ("(32,)\n", "")


def test_words_that_are_read_here_fit_a_small_stack(tmp_path: Path) -> None:
    tokenizer = tokenizer_of("gpt-4o", tmp_path)
    text = " ".join(["a" * (MAX_WORD_CHARACTERS - 2)] * 50)
    found: list[int] = []
    before = threading.stack_size(256 << 10)
    try:
        thread = threading.Thread(target=lambda: found.append(len(tokenizer.bare([text])[0])))
        thread.start()
        thread.join()
    finally:
        threading.stack_size(before)
    assert found
    assert not re.search(rf"\S{{{MAX_WORD_CHARACTERS},}}", text)


def test_a_document_that_cannot_be_tokenized_is_named(tmp_path: Path) -> None:
    path = str(write_qwen3_reranker(tmp_path / "reranker.gguf", template="{query} and {document}", pre="superbpe"))
    with (
        EmbeddingEngine(EngineConfig(model_path=path, model_name="tiny", num_workers=1)) as engine,
        pytest.raises(InvalidText, match="text 1 cannot be tokenized"),
    ):
        engine.rerank("tiny", "red", ["red", "1" * 36_000], truncate="end")


def test_a_query_that_cannot_be_tokenized_is_named(tmp_path: Path) -> None:
    path = tokenizer_of("superbpe", tmp_path)._weights.path
    with (
        EmbeddingEngine(EngineConfig(model_path=path, model_name="tiny", num_workers=1)) as engine,
        pytest.raises(InputError, match="the query cannot be tokenized"),
    ):
        engine.rerank("tiny", "1" * 36_000, ["red"], truncate="end")
