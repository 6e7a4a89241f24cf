"""The error tree: it crosses processes, and the server has a status for each."""

import pickle

import pytest
from embellama_server import problems

from embellama import errors

EXAMPLES = [
    errors.ConfigError("n_ctx is -1"),
    errors.WrongThread("minilm", "thread 'A' of process 1", "pickled"),
    errors.InputError("texts is one str"),
    errors.EmptyInput(3),
    errors.EmptyInput(None),
    errors.TextTooLong(1, 600, 512),
    errors.InvalidText(1, "is int, not str"),
    errors.InvalidToken(0, 99, 10),
    errors.InvalidOption("dimensions", "is 0; this model gives 1 to 384"),
    errors.PromptError("query", "needs the field 'title'"),
    errors.ModelNotFound("x", ["y"]),
    errors.ModelError("it broke"),
    errors.ModelLoadError("m.gguf", "not GGUF"),
    errors.EmbeddingFailed(2, "not finite"),
    errors.ServiceError("later"),
    errors.Overloaded("4 requests are waiting already", 2.5),
    errors.Unavailable("starting"),
    errors.DeadlineExceeded(100),
    problems.BadRequest("input is empty", "input"),
]

STATUSES = {
    errors.EmptyInput: (400, None),
    errors.TextTooLong: (400, "context_length_exceeded"),
    errors.InvalidText: (400, None),
    errors.InvalidToken: (400, None),
    errors.PromptError: (400, None),
    errors.ModelNotFound: (404, "model_not_found"),
    errors.EmbeddingFailed: (500, "model_error"),
    errors.Overloaded: (503, "overloaded"),
    errors.Unavailable: (503, "unavailable"),
    errors.DeadlineExceeded: (504, "timeout"),
    problems.BadRequest: (400, None),
    problems.BodyTooSlow: (408, "request_timeout"),
    problems.BodyTooLarge: (413, "request_too_large"),
    problems.NotFound: (404, "not_found"),
    problems.MethodNotAllowed: (405, "method_not_allowed"),
}


@pytest.mark.parametrize("error", EXAMPLES, ids=repr)
def test_every_error_survives_pickling(error: errors.EmbellamaError) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_the_examples_and_the_tree_are_whole() -> None:
    tree = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    assert tree - {type(error) for error in EXAMPLES} == {errors.EmbellamaError}
    assert all(kind.__name__ in (errors.__doc__ or "") for kind in tree)


@pytest.mark.parametrize("error", EXAMPLES, ids=repr)
def test_every_error_has_a_status_and_openai_body(error: errors.EmbellamaError) -> None:
    problem, headers = problems.problem_of(error)
    status, told = problem.status, problems.openai_error(problem)["error"]
    if type(error) in STATUSES:
        assert (status, told["code"]) == STATUSES[type(error)]
    assert {"message", "type", "param", "code"} <= told.keys()
    assert (status < 500) == (told["type"] == "invalid_request_error")
    assert ("retry-after" in headers) == (status == 503)
    index = getattr(error, "index", None)
    assert told.get("index") == index
    if index is not None:
        assert told["param"] == "input"


def test_an_unexpected_error_tells_no_details() -> None:
    problem, _ = problems.problem_of(RuntimeError("secret"))
    assert problem.status == 500
    assert "secret" not in str(problems.openai_error(problem))
