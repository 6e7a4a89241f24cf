"""When work in the background may run: the times are the test's own."""

from embellama_server.workers.turns import QUIET_S, TURN_S, BackgroundTurns


def test_the_background_runs_where_nobody_has_asked() -> None:
    assert BackgroundTurns().may_run(0.0)


def test_it_waits_until_it_has_been_quiet_for_a_while() -> None:
    turns = BackgroundTurns()
    turns.ran(100.0)
    turns.request_came()
    assert not turns.may_run(100.0 + TURN_S / 2)
    turns.request_ended(101.0)
    assert not turns.may_run(101.0 + QUIET_S - 0.01)
    assert turns.may_run(101.0 + QUIET_S)


def test_it_gets_a_turn_beside_requests_that_never_pause() -> None:
    turns = BackgroundTurns()
    turns.ran(100.0)
    turns.request_came()
    assert not turns.may_run(100.0 + TURN_S - 0.01)
    assert turns.may_run(100.0 + TURN_S)
    turns.ran(100.0 + TURN_S)
    assert not turns.may_run(100.0 + TURN_S + QUIET_S)
