"""llama.cpp's tokenizer in a separate process, for texts that may crash it or keep it busy for ever.

LlamaVocabulary ── a hazardous text ──► IsolatedVocabulary.tokenize ══► a process: llama_tokenize on a large stack
                ◄── ids, or TokenizerFailed ──                     ◄══

The process is started for the first such text, serves all later ones, and ends with its owner. Only the text that ends
it, or takes too long, fails: the next one gets a new process.
"""

import os
import threading
import weakref

from embellama.batch import Tokens
from embellama.config import EngineConfig
from embellama.errors import ModelError
from embellama.gguf.weights import Weights
from embellama.machine.isolated import IsolatedProcess, ProcessFailed
from embellama.text.llama_tokenize import llama_tokenize

# Address space; memory is taken as far as a text reaches, 80 to 233 bytes for each letter of its longest word. So two
# million letters in a row can be read. The smaller sizes are for systems that grant no more.
STACK_BYTES = (512 << 20, 64 << 20, 16 << 20)

# A text may take so long, and so much longer for each character: about ten times as long as ordinary text.
PATIENCE_S = 1.0
PATIENCE_S_A_CHARACTER = 5e-6


class TokenizerFailed(ModelError):
    """The tokenizer's process ended on a text, took too long for it, or could not be started."""


class IsolatedVocabulary:
    """A file's vocabulary in a separate process; for use by any thread, by one at a time."""

    def __init__(self, path: str):
        """Prepare to read the vocabulary of `path` when it is first needed."""
        self._path = path
        self._lock = threading.Lock()
        self._process: IsolatedProcess[Weights] | None = None
        self._pid = 0  # of the process that started it

    def tokenize(self, text: str) -> Tokens:
        """Tokenize one text without special tokens around it, as `llama_tokenize` does.

        Raises:
            TokenizerFailed: The text ended the process, or took it too long.
            DeadlineExceeded: The deadline of this thread's work has passed (`embellama.deadline`).
        """
        with self._lock:
            process = self._started()
            process.patience_s = PATIENCE_S + PATIENCE_S_A_CHARACTER * len(text)
            try:
                return process.call(_tokenize, text)
            except ProcessFailed as error:
                self._end()
                raise TokenizerFailed(f"llama.cpp's tokenizer failed on it: {error}") from None
            except BaseException:  # it may still be at work
                self._end()
                raise

    def _started(self) -> IsolatedProcess[Weights]:
        if self._process is None or self._pid != os.getpid():  # a fork shares the pipe of its parent's
            try:
                self._process = IsolatedProcess(_load, self._path)
            except (ModelError, OSError) as error:
                raise TokenizerFailed(f"a process to tokenize it in could not be started: {error}") from None
            self._pid = os.getpid()
            # It also ends with this process. At exit a thread may be waiting for it.
            weakref.finalize(self, _close, self._process, self._pid).atexit = False
        return self._process

    def _end(self) -> None:
        if self._process:
            self._process.close()
            self._process = None


def _close(process: IsolatedProcess[Weights], pid: int) -> None:
    if pid == os.getpid():
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
    found: list[Tokens] = []
    thread = threading.Thread(target=lambda: found.append(llama_tokenize(weights.vocab, text)))
    thread.start()
    thread.join()
    return found[0]
