#!/usr/bin/env bash
# Runs the README's commands in a clone of this repository, on the smoke recipe: the same code, minutes instead of
# tens of minutes. Used by .ci/run; run it by hand with `bash tests/readme_commands.sh`.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export PATH="$root/.venv/bin:$PATH"
clone=$(mktemp -d)
trap 'rm -rf "$clone"' EXIT
passed=0
step() {
  printf '\n--- %s\n' "$*"
  "$@" > "$clone/log" 2>&1 || { tail -c 6000 "$clone/log"; printf '\n%d passed, 1 failed\n' "$passed"; exit 1; }
  tr '\r' '\n' < "$clone/log" | grep -v '%|' | tail -n 40
  passed=$((passed + 1))
}

git clone -q "$root" "$clone/dream"
ln -sfn "$(cd "$root/.." && pwd)/shared" "$clone/shared"
cd "$clone/dream"
git config user.email reader@example.org
git config user.name reader
export PYTHONPATH="$clone/dream"

sed -i 's/^recipe: auto/recipe: smoke/' params.yaml
step dvc repro
git add -A && git commit -qm "smoke"
SECONDS=0
step dvc repro
echo "an up-to-date dvc repro took ${SECONDS} s"
step dream-report tables
step dream-report plots
step dvc dag
printf '\n%d passed, 0 failed\n' "$passed"
