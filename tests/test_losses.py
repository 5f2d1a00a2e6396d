"""The losses for sentence-transformers: equal to our own loop, trained by the library's trainer, alone with what they install."""

import importlib.metadata
import itertools
import json
import pathlib
import re
import subprocess
import sys
import tomllib
from collections import Counter

import pytest
import reference
import torch
from datasets import Dataset
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from peft import LoraConfig
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from test_encoder import WORDS, make_model

from dream.config.sections import Lora
from dream.encoder import Encoder
from dream.errors import DreamError
from dream.losses import DreamLoss, InfoNCELoss, ObjectiveLoss, ReplugLoss, TextCollator, candidate_set, shuffled
from dream.models.folders import POOLING
from dream.objectives import Objective
from dream.objectives.dream import Dream
from dream.objectives.infonce import InfoNCE
from dream.objectives.replug import RePlug

ROOT = pathlib.Path(__file__).parent.parent
EXAMPLE = ROOT / "examples" / "sentence_transformers_loss.py"
HEADS = ((1, 0), (2, 3))
OPTIONS = {"rows": "all", "gap_every": 2}


def rows(n=4, k=4):
    """Rows whose positive begins with the anchor's word; texts of different lengths."""
    found = []
    for i in range(n):
        passages = [" ".join(WORDS[(i * 3 + j * 5 + w) % len(WORDS)] for w in range(3 + j)) for j in range(k)]
        names = ["positive", *(f"negative_{j}" for j in range(1, k))]
        found.append({"anchor": passages[0].split()[0], **dict(zip(names, passages, strict=True))})
    return found


@pytest.fixture(scope="module", params=["llama", "bert"])
def folder(request, tmp_path_factory):
    return make_model(tmp_path_factory.mktemp(request.param), request.param)


def judge():
    return reference.both(layers=3, dtype=torch.float32)[0]


def encoders(folder):
    """Our encoder and a SentenceTransformer with the same weights, LoRA included, whose B is not zero; without dropout."""
    pooling = "last" if folder.name.startswith("llama") else "mean"
    ours = Encoder.from_pretrained(folder, pooling=pooling, max_length=64, device="cpu")
    ours.add_lora(Lora(r=4, alpha=8, dropout=0.0), seed=0)
    modules = [Transformer(str(folder), max_seq_length=64), Pooling(32, pooling_mode=POOLING[pooling].removesuffix("_tokens"))]
    theirs = SentenceTransformer(modules=modules, device="cpu")
    targets = sorted(ours.backbone.peft_config["default"].target_modules)
    theirs.add_adapter(LoraConfig(r=4, lora_alpha=8, target_modules=targets, task_type="FEATURE_EXTRACTION"))
    torch.manual_seed(1)
    a, b = trained(ours.backbone), trained(theirs)
    assert a.keys() == b.keys() and len(a) == 24  # three layers, four projections, A and B
    with torch.no_grad():
        for name in a:
            b[name].copy_(a[name].normal_(0, 0.2))
    return ours.eval(), theirs.eval()


def trained(module):
    """Trained weights by the names that both have in common: layer, module, A or B."""
    short = lambda name: re.search(r"layers?\.\d+\..*lora_[AB]", name)[0]  # noqa: E731
    return {short(name): p for name, p in module.named_parameters() if p.requires_grad}


def batch(model, rows):
    """What the trainer gives a loss."""
    return SentenceTransformerTrainer.collect_features(None, TextCollator(model.preprocess)(rows))[0]


def pair(name, model):
    """A loss of sentence-transformers, and our objective with the same settings for given sets."""
    if name == "dream":
        return DreamLoss(model, judge(), HEADS, 0.1, **OPTIONS), lambda sets: Dream(judge(), HEADS, 0.1, **OPTIONS)
    if name == "replug":
        teach = lambda sets: {s.questions[0].id: judge().passage_log_likelihood(s)[0].tolist() for s in sets}  # noqa: E731
        return ReplugLoss(model, judge(), 0.1, tau_lm=0.5), lambda sets: RePlug(teach(sets), 0.1, tau_lm=0.5)
    own = {"negatives": "batch" if name.endswith("in-batch") else "candidates"}
    return InfoNCELoss(model, 0.1, **own), lambda sets: InfoNCE(0.1, **own)


