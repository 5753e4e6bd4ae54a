"""A real Slurm of two nodes on this machine, for as long as a test needs it.

    with cluster(folder) as slurm:
        slurm.run("sbatch", "--parsable", script)

Everything lies in `folder`: configuration, munge's key and socket, states, logs. The daemons are
children of this process on ports of their own, so several clusters may run at once, and none
outlives its test. Each node is a slurmd in UTS and mount namespaces of its own: it has a name of
its own, and an /etc/hosts that knows the nodes, without a change to the machine's. All nodes are
127.0.0.1: what this shows is the life of jobs; hosts with addresses of their own are in hosts.py.

It needs root and Debian's packages, which root installs where there is apt-get.
"""

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

PACKAGES = ("slurmctld", "slurmd", "slurm-client", "munge")
PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "scontrol", "squeue", "munged", "unshare",
            "setpriv")  # fmt: skip
NODES = ("node1", "node2")

CALL_S = 60.0
"""How long one call of a Slurm command may take: one whose daemons are gone waits for ever."""
START_S = 60.0

CONF = """
ClusterName=test
FirstJobId={first_job}
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ctld}
# A run's own port is 20000 + the job's id: two clusters on one machine must not share ids.
SrunPortRange={srun_first}-{srun_last}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state/ctld
SlurmdSpoolDir={folder}/state/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=30
MailProg=/bin/true
MpiDefault=none
SwitchType=switch/none
SlurmdParameters=config_overrides
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=60
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""
"""Every node has two cores. A job of `main` makes room for one of `urgent` within GraceTime."""


def why_not() -> str | None:
    """Return why no Slurm can be started here; None: it can. Installs its packages as root."""
    if not sys.platform.startswith("linux"):
        return "Slurm runs on Linux"
    if os.geteuid() != 0:
        return "a Slurm of our own needs root (namespaces, slurmd)"
    if _missing() and shutil.which("apt-get"):
        _install()
    if missing := _missing():
        lacks = ", ".join(missing)
        return f"no {lacks}: apt-get install {' '.join(PACKAGES)} (Debian) could not be done"
    probe = subprocess.run(["unshare", "--uts", "--mount", "true"], capture_output=True, timeout=30)
    return None if probe.returncode == 0 else f"no namespaces here: {probe.stderr.decode().strip()}"


def _missing() -> list[str]:
    return [program for program in PROGRAMS if shutil.which(program) is None]


def _install() -> None:
    # RUNLEVEL=1: Debian's own services are not started.
    env = {**os.environ, "DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}
    install = ["apt-get", "install", "-y", "--no-install-recommends", *PACKAGES]
    for command in (["apt-get", "update"], install):
        with contextlib.suppress(subprocess.TimeoutExpired):
            subprocess.run(command, env=env, capture_output=True, timeout=300, check=False)


@dataclass
class Cluster:
    """Two nodes, and how to talk to them."""

    folder: Path
    daemons: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def conf(self) -> Path:
        """Its slurm.conf."""
        return self.folder / "slurm.conf"

    @property
    def env(self) -> dict[str, str]:
        """The environment in which Slurm's commands talk to it."""
        return {"SLURM_CONF": str(self.conf)}

    def run(
        self, *command: str | Path, env: Mapping[str, str] | None = None, check: bool = True,
        timeout: float = CALL_S,
    ) -> subprocess.CompletedProcess[str]:  # fmt: skip
        """Run `command` as a user of the cluster."""
        done = subprocess.run(
            list(map(str, command)), env={**os.environ, **(env or {}), **self.env}, text=True,
            capture_output=True, timeout=timeout, check=False,
        )  # fmt: skip
        assert not check or done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done

    def job(self, job_id: str) -> dict[str, str]:
        """Return what `scontrol show job` says of a job."""
        words = self.run("scontrol", "show", "job", "-o", job_id).stdout.split()
        return dict(word.partition("=")[::2] for word in words)

    def state(self, job_id: str) -> str:
        """Return the state of a job: PENDING, RUNNING, COMPLETED ..."""
        return self.job(job_id)["JobState"]

    def processes(self) -> list[int]:
        """Return every process of its jobs: they inherit SLURM_CONF, and SLURM_JOB_ID."""
        mark = f"SLURM_CONF={self.conf}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "environ").read_bytes().split(b"\0")
            except (OSError, NotADirectoryError):
                continue
            if mark in words and any(word.startswith(b"SLURM_JOB_ID=") for word in words):
                found.append(int(entry.name))
        return found

    def start(self, *command: str) -> None:
        """Start a daemon, which ends with this process."""
        output = self.folder / "log" / f"{Path(command[0]).name}{len(self.daemons)}.out"
        with output.open("wb") as stream:
            daemon = subprocess.Popen(
                ["setpriv", "--pdeathsig", "TERM", *command], stdin=subprocess.DEVNULL,
                stdout=stream, stderr=stream, env={**os.environ, **self.env},
            )  # fmt: skip
        self.daemons.append(daemon)

    def stop(self) -> None:
        """End all jobs, then all daemons; kill by process id what is left of jobs."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            ids = self.run("squeue", "-h", "-o", "%A", check=False, timeout=15).stdout.split()
            if ids:
                self.run("scancel", "--full", "--signal=KILL", *ids, check=False, timeout=15)
                self.run("scancel", *ids, check=False, timeout=15)
            _wait(lambda: not self.processes(), 15.0)
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for daemon in reversed(self.daemons):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait(20)


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Yield a cluster whose nodes are idle, in `folder`; end it and its jobs."""
    slurm = Cluster(folder)
    for name in ("log", "state/ctld", *(f"state/{node}" for node in NODES)):
        (folder / name).mkdir(parents=True, exist_ok=True)
    port = _free_ports()
    nodes = [
        f"NodeName={node} NodeHostname={node} NodeAddr=127.0.0.1 Port={port + 1 + number} CPUs=2 "
        f"RealMemory=4000 State=UNKNOWN"
        for number, node in enumerate(NODES)
    ]
    conf = CONF.format(
        first_job=random.randrange(1, 4000), host=socket.gethostname(), folder=folder, ctld=port,
        nodes="\n".join(nodes), srun_first=port + 10, srun_last=port + PORTS - 1,
    )  # fmt: skip
    slurm.conf.write_text(conf)
    hosts = folder / "hosts"
    hosts.write_text(Path("/etc/hosts").read_text() + f"\n127.0.0.1 {' '.join(NODES)}\n")
    try:
        _start_daemons(slurm, hosts)
        up = ("sinfo", "-h", "-N", "-t", "idle", "-p", "main", "-o", "%N")
        idle = _wait(lambda: len(slurm.run(*up, check=False).stdout.split()) == len(NODES), START_S)
        assert idle, f"Slurm did not start: {_tail(folder / 'log')}"
        yield slurm
    finally:
        slurm.stop()


