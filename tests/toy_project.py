"""A project of toy size on which the real stages from ``heads`` to ``train`` run: random models, toy sets, run records.

Processes come from a fork server that has imported everything, so that one more costs a fraction of a second. A process
is the stage as the user starts it: its own folder, environment and log; it can be killed, and several can form a group.
"""

import multiprocessing
import os
import pathlib
import signal
import socket
import sys
import time

import pandas as pd
import yaml
from test_encoder import make_model
from test_training import make_sets

from dream import config as configs
from dream import manifest
from dream.config import stages
from dream.files import write_json

FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    ["torch", "transformers.models.llama.modeling_llama", "peft", "accelerate", "pandas", "stages.train", "dream.training",
     "dream.encoder", "dream.judge", "dream.objectives.dream", "dream.objectives.infonce"]
)  # fmt: skip
LIMIT = 120  # seconds that one process may take
HEADS = [[1, 0], [2, 3]]


def make(folder, model, **more):
    """Write params.yaml and what the stages before ``train`` leave; ``more`` are dotted parameters."""
    folder = pathlib.Path(folder)
    raw = yaml.safe_load((manifest.ROOT / "params.yaml").read_text())
    raw["models"]["toy"] = {"model": str(model), "pooling": "last", "append_eos": True, "max_length": 64}
    raw["sizes"]["toy"], raw["model"] = {"encoder": "toy", "judge": "toy", "recipe": "smoke"}, {"size": "toy"}
    values = {
        "heads.probes": 4, "injection.diagnostic": 4, "training.steps": 12, "training.batch": 4, "training.micro_batch": 2,
        "training.checkpoint_every": 1, "training.learning_rate": 5e-3, "training.threads": 1, **more,
    }  # fmt: skip
    for key, value in values.items():
        *parents, leaf = key.split(".")
        place = raw
        for name in parents:
            place = place.setdefault(name, {})
        place[leaf] = value
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "params.yaml").write_text(yaml.safe_dump(raw, sort_keys=False))
    write_inputs(folder, configs.resolve(raw))
    return folder


def write_inputs(folder, config):
    """The files of ``configure``, data and candidate sets, two heads with a signal, and what each objective is given."""
    work, settings = folder / "work", stages.files(config)
    for name, values in settings.items():
        write_json(folder / stages.FOLDER / f"{name}.json", values)
    for name in ("prepare", "candidates", "heads", "signal"):
        write_json(folder / manifest.RUNS / f"{name}.json", [{"settings": name, "config": settings[name]}])
    sets = make_sets(12, questions=2)
    passages = [(i, "toy", s.id, "", text) for s in sets for i, text in zip(s.passage_ids, s.passages, strict=True)]
    questions = [(q.id, "toy", s.id, q.text, s.passage_ids[q.gold]) for s in sets for q in s.questions]
    rows = [(s.id, "toy", s.id, s.passage_ids, [q.id for q in s.questions], [q.gold for q in s.questions]) for s in sets]
    tables = {
        "data/passages": (passages, ["passage_id", "source", "group", "title", "text"]),
        "data/instances": (questions, ["instance_id", "source", "group", "query", "target_id"]),
        "candidates/candidates": (rows, ["set_id", "source", "group", "passage_ids", "instance_ids", "gold"]),
    }
    for name, (values, columns) in tables.items():
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(values, columns=columns).to_parquet(work / f"{name}.parquet")
    heads, used = {"selected": HEADS}, {"rows": "all", "gap": 0.2, "gap_low": 0.1, "gap_high": 0.3, "instances": 4, "used": True}
    write_json(work / "heads" / "heads.json", heads)
    write_json(work / "signal" / "diagnostic.json", {"rows": [used], "positions": []})
    write_json(folder / "reports" / "assets" / "judge.json", {"content": "a judge"})
    for name in config.objectives:
        needs = settings[f"given-{name}"]["needs"]
        write_json(work / "given" / name / "needs.json", needs)
        if "heads" in needs:
            write_json(work / "given" / name / "heads.json", heads)


def model(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("model"))


def outs(folder, name="infonce-0"):
    """Bytes of everything that the stage leaves, by path."""
    folder = pathlib.Path(folder)
    files = [*(folder / "work" / "models" / name).rglob("*"), folder / "reports" / "results" / "train" / f"{name}.csv"]
    return {str(p.relative_to(folder)): p.read_bytes() for p in files if p.is_file()}


def checkpoints(folder):
    """Numbers of the steps that are saved, oldest first."""
    return sorted(int(p.stem.split("-")[1]) for p in pathlib.Path(folder).glob(".dream/checkpoints/*/step-*.pt"))


def start(folder, *, objective="infonce", target=None, die=None, env=None, rank=0, world=1, port=0):
    """Start the stage (or ``target()``) in a process of its own; returns it. The log is ``<folder>/log-<rank>``."""
    (pathlib.Path(folder) / f"log-{rank}").write_text("")
    process = FORKS.Process(target=_child, args=(str(folder), objective, target, die, env or {}, rank, world, port))
    process.start()
    return process


def run(folder, **more):
    """Run the stage to its end; returns exit code and log."""
    process = start(folder, **more)
    return end(process), log(folder)


def start_together(folder, world=2, **more):
    """Start ``world`` processes that form one group, as torchrun starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [start(folder, rank=rank, world=world, port=port, **more) for rank in range(world)]


def run_together(folder, world=2, **more):
    """Run a group to its end; returns the exit codes and the logs."""
    group = start_together(folder, world, **more)
    return [end(p) for p in group], "".join(log(folder, rank) for rank in range(world))


def end(process):
    process.join(LIMIT)
    assert process.exitcode is not None, "the process did not end"
    return process.exitcode


def log(folder, rank=0):
    return (pathlib.Path(folder) / f"log-{rank}").read_text()


def wait_for(condition, process):
    """Wait until ``condition()``, while the process lives."""
    until = time.monotonic() + LIMIT
    while not condition():
        assert process.is_alive() and time.monotonic() < until, "it ended before the moment came"
        time.sleep(0.002)


def _child(folder, objective, target, die, env, rank, world, port):
    os.chdir(folder)
    stream = os.open(f"log-{rank}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(stream, 1)
    os.dup2(stream, 2)
    os.environ |= {"DVC_ROOT": folder, "OMP_NUM_THREADS": "1", **env}
    if world > 1:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if die:
        _die(*die)
    if target:
        target()
        return
    from stages import train

    sys.argv = ["train", "--objective", objective, "--seed", "0"]
    train.main()


def _die(where, count):
    """Arrange that the process kills itself (SIGKILL) at the ``count``-th moment of a kind.

    write: half of a checkpoint's bytes are written. rename: a finished file or folder is about to take its place.
    """
    owner, name = {"write": (pathlib.Path, "write_bytes"), "rename": (os, "replace")}[where]
    real, calls = getattr(owner, name), []

    def deadly(first, second, *rest):
        calls.append(1)
        if len(calls) == count:
            if where == "write":
                real(first, bytes(second)[: len(second) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return real(first, second, *rest)

    setattr(owner, name, deadly)
