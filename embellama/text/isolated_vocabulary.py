"""llama.cpp's tokenizer in a separate process, for texts that may crash it or keep it busy for ever.

LlamaVocabulary ── a hazardous text ──► IsolatedVocabulary.tokenize ══► a process: llama_tokenize on a large stack
                ◄── ids, or TokenizerFailed ──                     ◄══

A process is started when a text needs one, serves later ones, and ends with its owner. Only the text that ends it, or
takes too long, fails: the next one gets a new process.
"""

import os
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

from embellama.batch import Tokens
from embellama.config import EngineConfig
from embellama.deadline import holding
from embellama.errors import ModelError, Unavailable
from embellama.gguf.weights import Weights
from embellama.machine.isolated import IsolatedProcess, ProcessFailed
from embellama.text.llama_tokenize import llama_tokenize

# Address space; memory is taken as far as a text reaches, 80 to 233 bytes for each letter of its longest word. So two
# million letters in a row can be read. The smaller sizes are for systems that grant no more.
STACK_BYTES = (512 << 20, 64 << 20, 16 << 20)

# A text may take so long, and so much longer for each character: about ten times as long as ordinary text.
PATIENCE_S = 1.0
PATIENCE_S_A_CHARACTER = 5e-6


# Processes of one vocabulary: one for each of the server's two tokenizing threads, so that ordinary requests need not
# wait for the huge. More would let more threads of a library's user go on at once, and take more memory.
N_PROCESSES = 2


class TokenizerFailed(ModelError):
    """The tokenizer's process ended on a text, or took too long for it."""


class IsolatedVocabulary:
    """A file's vocabulary in separate processes; for use by any thread."""

    def __init__(self, path: str):
        """Prepare to read the vocabulary of `path` when it is first needed."""
        self._path = path
        self._turns = threading.BoundedSemaphore(N_PROCESSES)
        self._idle: list[IsolatedProcess[Weights]] = []
        # They also end with this process. At exit a thread may be waiting for one.
        weakref.finalize(self, _close_all, self._idle).atexit = False
        _vocabularies.add(self)

    def tokenize(self, text: str) -> Tokens:
        """Tokenize one text without special tokens around it, as `llama_tokenize` does.

        Raises:
            TokenizerFailed: The text ended the process, or took it too long.
            Unavailable: No process can be started.
            DeadlineExceeded: The deadline of this thread's work has passed (`embellama.deadline`).
        """
        with holding(self._turns):
            process = self._idle.pop() if self._idle else self._start()
            process.patience_s = PATIENCE_S + PATIENCE_S_A_CHARACTER * len(text)
            try:
                ids = process.call(_tokenize, text)
            except ProcessFailed as error:
                process.close()
                raise TokenizerFailed(f"llama.cpp's tokenizer failed on it: {error}") from None
            except BaseException:  # it may still be at work
                process.close()
                raise
            self._idle.append(process)
            return ids

    def _start(self) -> IsolatedProcess[Weights]:
        try:
            return IsolatedProcess(_load, self._path)
        except (ModelError, OSError) as error:
            raise Unavailable(f"no process to tokenize in can be started: {error}") from None

    def after_fork(self) -> None:
        """Begin anew in a fork, where threads that had a turn are gone, and the processes are another's."""
        self._turns = threading.BoundedSemaphore(N_PROCESSES)
        self._idle.clear()


_vocabularies: weakref.WeakSet[IsolatedVocabulary] = weakref.WeakSet()


def _after_fork() -> None:
    for vocabulary in list(_vocabularies):
        vocabulary.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def _close_all(processes: list[IsolatedProcess[Weights]]) -> None:
    for process in processes:
        process.close()


def _load(path: str) -> Weights:
    for size in STACK_BYTES:
        try:
            threading.stack_size(size)
            thread = threading.Thread(target=int)
            thread.start()
            thread.join()
            break
        except (RuntimeError, ValueError):
            continue
    return Weights(EngineConfig(model_path=path, pooling="none"), vocab_only=True)


def _tokenize(weights: Weights, text: str) -> Tokens:
    with ThreadPoolExecutor(1) as threads:  # a new thread, of `STACK_BYTES`
        return threads.submit(llama_tokenize, weights.vocab, text).result()
