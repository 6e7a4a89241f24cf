"""What clients speak, each a thin translation to `Work`: requests parsed, answers and errors written."""

from embellama_server.dialects import cohere, ollama, openai, rerank, tei, tokens

ENDPOINTS = [
    endpoint
    for dialect in (openai, rerank, cohere, tei, ollama, tokens)  # the router asks in this order
    for endpoint in dialect.ENDPOINTS
]
