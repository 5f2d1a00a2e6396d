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

sed -i 's/^recipe: auto/recipe: smoke/; s/^seeds: \[[^]]*\]/seeds: [0]/' params.yaml
step dvc repro
git add -A && git commit -qm "smoke"
SECONDS=0
step dvc repro
echo "an up-to-date dvc repro took ${SECONDS} s"
step dream-report tables
step dream-report plots
step dvc dag

made_with() { python -c "import json; print(json.load(open('work/models/dream-0/made_with.json'))['settings']['roles']['encoder']['layers'])"; }
numbers() { sha256sum reports/tables/main.csv reports/metrics.json work/models/dream-0/adapter/adapter_model.safetensors; }
before=$(numbers)
step dvc exp run -S model.size=tiny-4l
[ "$(made_with)" = 4 ] || { echo "the switch of model.size left $(made_with)"; exit 1; }
[ "$(numbers)" != "$before" ] || { echo "the switch of model.size changed nothing"; exit 1; }
step dvc exp show --only-changed --no-pager
git checkout -q -- .
step dvc repro
[ "$(made_with)" = 6 ] && [ "$(numbers)" = "$before" ] || { echo "going back did not restore the first run"; exit 1; }

rm -rf work .dream .dvc/cache reports "${DREAM_CACHE:-$HOME/.cache/dream}/embeddings"
step dvc repro
[ "$(numbers)" = "$before" ] || { echo "a second run from nothing gave other numbers"; exit 1; }

git clone -q . "$clone/reader"
cd "$clone/reader"
export PYTHONPATH="$clone/reader"
step dvc repro --allow-missing --dry
grep -q "Running stage" "$clone/log" && { echo "a clone is not up to date"; cat "$clone/log"; exit 1; }
step dream-report tables --out reports/tables
git diff --exit-code --stat -- reports/tables/main.csv reports/tables/main.md
printf '\n%d passed, 0 failed\n' "$passed"
