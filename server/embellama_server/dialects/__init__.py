"""The dialects: OpenAI's and Azure's, Jina's and Voyage's, Cohere's, text-embeddings-inference's, Ollama's."""

import re
from collections.abc import Callable
from typing import Any

from embellama_server.dialects import azure, cohere, ollama, openai, rerank, tei, tokens
from embellama_server.dialects.base import Dialect
from embellama_server.problems import Problem, openai_error

# In the order in which they are described.
DIALECTS: list[Dialect[Any, Any]] = [
    openai.OpenAIEmbeddings(),
    azure.AzureEmbeddings(),
    rerank.JinaRerank(),
    cohere.CohereEmbed(),
    cohere.CohereRerank(),
    tei.TEIEmbed(),
    tei.TEIEmbedAll(),
    tei.TEIRerank(),
    tei.TEISimilarity(),
    ollama.OllamaEmbed(),
    ollama.OllamaEmbeddings(),
    ollama.OllamaShow(),
    tokens.Tokenize(),
    tokens.Decode(),
    tokens.Detokenize(),
]

_PATHS = {path: dialect for dialect in DIALECTS for path in dialect.paths}

# Names of models may have slashes.
_OPEN_PATHS = {path: re.compile(re.escape(path).replace(r"\{model\}", ".+")) for path in _PATHS if "{" in path}


def dialect_at(path: str) -> tuple[Dialect[Any, Any], str] | None:
    """Find the dialect of a path, and its route's path, in which the model's name is left open."""
    if path not in _PATHS:
        path = next((route for route, form in _OPEN_PATHS.items() if form.fullmatch(path)), path)
    return (_PATHS[path], path) if path in _PATHS else None


def error_outside(path: str) -> Callable[[Problem], Any]:
    """Return what makes an error's body where no dialect answers: Ollama's below ``/api/``, else OpenAI's."""
    return ollama.ollama_error if path.startswith("/api/") else openai_error
