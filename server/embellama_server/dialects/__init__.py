"""The dialects: OpenAI's and Azure's, Jina's and Voyage's, Cohere's, text-embeddings-inference's, Ollama's."""

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


def error_outside(path: str) -> Callable[[Problem], Any]:
    """Return what makes an error's body where no dialect answers: Ollama's below ``/api/``, else OpenAI's."""
    return ollama.ollama_error if path.startswith("/api/") else openai_error
