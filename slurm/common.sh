# shellcheck shell=bash
# What all jobs of this folder share. A job sources this file and says
#
#     train RECIPE DATASET "$@"
#
# and what follows the script's name after sbatch goes to the trainer: sbatch slurm/lenet_mnist.sbatch --replicas 3
#
# PARLE_HPC_DOCTOR=1 sbatch SCRIPT asks the doctor instead, in the job's own shape and with all that site.sh says.

# shellcheck source=slurm/site.sh
source "$PARLE_HPC_ROOT/slurm/site.sh"
# shellcheck source=slurm/nodes.sh
source "$PARLE_HPC_ROOT/slurm/nodes.sh"

SAVED=85 # the trainer's exit status for "saved, start me again"

say() { echo "parle_hpc: $*" >&2; }

stop() {
    say "$*"
    exit 2
}

# sbatch hands on all that stood in the shell where it was typed, and that may have been inside another job, a step of
# srun, or an mpirun: what these have told their own tasks is not this job's
forget_others() {
    local name memory
    for name in "${!OMPI_@}" "${!PMIX_@}" "${!PMI_@}" "${!HOROVOD_@}" "${!SLURM_@}"; do
        case $name in
        OMPI_COMM_WORLD_* | OMPI_MCA_ess* | OMPI_MCA_orte_*) unset "$name" ;;
        PMIX_RANK | PMIX_NAMESPACE | PMIX_ID | PMIX_SERVER_* | PMIX_DSTORE_* | PMIX_GDS_MODULE) unset "$name" ;;
        PMI_RANK | PMI_SIZE | PMI_FD | PMI_PORT | PMI_ID | PMI_JOBID | PMI_SPAWNED) unset "$name" ;;
        HOROVOD_RANK | HOROVOD_SIZE | HOROVOD_LOCAL_* | HOROVOD_CROSS_* | HOROVOD_CONTROLLER) unset "$name" ;;
        SLURM_STEP_* | SLURM_STEPID) unset "$name" ;;
        esac
    done
    unset RANK WORLD_SIZE LOCAL_RANK
    # a mask is of the cores that a step was given, which this job may not have; "cores" is a wish, and stays
    [[ ${SLURM_CPU_BIND:-} != *@(map|mask)_* ]] || unset "${!SLURM_CPU_BIND@}"
    [[ ${SLURM_MEM_BIND:-} != *@(map|mask)_* ]] || unset "${!SLURM_MEM_BIND@}"
    # srun wants one of them at most, and takes the job's where it has none
    memory=(${SLURM_MEM_PER_CPU:+1} ${SLURM_MEM_PER_NODE:+1} ${SLURM_MEM_PER_GPU:+1})
    ((${#memory[@]} < 2)) || unset SLURM_MEM_PER_CPU SLURM_MEM_PER_NODE SLURM_MEM_PER_GPU
    # the seed and the folder of another job
    if [[ ${SLURM_ARRAY_TASK_ID:-} ]] && ! is_of_an_array; then
        unset "${!SLURM_ARRAY_@}"
    fi
    # the job's tasks get its script's environment, also where the script itself was given none (sbatch --export=NONE)
    export SLURM_EXPORT_ENV=ALL
}

# Where Slurm does not answer it is believed
is_of_an_array() {
    local job
    job=$(scontrol show job "$SLURM_JOB_ID") || return 0
    grep -q "^JobId=$SLURM_JOB_ID ArrayJobId=$SLURM_ARRAY_JOB_ID ArrayTaskId=$SLURM_ARRAY_TASK_ID " <<<"$job"
}

# Sets `program`, the command in which Python runs here
prepare_program() {
    program=()
    case $PARLE_HPC_RUN in
    environment) activate ;;
    modules)
        [[ $PARLE_HPC_MODULES ]] || stop "PARLE_HPC_MODULES is empty; name the modules in slurm/site.sh"
        command -v module >/dev/null || stop "no module command on $HOSTNAME; export PARLE_HPC_RUN=environment"
        # the function is the site's, and was not written for strict shells
        set +eu
        # what sbatch brought along from the login shell may belong to another MPI
        module purge
        local name
        for name in $PARLE_HPC_MODULES; do
            module load "$name" || stop "module load $name failed; see the lines above and module avail"
        done
        set -eu
        [[ ! -e $PARLE_HPC_VENV/bin/activate ]] || activate
        ;;
    container)
        local name runtime=apptainer
        [[ -r $PARLE_HPC_IMAGE ]] || stop "no image $PARLE_HPC_IMAGE; build it, or export PARLE_HPC_IMAGE=FILE.sif"
        # one program under two names
        if ! command -v apptainer >/dev/null; then
            runtime=singularity
            command -v singularity >/dev/null ||
                stop "neither apptainer nor singularity on $HOSTNAME; load its module before sbatch"
            for name in "${!APPTAINERENV_@}"; do
                export "SINGULARITYENV_${name#APPTAINERENV_}=${!name}"
            done
        fi
        # what the image has is to be found, and not the login shell's
        unset PYTHONPATH PYTHONHOME
        # several options, so unquoted; the two folders hold the run's output and the node's copy of the data
        # shellcheck disable=SC2206
        program=($runtime exec $PARLE_HPC_IMAGE_OPTIONS --bind "$PWD,${PARLE_HPC_LOCAL:-/tmp}" --pwd "$PWD")
        [[ ! -d $PARLE_HPC_DATA ]] || program+=(--bind "$(realpath "$PARLE_HPC_DATA")")
        program+=("$PARLE_HPC_IMAGE")
        ;;
    *) stop "PARLE_HPC_RUN=$PARLE_HPC_RUN: must be environment, modules or container" ;;
    esac
}

