"""OpenAI's embeddings as Azure has them: the model is the name of a deployment, in the path.

`EmbeddingRoute` takes it from there; ``api-version`` is not looked at. Azure's newer path, ``/openai/v1/embeddings``,
is OpenAI's own.
"""

from embellama_server.dialects.bodies import BodyParser
from embellama_server.dialects.openai import OpenAIEmbeddings, OpenAIEmbeddingsBody


class AzureEmbeddingsBody(OpenAIEmbeddingsBody, kw_only=True):
    """Body of ``POST /openai/deployments/{model}/embeddings``; a model in it is not looked at, as on Azure."""

    model: str = ""


class AzureEmbeddings(OpenAIEmbeddings):
    """Vectors of texts."""

    paths = ("/openai/deployments/{model}/embeddings",)
    body_type = AzureEmbeddingsBody
    about = "Vectors of texts, as `/v1/embeddings`; the model is named by the path, as by Azure's."
    _body = BodyParser(AzureEmbeddingsBody, encoding_format="'float' or 'base64'")
