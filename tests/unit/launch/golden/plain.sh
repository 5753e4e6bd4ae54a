#!/bin/bash
#SBATCH --job-name=books
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output="/scratch/runs/books/1/logs/slurm-%j.out"

nodes=1
max_restarts=0
max_requeues=100
resend_s=30
max_tries=15 pause_s=10
job=$SLURM_JOB_ID
run_dir=/scratch/runs/books/1 arguments=(--nproc-per-node 8)
cancelled="$run_dir/slurm/cancelled"
step=(--ntasks-per-node=1 --kill-on-bad-exit=1)
agent=(/usr/bin/python3 -P -m llmtrain.agent "$run_dir" "${arguments[@]}")
outcome=(/usr/bin/python3 -P -m llmtrain.launch.outcome "$run_dir")

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

export PYTHONPATH=/scratch/runs/books/1/code${PYTHONPATH:+:$PYTHONPATH}

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