@pytest.mark.parametrize("name", ["dream", "infonce", "infonce-in-batch", "replug"])
def test_a_loss_and_its_gradients_are_those_of_our_loop(folder, name):
    """Float32 throughout: 1e-5 of the loss; 1e-4 of a gradient, and 1e-6 of the largest."""
    ours, theirs = encoders(folder)
    loss, objective = pair(name, theirs)
    sets = [candidate_set(*row.values()) for row in rows()]
    assert len({s.questions[0].gold for s in sets}) > 1
    objective = objective(sets)
    expected, logs = objective.loss(sets, ours)
    found = loss(batch(theirs, rows()))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert loss.logs == pytest.approx(logs, rel=1e-4, abs=1e-5)
    expected.backward()
    found.backward()
    pairs = [*zip(trained(theirs).values(), trained(ours.backbone).values(), strict=True)]
    pairs += zip(loss.objective.parameters(), objective.parameters(), strict=True)
    assert len(pairs) == 24 + (2 if name == "dream" else 1)  # log tau, and DREAM's gamma
    largest = max(p.grad.abs().max() for _, p in pairs)
    for a, b in pairs:
        assert b.grad.abs().max() > 1e-4 * largest, "a gradient is zero: nothing is compared"
        torch.testing.assert_close(a.grad, b.grad, rtol=1e-4, atol=1e-6 * float(largest))


def settings(folder, **more):
    return SentenceTransformerTrainingArguments(
        folder, max_steps=2, per_device_train_batch_size=2, learning_rate=1e-3, use_cpu=True, report_to="none",
        learning_rate_mapping={"log_tau|gamma": 0.1}, logging_steps=1, save_strategy="no", disable_tqdm=True, **more,
    )  # fmt: skip


@pytest.mark.parametrize("name", ["dream", "infonce", "replug"])
def test_the_trainer_of_sentence_transformers_moves_encoder_tau_and_gate_and_not_the_judge(folder, tmp_path, name):
    model = SentenceTransformer(modules=[Transformer(str(folder)), Pooling(32)], device="cpu")
    loss, _ = pair(name, model)
    args = settings(tmp_path, prompts={"anchor": f"{WORDS[0]} {WORDS[1]} "})
    before = {n: p.detach().clone() for n, p in loss.named_parameters()}
    frozen = {n: p.clone() for n, p in loss.objective.judge.model.named_parameters()} if name == "dream" else {}
    data = Dataset.from_list([{**row, "label": 7} for row in rows(8)])
    collator = TextCollator(model.preprocess, prompts=args.prompts)
    trainer = SentenceTransformerTrainer(model, args, data, loss=loss, data_collator=collator)
    trainer.train()
    after = dict(loss.named_parameters())
    still = {n for n, p in before.items() if torch.equal(after[n], p)}
    assert not {n for n in still if "pooler" not in n and "position" not in n and "token_type" not in n}
    assert 0.05 < abs(after["objective.tau.log_tau"] - before["objective.tau.log_tau"]) < 0.3  # two steps of about .1, then .05
    assert all(torch.equal(p, frozen[n]) for n, p in (loss.objective.judge.model.named_parameters() if frozen else ()))
    assert [row["loss"] > 0 for row in trainer.state.log_history[:2]] == [True, True]
    assert set(loss.logs) == {"tau", "gold_rank", "entropy"} | ({"gate"} if name == "dream" else set())
    if name == "replug":
        assert 2 <= len(loss.teacher) <= 4 and all(len(values) == 4 for values in loss.teacher.values())
    card = model.model_card_data.train_datasets[0]["loss"]
    assert card["fullname"] == f"dream.losses.{type(loss).__name__}" and '"tau"' in card["config_code"]


def test_a_batch_holds_the_texts_without_prompts_of_what_was_encoded(folder):
    model = SentenceTransformer(modules=[Transformer(str(folder)), Pooling(32)], device="cpu")
    plain, own = (
        TextCollator(model.preprocess)(rows()),
        TextCollator(model.preprocess, prompts={"anchor": f"{WORDS[5]} "})(rows()),
    )
    for found in (plain, own):
        assert found["anchor_text"] == [row["anchor"] for row in rows()]
        assert found["negative_3_text"] == [row["negative_3"] for row in rows()]
    assert own["anchor_input_ids"].shape[1] == plain["anchor_input_ids"].shape[1] + 1
    assert TextCollator(model.preprocess)([]) == {}


