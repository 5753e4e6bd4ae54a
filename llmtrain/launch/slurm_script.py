"""The batch script of a Slurm job: one agent a node, stopped in time, queued again, started again.

    Slurm --USR1--> script --TERM--> agents -> checkpoint -> 143 -> scontrol requeue -> same run_dir

What happened is told by what has been asked, not by exit codes alone (seen under Slurm 22.05):

- Ahead of the time limit the script alone gets USR1. It passes a TERM on with scancel, since srun,
  when it gets one itself, kills its step without a grace.
- A preemption with a GraceTime sends TERM to the steps alone, and PreemptTime says so; a script
  that ends by itself in that time would not be queued again by Slurm.
- A preemption without one, and `scancel`, send TERM to the script too; the first is queued again by
  Slurm, the second is to end.
- `scancel` leaves KillWait (30 s) for a save. `llmtrain cancel` signals the agents alone, which has
  no such limit, and leaves a file in the run directory that tells the script not to requeue.
- srun exits with 137 where a task was killed, whatever --kill-on-bad-exit makes of the others.

The last task of an array has the array's own id, so tasks are named by ARRAY_TASK.
"""

import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmtrain.config.groups.slurm import SlurmLauncherConfig
from llmtrain.launch.slurm import CANCELLED

FIRST_PORT, PORTS = 20000, 12000
"""Where ports of jobs are: below those that the kernel gives out by itself."""

RESEND_S = 30
"""How often agents are asked again: a signal is lost on a step that is still being made."""

TRIES, PAUSE_S = 15, 10
"""How often scontrol is tried, and how far apart: a backup controller takes over after two minutes
(SlurmctldTimeout), and none answers until then."""

CONNECT_S = 300
"""How long an agent tries to reach the first node, whose image may be pulled, whose Python may be
read from a busy file system, for longer than those of others."""


@dataclass(frozen=True)
class Task:
    """One run of a job."""

    run_dir: Path
    agent: Sequence[str]
    """Arguments of llmtrain.agent behind the run directory."""


FUNCTIONS = r"""
say() { printf '%s slurm: %s\n' "$(date +%FT%T)" "$*"; }

agents() {  # one on each node; returns their exit code
    srun "${step[@]}" --nodes="$nodes" --ntasks="$nodes" "${agent[@]}" &
    local srun=$!
    running=$srun
    [ "$asked" != USR1 ] || stop_agents  # asked for while srun was being started
    # A trap interrupts wait; the last one tells how it ended.
    while kill -0 "$srun" 2>/dev/null; do wait "$srun"; done
    wait "$srun"
}

stop_agents() {  # asked again until they have ended
    while kill -0 "$running" 2>/dev/null; do
        scancel --signal=TERM "$job"
        sleep "$resend_s"
    done &
}

told_to_end() { [ "$asked" = TERM ] || [ "$(cat "$cancelled" 2>/dev/null)" = "$job" ]; }

ask_slurm() {  # puts what scontrol says into `told`; tried again, as a failover takes a while
    local try
    for ((try = 1; try <= max_tries; try++)); do
        if told=$(scontrol "$@"); then return 0; fi
        if told_to_end; then return 1; fi
        say "scontrol $1 has failed, $try of $max_tries times"
        [ "$try" -eq "$max_tries" ] || sleep "$pause_s"
    done
    return 1
}

preempted() {
    if ask_slurm show job -o "$job"; then
        [[ $told =~ PreemptTime=[0-9] ]]
    else
        # No answer is not a no. Who was told to end meanwhile need not know.
        told_to_end || failed "stopped (exit code $code), and scontrol cannot say why"
        return 1
    fi
}

queue_again() {
    if ask_slurm requeue "$job"; then
        say "queued again, $((${SLURM_RESTART_COUNT:-0} + 1)) of $max_requeues times"
    elif ! told_to_end; then
        failed "out of time or preempted, and scontrol requeue fails: submit it again"
    fi
}

failed() {  # result.json says so, where the agents could not
    say "$1"
    srun "${step[@]}" --nodes=1 --ntasks=1 "${outcome[@]}" "$1"
    exit 1
}

asked='' running='' told='' restarts=0
trap 'asked=${asked:-USR1}; say "time is nearly up: saving"; [ -z "$running" ] || stop_agents' USR1
trap 'asked=TERM; say "told to end by Slurm: saving"' TERM
"""

LOOP = r"""
while [ -z "$asked" ] && ! told_to_end; do
    agents && code=0 || code=$?
    running=''
    # Killed from outside: start again. Everything else the agents have decided.
    if [ "$code" -le 128 ] || [ "$code" -eq 130 ] || [ "$code" -eq 143 ]; then break; fi
    if [ -n "$asked" ] || told_to_end || preempted || told_to_end; then break; fi
    if [ "$restarts" -ge "$max_restarts" ]; then
        failed "an agent was killed (exit code $code): launcher.max_restarts=$max_restarts"
    fi
    restarts=$((restarts + 1))
    say "an agent was killed (exit code $code): started again, $restarts of $max_restarts times"
done
code=${code:-143}
say "agents ended with exit code $code"

if [ "$code" -gt 128 ] && [ "$code" -ne 130 ] && ! told_to_end; then
    if [ "$asked" = USR1 ] || preempted; then
        if [ "${SLURM_RESTART_COUNT:-0}" -ge "$max_requeues" ]; then
            failed "out of time or preempted, not queued again: launcher.max_requeues=$max_requeues"
        fi
        queue_again
    fi
fi
if [ "$code" -gt 128 ] && [ "$asked" != TERM ] && told_to_end; then
    say "cancelled, and saved"
    trap '' TERM
    rm -f "$cancelled"
    scancel "$job" || true  # for the job's state: CANCELLED
fi
exit "$code"
"""


