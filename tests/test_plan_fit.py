"""plan: which card a training fits, what to change, the LM's memory against what its step takes, and hours that were measured."""

import csv
import json
from importlib import resources

import pytest
import torch
from memory_peak import Peak
from report_fixture import make_config as toy_config

from dream import config as configs
from dream.config import stages
from dream.errors import DreamError
from dream.files import read_json, write_json
from dream.planning import plan

PAPER = {"model.size": "0.5b"}
JUDGE = "models.llama-3.1-8b-instruct.quantization"


def load(**overrides):
    return configs.load(overrides=overrides)


def verdicts(config, card):
    return {row["training"]: row["verdict"] for row in plan.cards(config, card) if row["card_gib"] == card}


def test_settings_are_read_as_dvc_takes_them():
    given = plan.overrides(["training.micro_batch=1", "++revela.tau=1e-2", "objectives=[dream, infonce]", "questions.prompt=a=b"])
    assert given == {
        "training.micro_batch": 1, "revela.tau": 0.01, "objectives": ["dream", "infonce"], "questions.prompt": "a=b"
    }  # fmt: skip
    for wrong in ("training.micro_batch", "=3", "seeds=[0"):
        with pytest.raises(DreamError, match=rf"-S {wrong[:4]}.* is no setting. Write it as section.knob=value"):
            plan.overrides([wrong])


def test_a_quantized_judges_layers_shrink_and_its_embeddings_do_not():
    whole, eight, four = (plan.estimate(load(**PAPER, **{JUDGE: q}))["memory_gib"] for q in ("none", "8bit", "4bit"))
    layers, rest = 32 * 218_112_000 / 2**30, (8_030_261_248 - 32 * 218_112_000) * 2 / 2**30
    for found, width in ((whole, 2), (eight, 1), (four, 0.5625)):
        assert found["judge weights"] == pytest.approx(layers * width + rest)
        assert {k: v for k, v in found.items() if k != "judge weights"} == {
            k: v for k, v in whole.items() if k != "judge weights"
        }


def test_what_to_change_is_the_fewest_settings_that_fit():
    config = load(**PAPER)
    needs = plan.totals(config)
    assert verdicts(config, 80)["with judge"] == verdicts(config, 40)["with judge"] == "fits"
    found = verdicts(config, 24)
    changed = plan.totals(load(**PAPER, **{"training.gradient_checkpointing": True}))
    assert found == {
        "without judge": "fits",
        "with judge": f"fits with training.gradient_checkpointing=true: {changed['with judge']:.1f} GiB",
    }
    assert 0.9 * 24 < needs["with judge"] < 0.9 * 40 and changed["with judge"] < 0.9 * 24
    both = plan.totals(load(**PAPER, **{"training.gradient_checkpointing": True, JUDGE: "8bit"}))["with judge"]
    assert verdicts(config, both / 0.9 + 0.01)["with judge"] == (
        f"fits with training.gradient_checkpointing=true {JUDGE}=8bit: {both:.1f} GiB"
    )
    assert verdicts(config, 4)["with judge"].startswith("does not fit: ")


def test_every_change_is_a_setting_that_params_takes_and_saves_what_is_said():
    config = load(**PAPER, **{"objectives": ["dream", "revela"], "training.micro_batch": 2})
    changes, before = plan._changes(config), plan.totals(config)
    assert [change[0].partition("=")[0] for change in changes] == [
        "training.micro_batch", "training.gradient_checkpointing", JUDGE, JUDGE, "++revela.r", "candidates.count"
    ]  # fmt: skip
    for change in changes:
        given = {**PAPER, "objectives": ["dream", "revela"], "training.micro_batch": 2} | plan.overrides([change[0]])
        found = plan.totals(load(**given))
        assert found == plan.totals(plan._with(config, (change,)))
        assert all(found[k] <= before[k] for k in before) and found != before


def test_the_lm_of_8b_fits_80_gib_with_every_encoder():
    for size, fits in (
        ("0.5b", "fits"),
        ("1b", "fits"),
        ("3b", "fits"),
        ("8b", "fits with training.gradient_checkpointing=true: "),
    ):
        config = load(**{"model.size": size, "objectives": ["revela"]})
        assert verdicts(config, 80)["with LM"].startswith(fits)
        found = plan.estimate(config)
        assert found["lm_memory_gib"]["LM, LoRA, gradients, Adam"] == pytest.approx(16 * 671_088_640 / 2**30)
    assert plan.estimate(load(**PAPER))["lm_memory_gib"] == {}


