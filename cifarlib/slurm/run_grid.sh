#!/bin/bash
#SBATCH --job-name=cifar-grid
#SBATCH --output=%x-%A_%a.log
#SBATCH --open-mode=append
#SBATCH --time=24:00:00
#SBATCH --array=1-20%4
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
# Runs a grid as an array of jobs that share out its cells. From inside the project's folder:
#   sbatch [SBATCH_OPTIONS] cifarlib/slurm/run_grid.sh GRID [OPTIONS]
#   sbatch --array=1-50%8 cifarlib/slurm/run_grid.sh parameters/published.yaml
# SBATCH_OPTIONS override the lines above (here 50 tasks, 8 at a time); OPTIONS go to `python -m cifarlib grid`.
# Submit it again, with any --array, and it does what is left. Called without sbatch, it checks its arguments and
# then submits itself.
# What happens when its time is up, and all else: README.md here.

script=run_grid.sh
# sbatch runs a copy of this script, so the project is found from the folder of submission.
root=$(dirname "$(realpath "$0")")
[[ -f $root/common.sh ]] || root=${SLURM_SUBMIT_DIR:-/}
until [[ -f $root/cifarlib/slurm/common.sh || $root == / ]]; do root=$(dirname "$root"); done
[[ $root != / ]] || { echo "$script: submit it from inside the project's folder" >&2; exit 2; }
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$root/cifarlib/slurm/common.sh"

(( $# >= 1 )) || fail "expected GRID, a file such as parameters/published.yaml"
no_more_arguments "${@:2:1}"
[[ -f $1 ]] || fail "GRID: no such file: $1"
set -- "$(realpath "$1")" "${@:2}"
# Each task trains its chunk of the runs, every Nth; in an array with gaps each takes what no other has taken.
command=(grid "$1" --no-wait "${@:2}")
tasks=$((${SLURM_ARRAY_TASK_MAX:-1} - ${SLURM_ARRAY_TASK_MIN:-1} + 1))
if [[ ${SLURM_ARRAY_TASK_COUNT:-} == "$tasks" ]]; then
    command+=(--chunk "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))/$tasks")
fi
run_or_submit "$@"
