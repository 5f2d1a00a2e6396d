"""Several processes give what one gives: gradients, weights, files. On the CPU, over gloo, with random models."""

import os
import pathlib
import signal
import subprocess
import sys

import pandas as pd
import pytest
import torch
import toy_project as toy
import yaml

from dream import config as configs
from dream import models
from dream.config import stages
from dream.encoder import Encoder
from dream.evaluation import metrics
from dream.instances import load_sets
from dream.manifest import ROOT

ATOL, RTOL = 1e-6, 1e-4  # of a gradient: float32 sums in another order
WEIGHTS = 1e-4  # of a weight after 12 steps at rate 5e-3

model = pytest.fixture(scope="module")(toy.model)
FSDP = {
    "FSDP_VERSION": "2", "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_RESHARD_AFTER_FORWARD": "true", "FSDP_OFFLOAD_PARAMS": "false",
}  # fmt: skip


def first_step():
    """Train as the stage does and store what the last step's gradients and the trained weights are."""
    from dream import objectives, training
    from dream.judge import Judge

    name = os.environ["TOY_OBJECTIVE"]
    config = stages.load(f"train-{name}")
    judge = Judge.build(config, training.device()) if "judge" in objectives.find(name).needs else None
    result = training.train(config, name, 0, load_sets(), objectives.Given(judge, toy.HEADS), "key")
    trained = result.step.trained()
    dump = {
        "gradients": {k: p.grad for k, p in trained.items()},
        "weights": {k: p.detach() for k, p in trained.items()},
        "history": result.history,
        "flops": result.flops,
        "sharded": [type(p).__name__ for p in result.step.encoder.backbone.parameters() if not p.requires_grad],
    }
    if training.is_main_process():
        result.step.encoder.save_adapter("adapter")
    torch.save(dump, f"dump-{os.environ.get('RANK', 0)}.pt")
    training.finish()


def first_step_sharded():
    """The same under FSDP. Accelerate switches it on for GPUs only, so its state is set by hand; the rest is its own code."""
    from accelerate import FullyShardedDataParallelPlugin
    from accelerate.utils import DistributedType

    from dream import training

    shard = training._shard

    def on_cpu(accelerator, *rest):
        accelerator.state.distributed_type = DistributedType.FSDP
        accelerator.state.fsdp_plugin = FullyShardedDataParallelPlugin()  # reads the launcher's environment
        shard(accelerator, *rest)

    training._shard = on_cpu
    first_step()


def dumps(folder, world):
    return [torch.load(folder / f"dump-{rank}.pt") for rank in range(world)]


@pytest.mark.parametrize("objective", ["infonce", "dream"])
@pytest.mark.parametrize("batch", [4, 5, 1], ids=["divisible", "uneven", "one set for two"])
def test_gradients_of_two_processes_equal_those_of_one(model, tmp_path, objective, batch, monkeypatch):
    monkeypatch.setenv("TOY_OBJECTIVE", objective)
    more = {"training.steps": 1, "training.batch": batch, "training.micro_batch": 1, "training.clip": 0.0}
    alone, together = toy.make(tmp_path / "one", model, **more), toy.make(tmp_path / "two", model, **more)
    env = {"TOY_OBJECTIVE": objective}
    assert toy.run(alone, target=first_step, env=env)[0] == 0, toy.log(alone)
    codes, log = toy.run_together(together, target=first_step, env=env)
    assert codes == [0, 0], log
    (one,), (first, second) = dumps(alone, 1), dumps(together, 2)
    assert sum(g.abs().sum() for g in one["gradients"].values()) > 0
    for name, g in one["gradients"].items():
        torch.testing.assert_close(first["gradients"][name], g, atol=ATOL, rtol=RTOL)
        assert torch.equal(first["gradients"][name], second["gradients"][name])
    assert first["flops"] == one["flops"] and first["history"] == second["history"]
    assert first["history"][0]["loss"] == pytest.approx(one["history"][0]["loss"], rel=1e-5)


BEFORE = ["candidates.json", "heads.json", "prepare.json", "signal.json"]  # records of the stages before


def adapter(folder):
    from safetensors.torch import load_file

    return load_file(folder / "work" / "models" / "infonce-0" / "adapter" / "adapter_model.safetensors")


