"""Readings that are kept are those that would be made: the same bytes off, cold and warm, within the budget, after any damage."""

import os
import shutil
import zlib
from pathlib import Path
from types import SimpleNamespace

import pytest
import reference
import torch
import toy_project as toy
import transformers
from test_controls import run  # noqa: F401
from test_judge import losses_and_gradients, toy_scores

from dream.files import read_json
from dream.judge import Injection, Limits, store
from dream.judge.store import GIB, Store
from stages import train as train_stage

model = pytest.fixture(scope="module")(toy.model)
SIZE = 4 * 2 * 2 * 8 * 8  # bytes of one token's keys and values in the toy judge: layers × 2 × heads × width × float64


def judge_with(folder, budget=GIB, sets=1, **more):
    judge, _ = reference.both(**more)
    judge.weights, judge.store = "w", Store(budget, sets, folder)
    return judge


def entries(folder):
    return sorted(folder.glob("*"))


def numbers(judge, candidates):
    """Everything that a step makes of a set: readings, losses, gradients."""
    leaves, p, gate = toy_scores(candidates)
    reading = judge.read(candidates)
    losses = judge.target_losses(candidates, p, gate, Injection(reference.HEADS, "all"), reading=reading)
    return [*(x for layer in reading.layers for x in layer), *losses_and_gradients(losses, leaves)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("chunk", [None, 7])
def test_off_cold_and_warm_give_the_same_bytes(tmp_path, dtype, chunk):
    found = []
    for budget in (0, GIB, GIB):
        judge = judge_with(tmp_path, budget, dtype=dtype)
        judge.chunk = chunk
        found.append(numbers(judge, reference.candidate_set()))
    assert (judge.store.found, judge.store.made) == (1, 0)
    for kept in found[1:]:
        for a, b in zip(found[0], kept, strict=True):
            assert a.dtype == b.dtype and torch.equal(a, b)


def test_a_kept_reading_is_not_made_again_and_lives_without_its_file(tmp_path, monkeypatch):
    candidates = reference.candidate_set()
    judge = judge_with(tmp_path)
    made = judge.read(candidates)
    monkeypatch.setattr(type(judge), "_read", lambda *_: pytest.fail("it was read again"))
    found = judge.read(candidates)
    for path in entries(tmp_path):
        path.unlink()
    assert all(torch.equal(a, b) for x, y in zip(made.layers, found.layers, strict=True) for a, b in zip(x, y, strict=True))


def test_a_shallow_entry_serves_no_deeper_reading_and_a_deep_one_all(tmp_path):
    candidates, judge = reference.candidate_set(), judge_with(tmp_path)
    assert len(judge.read(candidates, 2).layers) == 2 and len(judge.read(candidates, 1).layers) == 1
    assert (judge.store.found, judge.store.made) == (1, 1)
    assert len(judge.read(candidates).layers) == 4 and len(judge.read(candidates, 3).layers) == 3
    assert (judge.store.found, judge.store.made) == (2, 2) and len(entries(tmp_path)) == 1


CHANGES = {
    "weights": lambda judge, _: setattr(judge, "weights", "another"),
    "dtype": lambda judge, _: judge.model.to(torch.float32),
    "pieces": lambda judge, _: setattr(judge, "chunk", 5),
    "threads": lambda judge, _: torch.set_num_threads(2),
    "code or version": lambda _, patch: patch.setattr(store, "_code", lambda: ["new"]),
    "processor": lambda _, patch: patch.setattr("torch.backends.cpu.get_cpu_capability", lambda: "OTHER"),
    "prompt": lambda judge, _: setattr(judge.prompt, "limits", Limits(passage=4)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_whatever_can_change_a_reading_is_in_its_name(tmp_path, monkeypatch, change):
    candidates, judge = reference.candidate_set(), judge_with(tmp_path)
    judge.read(candidates)
    CHANGES[change](judge, monkeypatch)
    judge.read(candidates)
    assert (judge.store.found, judge.store.made) == (0, 2) and len(entries(tmp_path)) == 2


def test_a_graphics_card_is_in_the_name(monkeypatch):
    judge = SimpleNamespace(device=torch.device("cuda", 1), dtype=torch.float32, weights="w", chunk=None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"card {device.index}")
    assert store.identity(judge)[:5] == ["w", "torch.float32", "card 1", torch.get_num_threads(), None]


def test_the_code_of_a_reading_is_every_module_beside_the_store_and_the_libraries_below(tmp_path, monkeypatch):
    monkeypatch.setattr(store, "__file__", str(tmp_path / "store.py"))

    def code(name=None, text=""):
        store._code.cache_clear()
        if name:
            (tmp_path / name).write_text(text, encoding="utf-8")
        return store._code()

    first = code("model.py", "a = 1")
    assert first[1:] == [torch.__version__, transformers.__version__] and code("notes.txt", "b") == first
    assert code("model.py", "a = 2")[0] != first[0] and code("model.py", "a = 1") == first
    monkeypatch.undo()
    store._code.cache_clear()


def test_ids_of_sets_questions_and_targets_are_not(tmp_path):
    judge = judge_with(tmp_path)
    judge.read(reference.candidate_set(questions=1))
    judge.read(reference.candidate_set(questions=3))
    assert (judge.store.found, judge.store.made) == (1, 1)


def test_the_entries_that_were_used_last_stay_within_the_budget(tmp_path):
    sets = [reference.candidate_set(seed=s) for s in range(4)]
    size = len(judge_with(tmp_path / "other").read(sets[0]).documents.ids) * SIZE
    (file,) = entries(tmp_path / "other")
    assert size < file.stat().st_size < 2 * size
    judge, kept = judge_with(tmp_path, 3.5 * file.stat().st_size), tmp_path

    def read(i):
        judge.read(sets[i])
        for age, path in enumerate(sorted(kept.glob("*.safetensors"), key=lambda p: -p.stat().st_mtime_ns)):
            os.utime(path, ns=(10**18 - age, 10**18 - age))  # older than what comes next, in the same order

    for i in (0, 1, 2, 0, 3):  # 1 was not used for longest
        read(i)
    assert sum(p.stat().st_size for p in kept.glob("*.safetensors")) <= judge.store.budget
    before = judge.store.made
    for i in (0, 2, 3):
        read(i)
    assert judge.store.made == before
    read(1)
    assert judge.store.made == before + 1 and len(list(kept.glob("*.safetensors"))) == 3


def test_entries_that_fill_the_budget_exactly_stay(tmp_path):
    first, second = (reference.candidate_set(seed=s) for s in range(2))
    judge = judge_with(tmp_path)
    judge.read(first)
    (file,) = entries(tmp_path)
    for budget, left in ((2 * file.stat().st_size, 2), (2 * file.stat().st_size - 1, 1)):
        judge = judge_with(tmp_path, budget)
        os.utime(file, ns=(1, 1))
        (tmp_path / "not-an-entry").write_bytes(bytes(9999))
        judge.read(second)
        assert len(list(tmp_path.glob("*.safetensors"))) == left
        for path in set(entries(tmp_path)) - {file}:
            path.unlink()
    assert not file.exists()


def test_what_another_process_removes_meanwhile_is_no_error(tmp_path, monkeypatch):
    """One file goes before it is looked at, another one after that."""
    judge = judge_with(tmp_path)
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    for path in paths:
        path.write_bytes(b"12345")
    judge.store.budget, real = 4, type(paths[0]).stat

    def stat(path, **more):
        if path == paths[0]:
            path.unlink(missing_ok=True)
        found = real(path, **more)
        if path == paths[1]:
            path.unlink(missing_ok=True)
        return found

    monkeypatch.setattr(type(paths[0]), "stat", stat)
    judge.store._make_room()
    monkeypatch.undo()
    assert not entries(tmp_path)

    unlink, path = type(paths[0]).unlink, paths[2]
    monkeypatch.setattr(type(path), "unlink", lambda path, **more: [unlink(path), unlink(path, **more)])  # it goes just before
    path.write_bytes(b"12345")
    judge.store._make_room()
    path.write_bytes(b"12345")
    with pytest.warns(UserWarning, match="damaged"):
        assert judge.store._open(path, 1, judge.device) is None and not entries(tmp_path)


def test_the_folder_is_beside_the_checkpoints_unless_one_is_given(tmp_path, monkeypatch):
    monkeypatch.delenv("DVC_ROOT", raising=False)
    config = SimpleNamespace(judge=SimpleNamespace(cache_gib=0.5), sets_read=7)
    found = Store.of(config)
    assert (found.budget, found.sets, found.folder) == (2**29, 7, Path(".dream/readings"))
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    assert (
        Store(1).sets == 1
        and Store(1).folder == tmp_path / ".dream" / "readings"
        and Store(1, folder=tmp_path).folder == tmp_path
    )


def test_an_entry_is_checked_when_a_process_opens_it_first_and_used_by_opening_it(tmp_path, monkeypatch):
    candidates = reference.candidate_set()
    judge_with(tmp_path).read(candidates)
    (path,) = entries(tmp_path)
    layers = reference.both()[0].read(candidates).layers
    content = b"".join(x.contiguous().numpy().tobytes() for layer in layers for x in layer)
    assert store.checksum(layers) == f"{zlib.crc32(content):08x}"
    judge, calls, real = judge_with(tmp_path), [], store.checksum
    monkeypatch.setattr(store, "checksum", lambda layers: calls.append(len(layers)) or real(layers))
    for _ in range(3):
        os.utime(path, ns=(1, 1))
        judge.read(candidates, 2)
        assert path.stat().st_mtime_ns > 1
    assert calls == [4], "whole, once"
    calls.clear()
    path.unlink()
    author = judge_with(tmp_path)
    for _ in range(3):
        author.read(candidates)
    assert calls == [4], "who wrote it knows that it is sound"


def cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def flip(path):
    content = bytearray(path.read_bytes())
    content[-9] ^= 1
    path.write_bytes(content)


def no_checksum(path):
    from safetensors.torch import load_file, save_file

    save_file(load_file(path), path)


@pytest.mark.parametrize("spoil", [cut, flip, no_checksum, lambda p: p.write_bytes(b""), lambda p: p.write_bytes(b"x" * 99)])
def test_a_damaged_entry_is_said_and_read_anew(tmp_path, spoil):
    candidates = reference.candidate_set()
    first = numbers(judge_with(tmp_path), candidates)
    (path,) = entries(tmp_path)
    whole = path.read_bytes()
    spoil(path)
    judge = judge_with(tmp_path)
    with pytest.warns(UserWarning, match="damaged"):
        assert judge.store._open(path, 1, judge.device) is None and not path.exists()
    path.write_bytes(whole)
    spoil(path)
    with pytest.warns(UserWarning, match=r"reading .*safetensors is damaged .*: the documents are read anew"):
        again = numbers(judge, candidates)
    assert all(map(torch.equal, first, again)) and judge.store.made == 1 and path.read_bytes() == whole


def test_nothing_is_kept_where_it_cannot_pay(tmp_path, capsys):
    candidates = reference.candidate_set()
    size = len(reference.both()[0].read(candidates).documents.ids) * SIZE
    for budget, sets, kept in ((10 * size, 10, True), (10 * size, 11, False), (0, 1, False)):
        judge = judge_with(folder := tmp_path / f"{budget}-{sets}", budget, sets)
        judge.read(candidates)
        judge.read(candidates)
        assert (judge.store.found == 1, folder.exists()) == (kept, kept), (budget, sets)
        assert bool(judge.store.told().get("off")) != kept
    assert capsys.readouterr().out.count("the judge's readings are not kept: 11 sets of 0 MiB take") == 1
    assert store.too_large(3 * 2**20, 1024, 2.5 * GIB) == "1024 sets of 3 MiB take 3.0 GiB, judge.cache_gib is 2.5"


def test_a_judge_that_is_trained_keeps_nothing(tmp_path):
    judge = judge_with(tmp_path)
    judge.add_lora(4, 8, ["q_proj"])
    assert judge.read(reference.candidate_set()).layers[-1][0].requires_grad
    assert not entries(tmp_path) and judge.store.told() == {"off": "the judge is trained"}


def test_a_quantized_judge_keeps_nothing(tmp_path, monkeypatch):
    from dream.judge import Judge

    monkeypatch.setattr(Judge, "load", lambda *_: reference.both()[0])
    limits = SimpleNamespace(passage_tokens=9, query_tokens=9, target_tokens=9)
    for quantization, off in (("none", ""), ("8bit", "a judge in 8bit promises no stable bytes")):
        record = SimpleNamespace(model="m", dtype="float32", quantization=quantization)
        judge = Judge.build(SimpleNamespace(roles={"judge": record}, judge=limits), store=Store(GIB, 1, tmp_path))
        assert judge.store.off == off


def test_a_full_disk_switches_it_off_and_stops_nothing(tmp_path, monkeypatch, capsys):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(store, "save_file", full)
    judge = judge_with(tmp_path)
    assert len(judge.read(reference.candidate_set()).layers) == 4
    assert not entries(tmp_path) and f"{tmp_path} cannot be written (No space left on device)" in capsys.readouterr().out


def test_a_training_leaves_the_same_bytes_off_cold_and_warm(model, tmp_path, run):  # noqa: F811
    outs, notes = [], []
    for gib in (0.0, 0.5, 0.5):
        folder = toy.make(tmp_path / "toy", model, objectives=["dream"], **{"judge.cache_gib": gib, "training.steps": 4})
        shutil.rmtree(folder / ".dream" / "checkpoints", ignore_errors=True)  # else the run would have nothing left to do
        run(train_stage, folder)
        outs.append(toy.outs(folder, "dream-0"))
        notes.append(read_json(folder / "reports/results/runs/train-dream-0.json")[0]["notes"]["readings"])
    assert outs[0] == outs[1] == outs[2] and any("adapter_model" in name for name in outs[0])
    assert notes == [{"off": "judge.cache_gib is 0"}, {"found": 8, "made": 8}, {"found": 16, "made": 0}]