activate() {
    local bin=$PARLE_HPC_VENV/bin
    [[ -x $bin/python ]] || stop "no environment $PARLE_HPC_VENV; make it (README.md), or export PARLE_HPC_VENV"
    # conda's have no such script
    # shellcheck source=/dev/null
    if [[ -r $bin/activate ]]; then source "$bin/activate"; else export PATH="$bin:$PATH"; fi
    forget_other_pythons
}

# A module of the login shell may have brought packages for another Python
forget_other_pythons() {
    local folder own folders kept=""
    unset PYTHONHOME
    own=$(cd "$PARLE_HPC_VENV/lib" 2>/dev/null && echo python3.*) || return 0
    [[ ${PYTHONPATH:-} ]] || return 0
    IFS=: read -ra folders <<<"$PYTHONPATH"
    for folder in "${folders[@]}"; do
        if [[ $folder =~ /(python3\.[0-9]+)(/|$) && ${BASH_REMATCH[1]} != "$own" ]]; then
            say "PYTHONPATH leads to $folder, which is not of $own: left out"
        else
            kept+=${kept:+:}$folder
        fi
    done
    export PYTHONPATH=$kept
}

# stage DATASET SETTING ... sets `data`, the trainer's options for the data set's file, which a setting may name, as it
# may the set, after a copy of it was made on every node
stage() {
    data=() copy=""
    local name=$1 file="" before="" setting
    for setting in "$@"; do
        case $before in --data.path) file=$setting ;; --data.name) name=$setting ;; esac
        case $setting in --data.path=*) file=${setting#*=} ;; --data.name=*) name=${setting#*=} ;; esac
        before=$setting
    done
    # a task of one's own opens its data itself; those that scikit-learn and Python carry make themselves
    [[ $name && $name != digits && $name != topics ]] || return 0
    file=${file:-$PARLE_HPC_DATA/$name.h5}
    [[ -r $file ]] || stop "no data file $file; on a login node: python -m parle_hpc.data.prepare $name --out $file"
    # what the run leaves names this file, not the copy, which is gone with the job
    data=(--data.path "$file")
    if [[ $PARLE_HPC_LOCAL ]]; then
        copy=$PARLE_HPC_LOCAL/parle_hpc-$SLURM_JOB_ID-$name.h5
        # read once, and handed on from node to node; --force: one may be left from before a restart
        sbcast --force "$file" "$copy" || stop "no $copy on some node, see above; export PARLE_HPC_LOCAL=FOLDER, or ''"
        data+=(--data.node_copy "$copy")
    fi
}

# Nobody else removes the copies. A job that is cancelled cannot do it any more: many sites empty the folder themselves
unstage() {
    [[ $copy ]] || return 0
    srun --overlap --ntasks="$SLURM_JOB_NUM_NODES" --ntasks-per-node=1 rm -f "$copy" || say "$copy is left over"
}

train() { # RECIPE DATASET SETTING ...
    forget_others
    # sbatch --array=0-2: a run for each seed
    run_job "$1" "$2" ${SLURM_ARRAY_TASK_ID:+--run.seed "$SLURM_ARRAY_TASK_ID"} "${@:3}"
}

