"""`ServerState`: the models that are served and the state of the whole server, shared by the parts of the front.

application.build ──► ServerState ──► app, web, exchange: read by all
                    └── ServedModel.submit ──► the back end: a model's worker processes

Used on the event loop only.
"""

import asyncio
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from embellama.backend import Backend, Caller, Times
from embellama.batch import Rows
from embellama.errors import EmbeddingFailed, ModelNotFound, Overloaded, Unavailable
from embellama.info import ModelInfo
from embellama.jobs import Job, Jobs
from embellama.text.prompt_versions import PromptVersions
from embellama.text.prompts import Prompts
from embellama_server.config import ServerConfig
from embellama_server.names import without_default_tag
from embellama_server.problems import NotAllowed
from embellama_server.telemetry.metrics import Metrics
from embellama_server.telemetry.request_log import RequestLog
from embellama_server.tokenizing import TokenizeThread
from embellama_server.workers.dispatcher import Dispatcher, retry_after_s

if TYPE_CHECKING:  # it needs the extra `otel`
    from embellama_server.telemetry.traces import Tracer

# Where a step before the app leaves the names of the only models that a request may use, in its scope.
ALLOWED_MODELS = "embellama.allowed_models"


#: What so many tokens cost of a caller's.
Cost = Callable[[int], int]

#: Makes a back end around another one, which charges callers for the tokens that it is given.
Charge = Callable[["Backend[asyncio.Future[Rows]]", Cost], "Backend[asyncio.Future[Rows]]"]


class SubmittedJob:
    """A job that a back end was given, and the future of its rows."""

    def __init__(self, job: Job[Any], future: "asyncio.Future[Rows]"):
        self.job = job
        self._future = future

    async def rows(self) -> Rows:
        """Wait for the rows that `Job.finish` takes; an error about a text names the caller's text."""
        try:
            return await self._future
        except EmbeddingFailed as error:
            raise self.job.named(error) from None

    def cancel(self) -> None:
        """Drop the texts that no worker computes yet."""
        self._future.cancel()


class OpenRequests:
    """Counts requests that use a model: each does so in a `with` block."""

    def __init__(self) -> None:
        self._n = 0
        self._none = asyncio.Event()
        self._none.set()

    async def ended(self) -> None:
        """Wait until there are none."""
        await self._none.wait()

    def __enter__(self) -> None:
        self._n += 1
        self._none.clear()

    def __exit__(self, *_: object) -> None:
        self._n -= 1
        if not self._n:
            self._none.set()


class ServedModel(NamedTuple):
    """A model that is served.

    config: The model's settings.
    jobs: Makes jobs of texts.
    info: The model's description.
    dispatcher: Starts the model's worker processes, and replaces them.
    backend: Takes the model's jobs, and says how the workers are: the dispatcher, or a back end around it.
    created: The time of the model's file, in seconds since 1970.
    digest: Tells the model's file from any other: 64 hexadecimal digits, as Ollama lists them.
    weights_sha256: Hash of the content of all its files, in hexadecimal digits.
    requests: Requests that use it, from when they found it until they are answered.
    """

    config: ServerConfig
    jobs: Jobs
    info: ModelInfo
    dispatcher: Dispatcher
    backend: "Backend[asyncio.Future[Rows]]"
    created: int
    digest: str
    weights_sha256: str
    requests: OpenRequests

    def submit(self, job: Job[Any], deadline: float, times: Times, caller: Caller) -> SubmittedJob:
        """Give a job with at least one text to the back end.

        Args:
            job: The job.
            deadline: When the job fails with `DeadlineExceeded`, on the event loop's clock.
            times: Filled in with when a worker began with it.
            caller: Who asks.

        Raises:
            ServiceError: The job cannot be computed in time.
            EmbeddingFailed: A text killed workers not long ago.
        """
        try:
            future = self.backend.submit(job.tokens, kind=job.kind, deadline=deadline, times=times, caller=caller)
        except EmbeddingFailed as error:
            raise job.named(error) from None
        return SubmittedJob(job, future)

    def with_prompts(self, prompts: Prompts) -> "ServedModel":
        """Return the same model, its workers and requests too, with other prompts for requests to come."""
        info = msgspec.structs.replace(self.info, prompts=prompts.names)
        return self._replace(jobs=self.jobs.with_prompts(prompts), info=info)

    async def close(self, *, at_once: bool) -> None:
        """Close the back end, once no worker is left; with `at_once`, without waiting for their current batches."""
        if at_once:
            await self.dispatcher.close(at_once=True)
        if (closing := self.backend.close()) is not None:
            await closing


