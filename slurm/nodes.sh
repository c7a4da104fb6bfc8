# shellcheck shell=bash
# How a job goes on without a node that died; for common.sh, whose variables these are
# shellcheck disable=SC2034,SC2154
#
# Where sbatch was given --no-kill, Slurm takes a dead node out of the job and ends what ran on all of them but for the
# job's script, which then starts as many replicas as the nodes that are left have room for. A job without --no-kill is
# queued again by Slurm, and its script ends with that.

# This job as Slurm's commands know it: the number of an array, which is one task's too, stands for all of its tasks
job_name() { echo "${SLURM_ARRAY_TASK_ID:+${SLURM_ARRAY_JOB_ID}_}${SLURM_ARRAY_TASK_ID:-$SLURM_JOB_ID}"; }

# If the node of the script itself dies, nobody is left to end the job or to go on. So the next node asks now and then,
# and has the job queued again. Sets `guard`, the process that does
start_guard() {
    end_guard
    guard=""
    [[ $SBATCH_NO_KILL ]] && ((SLURM_JOB_NUM_NODES > 1)) || return 0
    srun --overlap --mpi=none --nodes=1 --ntasks=1 --ntasks-per-node=1 --exclude="$SLURMD_NODENAME" \
        bash -c "$(declare -f queue_again_without); queue_again_without $(job_name) $SLURMD_NODENAME" &>/dev/null &
    guard=$!
}

end_guard() {
    [[ ! $guard ]] || kill "$guard" 2>/dev/null || true
}

queue_again_without() { # JOB NODE
    local nodes
    # meant for the trainer
    trap "" USR1 USR2
    while sleep 20; do
        nodes=$(squeue --noheader --states=RUNNING --jobs="$1" --format=%N) && [[ $nodes ]] || continue
        scontrol show hostnames "$nodes" | grep -qx "$2" || break
    done
    scontrol requeue "$1" || scancel "$1"
}

REPLICAS='import sys
from parle_hpc.settings import load, settle
settings = load(sys.argv[2:])
settle(settings, int(sys.argv[1]))
print(settings.replicas)'

# Whether a node has died. Sets `left` and `nodes`, those that the job has and their number. Ranks may end of it minutes
# before Slurm knows; then a node does not answer
has_lost_a_node() {
    ((SLURM_JOB_NUM_NODES > 1)) || return 1
    local end=$((SECONDS + 1200))
    while
        read -r nodes left < <(squeue --noheader --states=RUNNING --jobs="$(job_name)" --format="%D %N") || return 1
        ((nodes == SLURM_JOB_NUM_NODES))
    do
        ! srun --overlap --mpi=none --ntasks="$nodes" --ntasks-per-node=1 true &>/dev/null || return 1
        ((SECONDS < end)) || return 1
        sleep 5
    done
}

# fit_replicas SETTING ... sets `fewer`, the trainer's options for the nodes that are left, and `shape`, srun's; where not
# one replica has room it has the job queued again, and fails
fit_replicas() {
    local replicas ranks room
    replicas=$("${program[@]}" python -c "$REPLICAS" "$SLURM_NTASKS" "$@") || return 1
    ranks=$((SLURM_NTASKS / replicas))
    room=$((nodes * SLURM_NTASKS_PER_NODE / ranks))
    if ((!room)); then
        start_again "a node has died, and $left is too little for a replica of $ranks ranks"
        return 1
    fi
    ((room > replicas)) || replicas=$room
    fewer=(--replicas "$replicas")
    export SLURM_JOB_NODELIST=$left SLURM_JOB_NUM_NODES=$nodes
    export SLURM_NTASKS=$((replicas * ranks)) SLURM_NPROCS=$((replicas * ranks))
    # to Slurm the step that ended may live on, for the dead node cannot tell; and of the nodes no more than they need, or
    # the ranks of a replica would be spread over all of them
    shape=(--overlap --nodes=$(((SLURM_NTASKS + SLURM_NTASKS_PER_NODE - 1) / SLURM_NTASKS_PER_NODE)))
    say "a node has died: goes on with $replicas x $ranks ranks on $left, from the last checkpoint"
}