def lm_step(shape, device, chunks, length, r, dtype):
    """A step of the LM with its layers computed again: bytes of its tensors at most, weights and moments of Adam beside."""
    from peft import LoraConfig, get_peft_model
    from transformers import AttentionInterface, AutoModelForCausalLM, LlamaConfig

    from dream.objectives.revela import ATTENTION, Revela, in_batch_attention

    AttentionInterface.register(ATTENTION, in_batch_attention)
    with torch.device(device):
        settings = LlamaConfig(**shape, tie_word_embeddings=False, attn_implementation=ATTENTION)
        lm = model = AutoModelForCausalLM.from_config(settings, dtype=dtype, attn_implementation=ATTENTION).requires_grad_(False)
        if r:
            lm = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=r, lora_alpha=r, target_modules="all-linear"))
        model.activation_checkpointing_enable({"use_reentrant": False})
        model.disable_input_require_grads()
        similarity = torch.full((chunks, chunks), 1 / (chunks - 1)).fill_diagonal_(0).requires_grad_()
        with Peak() as memory:
            Revela(lm.train(), None).modelling_loss([[5] * length] * chunks, similarity).backward()
    weights = list(lm.parameters())
    return memory.peak + sum(p.nbytes for p in weights) + 2 * sum(p.nbytes for p in weights if p.requires_grad)


SMALL = {"num_hidden_layers": 4, "num_attention_heads": 8, "num_key_value_heads": 2}
WIDTHS = {
    "attention": (SMALL | {"hidden_size": 128, "intermediate_size": 384, "vocab_size": 500}, 8, 48, 8, "float32"),
    "bfloat16": (SMALL | {"hidden_size": 128, "intermediate_size": 384, "vocab_size": 500}, 8, 48, 8, "bfloat16"),
    "frozen": (SMALL | {"hidden_size": 128, "intermediate_size": 384, "vocab_size": 500}, 8, 48, 0, "float32"),
    "logits": (SMALL | {"hidden_size": 64, "intermediate_size": 128, "vocab_size": 20_000}, 4, 32, 8, "float32"),
    "weights": (SMALL | {"hidden_size": 512, "intermediate_size": 2048, "vocab_size": 500}, 4, 16, 16, "float32"),
}


@pytest.mark.parametrize("case", WIDTHS)
def test_the_lms_memory_is_that_of_its_step_at_reduced_width(case):
    shape, chunks, length, r, dtype = WIDTHS[case]
    planned = plan.lm_memory(plan.Model.from_config("x", {**shape, "model_type": "llama"}), dtype, chunks, length, 1, r)
    taken = lm_step(shape, "cpu", chunks, length, r, getattr(torch, dtype))
    assert sum(planned.values()) == pytest.approx(taken, rel=0.25), planned


@pytest.mark.slow
def test_the_lms_memory_is_that_of_its_step_at_8b():
    """On torch's meta device, which has shapes and no memory."""
    shape = json.loads(resources.files("dream.planning").joinpath("models", "llama-3.1-8b.json").read_text(encoding="utf-8"))
    shape = {k: v for k, v in shape.items() if k in (*SMALL, "hidden_size", "intermediate_size", "vocab_size")}
    planned = plan.lm_memory(plan.model("meta-llama/Llama-3.1-8B"), "bfloat16", 16, 192, 1, 256)
    assert sum(planned.values()) == pytest.approx(lm_step(shape, "meta", 16, 192, 256, torch.bfloat16), rel=0.1)


