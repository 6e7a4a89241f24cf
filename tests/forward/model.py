"""A GGUF file's tensors and metadata, as arrays and Python values."""

from pathlib import Path
from typing import Any

import gguf
import numpy as np

from tests.forward.parts import Array, layer_norm, rms_norm


class Model:
    """One GGUF file, read.

    Attributes:
        architecture: What the file says it is.
        tensors: Its tensors by their names in the file.
        n_layers: Layers.
    """

    def __init__(self, path: Path):
        self._reader = gguf.GGUFReader(path)
        self.tensors = {tensor.name: np.asarray(tensor.data, np.float64) for tensor in self._reader.tensors}
        self.architecture = str(self.get("general.architecture"))
        self.n_layers = int(self.number("block_count"))

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a metadata key."""
        field = self._reader.get_field(key)
        return default if field is None else field.contents()

    def number(self, key: str, default: float | None = None) -> float:
        """Return a number of this architecture."""
        value = self.get(f"{self.architecture}.{key}", default)
        assert value is not None, f"no {key}"
        return float(value)

    def __contains__(self, name: str) -> bool:
        return f"{name}.weight" in self.tensors

    def __getitem__(self, name: str) -> Array:
        """Return a tensor's weights, outputs before inputs."""
        return self.tensors[f"{name}.weight"]

    def linear(self, name: str, x: Array) -> Array:
        """Return ``weight @ x + bias`` for each row of `x`."""
        return x @ self[name].T + self._bias(name)

    def layer_norm(self, name: str, x: Array) -> Array:
        """Return each row of `x` with mean 0 and variance 1, then scaled and shifted."""
        return layer_norm(x, self.number("attention.layer_norm_epsilon")) * self[name] + self._bias(name)

    def rms_norm(self, name: str, x: Array) -> Array:
        """Return each row of `x` with a mean square of 1, then scaled."""
        return rms_norm(x, self.number("attention.layer_norm_rms_epsilon")) * self[name]

    def _bias(self, name: str) -> Array | float:
        return self.tensors.get(f"{name}.bias", 0.0)
