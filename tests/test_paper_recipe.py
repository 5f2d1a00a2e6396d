"""The paper's recipe from its first stage to its report, offline: random models of the same architectures, narrow and short.

What is replaced: the weights (random, three layers), Wikipedia's rows (made of twenty words), the evaluation tasks (a small
BEIR folder), and the numbers that only cost time. What stays: the recipe, its stages, K = 16 chunks of one article, generated
questions, bfloat16, `query` rows, every objective.
"""

import importlib
import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from test_encoder import WORDS, make_tokenizer

from dream import config as configs
from dream.assets import hub
from dream.data.sources import wikipedia
from dream.files import read_yaml
from stages import evaluate

ROOT = Path(__file__).resolve().parent.parent
OBJECTIVES = ["dream", "infonce", "replug", "revela"]
ARCHITECTURES = {"0.5b": "Qwen2", "1b": "Llama"}  # of the encoder; the judge is a Llama, the generator a Qwen3


def make_model(folder: Path, architecture: str) -> str:
    import transformers

    vocabulary = make_tokenizer(folder)
    torch.manual_seed(0)
    shape = {
        "vocab_size": vocabulary, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 131072, "initializer_range": 0.2,
    }  # fmt: skip
    shape |= {"head_dim": 8} if architecture == "Qwen3" else {}
    config = getattr(transformers, f"{architecture}Config")(**shape)
    getattr(transformers, f"{architecture}ForCausalLM")(config).to(torch.bfloat16).save_pretrained(folder)
    return str(folder)


def words(seed: int, count: int) -> str:
    drawn = torch.randint(len(WORDS), (count,), generator=torch.Generator().manual_seed(seed))
    return " ".join(WORDS[i] for i in drawn)


def write_task(folder: Path) -> str:
    """A BEIR folder of 30 documents; a query is the start of its document."""
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": f"d{i}", "title": "", "text": words(1000 + i, 30)} for i in range(30)]
    queries = [{"_id": f"q{i}", "text": " ".join(corpus[i]["text"].split()[:6])} for i in range(10)]
    for name, records in (("corpus", corpus), ("queries", queries)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    rows = "".join(f"q{i}\td{i}\t1\n" for i in range(10))
    (folder / "qrels" / "test.tsv").write_text("query-id\tcorpus-id\tscore\n" + rows)
    return str(folder)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """Write the project of a size and go there."""

    def write(size: str) -> configs.Config:
        raw = read_yaml(ROOT / "params.yaml")
        raw["model"]["size"] = size
        names = {**raw["sizes"][size], "generator": raw["questions"]["generator"]["paper"]}
        for role, architecture in (("encoder", ARCHITECTURES[size]), ("judge", "Llama"), ("generator", "Qwen3")):
            raw["models"][names[role]]["model"] = make_model(tmp_path / role, architecture)
        raw |= {"objectives": OBJECTIVES, "seeds": [0], "references": ["bm25", "untrained"], "rerankers": ["qrhead"]}
        raw |= {"tasks": ["mine"], "own": {"mine": write_task(tmp_path / "mine")}}
        raw["questions"]["max_new_tokens"] = 8
        raw["data"] |= {"instances": 8, "passage_words": 20}
        raw["heads"] |= {"count": 4, "probes": 4, "bootstrap": 10}
        raw["injection"] |= {"diagnostic": 2, "force": True}  # a random judge has no signal
        raw["training"] |= {"steps": 2, "batch": 2, "threads": 2}
        # Cosines of random models lie so far apart that the paper's tau of 1e-4 can leave step 1 without any gradient.
        raw["revela"] = {"r": 4, "alpha": 8, "tau": 0.05}
        raw["report"] |= {"resamples": 100}
        (tmp_path / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("DREAM_CACHE", str(tmp_path / "cache"))
        monkeypatch.setenv("DVC_ROOT", str(tmp_path))
        rows = [{"title": f"article {i}", "text": words(i, 16 * 20 + 5)} for i in range(80)]
        monkeypatch.setattr(wikipedia, "_stream", lambda commit: rows)
        monkeypatch.setattr(wikipedia.hub, "dataset_commit", lambda name: "3" * 40)
        monkeypatch.setattr(hub, "check_dataset", lambda *a, **k: None)
        return configs.load()

    return write


def stage(name: str, **arguments) -> None:
    """Run a stage as `python -m stages.<name>` does."""
    flags = [part for key, value in arguments.items() for part in (f"--{key}", str(value))]
    before, sys.argv = sys.argv, [name, *flags]
    try:
        importlib.import_module(f"stages.{name}").main()
    finally:
        sys.argv = before


@pytest.mark.slow
@pytest.mark.parametrize("size", ARCHITECTURES)
def test_every_stage_of_the_papers_recipe(size, project):
    config = project(size)
    assert config.recipe == "paper" and config.candidates.count == 16 and config.injection.rows == "query"
    stage("configure", size=size)
    for name in ("assets", "questions"):
        stage(name)
    stage("tasks", tasks="mine")
    for name in ("prepare", "candidates", "heads", "signal"):
        stage(name)
    for objective in OBJECTIVES:
        for name in ("teacher", "given"):
            stage(name, objective=objective)
        stage("train", objective=objective, seed=0)
    for system in OBJECTIVES:
        evaluate.main(["--system", system, "--seed", "0", "--tasks", "mine"])
    for system in ("bm25", "untrained", "qrhead"):
        evaluate.main(["--system", system, "--tasks", "mine"])
    stage("report")

    sets = pd.read_parquet("work/candidates/candidates.parquet")
    passages = pd.read_parquet("work/data/passages.parquet").set_index("passage_id")
    for row in sets.itertuples():
        assert len(row.passage_ids) == 16 and set(passages.loc[list(row.passage_ids), "group"]) == {row.group}
    main = pd.read_csv("reports/tables/main.csv")
    assert set(main.system) == {"bm25", "untrained", "qrhead", *OBJECTIVES} and set(main.recipe) == {"paper"}
    assert set(main[main.system.isin(OBJECTIVES)].pairs_trained) == {4}
    for objective in OBJECTIVES:
        made = json.loads(Path(f"work/models/{objective}-0/made_with.json").read_text(encoding="utf-8"))
        assert made["settings"]["roles"]["encoder"]["dtype"] == "bfloat16" and made["objective"] == objective
        assert Path(f"work/models/{objective}-0/adapter/adapter_model.safetensors").exists()


def commands() -> list[str]:
    """The command lines of docs/reproduce.md."""
    text = (ROOT / "docs" / "reproduce.md").read_text()
    return [line.strip().split("  #")[0] for line in text.splitlines() if line.startswith("    ")]


def test_every_experiment_of_the_guide_resolves():
    import shlex

    experiments = [shlex.split(line) for line in commands() if line.startswith("dvc exp run")]
    assert len(experiments) >= 4
    for parts in experiments:
        settings = [parts[i + 1] for i, part in enumerate(parts) if part == "-S"]
        overrides = {key.lstrip("+"): yaml.safe_load(value) for key, value in (s.split("=", 1) for s in settings)}
        assert configs.load(ROOT / "params.yaml", overrides).recipe == "paper", parts


def test_every_line_of_the_guide_is_a_command_that_exists():
    import typer.main

    from dream import cli

    known = set(typer.main.get_command(cli.app).commands)
    for line in commands():
        first, second = [*line.split(), ""][:2]
        assert first in {"dvc", "dream-report", "hf", "git", "nvidia-smi", "pip", "."}, line
        assert first != "dream-report" or second in known, line
