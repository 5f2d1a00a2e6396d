"""The paper's command through the hub's own protocol: every byte comes from a server on loopback, nothing is replaced.

Under their real names and commits it serves random models of the right architectures with a packaged tokenizer, Wikipedia's rows
in their column layout, and two tasks in mteb's own repositories. The command is the one of docs/reproduce.md but for counts.
"""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from hub_server import serving

from dream import assets
from dream.assets import hub as hubs
from dream.data.sources import wikipedia
from dream.files import read_yaml

ROOT = Path(__file__).resolve().parent.parent
PARAMS = read_yaml(ROOT / "params.yaml")
ENTRIES = {"qwen2.5-0.5b": "Qwen2", "llama-3.1-8b-instruct": "Llama", "qwen3-14b": "Qwen3"}
ADAPTERS = {"dream-0.5b": "1" * 40, "revela-0.5b": "2" * 40}
TASKS = {  # in mteb's own repository and commit: repository, commit, its column of ids, what holds the data here
    "SciFact": ("mteb/scifact", "d56462d0e63a25450459c4f213e49ffdb866f7f9", "_id", "scifact.zip"),
    "MBPPRetrieval": ("embedding-benchmark/MBPP", "586a1fd6a0c63fdeda3b49c0293559a81c79cdec", "id", "mbpp/mbpp.zip"),
}
COUNTS = [
    "seeds=[0]", "tasks=[MBPPRetrieval]", "data.instances=8", "data.passage_words=20", "questions.max_new_tokens=8",
    "heads.count=4", "heads.probes=4", "heads.bootstrap=10", "injection.diagnostic=2", "injection.force=true",
    "training.steps=2", "training.batch=2", "report.resamples=100",
]  # fmt: skip


def model(folder: Path, architecture: str) -> Path:
    """A random model of three layers with the packaged tokenizer, in bfloat16 as the real ones are stored."""
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(assets.model_path("packaged/smollm2-135m"))
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {
        "vocab_size": len(tokenizer), "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
        "num_key_value_heads": 2, "max_position_embeddings": 131072, "initializer_range": 0.2,
    }  # fmt: skip
    shape |= {"head_dim": 8} if architecture == "Qwen3" else {}
    config = getattr(transformers, f"{architecture}Config")(**shape)
    getattr(transformers, f"{architecture}ForCausalLM")(config).to(torch.bfloat16).save_pretrained(folder)
    return folder


def adapter(folder: Path, base: Path, name: str) -> Path:
    """A PEFT adapter of a causal model, as the released ones are."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    shape = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), shape).save_pretrained(folder)
    card = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps({**card, "base_model_name_or_path": name}))
    return folder


def wiki(folder: Path) -> Path:
    """80 articles in rows of 100 words, columns as the real repository has."""
    folder.mkdir()
    drawn = torch.Generator().manual_seed(0)
    words = ["river", "city", "music", "engine", "garden", "winter", "planet", "council", "bridge", "harbour", "school", "poem"]
    rows = [
        {"docid": f"{i}:{j}", "title": f"article {i}", "text": " ".join(words[k] for k in torch.randint(len(words), (100,), generator=drawn))}
        for i in range(80)
        for j in range(4)
    ]  # fmt: skip
    pd.DataFrame(rows).to_json(folder / "corpus.jsonl.gz", orient="records", lines=True)
    return folder


def task(folder: Path, archive: Path, identifier: str) -> Path:
    """A BEIR archive in the form of mteb's repositories: three configurations, one parquet file each."""
    with zipfile.ZipFile(archive) as opened:
        top = opened.namelist()[0].split("/")[0]
        tables = {"default": pd.read_csv(opened.open(f"{top}/qrels/test.tsv"), sep="\t", dtype={0: str, 1: str})}
        tables["default"].columns = ["query-id", "corpus-id", "score"]
        for name in ("corpus", "queries"):
            rows = [json.loads(line) for line in opened.open(f"{top}/{name}.jsonl")]
            tables[name] = pd.DataFrame(rows)[["_id", *(["title"] if "title" in rows[0] else []), "text"]].rename(
                columns={"_id": identifier}
            )
    card = []
    for name, table in tables.items():
        (folder / name).mkdir(parents=True)
        table.to_parquet(folder / name / "part-0.parquet")
        split = "test" if name == "default" else name
        card.append({"config_name": name, "data_files": [{"split": split, "path": f"{name}/part-*"}]})
    (folder / "README.md").write_text(f"---\n{yaml.safe_dump({'configs': card})}---\n")
    return folder


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """The hub, filled."""
    folder = tmp_path_factory.mktemp("hub")
    with serving() as hub:
        for entry, architecture in ENTRIES.items():
            name, commit = hubs.split_revision(PARAMS["models"][entry]["model"])
            hub.add(name, model(folder / entry, architecture), commit)
        for entry, commit in ADAPTERS.items():
            base = PARAMS["models"][entry]["model"].partition("@")[0]
            hub.add(PARAMS["models"][entry]["adapter"], adapter(folder / entry, folder / "qwen2.5-0.5b", base), commit)
        hub.add(f"datasets/{wikipedia.DATASET}", wiki(folder / "wikipedia"), "3" * 40)
        for name, commit, identifier, archive in TASKS.values():
            made = task(folder / Path(name).name, ROOT.parent / "shared" / "data" / archive, identifier)
            hub.add(f"datasets/{name}", made, commit)
        yield hub


