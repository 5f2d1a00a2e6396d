"""Training that is killed, stopped, starved or fed broken files: the same bytes, or one clear line (docs/faults.md)."""

import errno
import os
import pathlib
import random
import signal
import zipfile

import pytest
import torch
import toy_project as toy
from test_training import make_config, make_sets, run, same, weights

from dream import training
from dream.errors import DreamError, explain
from dream.judge import Judge
from stages import train as stage

# `model` is a path that every project of this file shares: it is part of the adapter's bytes
model = pytest.fixture(scope="module")(toy.model)


@pytest.fixture(scope="module")
def whole(model, tmp_path_factory):
    """What a run leaves that nothing interrupts."""
    folder = toy.make(tmp_path_factory.mktemp("whole"), model)
    code, log = toy.run(folder)
    assert code == 0, log
    found = toy.outs(folder)
    assert {pathlib.Path(p).name for p in found} >= {"adapter_model.safetensors", "state.json", "made_with.json", "infonce-0.csv"}
    assert toy.checkpoints(folder) == [12]
    return found


def finish(folder, whole):
    code, log = toy.run(folder)
    assert code == 0, log
    assert toy.outs(folder) == whole and toy.checkpoints(folder) == [12]
    return log


def test_kill_9_at_random_steps_leads_to_the_same_bytes(model, whole, tmp_path):
    folder, dice = toy.make(tmp_path, model), random.Random(0)
    for at in sorted(dice.sample(range(1, 12), 4)):
        process = toy.start(folder)
        toy.wait_for(lambda at=at: (toy.checkpoints(folder) or [0])[-1] >= at, process)
        process.kill()
        assert toy.end(process) == -signal.SIGKILL and not toy.outs(folder)
    finish(folder, whole)


MOMENTS = [("write", 1), ("write", 7), *(("rename", n) for n in random.Random(1).sample(range(1, 17), 4))]


@pytest.mark.parametrize(("where", "count"), MOMENTS)
def test_kill_9_in_the_middle_of_a_write_leads_to_the_same_bytes(model, whole, tmp_path, where, count):
    """11 checkpoints are renamed into place, then adapter, state, curves and record: the kill hits any of them."""
    folder = toy.make(tmp_path, model)
    code, _ = toy.run(folder, die=(where, count))
    assert code == -signal.SIGKILL
    if where == "write":
        assert toy.checkpoints(folder) == list(range(max(1, count - 2), count))
        (half,) = folder.glob(".dream/checkpoints/*/.step-*")
        assert half.stat().st_size > 1000
    finish(folder, whole)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT"])
def test_a_signal_saves_and_says_so(model, whole, tmp_path, name):
    folder = toy.make(tmp_path, model, **{"training.checkpoint_every": 100})
    process = toy.start(folder)
    toy.wait_for(lambda: "train infonce seed 0" in toy.log(folder) and "/12" in toy.log(folder), process)
    os.kill(process.pid, signal.Signals[name])
    assert toy.end(process) == 1
    (step,) = toy.checkpoints(folder)
    assert f"stopped by {name} after step {step}, which is saved. Run the same command again to go on" in toy.log(folder)
    assert "Traceback" not in toy.log(folder) and not toy.outs(folder)
    code, log = toy.run(folder)
    assert code == 0 and f"{step}/12" in log
    found = toy.outs(folder)
    differ = {path for path in whole if found[path] != whole[path]}
    assert {pathlib.Path(path).name for path in differ} == {"made_with.json"}  # it records checkpoint_every


def flip(path, spot):
    content = bytearray(path.read_bytes())
    content[spot % len(content)] ^= 0xFF
    path.write_bytes(bytes(content))


def edit(path, change):
    state = torch.load(path, weights_only=True)
    change(state)
    torch.save(state, path)


def largest_tensor(path):
    """Offset of the first byte of the largest member of a checkpoint (a zip archive)."""
    with zipfile.ZipFile(path) as archive:
        member = max(archive.infolist(), key=lambda m: m.file_size)
    header = path.read_bytes()[member.header_offset :]
    return member.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")


BROKEN = {
    "empty": lambda p: p.write_bytes(b""),
    "half": lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]),
    "no end": lambda p: p.write_bytes(p.read_bytes()[:-1]),
    "text": lambda p: p.write_text("not a checkpoint"),
    "flipped bit of a weight": lambda p: flip(p, largest_tensor(p)),
    "other shape": lambda p: edit(p, lambda s: s["parameters"].update({k: v[:1] for k, v in s["parameters"].items() if v.ndim})),
    "other names": lambda p: edit(p, lambda s: s.update(parameters={f"x.{k}": v for k, v in s["parameters"].items()})),
    "part missing": lambda p: edit(p, lambda s: s.pop("scheduler")),
    "other optimiser": lambda p: edit(p, lambda s: s["optimizer"].update(param_groups=[])),
    "a pickle of code": lambda p: torch.save({"step": pathlib.Path("x")}, p),
}


