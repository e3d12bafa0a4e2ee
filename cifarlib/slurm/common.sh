# shellcheck shell=bash
# Sourced by the scripts beside it, which first set `root` (the project's folder) and `script` (their own name),
# and `command` (cifarlib's command line) before run_or_submit.
# shellcheck disable=SC2154

made=made_by_setup_env  # this file in an environment says that setup_env.sh made it, and with which modules loaded

fail() {  # fail MESSAGE: one line, and the exit code for bad input
    echo "$script: $1" >&2
    exit 2
}

no_more_arguments() {  # no_more_arguments [WORD]: after the positional arguments only options may follow
    [[ $# == 0 || $1 == -* ]] || fail "unexpected argument '$1'"
}

run_or_submit() {  # run_or_submit ARGUMENT...: run `command` in a job; elsewhere check it and queue this script
    [[ " ${command[*]} " != *" --no-resume "* ]] ||
        fail "--no-resume would start anew whenever the job is requeued; remove the run folders instead"
    cd "$root" || exit 2
    if [[ ${SLURM_JOB_ID:-} ]]; then
        run
    fi
    activate
    command -v sbatch >/dev/null || fail "no sbatch on PATH; without SLURM: python -m cifarlib ${command[*]}"
    python -m cifarlib "${command[@]}" --dry-run >/dev/null || exit  # says itself what is wrong
    exec sbatch "cifarlib/slurm/$script" "$@"
}

conda_environment() {  # the folder of conda's environment `cifar`; nothing if there is none
    if command -v conda >/dev/null; then
        conda env list | sed -n 's/^cifar [ *+]*//p'
    fi
}

activate() {  # conda's `cifar` if setup_env.sh made it, else .venv, else a user's own `cifar`, else the python on PATH
    local environment python said reason origin
    environment=$(conda_environment)
    if [[ $environment && ( -e $environment/$made || ! -e .venv ) ]]; then
        eval "$(conda shell.bash hook)"
        conda activate "$environment" || exit
        export PYTHONNOUSERSITE=1  # packages in ~/.local would come before the environment's
    elif [[ -e .venv ]]; then
        environment=$root/.venv PATH=$root/.venv/bin:$PATH
    fi
    python=${environment:+$environment/bin/}python
    said=$(env "$python" -c 'import cifarlib.cli, torch' 2>&1) && return
    reason=$(grep -i error <<<"$said" | tail -n 1)  # not simply the last line: a python that can't start adds others
    origin=$({ cat "$environment/$made"; sed -n 's/^home = /python from /p' "$environment/pyvenv.cfg"; } 2>/dev/null |
        tr -s ':\n' ' ' | sed 's/^ //; s/ $//')
    fail "$(command -v "$python" || echo "$python") can't be used here: ${reason:-${said%%$'\n'*}}; \`module load\`\
 what it was set up with${origin:+ ($origin)}, or set it up: bash cifarlib/slurm/setup_env.sh"
}

run() {  # run `command` and exit as it does; if the job was warned and stopped, back to the queue first
    local warned='' interrupted=1 pid status
    # SIGUSR1 asks the runner to stop. Bash handles signals at once only while it waits for a background command.
    trap 'warned=1 interrupted=1; kill -USR1 "$pid" 2>/dev/null' USR1
    trap 'interrupted=1; kill -USR1 "$pid" 2>/dev/null; explain_time_limit' TERM
    { activate; exec python -m cifarlib "${command[@]}"; } &
    pid=$!
    while [[ $interrupted ]]; do  # a trapped signal ends `wait` early; waiting again gives the real status
        interrupted=''
        wait "$pid"
        status=$?
    done
    trap '' USR1 TERM
    # 75: stopped; 76: stopped before any epoch was finished; 138: by SIGUSR1, before python could catch it.
    if [[ $warned && $status =~ ^(75|76|138)$ ]] && job_has JobState=RUNNING; then  # not if it was cancelled meanwhile
        requeue "$status"
    fi
    exit "$status"
}

requeue() {  # requeue STATUS: unless that would only lead to the same warning before the first epoch again
    if [[ $1 == 75 ]] || ! job_has PreemptTime=None; then
        echo "$script: job $(job) goes back to the queue, to continue from there"
        scontrol requeue "$(job)"
    else
        echo "$script: the warning came before any epoch was finished, as it would again: job $(job) isn't requeued;" \
            "submit it with a longer --time, or a later warning: --signal=B:USR1@SECONDS" >&2
    fi
}

explain_time_limit() {  # what helps, where the job is ended by its time limit though it was warned
    if job_has Reason=TimeLimit; then
        echo "$script: an epoch takes longer than the warning leaves; submit with an earlier one:" \
            "--signal=B:USR1@SECONDS" >&2
    fi
}

job_has() {  # job_has FIELD=VALUE: what SLURM says of this job
    [[ $(scontrol --oneliner show job "$(job)") == *" $1 "* ]]
}

job() {  # this job's id; in an array ARRAY_TASK, since the SLURM_JOB_ID of its last task is that of the whole array
    echo "${SLURM_ARRAY_JOB_ID:-$SLURM_JOB_ID}${SLURM_ARRAY_TASK_ID:+_$SLURM_ARRAY_TASK_ID}"
}