def test_two_processes_train_the_model_of_one_and_only_the_main_one_writes(model, tmp_path):
    alone, together = toy.make(tmp_path / "one", model), toy.make(tmp_path / "two", model)
    assert toy.run(alone)[0] == 0
    codes, log = toy.run_together(together)
    assert codes == [0, 0], log
    one, two = adapter(alone), adapter(together)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, atol=WEIGHTS, rtol=0)
    assert toy.outs(alone).keys() == toy.outs(together).keys()
    assert log.count("[train-infonce-0] stage ") == 1 and "train infonce seed 0" not in toy.log(together, 1)
    records = sorted(p.name for p in (together / "reports" / "results" / "runs").iterdir())
    assert records == [*BEFORE, "train-infonce-0.json"] and toy.checkpoints(together) == [12], "for a longer run"
    pd.testing.assert_frame_equal(table(alone), table(together))
    assert 0 < table(alone)["ndcg_at_10"].mean() < 1


def table(folder):
    """Scores of every training question against all passages of the toy data, by the trained encoder."""
    config = configs.load(folder / "params.yaml")
    trained = folder / "work" / "models" / "infonce-0" / "adapter"
    encoder = Encoder.load(models.rules(config.roles["encoder"], "encoder"), adapter=trained)
    sets = load_sets(folder / "work" / "data", folder / "work" / "candidates")
    passages = {i: text for s in sets for i, text in zip(s.passage_ids, s.passages, strict=True)}
    questions = {q.id: (q.text, s.passage_ids[q.gold]) for s in sets for q in s.questions}
    scores = encoder.encode([text for text, _ in questions.values()]) @ encoder.encode(list(passages.values())).T
    run = {q: dict(zip(passages, map(float, row), strict=True)) for q, row in zip(questions, scores, strict=True)}
    qrels = pd.DataFrame([(q, gold, 1) for q, (_, gold) in questions.items()], columns=["query_id", "doc_id", "relevance"])
    return metrics.per_query(run, qrels)


def test_two_processes_stop_together_and_go_on_to_the_same_bytes(model, tmp_path):
    whole, cut = toy.make(tmp_path / "whole", model), toy.make(tmp_path / "cut", model)
    assert toy.run_together(whole)[0] == [0, 0]
    group = toy.start_together(cut)
    toy.wait_for(lambda: (toy.checkpoints(cut) or [0])[-1] >= 3, group[0])
    group[1].terminate()  # one process is told, all of them stop
    assert [toy.end(p) for p in group] == [1, 1]
    assert f"stopped by SIGTERM after step {toy.checkpoints(cut)[-1]}, which is saved" in toy.log(cut, 0)
    assert "Traceback" not in toy.log(cut, 0) + toy.log(cut, 1)
    group = toy.start_together(cut)
    toy.wait_for(lambda: toy.checkpoints(cut)[-1] >= 8, group[0])
    for process in group:
        process.kill()
    assert [toy.end(p) for p in group] == [-signal.SIGKILL] * 2
    codes, log = toy.run_together(cut)
    assert codes == [0, 0], log
    assert toy.outs(cut) == toy.outs(whole)


def hungry():
    """Stage train on a machine where process 1 has room for one set only."""
    from dream import training
    from stages import train

    forward = training.Step.forward

    def small(step, sets):
        if os.environ["RANK"] == "1" and len(sets) > 1:
            raise torch.OutOfMemoryError("pretend")
        return forward(step, sets)

    training.Step.forward = small
    sys.argv = ["train", "--objective", "infonce", "--seed", "0"]
    train.main()


def test_one_process_out_of_memory_halves_the_micro_batch_of_all(model, tmp_path):
    folder = toy.make(tmp_path, model)
    codes, log = toy.run_together(folder, target=hungry)
    assert codes == [0, 0], log
    assert log.count("out of memory: micro-batch halved to 1, global batch stays 4") == 1
    assert toy.outs(folder)


def test_fsdp_spreads_the_frozen_weights_and_gives_the_same_gradients_and_adapter(model, tmp_path):
    more = {"training.steps": 3, "training.micro_batch": 1, "training.gradient_checkpointing": True}
    alone, together = toy.make(tmp_path / "one", model, **more), toy.make(tmp_path / "two", model, **more)
    env = {"TOY_OBJECTIVE": "dream"}
    assert toy.run(alone, target=first_step, env=env)[0] == 0, toy.log(alone)
    codes, log = toy.run_together(together, target=first_step_sharded, env={**env, **FSDP})
    assert codes == [0, 0], log
    (one,), (first, second) = dumps(alone, 1), dumps(together, 2)
    assert set(first["sharded"]) == {"DTensor"} and "DTensor" not in one["sharded"]
    for name, g in one["gradients"].items():
        torch.testing.assert_close(first["gradients"][name], g, atol=1e-5, rtol=1e-3)
        assert torch.equal(first["weights"][name], second["weights"][name])
        torch.testing.assert_close(first["weights"][name], one["weights"][name], atol=WEIGHTS, rtol=0)
    assert sorted(p.name for p in (together / "adapter").iterdir()) == sorted(p.name for p in (alone / "adapter").iterdir())


