"""`EmbedTexts`: vectors of a Ray data set's texts, by an actor for each engine.

ds.map_batches(EmbedTexts, …) ──► an actor: model fetched and loaded ── a batch, Arrow ──► distinct texts ──► rows
                                                                                                            │
              a batch, Arrow: the columns there were, and embedding, n_tokens, n_cut, error_code, error_message

Needs the extra `ray`. See docs/scale.md.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from embellama.bulk.backend import Outcome
from embellama.bulk.cluster import for_cpus
from embellama.bulk.extra import arrow, extra
from embellama.bulk.fetch import check_weights, fetched
from embellama.bulk.rows import NoText
from embellama.bulk.writers import numbers_of, outcome_columns
from embellama.config import EngineConfig, convert, n_cores
from embellama.errors import ConfigError
from embellama.options import EmbedOptions

if TYPE_CHECKING:
    import pyarrow as pa

__all__ = ["EmbedTexts"]


class EmbedTexts:
    """Embeds a column of each batch; for `ray.data.Dataset.map_batches`, with `batch_format="pyarrow"`.

    A text that cannot be embedded fails by itself: its `embedding` is null, and `error_code` and `error_message` say
    why. An actor uses as many threads as the CPUs that it was given (`num_cpus`).
    """

    def __init__(self, model_path: str, column: str = "text", *, weights_sha256: str = "", **settings: Any):
        """Load the model, in an actor.

        Args:
            model_path: GGUF file: a path on each node, or a URI such as ``s3://bucket/model.gguf``, which is fetched
                once for each node.
            column: Column of the texts, of type string, large_string, string_view or a dictionary of these.
            weights_sha256: What `/v1/models` and bulk's manifests say of the model; another one is refused. Without it,
                two nodes that have different files at `model_path` are not noticed.
            **settings: Fields of `EngineConfig`, such as `redis_url`, and of `EmbedOptions`, such as `dimensions`.

        Raises:
            ConfigError: A setting is wrong, or there is none of that name.
            ModelLoadError: The file cannot be loaded, or has other weights.
            InputError: An option is wrong.
        """
        self._column = column
        options = {name: settings.pop(name) for name in EmbedOptions.__struct_fields__ if name in settings}
        for name in settings:
            if name not in EngineConfig.__struct_fields__:
                raise ConfigError(f"there is no setting {name!r}; those of EngineConfig and EmbedOptions are")
        config = for_cpus(convert({"model_path": model_path, **settings}, EngineConfig), _n_cpus())
        self._options = EmbedOptions(**options)
        check_weights(fetched(config.model_path), weights_sha256)
        from embellama.bulk.ray import loaded  # with packages that only it needs

        self._backend = loaded(config, self._options, {}, cached=True)

    def __call__(self, batch: "pa.Table") -> "pa.Table":
        """Return the batch with the columns of its texts' vectors.

        Raises:
            ConfigError: The batch is no Arrow table, or the column is missing or has no texts.
        """
        pa = arrow()
        if not isinstance(batch, pa.Table):
            raise ConfigError(f"a batch is {type(batch).__name__}; map_batches needs batch_format='pyarrow'")
        outcomes = self._outcomes(_texts(batch, self._column))
        for name, values in outcome_columns(outcomes, *numbers_of(self._options, self._backend.dim)).items():
            if name in batch.column_names:
                raise ConfigError(f"the data set has a column {name!r} already; rename it, or drop it")
            batch = batch.append_column(name, values)
        return batch

    def _outcomes(self, texts: Sequence[str | None]) -> list[Outcome]:
        """Compute the distinct ones of texts, and give each row its outcome."""
        distinct = list(dict.fromkeys(text for text in texts if text is not None))
        found = dict(zip(distinct, self._backend.submit(distinct).result(), strict=True))
        return [NoText("the text is null") if text is None else found[text] for text in texts]


def _texts(batch: "pa.Table", column: str) -> list[str | None]:
    """Return the texts of a column; raise `ConfigError` if it is missing, or has none."""
    types = arrow().types
    if column not in batch.column_names:
        raise ConfigError(f"there is no column {column!r}; the data set has {', '.join(batch.column_names)}")
    kind = batch.schema.field(column).type
    values = kind.value_type if types.is_dictionary(kind) else kind
    if not any(
        is_text(values) for is_text in (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    ):
        raise ConfigError(f"column {column!r} is {kind}; it must be text")
    found: list[str | None] = batch.column(column).to_pylist()
    return found


def _n_cpus() -> float:
    """Return how many CPUs this actor was given; all of this machine's outside of one."""
    ray = extra("ray", "actors", "ray")
    if not ray.is_initialized() or ray.get_runtime_context().get_actor_id() is None:
        return n_cores()
    return float(ray.get_runtime_context().get_assigned_resources().get("CPU", 1.0))
