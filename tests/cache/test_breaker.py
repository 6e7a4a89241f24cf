"""When a service that fails is left alone."""

from embellama.cache.breaker import FIRST_PAUSE_S, MAX_LATE, MAX_PAUSE_S, Breaker


def test_one_that_works_is_asked() -> None:
    breaker = Breaker(late_s=1)
    breaker.answered(0.5, now=0)
    assert breaker.allows(0)
    assert not breaker.is_open


def test_pauses_grow_while_it_fails_and_end_when_it_answers() -> None:
    breaker = Breaker(late_s=1)
    now, pauses = 0.0, []
    for _ in range(10):
        breaker.failed(now)
        pause = FIRST_PAUSE_S
        while not breaker.allows(now + pause):
            pause *= 2
        pauses.append(pause)
        now += pause
    assert pauses[:3] == [FIRST_PAUSE_S, 2 * FIRST_PAUSE_S, 4 * FIRST_PAUSE_S]
    assert breaker.allows(now + MAX_PAUSE_S)
    breaker.answered(0.5, now)
    breaker.failed(now)
    assert breaker.allows(now + FIRST_PAUSE_S)


def test_answers_that_are_always_late_are_a_failure() -> None:
    breaker = Breaker(late_s=1)
    for _ in range(MAX_LATE - 1):
        breaker.answered(2, now=0)
    breaker.answered(0.5, now=0)
    for _ in range(MAX_LATE - 1):
        breaker.answered(2, now=0)
        assert breaker.allows(0)
    breaker.answered(2, now=0)
    assert not breaker.allows(0)