@pytest.fixture(scope="module")
def machine(served, tmp_path_factory):
    """Run a command in a clone of the project on a machine whose only network is the hub."""
    folder = tmp_path_factory.mktemp("machine") / "project"
    ignored = shutil.ignore_patterns("__pycache__", ".git", ".venv", "work", ".dream", "build", "cache", "tmp")
    shutil.copytree(ROOT, folder, ignore=ignored, symlinks=True)
    env = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "DVC_", "DREAM_"))}
    env |= {
        "PYTHONPATH": str(folder), "HF_ENDPOINT": served.url, "HF_HOME": str(folder.parent / "hf"), "DVC_NO_ANALYTICS": "1",
        "DREAM_CACHE": str(folder.parent / "cache"), "GIT_CONFIG_GLOBAL": os.devnull, "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    for name in ("AUTHOR", "COMMITTER"):
        env |= {f"GIT_{name}_NAME": "t", f"GIT_{name}_EMAIL": "t@example.org"}

    def run(*command: str, fails: bool = False, **more: str) -> str:
        ran = subprocess.run(command, cwd=folder, env={**env, **more}, capture_output=True, text=True)
        assert (ran.returncode != 0) == fails, f"{command}: {ran.stdout[-3000:]}\n{ran.stderr[-6000:]}"
        return ran.stdout + ran.stderr

    run("git", "init", "-q", "-b", "main")
    run("git", "add", "-A")
    run("git", "commit", "-qm", "as it is")
    run.folder = folder
    return run


@pytest.mark.slow
def test_the_papers_command_from_download_to_table(served, machine):
    settings = [part for setting in COUNTS for part in ("-S", setting)]
    references = "references=[bm25,untrained,dream-0.5b,revela-0.5b]"
    command = ["dvc", "exp", "run", "-n", "paper", "-S", "model.size=0.5b", "-S", references, *settings]
    machine(*command)
    main = pd.read_csv(machine.folder / "reports" / "tables" / "main.csv")
    assert set(main.recipe) == {"paper"} and {"dream", "infonce", "bm25", "untrained", "dream-0.5b", "revela-0.5b"} == set(
        main.system
    )
    asked = [path for _, path in served.asked]
    for name, commit in pins().items():
        of = [path for path in asked if name in path]
        assert of and all(commit in path for path in of), (name, set(of))
    rows = [path for path in asked if wikipedia.DATASET in path and path.endswith("corpus.jsonl.gz")]
    assert rows and all("3" * 40 in path for path in rows), "Wikipedia's rows at the commit that its main branch had"
    for name in {*served.repositories} - {*pins(), "datasets/mteb/scifact"}:
        assert any(name in path for path in asked), name
    served.asked.clear()
    machine("dvc", "repro")
    assert not served.asked, served.asked[:5]


def pins() -> dict[str, str]:
    """Repositories that the command above asks for and the project or mteb pins, and their commits."""
    models = dict(hubs.split_revision(PARAMS["models"][entry]["model"]) for entry in ENTRIES)
    name, commit, *_ = TASKS["MBPPRetrieval"]
    return {**models, f"datasets/{name}": commit}


@pytest.mark.slow
def test_a_task_comes_from_mteb_s_repository_and_is_kept(served, machine):
    """`fetch` compares it with mteb's statistics; a second one has the data, whether the hub is there or not."""
    name, commit, *_ = TASKS["SciFact"]
    served.asked.clear()
    machine("dream-report", "fetch", "SciFact", "--to", "tasks")
    kept = json.loads((machine.folder / "tasks" / "SciFact" / "task.json").read_text(encoding="utf-8"))
    assert kept["revision"] == commit and [kept[name] for name in ("documents", "queries")] == [5183, 300]
    assert served.asked and all(commit in path for _, path in served.asked if name in path)
    machine("dream-report", "fetch", "SciFact", "--to", "again", HF_HUB_OFFLINE="1")


def said(machine, *references: str, **env: str) -> list[str]:
    """What the project says of each hub model when it is asked for, one line each."""
    code = "import sys\nfrom dream.assets import hub\nfrom dream.errors import DreamError\nfor name in sys.argv[1:]:\n    try: print(hub.download(name))\n    except DreamError as error: print(error)"
    return machine(sys.executable, "-c", code, *references, **env).strip().splitlines()


@pytest.mark.slow
def test_what_a_hub_refuses_is_a_line_of_its_own(served, machine, tmp_path):
    for name, status in (("x/gated", 401), ("x/busy", 429), ("x/broken", 503)):
        served.add(name, tmp_path, "4" * 40).fails = status
    known = hubs.split_revision(PARAMS["models"]["qwen2.5-0.5b"]["model"])[0]
    gated, missing, unknown, busy, broken = said(
        machine, "x/gated", f"{known}@{'5' * 40}", "x/none", "x/busy", "x/broken", HF_HOME=str(tmp_path / "empty")
    )
    assert "x/gated is gated" in gated and "hf auth login" in gated
    assert f"{known}@{'5' * 40} is not on the hub" in missing and "x/none is not on the hub" in unknown
    assert "x/busy: the hub is asked too often (429). Wait some minutes" in busy
    assert "x/broken: the hub has a fault of its own (503)" in broken
    (dead,) = said(machine, "x/busy", HF_HOME=str(tmp_path / "empty"), HF_ENDPOINT="http://127.0.0.1:9")
    assert "the hub cannot be reached" in dead and "hf download x/busy" in dead


@pytest.mark.slow
def test_a_download_that_breaks_off_is_taken_up_again(served, machine, tmp_path):
    reference = PARAMS["models"]["qwen2.5-0.5b"]["model"]
    repository = served.repositories[hubs.split_revision(reference)[0]]
    repository.cut = "model.safetensors"
    served.asked.clear()
    folder = Path(said(machine, reference, HF_HOME=str(tmp_path))[0])
    assert [path.endswith("/model.safetensors") for method, path in served.asked if method == "GET"].count(True) == 2
    assert (folder / "model.safetensors").read_bytes() == (repository.folder / "model.safetensors").read_bytes()
