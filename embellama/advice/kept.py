"""Keep the last report of `embellama bench` on this machine, for whoever shows it.

bench.py ──► Report ── keep ──► the cache folder: bench-KEY ── kept ──► the server's page

It is kept for this CPU, its cores and this build of llama.cpp and of our kernels (`CachedMeasurement`): another
build computes at another speed.
"""

import datetime

import msgspec

from embellama.advice.report import Report
from embellama.config import n_cores
from embellama.machine.devices import devices
from embellama.machine.measurements import CachedMeasurement


class KeptReport(msgspec.Struct, frozen=True):
    """A report, and when it was made.

    Attributes:
        measured_at: When, as ISO 8601 writes it, in UTC.
        report: All that was measured.
    """

    measured_at: str
    report: Report


def keep(report: Report) -> None:
    """Keep a report, in the place of the one before."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    _measurement().write(msgspec.json.encode(KeptReport(now, report)).decode())


def kept() -> KeptReport | None:
    """Return the last report of this machine; None if there is none that can be read."""
    found = _measurement().read()
    if found is None:
        return None
    try:
        return msgspec.json.decode(found, type=KeptReport)
    except msgspec.DecodeError:  # of another version
        return None


def _measurement() -> CachedMeasurement:
    cpus = [device.description for device in devices() if device.kind == "cpu"]
    return CachedMeasurement("bench", cpus, n_cores())