class ServerState:
    """State that the parts of the front share.

    Attributes:
        config: The server's settings; each model has its own beside them.
        models: By name; requests that name no model get the first one.
        names: The model of every name and alias, without the default tag.
        leaving: Models that get no more requests, and are closed once those they have are answered.
        metrics: Counts what happens.
        charge: Has callers charged, if they are.
        prompt_versions: The content of each version of a prompt that was offered.
        tracer: Makes spans of requests, if they are to be traced.
        request_log: Writes a line for each request of a dialect, if there is a folder for them.
        tokenizing: The thread for requests that are too long to tokenize on the event loop.
        tokenizing_huge: Another for requests so large that others must not wait for them.
        reading: Timeouts of requests whose body is still coming.
        at_stop: Called when the server is told to stop, to end what would go on for ever.
        stopping: Whether the server was told to stop.
        n_unanswered: Requests that had arrived when the server stopped, and were not answered in time.
        n_held_bytes: Bytes of requests and replies that are held (`HeldBytes`).
    """

    def __init__(
        self,
        config: ServerConfig,
        models: list[ServedModel],
        metrics: Metrics,
        charge: Charge | None = None,
        tracer: "Tracer | None" = None,
        request_log: RequestLog | None = None,
    ):
        self.config = config
        self.models: dict[str, ServedModel] = {}
        self.names: dict[str, ServedModel] = {}
        self.prompt_versions = PromptVersions()
        self.leaving: list[ServedModel] = []
        self.metrics, self.charge, self.tracer, self.request_log = metrics, charge, tracer, request_log
        for model in models:
            self.serve(model)
        self.tokenizing, self.tokenizing_huge = TokenizeThread(config), TokenizeThread(config)
        self.reading: set[asyncio.Timeout] = set()
        self.at_stop: list[Callable[[], None]] = []
        self.stopping = False
        self.n_unanswered = 0
        self.n_held_bytes = 0

    @property
    def unready(self) -> str:
        """Why the server is not ready: a model has no worker that reproduced its canary, or it stops; "" if it is."""
        missing = [name for name, model in self.models.items() if not model.backend.state.n_ready]
        if self.stopping:
            return "stopping"
        return f"no worker is ready for {', '.join(missing)}" if missing else ""

    def stop_reading(self) -> None:
        """Give up on requests that have not wholly arrived, and on endless answers: the server stops."""
        self.stopping = True
        for end in self.at_stop:
            end()
        for timeout in self.reading:
            timeout.reschedule(asyncio.get_running_loop().time())

    def serve(self, model: ServedModel) -> None:
        """Give a model the requests for its names from now on, also those that another one of its name had."""
        self.models[model.info.name] = model
        self.prompt_versions.note(model.info.name, model.jobs.prompts)
        self._models_changed()

    def stop_serving(self, model: ServedModel) -> None:
        """Give a model no more requests."""
        del self.models[model.info.name]
        self._models_changed()

    def _models_changed(self) -> None:
        self.names = {name: model for model in self.models.values() for name in model.config.names}
        self.metrics.pools.clear()
        self.metrics.pools.update({name: model.backend for name, model in self.models.items()})

    def model(self, name: str | None, allowed: Collection[str] = ()) -> ServedModel:
        """Find a model by name or alias, or the first one.

        Args:
            name: A name; None for the first model.
            allowed: Names of the only models that may be used; none for all.

        Raises:
            ModelNotFound: There is none of that name.
            NotAllowed: It may not be used.
        """
        models = self.models_allowed(allowed)
        if name is None and models:
            return next(iter(models.values()))
        found = None if name is None else self.names.get(without_default_tag(name))
        if found and found.config.model_name in models:
            return found
        if found or name is None:
            raise NotAllowed(f"the API key may not use {name or 'any model that is served here'!r}", "model")
        raise ModelNotFound(name, [each for each in self.names if self.names[each].config.model_name in models])

    def models_allowed(self, allowed: Collection[str]) -> dict[str, ServedModel]:
        """Return the models of these names or aliases, or all for none."""
        if not allowed:
            return self.models
        names = {without_default_tag(name) for name in allowed}
        return {
            name: model
            for name, model in self.models.items()
            if names & {without_default_tag(each) for each in (name, *model.config.aliases)}
        }

    def check_room(self, caller: Caller) -> None:
        """Raise `Overloaded` or `Unavailable` if no model could take any request of this caller now."""
        for i, model in enumerate(self.models.values(), 1):
            try:
                return model.backend.check_room(caller)
            except (Overloaded, Unavailable):
                if i == len(self.models):
                    raise

    def overloaded(self, reason: str) -> Overloaded:
        """Make an error whose `retry_after_s` is that of the model with the most to do."""
        pools = [model.backend.state for model in self.models.values()]
        return Overloaded(reason, max(retry_after_s(pool.waiting_tokens, pool.rate) for pool in pools))