def _start_daemons(slurm: Cluster, hosts: Path) -> None:
    folder = slurm.folder
    key, sock = folder / "munge.key", folder / "munge.socket"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    slurm.start(
        "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={sock}",
        f"--pid-file={folder}/munged.pid", f"--log-file={folder}/log/munged.log",
        f"--seed-file={folder}/munge.seed",
    )  # fmt: skip
    assert _wait(sock.exists, START_S), f"munged did not start: {_tail(folder / 'log')}"
    slurm.start("slurmctld", "-D", "-i", "-f", str(slurm.conf))
    inside = 'mount --bind "$0" /etc/hosts && hostname "$1" && exec slurmd -D -N "$1" -f "$2"'
    for node in NODES:
        slurm.start(
            "unshare", "--mount", "--uts", "sh", "-c", inside, str(hosts), node, str(slurm.conf)
        )


PORTS = 100
"""Ports of a cluster: the controller's, the nodes', and those of srun from the tenth on."""


def _free_ports() -> int:
    """Return the first of PORTS ports, below those that the kernel gives out by itself."""
    for _ in range(100):
        first = 24000 + PORTS * random.randrange(80)
        with contextlib.ExitStack() as probes:
            try:
                for port in range(first, first + PORTS):
                    probe = probes.enter_context(socket.socket())
                    probe.bind(("", port))
            except OSError:
                continue
            return first
    raise AssertionError("no free ports")


def _wait(condition: object, deadline_s: float) -> bool:
    end = time.monotonic() + deadline_s
    while not condition():  # type: ignore[operator]
        if time.monotonic() > end:
            return False
        time.sleep(0.1)
    return True


def _tail(folder: Path) -> str:
    parts = (f"{path.name}: {path.read_text(errors='replace')[-800:]}" for path in folder.iterdir())
    return "\n".join(parts)


def main(argv: Sequence[str]) -> None:
    """Start a cluster in the folder named, and keep it until this process is ended."""
    if reason := why_not():
        sys.exit(reason)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    with cluster(Path(argv[0]).absolute()) as slurm:
        print(f"export SLURM_CONF={slurm.conf}", flush=True)
        with contextlib.suppress(KeyboardInterrupt):
            signal.pause()


if __name__ == "__main__":
    main(sys.argv[1:])