@pytest.fixture
def cut(model, tmp_path, monkeypatch):
    """Config, sets, an uninterrupted result, and the checkpoints of steps 4 and 5 of 6."""
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    config, sets = make_config(model, **{"training.keep_checkpoints": 3}), make_sets()
    result, folder = run(config, sets=sets, key="key"), tmp_path / ".dream" / "checkpoints" / "key"
    (folder / "step-0000006.pt").unlink()
    return config, sets, result, folder


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_checkpoint_is_skipped_for_the_one_before(cut, kind):
    config, sets, whole, folder = cut
    BROKEN[kind](folder / "step-0000005.pt")
    with pytest.warns(UserWarning, match=r"step-0000005\.pt cannot be read \(.+\)\. Trying the one before"):
        again = run(config, sets=sets, key="key")
    assert same(weights(whole), weights(again)) and whole.history == again.history


@pytest.mark.filterwarnings("ignore:checkpoint")
def test_flipped_bytes_anywhere_never_change_the_result(cut):
    config, sets, whole, folder = cut
    content, dice = (folder / "step-0000005.pt").read_bytes(), random.Random(2)
    for spot in dice.sample(range(len(content)), 12):
        (folder / "step-0000005.pt").write_bytes(content)
        flip(folder / "step-0000005.pt", spot)
        again = run(config, sets=sets, key="key")
        assert same(weights(whole), weights(again)) and whole.history == again.history, f"byte {spot}"


def test_no_sound_checkpoint_means_a_fresh_start(cut):
    config, sets, whole, folder = cut
    for path in folder.glob("*.pt"):
        path.write_bytes(b"")
    with pytest.warns(UserWarning, match="cannot be read") as caught:
        again = run(config, sets=sets, key="key")
    assert len([w for w in caught if "Trying the one before" in str(w.message)]) == 2
    assert same(weights(whole), weights(again)) and whole.history == again.history


def test_a_full_disk_stops_with_one_line_and_keeps_the_checkpoint_before(model, tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    folder, real = tmp_path / ".dream" / "checkpoints" / "full", pathlib.Path.write_bytes

    def small_disk(path, content):
        if "step-0000003" in path.name:
            real(path, bytes(content)[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(path, content)

    monkeypatch.setattr(pathlib.Path, "write_bytes", small_disk)
    with pytest.raises(OSError, match="No space left") as caught:
        run(make_config(model), key="full")
    line = explain(caught.value)
    assert line.startswith(f"no space left on the disk while writing {folder}/step-0000003.pt.") and "\n" not in line
    assert [p.name for p in sorted(folder.iterdir())] == ["step-0000001.pt", "step-0000002.pt"]


@pytest.mark.parametrize("kind", ["8bit", "4bit"])
def test_a_quantized_judge_without_its_library_is_one_line(model, tmp_path, monkeypatch, kind):
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *_: None)
    with pytest.raises(
        DreamError, match=rf"the judge's quantization is {kind}, which needs bitsandbytes. Run `pip install"
    ) as caught:
        Judge.build(make_config(model, **{"models.toy.quantization": kind}))
    assert "\n" not in str(caught.value)


def test_the_judge_is_loaded_once_frozen_and_in_its_own_dtype(model, tmp_path, monkeypatch):
    """The stage itself, in this process: a bfloat16 judge beside a float32 encoder, its weights before and after."""
    folder = toy.make(
        tmp_path,
        model,
        **{"models.half": {"model": str(model), "dtype": "bfloat16"}, "sizes.toy.judge": "half", "training.steps": 2},
    )
    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    monkeypatch.setattr("sys.argv", ["train", "--objective", "dream", "--seed", "0"])
    loaded, load, results, train = [], Judge.load, [], training.train
    before = {}

    def watched(*given):
        loaded.append(load(*given))
        before.update({k: v.clone() for k, v in loaded[0].model.state_dict().items()})
        return loaded[-1]

    monkeypatch.setattr(Judge, "load", watched)
    monkeypatch.setattr(training, "train", lambda *given: results.append(train(*given)) or results[-1])
    stage.main()
    (judge,), (result,) = loaded, results
    assert judge.dtype == torch.bfloat16 and result.step.encoder.dtype == "float32"
    assert all(p.grad is None for p in judge.model.parameters())
    assert all(torch.equal(v, before[k]) for k, v in judge.model.state_dict().items())
    assert not {id(p) for p in judge.model.parameters()} & {id(p) for p in result.step.parameters()}


def test_a_second_ctrl_c_does_not_wait_for_the_step():
    with pytest.raises(KeyboardInterrupt), training._stopping_on_signals() as stop:
        os.kill(os.getpid(), signal.SIGINT)
        assert stop.requested == "SIGINT"
        os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