def test_fsdp_refuses_a_batch_that_is_not_divisible(model, tmp_path):
    folder = toy.make(tmp_path, model, **{"training.batch": 3, "training.micro_batch": 1})
    env = {**FSDP, "TOY_OBJECTIVE": "infonce"}
    codes, log = toy.run_together(folder, target=first_step_sharded, env=env)
    assert codes == [1, 1] and "under FSDP the 3 micro-batches of a step must be a multiple of the 2 processes" in log


@pytest.mark.parametrize("name", ["one_gpu", "multi_gpu", "two_cpu_processes", "multi_node", "fsdp_8b"])
def test_accelerate_takes_its_configuration_files(name):
    """The installed version's own class, its launcher's validation, and its FSDP plugin."""
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser

    path = ROOT / "configs" / "accelerate" / f"{name}.yaml"
    found = load_config_from_file(str(path))
    raw = yaml.safe_load(path.read_text())
    assert found.num_processes == raw["num_processes"] and found.mixed_precision == "no"
    parsed = launch_command_parser().parse_args(["--config_file", str(path), "--module", "stages.train", "--objective", "dream"])
    args, _, _ = _validate_launch_command(parsed)
    assert args.module and args.training_script_args == ["--objective", "dream"]
    assert bool(args.multi_gpu) == (name in ("multi_gpu", "two_cpu_processes", "multi_node"))
    assert bool(args.use_fsdp) == (name == "fsdp_8b")
    known = {a.dest for a in launch_command_parser()._actions}
    assert set(raw.get("fsdp_config", {})) <= known


def test_the_fsdp_file_asks_for_what_the_test_above_runs():
    fsdp = yaml.safe_load((ROOT / "configs" / "accelerate" / "fsdp_8b.yaml").read_text())["fsdp_config"]
    asked = {key.upper(): str(value).lower() for key, value in fsdp.items()}
    assert {k: v for k, v in asked.items() if k in FSDP} == {k: v.lower() for k, v in FSDP.items()}


def test_a_missing_and_a_wrong_launch_file_are_one_line(model, tmp_path):
    missing = toy.make(tmp_path / "a", model, **{"training.accelerate": "nowhere.yaml"})
    assert toy.run(missing) == (1, "error: training.accelerate: nowhere.yaml is missing. configs/accelerate holds some\n")
    wrong = toy.make(tmp_path / "b", model, **{"training.accelerate": "wrong.yaml"})
    (wrong / "wrong.yaml").write_text("num_procs: 2\n")
    code, log = toy.run(wrong)
    assert code == 1 and log.startswith("error: training.accelerate: wrong.yaml cannot be used (") and log.count("\n") == 1


@pytest.mark.slow
def test_the_launch_parameter_and_accelerate_launch_start_two_processes(model, tmp_path):
    """As a user does it: `training.accelerate` in params.yaml, and accelerate's own command. One full start each."""
    file = ROOT / "configs" / "accelerate" / "two_cpu_processes.yaml"
    alone = toy.make(tmp_path / "one", model)
    assert toy.run(alone)[0] == 0
    asked = ["--objective", "infonce", "--seed", "0"]
    launch = ["-m", "accelerate.commands.launch", "--config_file", str(file), "--module", "stages.train"]
    ways = {
        "parameter": ({"training.accelerate": str(file)}, [sys.executable, "-m", "stages.train", *asked]),
        "command": ({}, [sys.executable, *launch, *asked]),
    }
    for way, (more, command) in ways.items():
        folder = toy.make(tmp_path / way, model, **more)
        env = {**os.environ, "PYTHONPATH": str(ROOT), "DVC_ROOT": str(folder), "TOKENIZERS_PARALLELISM": "false"}
        ran = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        assert (ran.stdout + ran.stderr).count("[train-infonce-0] stage ") == 1
        for name, weight in adapter(alone).items():
            torch.testing.assert_close(adapter(folder)[name], weight, atol=WEIGHTS, rtol=0)
        assert pathlib.Path(folder, "work/models/infonce-0/state.json").is_file()