run_job() {
    local recipe=$1 dataset=$2
    shift 2
    local program data copy launch guard="" nodes left shape=() fewer=() status
    local options=(--recipe "$recipe" --resume auto --run.grace "$PARLE_HPC_GRACE")
    # from 22.05 on srun does not inherit --cpus-per-task from the job
    [[ ! ${SLURM_CPUS_PER_TASK:-} ]] || export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK
    # ranks now and then crash at their start in PMIx's shared memory (openpmix issues 1114, 2210); this takes messages
    export PMIX_MCA_gds=${PMIX_MCA_gds:-hash}
    # Slurm's way to exchange addresses along a tree now and then leaves some out, for which Open MPI then waits for ever
    export SLURM_PMIX_FENCE=${SLURM_PMIX_FENCE:-ring}
    # and gives up on a task that has not come after 300 s, whatever --run.patience says
    export SLURM_PMIX_TIMEOUT=${SLURM_PMIX_TIMEOUT:-86400}
    # when one task dies the others would wait for it until the job's time is over; each of them is to know that
    export SLURM_KILL_BAD_EXIT=1
    # an output folder for the job, whichever of its steps goes on
    export PARLE_HPC_ONE_RUN=1
    prepare_program
    launch=(
        # without the PMI of its MPI each task would be a world of its own
        --mpi="$PARLE_HPC_MPI"
        # neighbours are one replica, whose gradients should stay inside a node
        --distribution=block
        # every task sees all GPUs of its node and takes the one of its number: between tasks that see one each, GPUs
        # cannot reach each other's memory
        --gpu-bind=none
        "${program[@]}" python -m
    )
    if [[ ${PARLE_HPC_DOCTOR:-} ]]; then
        exec srun "${launch[@]}" parle_hpc.doctor --out .
    fi
    stage "$dataset" "$@"
    while
        status=0
        start_guard
        srun "${shape[@]}" "${launch[@]}" parle_hpc.train "${options[@]}" "${data[@]}" "$@" "${fewer[@]}" || status=$?
        ((status && status != SAVED)) && has_lost_a_node && fit_replicas "${options[@]}" "$@" "${fewer[@]}"
    do :; done
    end_guard
    unstage
    if ((status == SAVED)); then
        start_again saved
    fi
    exit "$status"
}

train_own() { # RECIPE.toml SETTING ...
    (($#)) && [[ -r $1 ]] || stop "no recipe ${1:-was named}; sbatch slurm/own.sbatch mine.toml [SETTING ...]"
    train "$1" "$(dataset_of "$1")" "${@:2}"
}

# A replica that is a job of its own, and its task of the array the number by which the others know it
train_member() { # RECIPE SETTING ...
    local usage="sbatch --array=0-7 slurm/replica.sbatch RECIPE [SETTING ...]"
    forget_others
    [[ ${SLURM_ARRAY_TASK_ID:-} ]] || stop "this job is no task of an array; $usage"
    (($#)) || stop "no recipe was named; $usage"
    local dataset folder=${PARLE_HPC_MAILBOX:-runs/$(basename "$1" .toml)-mailbox-$SLURM_ARRAY_JOB_ID}
    dataset=$(dataset_of "$1") || stop "no recipe $1; $usage"
    run_job "$1" "$dataset" --replicas 1 --coupling.via mailbox --coupling.folder "$folder" \
        --coupling.member "$SLURM_ARRAY_TASK_ID" "${@:2}"
}

# Of a built-in task a recipe of one's own may name the data set; of a recipe of the package its script says it
dataset_of() {
    if [[ -f $1 ]]; then
        sed -n '/^\[data\]/,/^\[/s/^name *= *"\(.*\)".*/\1/p' "$1"
    else
        sed -n 's/^train [^ ]* \([^ ]*\) .*/\1/p' "$PARLE_HPC_ROOT/slurm/$1.sbatch"
    fi 2>/dev/null
}

# The job keeps its number, and so its output folder, from which the trainer goes on
start_again() { # WHY
    local before=${SLURM_RESTART_COUNT:-0} job
    job=$(job_name)
    if ((before >= PARLE_HPC_RESTARTS)); then
        say "$1, but started again $before times already; if that is as it should be, export PARLE_HPC_RESTARTS=N"
    else
        # before it is: Slurm then ends this script, perhaps before its next line
        say "$1; job $job is queued again, restart $((before + 1)) of at most $PARLE_HPC_RESTARTS"
        scontrol requeue "$job" || say "$1, but the job cannot be requeued; see the line above"
    fi
}
