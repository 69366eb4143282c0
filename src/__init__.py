"""lightning-starter; README.md describes the folders."""

import os
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
"""The project folder, which holds `configs/`, `data/` and `logs/`; independent of the working directory."""


def others_are_busy(loadavg: Path = Path("/proc/loadavg")) -> bool:
    """Whether other programs keep busy some of the cores that this one's threads would use.

    False if the system does not say how many threads are ready to run. Only Linux does, for the whole machine.
    """
    try:
        ready = []
        for _ in range(5):
            ready.append(int(loadavg.read_text().split()[3].partition("/")[0]) - 1)  # without this one
            time.sleep(0.002)
        return min(ready) > (os.cpu_count() or 1) - len(os.sched_getaffinity(0))
    except (OSError, ValueError, IndexError):
        return False


# Waiting threads spin, which is fastest on a quiet machine. Next to busy programs they sleep instead, or the threads
# they wait for would get no core. Set before torch is imported; the user's own setting stays, and the
# processes that this one starts keep what is set here. 300000 is what libgomp uses if nothing is set.
if not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys():
    os.environ.update({"OMP_WAIT_POLICY": "PASSIVE"} if others_are_busy() else {"GOMP_SPINCOUNT": "300000"})
