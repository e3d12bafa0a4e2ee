#!/bin/bash
#SBATCH --job-name=cifar-set
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --time=24:00:00
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
# Trains one of the 18 published sets of 50 runs, all in one study. From inside the project's folder:
#   sbatch [SBATCH_OPTIONS] cifarlib/slurm/run_cluster_sets.sh SET [OPTIONS]
#   sbatch --time=12:00:00 cifarlib/slurm/run_cluster_sets.sh 7
# SBATCH_OPTIONS override the lines above; OPTIONS go to `python -m cifarlib grid`.
# Called without sbatch, it checks its arguments and then submits itself.
# What happens when its time is up, and all else: README.md here.

script=run_cluster_sets.sh
# sbatch runs a copy of this script, so the project is found from the folder of submission.
root=$(dirname "$(realpath "$0")")
[[ -f $root/common.sh ]] || root=${SLURM_SUBMIT_DIR:-/}
until [[ -f $root/cifarlib/slurm/common.sh || $root == / ]]; do root=$(dirname "$root"); done
[[ $root != / ]] || { echo "$script: submit it from inside the project's folder" >&2; exit 2; }
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$root/cifarlib/slurm/common.sh"

(( $# >= 1 )) || fail "expected SET, a number from 1 to 18"
no_more_arguments "${@:2:1}"
[[ $1 =~ ^0?[1-9]$|^1[0-8]$ ]] || fail "SET: expected a number from 1 to 18, got '$1'"
command=(grid "parameters/sets/set_$(printf %02d "$((10#$1))").yaml" --study published "${@:2}")
run_or_submit "$@"
