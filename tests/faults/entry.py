"""embellama-server with other constants, for tests that would wait minutes for what it does rarely.

python -m tests.faults.entry workers.supervisor.CANARY_S=0.3 -- --model-path m.gguf …
"""

import importlib
import sys

if __name__ == "__main__":  # worker processes import this file too
    from embellama_server.cli import main

    here = sys.argv.index("--")
    for constant in sys.argv[1:here]:
        where, value = constant.split("=")
        module, _, name = where.rpartition(".")
        owner = importlib.import_module(f"embellama_server.{module}")
        assert hasattr(owner, name), where
        setattr(owner, name, type(getattr(owner, name))(float(value)))
    main(sys.argv[here + 1 :])
