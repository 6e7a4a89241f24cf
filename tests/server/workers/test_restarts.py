"""Pauses between the deaths of workers and their next starts."""

from embellama_server.workers.restarts import MAX_DEATHS_A_MINUTE, Restarts, pause_s


def test_pauses_grow_to_fifteen_seconds() -> None:
    assert [pause_s(n) for n in (0, 1, 2, 6, 100)] == [0, 0.5, 1, 15, 15]


def test_a_worker_that_served_is_replaced_at_once_and_nothing_is_wrong() -> None:
    assert Restarts().after_death(0, 0, "it was killed", "") == (0, "")


def test_workers_that_die_before_they_compute_are_told_but_replace_no_earlier_trouble() -> None:
    restarts = Restarts()
    told = "2 workers in a row died before they computed anything, the last: it hung"
    assert restarts.after_death(0, 2, "it hung", "") == (1, told)
    assert restarts.after_death(0, 2, "it hung", "the file is gone") == (1, "the file is gone")


def test_too_many_deaths_in_a_minute_stop_starts_for_a_minute() -> None:
    restarts = Restarts()
    for n in range(MAX_DEATHS_A_MINUTE):
        assert restarts.after_death(n * 0.5, 0, "it hung", "")[0] == 0
    pause, trouble = restarts.after_death(30, 0, "it hung", "the file is gone")
    assert (pause, trouble) == (60, "61 workers died within a minute, the last because it hung")
    assert restarts.after_death(121, 0, "it hung", "") == (0, "")
    assert restarts.n == MAX_DEATHS_A_MINUTE + 2
