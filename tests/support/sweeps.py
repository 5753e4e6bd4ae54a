"""Sweeps as processes: started, stopped, killed, and what is left of them (Linux)."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tests.support.runs import environment
from tests.support.waiting import wait_until

SITE = """
# Puts the stand-in `worker.py` beside this file in the place of llmtrain's.
import pathlib, llmtrain
llmtrain.__path__.insert(0, str(pathlib.Path(__file__).parent / "stand_in"))
"""

WORKER = """
# Trains nothing: it waits to be told how to end, by a file `end/<train.seed>`.
import json, os, pathlib, signal, sys, time
import yaml
from llmtrain.launch.environment import usable_cores
from llmtrain.lifeline import die_with_parent
die_with_parent()
run_dir = pathlib.Path(sys.argv[1])
words = yaml.safe_load((run_dir / "overrides.yaml").read_text())
seed = dict(word.split("=", 1) for word in words)["train.seed"]
told = []
signal.signal(signal.SIGINT, lambda *_: told.append("stopped"))
signal.signal(signal.SIGTERM, lambda *_: told.append("preempted"))
with (run_dir / "starts").open("a") as stream:
    seen = {"cores": usable_cores(), "threads": os.environ["OMP_NUM_THREADS"]}
    stream.write(json.dumps(seen) + "\\n")

def end(code, **result):
    (run_dir / "result.tmp").write_text(json.dumps({"step": 1, **result}))
    (run_dir / "result.tmp").rename(run_dir / "result.json")
    sys.exit(code)

order = pathlib.Path("end") / seed
while not told:
    if order.exists() and (text := order.read_text()) == "fail":
        end(1, status="failed", error="it was told to")
    elif order.exists() and text:
        end(0, status="completed", train_loss=float(text), val_loss=float(text))
    time.sleep(0.02)
end(130 if told[0] == "stopped" else 143, status=told[0])
"""


class Sweeps:
    """A folder in which sweeps run."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.env = environment(LLMTRAIN_CACHE=str(folder / "cache"))
        (folder / "end").mkdir(exist_ok=True)

    def stand_in(self) -> None:
        """Put workers that train nothing in the place of real ones."""
        site = self.folder / "site"
        (site / "stand_in").mkdir(parents=True)
        (site / "sitecustomize.py").write_text(SITE)
        (site / "stand_in" / "worker.py").write_text(WORKER)
        given = self.env.get("PYTHONPATH")
        self.env.pop("OMP_NUM_THREADS", None)  # the launcher is to divide the cores
        self.env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), given]))

    def end(self, seed: int, how: str) -> None:
        """Have the stand-in of this seed end: "fail", or complete with that loss."""
        (self.folder / "end" / str(seed)).write_text(how)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start `llmtrain train` with `words`."""
        return subprocess.Popen(
            [sys.executable, "-m", "llmtrain", "train", *words], cwd=self.folder, env=self.env,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def sweep(self) -> Path:
        """Return the folder of the one sweep there is."""
        (found,) = self.folder.glob("sweeps/*/*/sweep.json")
        return found.parent

    def jobs(self) -> list[dict[str, Any]]:
        """Return what sweep.json says of the jobs; none where it is not there yet."""
        found = list(self.folder.glob("sweeps/*/*/sweep.json"))
        return json.loads(found[0].read_text())["jobs"] if found else []

    def statuses(self) -> list[str]:
        """Return the status of every job."""
        return [job["status"] for job in self.jobs()]

    def starts(self, number: int) -> list[dict[str, Any]]:
        """Return what the stand-ins of a job told, one entry a start."""
        path = self.sweep() / str(number) / "starts"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def processes(self) -> list[int]:
        """Return every live process that this folder's sweeps have started."""
        found = []
        for entry in Path("/proc").iterdir():
            try:
                # Workers are known by LLMTRAIN_CACHE alone, whatever their command line is.
                words = [
                    word for source in ("cmdline", "environ")
                    for word in (entry / source).read_bytes().decode(errors="replace").split("\0")
                ]  # fmt: skip
                state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            except OSError:
                continue
            ours = any(str(self.folder) in word for word in words)
            if entry.name.isdigit() and ours and state != "Z" and int(entry.name) != os.getpid():
                found.append(int(entry.name))
        return found

    def close(self) -> None:
        """Kill what is left, so that a test that fails leaves nothing."""
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)


def finish(process: subprocess.Popen[str], code: int, deadline_s: float = 240) -> tuple[str, str]:
    """Wait for a sweep, which must end with `code`; return stdout and stderr."""
    out, err = process.communicate(timeout=deadline_s)
    assert process.returncode == code, f"{process.returncode}\n{out}\n{err}"
    return out, err


def await_statuses(sweeps: Sweeps, wanted: Sequence[str]) -> None:
    """Wait until the jobs have these statuses."""
    wait_until(lambda: sweeps.statuses() == list(wanted), f"{wanted}, not {sweeps.statuses()}")
