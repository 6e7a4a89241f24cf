"""`EmbedTexts` that waits for Redis for as long as it takes: how fast this machine is now decides nothing."""

from typing import Any

import embellama.cache.backend
from embellama.ray import EmbedTexts

# The same for a server, whose command comes after this.
SERVER = (
    "import sys, embellama.cache.backend as b; b.READ_S = 60.0; del sys.argv[1]; "
    "from embellama_server.cli import main; main(prog_name='embellama-server')"
)


class PatientEmbedTexts(EmbedTexts):
    def __init__(self, **settings: Any):
        vars(embellama.cache.backend)["READ_S"] = 60.0
        super().__init__(**settings)
