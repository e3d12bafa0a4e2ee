#!/bin/bash
#SBATCH --job-name=cifar
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --time=04:00:00
#SBATCH --gres=gpu:1
#SBATCH --cpus-per-task=4
#SBATCH --mem=16G
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
# Trains one model; the published command line. From inside the project's folder:
#   sbatch [SBATCH_OPTIONS] cifarlib/slurm/run_cluster.sh \
#       EPOCHS BATCH MODEL SCHEDULER AUGMENTATION LR WD GAMMA [OPTIONS]
#   sbatch --time=01:00:00 cifarlib/slurm/run_cluster.sh 50 64 resnet step True 0.001 0.0001 0.97
# SBATCH_OPTIONS override the lines above; OPTIONS go to `python -m cifarlib train`.
# Called without sbatch, it checks its arguments and then submits itself.
# What happens when its time is up, and all else: README.md here.

script=run_cluster.sh
# sbatch runs a copy of this script, so the project is found from the folder of submission.
root=$(dirname "$(realpath "$0")")
[[ -f $root/common.sh ]] || root=${SLURM_SUBMIT_DIR:-/}
until [[ -f $root/cifarlib/slurm/common.sh || $root == / ]]; do root=$(dirname "$root"); done
[[ $root != / ]] || { echo "$script: submit it from inside the project's folder" >&2; exit 2; }
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$root/cifarlib/slurm/common.sh"

names="EPOCHS BATCH MODEL SCHEDULER AUGMENTATION LR WD GAMMA"
(( $# >= 8 )) || fail "expected $names, got $# arguments"
no_more_arguments "${@:9:1}"
case $5 in
    True | true) augmentation=--data_augmentation ;;
    False | false) augmentation=--no-data_augmentation ;;
    *) fail "AUGMENTATION: expected True or False, got '$5'" ;;
esac
command=(train --num_epochs "$1" --batch_size "$2" --model_type "$3" --scheduler "$4" "$augmentation"
    --learning_rate "$6" --weight_decay "$7" --gamma "$8" --study slurm "${@:9}")
run_or_submit "$@"
