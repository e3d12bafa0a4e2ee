#!/bin/bash
#SBATCH --job-name=cifar-setup
#SBATCH --output=%x-%j.log
#SBATCH --time=01:00:00
# Makes (or brings up to date) the environment that the other scripts use: conda's `cifar` from environment.yml where
# conda is there, else .venv in the project's folder. From inside the project's folder, where there is a network:
#   bash cifarlib/slurm/setup_env.sh        or        sbatch cifarlib/slurm/setup_env.sh

script=setup_env.sh
# sbatch runs a copy of this script, so the project is found from the folder of submission.
root=$(dirname "$(realpath "$0")")
[[ -f $root/common.sh ]] || root=${SLURM_SUBMIT_DIR:-/}
until [[ -f $root/cifarlib/slurm/common.sh || $root == / ]]; do root=$(dirname "$root"); done
[[ $root != / ]] || { echo "$script: submit it from inside the project's folder" >&2; exit 2; }
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$root/cifarlib/slurm/common.sh"

set -e
[[ $# == 0 ]] || fail "unexpected argument '$1'"
cd "$root"
if command -v conda >/dev/null; then
    environment=$(conda_environment)
    if [[ ! $environment ]]; then
        conda create --yes --quiet --name cifar
        environment=$(conda_environment)
    elif [[ ! -e $environment/$made ]]; then
        fail "$environment was not made by this script, which would remove packages from it; rename it (conda rename\
 --name cifar OTHER), use .venv instead (make setup) or, if it is only for this project: touch '$environment/$made'"
    fi
    echo "${LOADEDMODULES:-}" >"$environment/$made"  # before the rest, which may break off and be tried again
    export PYTHONNOUSERSITE=1
    conda env update --name cifar --file environment.yml --prune
else
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
        fail "needs python 3.11 or newer as python3, or conda; most clusters have them as a module (module avail)"
    python3 -m venv .venv
    echo "${LOADEDMODULES:-}" >".venv/$made"
    .venv/bin/python -m pip install --editable .
fi
activate
echo "$script: done; jobs will use $(command -v python)"
