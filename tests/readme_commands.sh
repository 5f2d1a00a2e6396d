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
step dream-report page
step dream-report compare dream infonce
step dream-report verify
step dream-report knobs heads
step dream-report export --out exports/dream-0
step dream-report export-runs --out exports/runs
step dream-report plan --size 3b
step dream-report sweep signal
step dvc dag

layers() { python -c "import json; print(json.load(open('work/models/dream-0/made_with.json'))['settings']['roles']['encoder']['layers'])"; }
shares_the_judge() {  # a size with the same judge runs nothing that the encoder does not decide
  if grep -E "Running stage '(questions|tasks|prepare|candidates|heads|signal|teacher|given)" "$clone/log"; then
    echo "another encoder ran a stage that it shares"; exit 1
  fi
  grep -q "Running stage 'train@dream-0'" "$clone/log" || { echo "another encoder was not trained"; exit 1; }
}
numbers() { sha256sum reports/tables/main.csv reports/metrics.json work/models/dream-0/adapter/adapter_model.safetensors; }
before=$(numbers)
step dvc exp run -S model.size=tiny-4l
shares_the_judge
[ "$(layers)" = 4 ] || { echo "the switch of model.size left $(layers)"; exit 1; }
[ "$(numbers)" != "$before" ] || { echo "the switch of model.size changed nothing"; exit 1; }
step dvc exp show --only-changed --drop '^(reports|work|dream|stages)/' --no-pager
git checkout -q -- .
step dvc exp run -S candidates.count=4
git checkout -q -- .
step dvc exp run -S model.size=minilm
shares_the_judge
python - << 'END'  # a model before its training, and the same model as a reference: one number
import pandas as pd
main = pd.read_csv("reports/tables/main.csv").pivot(index="task", columns="system", values="ndcg_at_10")
print(main.to_string())
assert (main.untrained == main.minilm).all() and (main.dream != main.untrained).any()
END
git checkout -q -- .
step dvc repro
[ "$(layers)" = 6 ] && [ "$(numbers)" = "$before" ] || { echo "going back did not restore the first run"; exit 1; }

rm -rf work .dream .dvc/cache reports "${DREAM_CACHE:-$HOME/.cache/dream}/embeddings"
git checkout -q -- reports/sweeps  # what earlier experiments left is an input of the report
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
