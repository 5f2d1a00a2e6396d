#!/usr/bin/env bash
# Runs the README's commands in a clone of this repository, on the smoke recipe: the same code, minutes instead of
# tens of minutes. Used by .ci/run; run it by hand with `bash tests/readme_commands.sh`.
set -euo pipefail
root=$(cd "$(dirname "$0")/.." && pwd)
export PATH="$root/.venv/bin:$PATH"
clone=$(mktemp -d)
trap 'rm -rf "$clone"' EXIT
passed=0
step() { printf '\n--- %s\n' "$*"; "$@"; passed=$((passed + 1)); }

git clone -q "$root" "$clone/dream"
ln -sfn "$(cd "$root/.." && pwd)/shared" "$clone/shared"
cd "$clone/dream"
git config user.email reader@example.org
git config user.name reader
export PYTHONPATH="$clone/dream"

step dvc repro --allow-missing --dry
step dream-report tables
step dream-report plots
step git diff --exit-code -- reports/tables/main.csv

sed -i 's/^recipe: auto/recipe: smoke/' params.yaml
step dvc repro
git add -A && git commit -qm "smoke"
before=$(sha256sum reports/tables/main.csv reports/metrics.json)
SECONDS=0
step dvc repro
[ "$SECONDS" -lt 15 ] || { echo "an up-to-date dvc repro took ${SECONDS} s"; exit 1; }
step dvc exp run -S candidates.count=3
step dvc exp run -S candidates.count=4 -S model.size=tiny-4l
step dvc exp show --only-changed
step dvc dag
git checkout -q -- . && step dvc repro
[ "$before" = "$(sha256sum reports/tables/main.csv reports/metrics.json)" ] || { echo "restoring the first run changed its numbers"; exit 1; }
step dream-report tables
printf '\n%d passed, 0 failed\n' "$passed"
