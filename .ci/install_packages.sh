#!/bin/sh
# Installs what tests need besides Python (Debian, Ubuntu): SLURM and munge for tests/test_slurm.py, Chromium and its
# driver for tests/test_jupyterlab.py. Does nothing where it can't or need not; a test without its programs is skipped.
missing=""
for each in slurmd:slurm-wlm slurmctld:slurm-wlm munged:munge chromium:chromium chromedriver:chromium-driver; do
    command -v "${each%%:*}" >/dev/null || missing="$missing ${each#*:}"
done
if [ -z "$missing" ]; then
    exit 0
fi
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed, and this isn't root on Debian; their tests will be skipped:$missing" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
for package in $missing; do  # one by one: what a distribution lacks must not keep the others away
    apt-get install -y -qq --no-install-recommends "$package" >/dev/null ||
        echo "$package can't be installed; its tests will be skipped" >&2
done
