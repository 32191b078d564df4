#!/usr/bin/env bash
# The cluster tests where they can run: installs Debian's Slurm where root may, or says in one line why they did not run.
# Whatever the tests say, daemons are stopped and exactly the packages that were installed here are removed again.
set -euo pipefail
cd "$(dirname "$0")/../.."

skip() { echo "cluster tests: not run: $*"; exit 0; }
packages() { dpkg-query --show --showformat='${db:Status-Abbrev}${binary:Package}\n' | sed -n 's/^ii *//p' | sort; }

((EUID == 0)) || skip "needs root"
command -v dpkg-query >/dev/null && command -v apt-get >/dev/null || skip "no Debian packages on this system"
mkdir -p build
packages >build/packages.before

clean() {
  tests/cluster/one_machine_slurm.sh stop >/dev/null || true
  packages | comm -13 build/packages.before - | xargs --no-run-if-empty apt-get purge -qq -y >/dev/null 2>&1 || true
}
trap clean EXIT

if ! { apt-get update -qq && DEBIAN_FRONTEND=noninteractive \
  apt-get install -qq -y --no-install-recommends munge slurm-client slurmctld slurmd; } >build/slurm-packages.log 2>&1; then
  skip "Slurm's packages could not be installed (build/slurm-packages.log)"
fi
LUMOE_SLURM=1 PATH="$PWD/.venv/bin:$PATH" .venv/bin/python -m pytest tests/cluster -rs