def render(
    launcher: SlurmLauncherConfig,
    tasks: Mapping[int, Task],
    *,
    job_name: str,
    code: Path,
    output: Path,
    is_array: bool,
) -> str:
    """Return the batch script.

    Args:
        launcher: What is asked for.
        tasks: The runs: number in the array -> run; a single job has one.
        job_name: What squeue calls it.
        code: The folder that holds the package `llmtrain` as it was submitted.
        output: Where what is printed goes, with Slurm's %-patterns and %% for a percent sign.
        is_array: Whether it is a job array.
    """
    lines = ["#!/bin/bash", *directives(launcher, job_name, output)]
    if is_array:
        limit = f"%{launcher.array_parallel}" if launcher.array_parallel else ""
        lines.append(f"#SBATCH --array={_ranges(tasks)}{limit}")
    lines += [
        "",
        f"nodes={launcher.nnodes}",
        f"max_restarts={launcher.max_restarts}",
        f"max_requeues={launcher.max_requeues}",
        f"resend_s={RESEND_S}",
        f"max_tries={TRIES} pause_s={PAUSE_S}",
    ]
    if is_array:
        lines += ["job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID", "case $SLURM_ARRAY_TASK_ID in"]
        lines += [f"{number}) {_task(task)} ;;" for number, task in tasks.items()]
        lines += ["esac"]
    else:
        [task] = tasks.values()
        lines += ["job=$SLURM_JOB_ID", _task(task)]
    lines.append(f'cancelled="$run_dir/{CANCELLED}"')
    lines += [*_commands(launcher), FUNCTIONS, *_environment(launcher, code), LOOP]
    return "\n".join(lines).replace("\n\n\n", "\n\n")


def directives(launcher: SlurmLauncherConfig, job_name: str, output: Path) -> list[str]:
    """Return the #SBATCH lines; what is null is left out."""
    gpus = launcher.gpus_per_node
    options = {
        "job-name": "".join(c if c.isalnum() or c in "._-" else "_" for c in job_name),
        "nodes": launcher.nnodes,
        "ntasks-per-node": 1,
        "cpus-per-task": launcher.cpus_per_node,
        "gpus-per-node": f"{launcher.gpu_type}:{gpus}" if launcher.gpu_type else gpus,
        "mem": launcher.mem,
        "time": launcher.time,
        "partition": launcher.partition,
        "account": launcher.account,
        "qos": launcher.qos,
        "constraint": launcher.constraint,
        "signal": f"B:USR1@{launcher.grace_s}",
    }
    lines = [f"#SBATCH --{name}={value}" for name, value in options.items() if value is not None]
    lines += ["#SBATCH --requeue", "#SBATCH --open-mode=append"]
    lines += [f"#SBATCH --output={_quoted(str(output))}"]
    return [*lines, *(f"#SBATCH {option}" for option in launcher.sbatch_options)]


def _quoted(path: str) -> str:
    """Return a path as a #SBATCH line takes it, which knows quotes and backslashes."""
    return '"' + path.replace("\\", "\\\\").replace('"', '\\"') + '"'


def _ranges(numbers: Mapping[int, Task]) -> str:
    """Return numbers as Slurm writes them: 0-2,5."""
    runs: list[list[int]] = []
    for number in sorted(numbers):
        if runs and runs[-1][-1] == number - 1:
            runs[-1][-1:] = [number] if len(runs[-1]) > 1 else [runs[-1][0], number]
        else:
            runs.append([number])
    return ",".join("-".join(map(str, run)) for run in runs)


def _task(task: Task) -> str:
    return f"run_dir={shlex.quote(str(task.run_dir))} arguments=({shlex.join(task.agent)})"


def _commands(launcher: SlurmLauncherConfig) -> list[str]:
    """Return the lines that put srun's options and the agent's command together."""
    options = ["--ntasks-per-node=1", "--kill-on-bad-exit=1"]
    if launcher.cpus_per_node is not None:
        # Since 22.05 srun does not take it from the batch job.
        options.append(f"--cpus-per-task={launcher.cpus_per_node}")
    if launcher.container_image is not None:
        options.append(f"--container-image={launcher.container_image}")
    if launcher.container_mounts:
        options.append(f"--container-mounts={','.join(launcher.container_mounts)}")
    options += launcher.srun_options
    python = [*launcher.command_prefix, launcher.python or sys.executable, "-P", "-m"]
    lines = [
        f"step=({shlex.join(options)})",
        f'agent=({shlex.join(python)} llmtrain.agent "$run_dir" "${{arguments[@]}}")',
        f'outcome=({shlex.join(python)} llmtrain.launch.outcome "$run_dir")',
    ]
    if launcher.nnodes == 1:
        return lines
    port = launcher.port or f"$(({FIRST_PORT} + SLURM_JOB_ID % {PORTS}))"
    return [
        *lines,
        'head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        f'agent+=(--nnodes "$nodes" --rdzv-endpoint "$head:{port}" '
        f"--connect-timeout-s {CONNECT_S})",
    ]


def _environment(launcher: SlurmLauncherConfig, code: Path) -> list[str]:
    """Return the lines that make the environment; what they take counts as training's time."""
    lines = [f"module load {shlex.quote(module)} || exit 1" for module in launcher.modules]
    # After what is loaded, which may set it too: the code that was submitted comes first.
    return [
        *lines,
        *launcher.setup,
        f"export PYTHONPATH={shlex.quote(str(code))}${{PYTHONPATH:+:$PYTHONPATH}}",
    ]
