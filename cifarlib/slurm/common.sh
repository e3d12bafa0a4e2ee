# shellcheck shell=bash
# Sourced by the scripts beside it, which first set `root` (the project's folder) and `script` (their own name),
# and `command` (cifarlib's command line) before run_or_submit.
# shellcheck disable=SC2154

fail() {  # fail MESSAGE: one line, and the exit code for bad input
    echo "$script: $1" >&2
    exit 2
}

no_more_arguments() {  # no_more_arguments [WORD]: after the positional arguments only options may follow
    [[ $# == 0 || $1 == -* ]] || fail "unexpected argument '$1'"
}

run_or_submit() {  # run_or_submit ARGUMENT...: run `command` in a job; elsewhere check it and queue this script
    [[ " ${command[*]} " != *" --no-resume "* ]] || fail "--no-resume would start anew whenever the job is requeued; remove the run folders instead"
    cd "$root" || exit 2
    activate
    if [[ ${SLURM_JOB_ID:-} ]]; then
        run python -m cifarlib "${command[@]}"
    fi
    command -v sbatch >/dev/null || fail "no sbatch on PATH; without SLURM: python -m cifarlib ${command[*]}"
    python -m cifarlib "${command[@]}" --dry-run >/dev/null || exit  # says itself what is wrong
    exec sbatch "cifarlib/slurm/$script" "$@"
}

activate() {  # the conda environment `cifar` if there is one, else .venv, else the python on PATH
    if command -v conda >/dev/null && conda env list | grep -q '^cifar[[:space:]]'; then
        eval "$(conda shell.bash hook)"
        conda activate cifar
    elif [[ -x .venv/bin/python ]]; then
        PATH=$root/.venv/bin:$PATH
    fi
    python -c 'import cifarlib.cli' 2>/dev/null ||
        fail "$(command -v python || echo python) can't import cifarlib; first run: bash cifarlib/slurm/setup_env.sh"
}

run() {  # run COMMAND...: exit as it does; if it was warned and stopped at an epoch's end, back to the queue first
    local warned='' interrupted=1 pid status
    # SIGUSR1 asks the runner to stop. Bash handles signals at once only while it waits for a background command.
    trap 'warned=1 interrupted=1; kill -USR1 "$pid" 2>/dev/null' USR1
    trap 'interrupted=1; kill -USR1 "$pid" 2>/dev/null' TERM
    "$@" &
    pid=$!
    while [[ $interrupted ]]; do  # a trapped signal ends `wait` early; waiting again gives the real status
        interrupted=''
        wait "$pid"
        status=$?
    done
    if [[ $warned && ( $status == 75 || $status == 138 ) ]]; then  # 138: SIGUSR1 came before python could catch it
        requeue
    fi
    exit "$status"
}

requeue() {  # unless the job was cancelled meanwhile
    # An array needs ARRAY_TASK: the SLURM_JOB_ID of its last task is that of the whole array.
    local job=$SLURM_JOB_ID
    [[ ! ${SLURM_ARRAY_JOB_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
    if [[ $(scontrol --oneliner show job "$job") == *JobState=RUNNING* ]]; then
        echo "$script: job $job goes back to the queue, to continue from there"
        scontrol requeue "$job"
    fi
}
