"""JSON Schemas of the server's types, by name: the body of ``POST /v1/embeddings``, its answer, and the settings.

`/openapi.json` describes every path; these are for those who want one type, and no server running.
"""

from typing import Any

from embellama_server.config import ServerConfig
from embellama_server.dialects.openai import OpenAIEmbeddingsAnswer, OpenAIEmbeddingsBody

TYPES: dict[str, Any] = {
    "request": OpenAIEmbeddingsBody,
    "response": OpenAIEmbeddingsAnswer,
    "config": ServerConfig,
}
