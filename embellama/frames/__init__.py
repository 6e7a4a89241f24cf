"""Columns of dataframes in, columns of vectors out: Arrow buffers, never a Python object for each number.

`embed` takes a column of Polars, pandas or PyArrow. `embellama.polars` has the same as expressions.
"""

try:
    import pyarrow  # noqa: F401
except ImportError as missing:
    raise ImportError(f"dataframes need the package pyarrow: pip install 'embellama[polars]' ({missing})") from missing

from embellama.frames.models import remote
from embellama.frames.series import embed

__all__ = ["embed", "remote"]
