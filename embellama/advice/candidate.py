"""Measure one file, in a separate process that `bench` starts: its vectors, and its speed in some settings.

bench ══► Candidate.vectors, Candidate.speed ──► LoadedModel, one for each setting
"""

import itertools
import statistics
import time
from concurrent.futures import Future

from embellama.batch import Rows
from embellama.config import EngineConfig
from embellama.jobs import Job
from embellama.registry import LoadedModel
from embellama.results import Embeddings
from embellama.tuning import TEXT_TOKENS

# Texts of one call; the built-in ones are a whole number of jobs.
PART = 8

# Of each measurement, this share is for one text alone.
ALONE_SHARE = 0.3

TEXTS = """\
The train to the coast leaves at nine and arrives before noon.
She keeps the letters from her brother in a wooden box.
Water boils at a lower temperature high in the mountains.
The committee will publish its report at the end of March.
How do I change the password of my account?
A small dog was asleep under the kitchen table.
The price of copper rose by four percent last week.
He plays the cello in an orchestra of amateurs.
Please send the signed contract back by Friday.
The bridge was closed for repairs after the flood.
Bees find their way home by the light of the sky.
Which museums are open on Monday?
The new engine uses less fuel and makes less noise.
Add the flour slowly and stir until the dough is smooth.
Our flight was delayed because of fog.
The library has a large collection of old maps.
Children under six travel free of charge.
The function returns a list of all open files.
It has not rained here since the beginning of June.
The court decided in favour of the tenant.
Plants turn sunlight, water and air into sugar.
I would like a table for two by the window.
The volcano has been quiet for three hundred years.
Her first novel was translated into twelve languages.
What is the difference between a virus and a bacterium?
The team lost the match in the last minute.
Most of the island is covered by dense forest.
The doctor told him to rest for a week.
A search engine compares the query with every document.
They moved to the city when the factory closed.
The recipe needs two eggs and a little salt.
Light takes eight minutes to reach us from the sun.
The museum bought the painting at an auction.
You can return the shoes within thirty days.
The river freezes over in most winters.
Each worker computes one batch at a time.
The old theatre was turned into a cinema.
Nobody knew who had left the door open.
The patient was treated with a new kind of antibiotic.
Wind and waves have shaped these cliffs.
""".splitlines()


class Candidate:
    """One file to measure, in a separate process: pools with different settings, each made when it is first used."""

    def __init__(self, path: str, max_batch_tokens: int = 0):
        self._path, self._max_batch_tokens = path, max_batch_tokens
        self._models: dict[tuple[int, int], LoadedModel] = {}

    def vectors(self) -> tuple[Rows, EngineConfig]:
        """Return the vectors of `TEXTS`, ``(n_texts, dim) float32``, and the settings that were measured for it."""
        model = self._model(0, 0)
        return _submit(model, model.jobs.encode(TEXTS)).result(), model.config

    def speed(self, seconds: float, num_workers: int = 0, n_threads: int = 0) -> tuple[float, float]:
        """Measure for about so long; return texts/s of all workers together, and milliseconds of one text alone."""
        model = self._model(num_workers, n_threads)
        one = model.jobs.encode(TEXTS[:1])
        alone: list[float] = []
        started = time.perf_counter()
        while not alone or time.perf_counter() - started < ALONE_SHARE * seconds:
            before = time.perf_counter()
            _submit(model, one).result()
            alone.append(time.perf_counter() - before)

        jobs = itertools.cycle([model.jobs.encode(TEXTS[i : i + PART]) for i in range(0, len(TEXTS), PART)])
        # As many texts wait as fill two batches for each worker, so that none idles.
        n_waiting = 2 * model.config.num_workers * model.config.max_batch_tokens // (TEXT_TOKENS * PART)
        waiting = [_submit(model, next(jobs)) for _ in range(2 + n_waiting)]
        waiting.pop(0).result()
        n_texts, spent, started = 0, 0.0, time.perf_counter()
        while not n_texts or spent < (1 - ALONE_SHARE) * seconds:
            waiting.append(_submit(model, next(jobs)))
            waiting.pop(0).result()
            n_texts += PART
            spent = time.perf_counter() - started
        for future in waiting:  # the next measurement must have the machine to itself
            future.result()
        return n_texts / spent, 1000 * statistics.median(alone)

    def _model(self, num_workers: int, n_threads: int) -> LoadedModel:
        config = EngineConfig(
            model_path=self._path,
            num_workers=num_workers,
            n_threads=n_threads,
            max_batch_tokens=self._max_batch_tokens,
            cache_bytes=0,  # every text is to be computed
        ).checked()
        key = config.num_workers, config.n_threads
        if key not in self._models:
            self._models[key] = LoadedModel(config)
        return self._models[key]


def _submit(model: LoadedModel, job: Job[Embeddings]) -> "Future[Rows]":
    return model.backend.submit(job.tokens)