def test_the_order_of_candidates_is_a_rows_own_and_says_nothing_about_its_columns():
    texts = [f"passage {j}" for j in range(4)]
    sets = [candidate_set(f"question {i}", *texts) for i in range(400)]
    places = Counter(s.questions[0].gold for s in sets)
    assert len(places) == 4 and all(70 < n < 130 for n in places.values())  # 100 expected, standard deviation 8.7
    assert sets[0] == candidate_set("question 0", *texts) != candidate_set("question 0", *texts, seed=1)
    assert all(s.target == texts[0] and s.passage_ids[s.questions[0].gold] == "positive" for s in sets)
    assert all(s.passages[s.passage_ids.index("negative_2")] == texts[2] for s in sets)
    assert candidate_set("question 0", *texts[::-1]).passages == sets[0].passages
    assert len({s.questions[0].id for s in [*sets, candidate_set("question 0", *texts[::-1])]}) == 401
    assert {tuple(shuffled(f"question {i}", texts)) for i in range(400)} == set(itertools.permutations(range(4)))


@pytest.mark.parametrize(
    ("columns", "line"),
    [
        (("anchor",), "the dataset has 1 columns of text, at least three are needed. Give it an anchor, a positive and one or"),
        (("anchor", "positive"), "the dataset has 2 columns of text, at least three are needed"),
        (
            ("anchor", "positive", "positive_again"),
            f"candidate set '{WORDS[0]}' has a copy of a target among its negatives. Mend",
        ),
        (("anchor", "positive", "empty"), f"candidate set '{WORDS[0]}': passage negative_1 is empty"),
    ],
)
def test_wrong_data_are_one_line(folder, columns, line):
    model = SentenceTransformer(modules=[Transformer(str(folder)), Pooling(32)], device="cpu")
    given = [{**row, "positive_again": f" {row['positive']}\n", "empty": ""} for row in rows(1)]
    with pytest.raises(DreamError, match=re.escape(line)):
        DreamLoss(model, judge(), HEADS)(batch(model, [{name: row[name] for name in columns} for row in given]))


def test_the_librarys_own_collator_and_an_objective_with_other_texts_are_one_line(folder):
    model = SentenceTransformer(modules=[Transformer(str(folder)), Pooling(32)], device="cpu")
    bare = SentenceTransformerTrainer.collect_features(None, SentenceTransformerDataCollator(model.preprocess)(rows()))[0]
    with pytest.raises(DreamError, match=r"without the texts .* Give the trainer data_collator=TextCollator\(model.preprocess"):
        DreamLoss(model, judge(), HEADS)(bare)
    with pytest.raises(DreamError, match="Objective is no function of the vectors"):
        ObjectiveLoss(model, Objective())
    with pytest.raises(DreamError, match="candidate set 'a' has 1 candidates, at least two are needed. Mend this row"):
        candidate_set("a", "b")


def test_the_gap_is_measured_every_few_steps_of_training_alone(folder):
    model = SentenceTransformer(modules=[Transformer(str(folder)), Pooling(32)], device="cpu").train()
    loss = DreamLoss(model, judge(), HEADS, gap_every=2)
    steps = ["gap" in (loss(batch(model, rows(1))), loss.logs)[1] for _ in range(4)]
    model.eval()
    evaluated = ["gap" in (loss(batch(model, rows(1))), loss.logs)[1] for _ in range(2)]
    assert (steps, evaluated) == ([True, False, True, False], [True, True])


# ------------------------------------------------------------------------------------- with what the losses install alone

HIDE = """
import json, sys

class Without:  # a finder of modules and distributions that lacks some
    def __init__(self, finder, modules, distributions):
        self.finder, self.modules, self.distributions = finder, modules, distributions
    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in self.modules else self.finder.find_spec(name, path, target)
    def find_distributions(self, context):
        found = self.finder.find_distributions(context) if hasattr(self.finder, "find_distributions") else ()
        return (d for d in found if d.name.lower().replace("_", "-").replace(".", "-") not in self.distributions)
    def __getattr__(self, name):
        return getattr(self.finder, name)

modules, distributions = map(set, json.loads(sys.argv.pop(1)))
sys.meta_path[:] = [Without(finder, modules, distributions) for finder in sys.meta_path]
"""
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def named(requirements):
    """The names of requirements that hold here, as indexes write them."""
    found = [Requirement(text) for text in requirements]
    return {canonicalize_name(r.name) for r in found if r.marker is None or r.marker.evaluate({"extra": ""})}


def installed_with(requirements):
    """Everything that pip installs for them, as far as it is here."""
    todo, found = named(requirements), set()
    while todo:
        found.add(name := todo.pop())
        todo |= named(importlib.metadata.requires(name) or ()) - found
    return found


def without(hidden, code, *arguments, **more):
    """Run Python code where these distributions and their modules are not there."""
    owners = {m: {canonicalize_name(d) for d in ds} for m, ds in importlib.metadata.packages_distributions().items()}
    modules = [m for m, names in owners.items() if names <= set(hidden)]
    command = [sys.executable, "-c", HIDE + code, json.dumps([modules, sorted(hidden)]), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, **more)


