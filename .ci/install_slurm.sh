#!/bin/sh
# Installs SLURM and munge for tests/test_slurm.py (Debian, Ubuntu); does nothing where it can't or need not.
set -e
if command -v slurmd >/dev/null && command -v slurmctld >/dev/null && command -v munged >/dev/null; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "SLURM isn't installed and this isn't root on Debian: tests/test_slurm.py will be skipped" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
