"""Workers that are killed, stopped, replaced or die by themselves under load: no request may notice."""

import random
import shutil
import signal
from pathlib import Path

import httpx
import pytest

from tests.conftest import Reference, wait_until
from tests.faults.conftest import Crowd, FaultyServer, StartFaulty, are_vectors_of

pytestmark = [pytest.mark.server, pytest.mark.model]


def pids(server: FaultyServer) -> set[int]:
    return {worker.pid for worker in server.workers()}


def wait_replaced(server: FaultyServer, old: set[int]) -> None:
    """Wait until none of the old workers is left and as many new ones are ready."""
    wait_until(lambda: not pids(server) & old and len(pids(server)) == len(old), "all are replaced")
    server.wait_ready()


def test_kill_9_of_random_workers_under_load_fails_no_request(
    start_faulty: StartFaulty, model_path: str, reference: Reference
) -> None:
    choose = random.Random(0)
    with start_faulty("--model-path", model_path, "--workers", "2") as server:
        crowd = Crowd(server, reference)
        for _ in range(4):
            crowd.wait_answers(40)
            choose.choice(server.workers()).kill()
        crowd.wait_answers(40)
        crowd.assert_all_right()
        server.wait_ready()
        assert len(server.workers()) == 2


def test_losing_every_worker_at_once_loses_no_accepted_request(
    start_faulty: StartFaulty, model_path: str, reference: Reference
) -> None:
    with start_faulty("--model-path", model_path, "--workers", "2") as server:
        crowd = Crowd(server, reference)
        crowd.wait_answers(40)
        for worker in server.workers():
            worker.kill()
        server.wait_ready()
        crowd.wait_answers(40)
        crowd.stop()
        assert set(crowd.answers) <= {"right", "503"}, "with no worker at all, new requests may be refused"


def test_a_stopped_worker_is_replaced_and_its_work_done_elsewhere(
    start_faulty: StartFaulty, model_path: str, reference: Reference
) -> None:
    flags = ("--model-path", model_path, "--workers", "2", "--worker-timeout-ms", "500")
    with start_faulty(*flags) as server:
        crowd = Crowd(server, reference)
        crowd.wait_answers(40)
        victim = server.workers()[0]
        victim.send_signal(signal.SIGSTOP)
        crowd.wait_answers(N_STUCK)
        wait_until(lambda: not victim.is_running(), "it is killed")
        crowd.wait_answers(40)
        crowd.assert_all_right()
        server.wait_ready()
        assert "has not answered within" in server.log.read_text()


# More answers than the other worker can give to clients of which some wait for the stopped one: all are answered.
N_STUCK = 200


@pytest.mark.parametrize("n_workers", [1, 2])
def test_sighup_under_load_replaces_every_worker_and_fails_no_request(
    start_faulty: StartFaulty, model_path: str, reference: Reference, n_workers: int
) -> None:
    with start_faulty("--model-path", model_path, "--workers", str(n_workers)) as server:
        crowd = Crowd(server, reference)
        crowd.wait_answers(40)
        old = pids(server)
        # A service manager or a terminal signals the whole group.
        for process in (*server.workers(), server.process):
            process.send_signal(signal.SIGHUP)
        wait_replaced(server, old)
        crowd.wait_answers(40)
        crowd.assert_all_right()
        assert "died" not in server.log.read_text()


def test_a_worker_that_leaks_is_replaced_after_its_batch(
    start_faulty: StartFaulty, model_path: str, reference: Reference
) -> None:
    # A fresh worker takes some 70 MB of its own; a batch here leaks 17.
    flags = ("--model-path", model_path, "--workers", "2", "--max-worker-memory", str(200 << 20))
    with start_faulty(*flags, hook="leaks", constants=("workers.supervisor.MEMORY_S=0.2",)) as server:
        old = pids(server)
        crowd = Crowd(server, reference)
        wait_until(lambda: not pids(server) & old, "both are replaced")
        crowd.assert_all_right()
        assert "max_worker_memory is" in server.log.read_text()
        assert "died" not in server.log.read_text()


def test_a_worker_that_drifts_is_replaced_even_under_load(
    start_faulty: StartFaulty, model_path: str, reference: Reference, tmp_path: Path
) -> None:
    flags = ("--model-path", model_path, "--workers", "2")
    with start_faulty(*flags, hook="drifts", constants=("workers.supervisor.CANARY_S=0.3",)) as server:
        crowd = Crowd(server, reference)
        crowd.wait_answers(40)
        (tmp_path / "drift").touch()
        wait_until(lambda: "its canary has cosine" in server.log.read_text(), "it is found out")
        server.wait_ready()
        crowd.stop()
        assert set(crowd.answers) <= {"right", "wrong"}, "nobody failed; until it was found out, vectors may be wrong"
        crowd = Crowd(server, reference)
        crowd.wait_answers(40)
        crowd.assert_all_right()


def test_a_deleted_model_file_is_told_and_the_others_serve_on(
    start_faulty: StartFaulty, own_model: Path, reference: Reference
) -> None:
    with start_faulty("--model-path", str(own_model), "--workers", "2") as server:
        own_model.unlink()
        server.workers()[0].kill()
        wait_until(lambda: "reason" in server.health(), "health tells of it")
        assert server.health()["status"] == "degraded"
        assert "No such file or directory" in str(server.health()["reason"])
        assert "No such file or directory" in server.log.read_text()
        assert "ended by signal 9 (SIGKILL)" in server.log.read_text()
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert are_vectors_of(server.post(reference.texts[:40]), reference, range(40))


def test_a_model_file_that_became_another_is_not_served(
    start_faulty: StartFaulty, own_model: Path, tiny_path: str, reference: Reference
) -> None:
    with start_faulty("--model-path", str(own_model), "--workers", "2") as server:
        shutil.copy(own_model, own_model.with_suffix(".kept"))
        other = Path(shutil.copy(tiny_path, own_model.with_suffix(".other")))
        other.replace(own_model)
        server.workers()[0].kill()
        wait_until(lambda: "reason" in server.health(), "health tells of it")
        assert server.health()["status"] == "degraded"
        assert are_vectors_of(server.post(reference.texts[:40]), reference, range(40))
        own_model.with_suffix(".kept").replace(own_model)
        server.wait_ready()
        assert "reason" not in server.health()


def test_workers_that_die_as_soon_as_they_load_are_started_ever_more_slowly(
    start_faulty: StartFaulty, tiny_path: str, tmp_path: Path
) -> None:
    (tmp_path / "die").touch()
    with start_faulty("--model-path", tiny_path, "--workers", "1", hook="dies", ready=False) as server:
        wait_until(lambda: "starting another in 2.0 s" in server.log.read_text(), "pauses have grown")
        assert (health := server.health())["status"] == "starting"
        assert "died before they computed anything" in str(health["reason"])
        assert httpx.get(f"{server.url}/health").status_code == 503
        assert server.post("a").status_code == 503
        log = server.log.read_text()
        assert [log.count(f"starting another in {pause} s") for pause in ("0.5", "1.0")] == [1, 1]
        (tmp_path / "die").unlink()
        server.wait_ready()
        assert "reason" not in server.health()