STEP = """
import torch
from sentence_transformers import SentenceTransformer
import dream.losses, dream.judge, dream.objectives, dream.encoder
from dream.judge.heads import detect, ranked
encoder, judge = sys.argv[1:]
assert dream.encoder.Encoder.from_pretrained(encoder, pooling="mean").encode(["a"]).shape == (1, 32)
model, judge = SentenceTransformer(encoder, device="cpu"), dream.judge.Judge.load(judge, "float32", "cpu")
row = {"anchor": "river", "positive": "the river runs", "negative_1": "a cat"}
heads = ranked(detect(judge, [dream.losses.candidate_set(*row.values())]).mean)[:2]
loss = dream.losses.DreamLoss(model, judge, heads, rows="all")
collator = dream.losses.TextCollator(model.preprocess)
features = [{k: v for k, v in collator([row]).items() if k.startswith(name + "_")} for name in row]
loss([{k.removeprefix(name + "_"): v for k, v in f.items()} for name, f in zip(row, features)]).backward()
assert all(torch.isfinite(p.grad).all() for p in (loss.objective.tau.log_tau, loss.objective.gamma))
print("one step")
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return make_model(tmp_path_factory.mktemp("encoder"), "bert"), make_model(tmp_path_factory.mktemp("judge"))


def test_losses_judge_heads_and_encoder_need_nothing_of_the_pipeline(tiny):
    hidden = named(PROJECT["optional-dependencies"]["bench"]) | {"datasets"}
    hidden -= installed_with(["torch", "transformers", "sentence-transformers"]) - {"typer"}  # which import them all
    assert hidden >= {"dvc", "mteb", "beir", "bm25s", "pandas", "matplotlib", "datasets", "typer", "pyarrow", "statsmodels"}
    run = without(hidden, STEP, *tiny)
    assert run.returncode == 0 and run.stdout.endswith("one step\n"), run.stderr


def test_the_example_runs_with_what_the_losses_install(tiny, tmp_path):
    """Here everything but ``pip install -e .`` is hidden, and the models are tiny."""
    here = {canonicalize_name(d.name) for d in importlib.metadata.distributions()}
    hidden = here - installed_with(PROJECT["dependencies"]) - {"dream-bench", "pip"}
    assert {"dvc", "mteb", "matplotlib", "ruamel-yaml", "pytest"} <= hidden
    code = f"import runpy\nsys.argv[0] = {str(EXAMPLE)!r}\nrunpy.run_path(sys.argv[0], run_name='__main__')"
    run = without(hidden, code, *tiny, tmp_path / "model", cwd=tmp_path)
    assert run.returncode == 0 and "tau and gate after training: {'tau': 0.0" in run.stdout, run.stderr
    trained, before = (SentenceTransformer(str(place), device="cpu") for place in (tmp_path / "model", tiny[0]))
    assert abs(trained.encode(["the river runs"]) - before.encode(["the river runs"])).max() > 0


@pytest.mark.slow
def test_the_example_trains_the_packaged_models(tmp_path):
    run = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, cwd=tmp_path, timeout=600)
    assert run.returncode == 0, run.stderr
    tau, gate = map(float, re.search(r"\{'tau': (.*), 'gate': (.*)\}", run.stdout).groups())
    assert 0.04 < tau < 0.06 and tau != pytest.approx(0.05, abs=1e-4) and 0.4 < gate < 0.6
    SentenceTransformer(str(tmp_path / "exports" / "sentence-transformers"), device="cpu")


@pytest.mark.parametrize("hidden", [("typer",), ("ruamel-yaml",), ("pandas",)])
def test_dream_report_without_the_extras_is_one_line(hidden):
    code = "from dream.cli import main\nsys.argv[0] = 'dream-report'\nmain()"
    run = without(hidden, code, "tables", cwd=ROOT)
    line = r"error: the package \S+ is missing. Run `pip install -c constraints.txt -e '.\[bench\]'` in this environment\n"
    assert run.returncode == 1 and run.stdout == "" and re.fullmatch(line, run.stderr)


def test_every_requirement_stands_once_and_the_extras_build_on_each_other():
    extras = {name: [Requirement(text) for text in texts] for name, texts in PROJECT["optional-dependencies"].items()}
    names = [canonicalize_name(Requirement(text).name) for text in PROJECT["dependencies"]]
    names += [canonicalize_name(r.name) for requirements in extras.values() for r in requirements if not r.extras]
    assert sorted(names) == sorted(set(names))
    assert {name for name, rs in extras.items() if any(r.extras == {"bench"} for r in rs)} == {"benchmarks", "test"}