def test_work_follows_its_formulas():
    """The paper's recipe: 48,000 sets of 16 passages of 192 tokens, one question of 64 tokens, targets of 192."""
    more = {"objectives": ["replug", "loop", "adist", "art", "fused", "revela"]}
    config = load(**PAPER, **more)
    found, judge = plan.estimate(config)["flops"], plan.model("meta-llama/Llama-3.1-8B-Instruct")
    layers, table, pairs = 2 * 32 * judge.per_layer, 128_256 * 4096, 4 * 32 * 4096
    documents, suffix = 16 * 192, 64 + 192 + 16
    read = layers * documents + pairs * documents * (documents // 2)
    asked, targets = layers * suffix + pairs * suffix * documents, 2 * table * 192
    line = 192 + 64 + 192 + 16
    assert found["teacher, replug"] == pytest.approx(48_000 * 16 * (layers * line + pairs * line * (line // 2) + targets))
    assert found["teacher, loop"] == pytest.approx(48_000 * (read + 16 * (asked + targets)))
    assert found["teacher, adist"] == found["teacher, fused"] == pytest.approx(48_000 * (read + asked))
    short = 192 + 64 + 16
    written = 16 * (layers * short + pairs * short * (short // 2) + 2 * table * 64)
    assert found["teacher, art"] == pytest.approx(48_000 * written)
    untouched = plan.model("Qwen/Qwen2.5-0.5B").forward_flops(17 * 512, 256)
    several = load(**PAPER, objectives=["fused"], fused={"teachers": ["bm25", "encoder", "question_likelihood"]})
    assert plan.estimate(several)["flops"]["teacher, fused"] == pytest.approx(48_000 * (written + untouched))
    writer = plan.model("Qwen/Qwen3-14B")
    tokens = round(64 + 100 * 1.4 + 48)
    one = writer.forward_flops(tokens, tokens // 2) + 2 * writer.vocabulary * writer.hidden * 48
    assert found["questions"] == pytest.approx(53_000 * one)
    encoder = plan.model("Qwen/Qwen2.5-0.5B")
    lm = 4 * (layers * documents + pairs * documents * 96) + 3 * pairs * documents**2 + 4 * table * documents
    assert found["train, with LM"] == pytest.approx(48_000 * (2 * encoder.forward_flops(32 * 192, 96) + lm))
    assert found["evaluate, one system"] == pytest.approx(encoder.forward_flops((1_904_328 + 50_211) * 512, 256))
    assert "questions" not in plan.estimate(load())["flops"], "the packaged sources have their own"
    margin = {"objectives": ["infonce"], "infonce.margin": 0.05}
    small = plan.model("packaged/minilm")
    assert plan.estimate(load(**margin))["flops"]["teacher, infonce"] == pytest.approx(144 * small.forward_flops(9 * 256, 128))


def test_sizes_of_tasks_are_those_that_mteb_publishes():
    mteb = resources.files("mteb").joinpath("descriptive_stats", "Retrieval")
    with resources.files("dream.planning").joinpath("corpora.csv").open(encoding="utf-8") as stream:
        ours = {row["task"]: (int(row["documents"]), int(row["queries"])) for row in csv.DictReader(stream)}
    paper = load(**PAPER)
    assert set(paper.task_lists["general"]) | set(paper.task_lists["domain"]) <= set(ours)
    compared = 0
    for task in paper.task_lists["domain"]:
        found = read_json(str(mteb.joinpath(f"{task}.json")))
        if "num_documents" in found.get("test", {}):
            assert ours[task] == (found["test"]["num_documents"], found["test"]["num_queries"])
            compared += 1
    assert compared == 13
    whole = read_json(str(mteb.joinpath("CUREv1.json")))["all"]["hf_subset_descriptive_stats"]
    assert ours["CUREv1"][1] == sum(part["queries_text_statistics"]["unique_texts"] for part in whole.values())
    assert plan._tasks(paper)["unknown"] == []


def test_what_plan_cannot_count_or_place_is_named():
    found = plan.estimate(load(tasks=["SciFcat", "boolq"]))
    assert found["tasks"] == {"documents": 300, "queries": 200, "unknown": ["SciFcat"]}
    whole = plan._tasks(load(tasks=["all"]))  # a list of lists
    assert whole == plan._tasks(load()) and whole["unknown"] == [] and whole["documents"] == 5 * 300
    assert any("300 documents and 200 queries; not SciFcat: of unknown size." in note for note in plan._notes(found))
    with pytest.raises(DreamError, match="smollm2-135m has 30 layers, its record asks for 31. Use at most 30"):
        plan.estimate(load(**{"models.smollm2-6l.layers": 31}))
    with pytest.raises(DreamError, match="heads.count is 271, but the judge has 270 heads"):
        plan.estimate(load(**{"heads.count": 271}))


def test_the_training_that_does_not_fit_is_named():
    found = plan.estimate(load(**{"model.size": "8b", "objectives": ["revela"]}))
    kinds = {row["training"]: row["gib"] for row in found["cards"]}
    assert kinds["without judge"] < kinds["with judge"] < kinds["with LM"]
    for kind, large in (("with judge", ["train with LM"]), ("without judge", ["train with judge", "train with LM"])):
        card = kinds[kind] / 0.9 + 0.1
        assert plan.too_large(found, card) == large and not plan.fits(found, card)
    note = next(table for table in plan.tables(found, kinds["with judge"] / 0.9 + 0.1, "a card") if table.name == "memory").notes
    assert note[0].startswith("Verdict: train with LM does NOT fit a card (")
    assert plan.too_large(found, 1000) == [] and plan.fits(found, 1000) and plan.fits(found, None) is None


def test_hours_are_those_of_runs_with_the_same_settings(tmp_path):
    config = toy_config()
    content = stages.files(config)

    def write(file, seed, seconds, flops=0.0, **changed):
        read = {**content[file], **changed}
        record = {"settings": file, "config": read, "wall_s": seconds, "flops": flops, "hardware": {"accelerators": ["card"]}}
        write_json(tmp_path / f"{file}-{seed}.json", [record])

    planned = plan.estimate(config, 50, tmp_path)
    assert planned["measured"] == {} and planned["hours"]["heads"] == pytest.approx(planned["flops"]["heads"] / 50e12 / 3600)
    write("heads", 0, 7200)
    write("train-dream", 0, 3600, 3.6e15)
    write("train-dream", 1, 7200, 7.2e15)
    write("train-infonce", 0, 60, temperature={"init": 0.5, "learned": True})
    for entry in config.tasks:
        write(f"evaluate-dream-{entry}", 0, 1800)
    found = plan.estimate(config, 50, tmp_path)
    assert found["measured"] == {
        "heads": {"hours": 2, "runs": 1, "machine": "card"},
        "train, with judge": {"hours": 1.5, "runs": 2, "machine": "card", "tflops": 1.0},
        "evaluate, one system": {"hours": 0.5 * len(config.tasks), "runs": len(config.tasks), "machine": "card"},
    }
    assert {row: found["hours"][row] for row in found["measured"]} == {row: m["hours"] for row, m in found["measured"].items()}
    assert found["hours"]["train, without judge"] == planned["hours"]["train, without judge"], "its temperature was another"
    notes = [note for table in plan.tables(found, 80, "x") for note in table.notes]
    assert "Measured with these settings: train, with judge (runs: 2; card, 1 TFLOP/s)." in notes
