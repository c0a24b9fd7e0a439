"""Kills a pod's program with SIGKILL, and again whenever it was started anew. Runs where a node's processes are seen.

    killer.py POD_UID PROGRAM FILE     begins when FILE appears, and goes on until it is ended itself
"""

import os
import signal
import sys
import time
from pathlib import Path

uid, program, begin = sys.argv[1:]
# How a pod's cgroup is called: by kubelets with the driver cgroupfs, and with systemd.
POD = (f"pod{uid}", f"pod{uid.replace('-', '_')}")


def processes():
    for process in Path("/proc").glob("[0-9]*"):
        try:
            # The program by name: killed with it, the pod's sandbox would take the whole pod along.
            if (process / "comm").read_text().strip() != program:
                continue
            cgroups = (process / "cgroup").read_text()
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended
        if any(pod in cgroups for pod in POD):
            yield int(process.name)


while not os.path.exists(begin):
    time.sleep(0.02)
while True:
    for pid in processes():
        try:
            os.kill(pid, signal.SIGKILL)
            print(f"{time.time():.3f} killed {pid}", flush=True)
        except ProcessLookupError:
            pass
    time.sleep(0.02)
