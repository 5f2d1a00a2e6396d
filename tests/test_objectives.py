"""Each objective equals a slow reading of its definition; docs/objectives.md shows a working one."""

import ast
import dataclasses
import inspect
import json
import math
import pathlib
import re
import shutil
import sys
from types import SimpleNamespace

import pytest
import reference
import torch
import toy_project as toy
import transformers
from memory_peak import Peak
from safetensors.torch import load_file
from test_training import config, cut, encoder_folder, make_config, make_sets, run  # noqa: F401

from dream import assets, models, names, objectives
from dream import config as configs
from dream.config import check, stages
from dream.encoder import Encoder
from dream.errors import DreamError
from dream.files import read_json
from dream.knobs import Knobs
from dream.objectives import Given, revela
from dream.objectives.dream import Dream
from dream.objectives.infonce import InfoNCE
from dream.objectives.replug import RePlug
from dream.objectives.revela import Revela, load_lm
from dream.objectives.taught import Taught
from stages import train as train_stage

OURS = ("dream", "infonce", "replug", "revela")  # what these tests compare; test_rivals.py has the others


def build(name, settings, given=Given()):  # noqa: B008
    """An objective as stage train builds it."""
    part = cut(settings, name)
    return objectives.find(name).build(part.knobs[name], part, given)


# ------------------------------------------------------------------------------------------- one file adds an objective


@pytest.fixture
def add_file(tmp_path, monkeypatch):
    """``add_file(name, source)`` puts one more file beside the objectives, in a copy of the code."""
    code = tmp_path / "code"
    shutil.copytree(pathlib.Path(names.__file__).parent, code / "dream", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(names, "__file__", str(code / "dream" / "names.py"))
    monkeypatch.setattr(stages, "ROOT", code)
    monkeypatch.setattr(objectives, "__path__", [*objectives.__path__, str(code / "dream" / "objectives")])
    before = dict(objectives.REGISTRY)

    def add(name, source):
        (code / "dream" / "objectives" / f"{name}.py").write_text(source, encoding="utf-8")

    yield add
    for name in objectives.REGISTRY.keys() - before.keys():
        sys.modules.pop(objectives.REGISTRY.pop(name).__module__, None)


def shown():
    """The objective of docs/objectives.md."""
    return re.search(r"```python\n(.*?)```", pathlib.Path("docs/objectives.md").read_text(encoding="utf-8"), re.S)[1]


def test_one_file_is_an_objective_with_knobs_that_outdates_no_other(add_file, encoder_folder, tmp_path, monkeypatch):  # noqa: F811
    """Configured with an override, resolved into files of its own, trained by its stage; all other files stay as they were."""
    before = stages.files(make_config(encoder_folder))
    add_file("margin", shown())
    assert stages.files(make_config(encoder_folder)) == before, "a file that nobody names changes nothing"

    folder = toy.make(
        tmp_path / "toy", encoder_folder, **{"objectives": [*OURS, "margin"], "margin.width": 0.4, "training.steps": 6}
    )
    config = configs.load(folder / "params.yaml")  # noqa: F811
    after = stages.files(config)
    own = after["train-margin"]
    assert own["knobs"] == {"margin": {"width": 0.4, "hardest": False}} and not {"judge", "injection", "heads"} & own.keys()
    assert list(own["code"]) == ["dream/objectives/margin.py"] and after["given-margin"] == {"needs": []}
    without = stages.files(config.model_copy(update={"objectives": list(OURS)}))
    new = {"teacher-margin", "given-margin", "train-margin", *(f"evaluate-margin-{entry}" for entry in config.tasks)}
    assert after.keys() - without.keys() == new
    assert {name: values for name, values in after.items() if name not in {*new, "report"}} == {
        name: values for name, values in without.items() if name != "report"
    }

    monkeypatch.chdir(folder)
    monkeypatch.setenv("DVC_ROOT", str(folder))
    monkeypatch.setattr("sys.argv", ["train", "--objective", "margin", "--seed", "0"])
    train_stage.main()
    assert {p.name for p in pathlib.Path("work/models/margin-0").iterdir()} == {"adapter", "state.json", "made_with.json"}
    assert read_json("work/models/margin-0/made_with.json")["settings"] == own
    curve = pathlib.Path("reports/results/train/margin-0.csv").read_text(encoding="utf-8").splitlines()
    losses = [float(line.split(",")[curve[0].split(",").index("loss")]) for line in curve[1:]]
    assert len(losses) == 6 and losses[-1] < losses[0]


def test_the_objective_of_the_docs_equals_its_definition(add_file, encoder_folder):  # noqa: F811
    add_file("margin", shown())
    sets, encoder = make_sets(2, questions=2), Table()
    for hardest in (False, True):
        settings = make_config(encoder_folder, **{"objectives": ["margin"], "margin.hardest": hardest})
        loss, _ = build("margin", settings).loss(sets, encoder)
        slow = []
        for s in sets:
            for q in s.questions:
                cosine = [encoder.vector(q.text) @ encoder.vector(text) for text in s.passages]
                short = [(0.1 - cosine[q.gold] + c).clamp(min=0) for j, c in enumerate(cosine) if j != q.gold]
                slow.append(max(short) if hardest else sum(short) / 3)
        compare(loss, sum(slow) / 4, [encoder.weight])


@pytest.mark.parametrize(
    ("more", "line"),
    [
        ({"margin.widht": 0.4}, "margin.widht is not a known setting. Did you mean 'width'?"),
        ({"margin.width": -1.0}, "margin.width: Input should be greater than 0"),
        ({"margin": 0.4}, r"margin: settings are needed here \(key: value\)"),
    ],
)
def test_a_wrong_knob_of_a_new_objective_is_one_line(add_file, encoder_folder, more, line):  # noqa: F811
    add_file("margin", shown())
    with pytest.raises(DreamError, match=line):
        make_config(encoder_folder, **more)


def test_an_edited_file_outdates_its_own_training_alone(add_file, encoder_folder):  # noqa: F811
    settings = make_config(encoder_folder)
    before = stages.files(settings)
    add_file("replug", pathlib.Path("dream/objectives/replug.py").read_text(encoding="utf-8") + "# edited\n")
    after = stages.files(settings)
    assert [name for name in before if before[name] != after[name]] == ["train-replug"]


@pytest.mark.parametrize(
    ("knob", "value"), [("replug.tau_lm", 0.2), ("revela.tau", 0.3), ("infonce.negatives", "batch"), ("dream.r", 3)]
)
def test_a_knob_of_one_objective_is_in_its_own_file_alone(encoder_folder, knob, value):  # noqa: F811
    before, after = (stages.files(make_config(encoder_folder, **more)) for more in ({}, {knob: value}))
    assert [name for name in before if before[name] != after[name]] == ["report", f"train-{knob.split('.')[0]}"]


PROJECT = ("errors.py", "files.py", "manifest.py")  # where "dream" is the project: its package, its cache


def test_no_code_names_an_objective_that_another_file_defines():
    """No string but docstrings names one, as a name, a section of settings or a part of a stage's; no attribute does."""
    knobs = "|".join(Dream.Knobs.model_fields)
    name = re.compile(rf"^dream$|\bdream\.({knobs})\b|\b(train|teacher|given|evaluate)-dream\b|\b(infonce|replug|revela)\b")
    found = []
    for path in [*pathlib.Path("dream").rglob("*.py"), *pathlib.Path("stages").rglob("*.py")]:
        file = path.relative_to(path.parts[0]).as_posix()
        if path.parent.name == "objectives" and path.stem in OURS:
            continue
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        docs = {id(node.value) for node in nodes if isinstance(node, ast.Expr)}
        texts = [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str) and id(n) not in docs]
        texts += [n.attr for n in nodes if isinstance(n, ast.Attribute)]
        found += [(file, text) for text in texts if name.search(text)]
    assert sorted(found) == [(file, "dream") for file in PROJECT]


def test_objectives_are_found_by_name_and_a_mistyped_one_is_one_line():
    assert set(OURS) < set(check.trained())
    for name in check.trained():
        assert check.trained()[name] == name and objectives.find(name).__name__.lower() == name
    with pytest.raises(DreamError, match=r"^objectives: 'inforce' is unknown. Did you mean 'infonce'\?"):
        objectives.find("inforce")
    with pytest.raises(
        DreamError, match=r"^objectives: 'zzz' is unknown. Choose from adist, art, dream, emdr2, fused, infonce, .*"
    ):
        objectives.find("zzz")


def test_what_an_objective_is_before_it_says_otherwise(config):  # noqa: F811
    plain = objectives.Objective()
    assert (plain.Knobs, plain.needs, plain.uses, plain.expects_gradient) == (Knobs, frozenset(), (), True)
    assert (plain.flops, plain.step, plain.state(), plain.check(None, config)) == (0, 0, {}, None)
    assert plain.no_gradient.startswith("Its loss")
    with pytest.raises(NotImplementedError):
        plain.from_vectors([], [], [])
    with pytest.raises(NotImplementedError):
        objectives.Objective.build(None, config, Given())
    needs = {name: set(objectives.find(name).needs) for name in OURS}
    assert needs == {"dream": {"judge", "heads"}, "infonce": set(), "replug": {"teacher"}, "revela": {"lm"}}
    assert objectives.find("dream").no_gradient.startswith("Its loss does not depend on the scores: check heads")
    assert objectives.find("revela").no_gradient.endswith("which has no gradient: raise revela.tau")


PAPER = {  # knobs of the paper recipe, which are the classes' own
    "dream": {"temperature": None, "judge": "frozen", "r": 32, "alpha": 64},
    "infonce": {"temperature": None, "negatives": "candidates", "margin": None, "teacher": "bge-large", "confidence": 0.0},
    "replug": {"temperature": None, "direction": "teacher_student", "tau_lm": 0.1, "mask_target": False},
    "revela": {"tau": 1e-4, "value_normalisation": True, "lm": "lora", "r": 256, "alpha": 512},
}
SEARCHED = {"temperature": 0.02}  # docs/search.md
PACKAGED = dict.fromkeys(("dream", "infonce", "replug"), SEARCHED) | {"revela": {"tau": 0.01, "r": 32, "alpha": 64}}


@pytest.mark.parametrize("name", OURS)
def test_the_knobs_of_the_recipes(name):
    def knobs(recipe):
        return configs.load(overrides={"recipe": recipe, "objectives": [name]}).knobs[name].model_dump()

    own = {"learning_rate": None} | PAPER[name]
    offline = {"teacher": "minilm"} if name == "infonce" else {}  # a model of the recipe's own
    alone, paper, packaged = objectives.find(name).Knobs().model_dump(), knobs("paper"), knobs("packaged")
    assert (alone, paper, packaged) == (own | offline, own, own | offline | PACKAGED[name])


@pytest.mark.parametrize("name", OURS)
def test_an_objective_without_settings_is_that_of_the_paper_recipe(name):
    paper = configs.load(overrides={"recipe": "paper", "objectives": list(OURS)})
    start = {"temperature": paper.temperature.init, "learn_temperature": paper.temperature.learned}
    expected = paper.injection.model_dump() | paper.knobs[name].model_dump() | start
    expected |= {"passage_tokens": paper.judge.passage_tokens, "lora": None, "teacher": None}
    kind = objectives.find(name)
    given = inspect.signature(kind.__init__).parameters.values()
    defaults = {p.name: p.default for p in given if p.default is not p.empty}
    if issubclass(kind, Taught):
        defaults |= kind({}).knobs.model_dump(exclude={"temperature", "learning_rate"})
    assert len(defaults) >= 3 and defaults == {key: expected[key] for key in defaults}


def test_what_is_registered_is_the_class_itself(monkeypatch):
    monkeypatch.setattr(objectives, "REGISTRY", {})
    assert objectives.register("own")(InfoNCE) is InfoNCE and objectives.find("own") is InfoNCE
    assert Given() == Given(judge=None, heads=(), teacher=None)


def test_tau_is_a_parameter_only_where_it_is_learned():
    assert isinstance(objectives.Temperature(0.3).log_tau, torch.nn.Parameter)
    for learned in (True, False):
        tau = objectives.Temperature(0.3, learned)
        assert tau().item() == pytest.approx(0.3) and tau().dtype == torch.float32
        assert [n for n, _ in tau.named_parameters()] == ["log_tau"] * learned and list(tau.state_dict()) == ["log_tau"]


BUILT = {  # settings → what the constructor is given
    "dream": (
        {"temperature.learned": False, "dream.temperature": 0.3, "dream.judge": "lora", "dream.r": 5, "dream.alpha": 7,
         "models.toy.lora_targets": ["up_proj"], "injection.rows": "query+label", "injection.budget": "preserve",
         "injection.gate": "fixed", "injection.gate_init": 0.4, "injection.scores": "learned", "injection.gap_every": 9},
        (("judge", [[1, 0]], pytest.approx(0.3), False),
         {"rows": "query+label", "budget": "preserve", "gate": "fixed", "gate_init": 0.4, "scores": "learned", "gap_every": 9,
          "lora": (5, 7, ["up_proj"])}),
    ),
    "infonce": (
        {"infonce.temperature": 0.3, "infonce.negatives": "batch", "infonce.margin": 0.05, "infonce.confidence": 0.5},
        ((0.3, True), {"negatives": "batch", "margin": 0.05, "confidence": 0.5, "teacher": {"q": [1.0]}}),
    ),
    "replug": (
        {"replug.temperature": 0.3, "replug.direction": "student_teacher", "replug.tau_lm": 0.7, "replug.mask_target": True},
        (({"q": [1.0]}, 0.3, True), {"direction": "student_teacher", "tau_lm": 0.7, "mask_target": True}),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BUILT)
def test_every_setting_reaches_the_objective(encoder_folder, monkeypatch, name):  # noqa: F811
    more, expected = BUILT[name]
    seen = []
    monkeypatch.setattr(objectives.find(name), "__init__", lambda self, *args, **own: seen.append((args, own)))
    build(name, make_config(encoder_folder, **more), Given("judge", [[1, 0]], {"q": [1.0]}))
    assert seen == [expected]


def test_revelas_settings_reach_it(encoder_folder, monkeypatch):  # noqa: F811
    asked = []
    monkeypatch.setattr(assets, "model_path", lambda *given: asked.append(given) or encoder_folder)
    more = {
        "models.toy.layers": 1,
        "revela.tau": 0.3,
        "revela.value_normalisation": False,
        "revela.r": 5,
        "revela.alpha": 7,
        "judge.passage_tokens": 9,
    }
    found = build("revela", make_config(encoder_folder, **more, **{"models.toy.dtype": "bfloat16"}))
    assert (found.tau, found.value_normalisation, found.passage_tokens) == (0.3, False, 9)
    assert asked == [(str(encoder_folder), 1)]
    lora = found.lm.peft_config["default"]
    assert (lora.r, lora.lora_alpha, found.lm.dtype) == (5, 7, torch.bfloat16)
    assert not [
        p for p in build("revela", make_config(encoder_folder, **{"revela.lm": "frozen"})).parameters() if p.requires_grad
    ]


def test_the_curves_show_the_golds_rank_and_the_entropy_of_p():
    sets = make_sets(2, k=3, questions=2)  # golds: 0 and 1, then 1 and 2
    scores = [torch.tensor([[0.3, 0.2, 0.1], [0.5, 0.5, 0.6]]), torch.tensor([[0.4, 0.1, 0.2], [0.0, 0.0, 0.9]])]
    logs = objectives.ranking_logs(scores, sets, torch.tensor(0.5))
    entropies = []
    for row in torch.cat(scores).tolist():
        p = [math.exp(s / 0.5) for s in row]
        entropies.append(-sum(x / sum(p) * math.log(x / sum(p)) for x in p))
    assert logs == {"gold_rank": (1 + 2 + 3 + 1) / 4, "entropy": pytest.approx(sum(entropies) / 4, abs=1e-6)}


@pytest.mark.parametrize(("name", "more"), [("dream", {}), ("infonce", {}), ("infonce", {"negatives": "batch"}), ("replug", {})])
def test_every_objective_logs_its_scalars(name, more):
    objective = make(name, temperature=0.3, **more)
    sets = make_sets(2)
    _, logs = objective.loss(sets, Table())
    gate = {"gate": pytest.approx(0.5), "gap": logs.get("gap")} if name == "dream" else {}
    scores = objectives.similarities(*objectives.vectors(sets, Table()))
    ranks, tau = objectives.ranking_logs(scores, sets, objective.tau()), objective.tau().item()
    assert logs == {"tau": tau, **ranks, **gate} and objective.state() == {"tau": tau, **({"gate": gate["gate"]} if gate else {})}


def test_objectives_read_the_vectors_that_evaluation_would_encode(encoder_folder):  # noqa: F811
    """Every text behind its prompt, in the sets' order."""
    record = make_config(encoder_folder).roles["encoder"].model_copy(update={"query_prompt": "river ", "document_prompt": "red "})
    encoder, sets = Encoder.load(models.rules(record, "models.toy"), device="cpu"), make_sets(3, questions=2)
    for s, queries, passages in zip(sets, *objectives.vectors(sets, encoder), strict=True):
        for prompt, texts, ours in (("river ", [q.text for q in s.questions], queries), ("red ", s.passages, passages)):
            torch.testing.assert_close(ours, torch.from_numpy(encoder.encode(texts, prompt=prompt)), atol=1e-5, rtol=0)
            assert (ours - torch.from_numpy(encoder.encode(texts))).abs().max() > 1e-2


# ------------------------------------------------------------------------------------------------------ RePlug


def test_replug_pulls_the_student_to_the_teacher(config):  # noqa: F811
    sets = make_sets()
    teacher = {q.id: [0.0 if j == q.gold else -1.0 for j in range(4)] for s in sets for q in s.questions}
    history = run(config, "replug", key="replug", sets=sets, given=Given(teacher=teacher)).history
    assert history[-1]["loss"] < history[0]["loss"]


def test_replug_without_teacher_scores_says_what_to_run(tmp_path):
    with pytest.raises(DreamError, match="teacher.parquet is missing. Run `dvc repro teacher`"):
        objectives.load_teacher(tmp_path / "teacher.parquet")
    with pytest.raises(DreamError, match=r"no scores for question q0\.0"):
        RePlug({}).loss(make_sets(1), Table())


# ------------------------------------------------------------------------------------------------------ Revela


def revela_reference(lm, ids, similarity, normalise):
    """The definition, chunk by chunk and head by head, in the model's own weights: loops and no attention interface."""
    from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

    body, scale = lm.model, lm.config.head_dim**-0.5
    heads, groups = lm.config.num_attention_heads, lm.config.num_attention_heads // lm.config.num_key_value_heads

    def split(x, n):
        return x.view(len(x), n, -1).transpose(0, 1)

    def forward(i, cached):
        hidden = body.embed_tokens(torch.tensor(ids[i]))
        cos, sin = body.rotary_emb(hidden[None], torch.arange(len(ids[i]))[None])
        kept = []
        for number, layer in enumerate(body.layers):
            attention, normed = layer.self_attn, layer.input_layernorm(hidden)
            q = split(attention.q_proj(normed), heads)
            k, v = (split(p(normed), lm.config.num_key_value_heads) for p in (attention.k_proj, attention.v_proj))
            q, k = (x[0] for x in apply_rotary_pos_emb(q[None], k[None], cos, sin))
            kept.append((k.detach(), v.detach()))
            outs = []
            for h in range(heads):
                logits = q[h] @ k[h // groups].T * scale
                causal = torch.ones_like(logits, dtype=torch.bool).triu(1)
                out = logits.masked_fill(causal, float("-inf")).softmax(-1) @ v[h // groups]
                for j in range(len(ids)) if cached else ():
                    if j != i:
                        keys, values = (x[h // groups] for x in cached[j][number])
                        weights = (q[h] @ keys.T * scale).softmax(-1)
                        read = weights @ values
                        if normalise:
                            read = read / ((weights * values.norm(dim=-1)).sum(-1, keepdim=True) + 1e-6)
                        out = out + similarity[i, j] * read
                outs.append(out)
            hidden = hidden + attention.o_proj(torch.cat(outs, -1))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return lm.lm_head(body.norm(hidden)), kept

    cached = [forward(i, None)[1] for i in range(len(ids))]
    losses = []
    for i in range(len(ids)):
        logits, _ = forward(i, cached)
        losses.append(torch.nn.functional.cross_entropy(logits[:-1], torch.tensor(ids[i][1:])))
    return torch.stack(losses).mean()


@pytest.mark.parametrize("normalise", [True, False])
def test_revela_equals_its_definition_in_loss_and_gradient(encoder_folder, normalise):  # noqa: F811
    """fp64, ragged chunks, grouped-query attention: loss and the gradients to Sim and to the LM within 1e-9."""
    objective = Revela(*load_lm(encoder_folder, lora=None), value_normalisation=normalise).double()
    lm, ids = objective.lm.requires_grad_(True), [[5, 6, 7, 8, 9, 10], [11, 12], [7, 7, 14, 15, 5]]
    logits = torch.tensor([[0.0, 0.3, 1.0], [0.5, 0.0, -0.2], [0.1, 0.9, 0.0]], dtype=torch.float64)
    similarity = logits.masked_fill(torch.eye(3, dtype=torch.bool), float("-inf")).softmax(-1)
    results = []
    for compute in (objective.modelling_loss, lambda i, s: revela_reference(lm, i, s, normalise)):
        s = similarity.clone().requires_grad_()
        lm.zero_grad()
        loss = compute(ids, s)
        loss.backward()
        results.append((loss.detach(), s.grad * (1 - torch.eye(3)), lm.model.layers[0].self_attn.q_proj.weight.grad.clone()))
    for fast, slow in zip(*results, strict=True):
        assert slow.abs().max() > 1e-6
        torch.testing.assert_close(fast, slow, atol=1e-9, rtol=1e-7)
    plain = objective.modelling_loss(ids, torch.zeros(3, 3, dtype=torch.float64))
    assert (plain - results[0][0]).abs() > 1e-6, "the other chunks matter"


@pytest.mark.parametrize("lora", [None, (4, 8)])
def test_revelas_layers_computed_again_give_the_same_loss_and_gradient_in_less_memory(encoder_folder, lora):  # noqa: F811
    found, peaks = [], []
    for again in (True, False):
        torch.manual_seed(0)
        objective = Revela(*load_lm(encoder_folder, lora=lora))
        assert objective.lm.training
        objective.lm.train(again)  # transformers computes again in training only
        similarity = torch.full((6, 6), 0.2).fill_diagonal_(0).requires_grad_()
        with Peak() as memory:
            loss = objective.modelling_loss([[*range(3, 20)]] * 6, similarity)
            loss.backward()
        peaks.append(memory.peak)
        trained = {n: p.grad for n, p in objective.lm.named_parameters() if p.requires_grad}
        assert bool(trained) == bool(lora) and similarity.grad.abs().max() > 0
        found.append({"loss": loss.detach(), "similarity": similarity.grad, **trained})
    assert found[0].keys() == found[1].keys() and peaks[0] < 0.7 * peaks[1]
    for name, value in found[0].items():
        torch.testing.assert_close(value, found[1][name], rtol=0, atol=0)


def test_revelas_lm_is_that_of_the_paper_with_the_in_batch_attention_registered(encoder_folder, monkeypatch):  # noqa: F811
    asked, auto, interface = [], transformers.AutoModelForCausalLM, transformers.AttentionInterface
    register, load = interface.register, auto.from_pretrained
    monkeypatch.setattr(interface, "register", lambda *given: asked.append(given) or register(*given))
    monkeypatch.setattr(auto, "from_pretrained", lambda *given, **how: asked.append(how) or load(*given, **how))
    lm, _ = load_lm(encoder_folder)
    registered, how = asked
    assert registered == (revela.ATTENTION, revela.in_batch_attention)
    assert (how["dtype"], how["use_safetensors"], how["attn_implementation"]) == (torch.float32, True, revela.ATTENTION)
    made = lm.peft_config["default"]
    assert (made.r, made.lora_alpha) == (PAPER["revela"]["r"], PAPER["revela"]["alpha"])
    assert (made.task_type, made.lora_dropout) == ("CAUSAL_LM", 0.0)
    assert {name.removesuffix("_proj") for name in made.target_modules} == {"q", "k", "v", "o", "gate", "up", "down"}
    stubborn = SimpleNamespace(config=SimpleNamespace(_attn_implementation="sdpa"))
    monkeypatch.setattr(auto, "from_pretrained", lambda *_, **how: stubborn)
    with pytest.raises(DreamError, match="does not take another attention. Choose a decoder"):
        load_lm(encoder_folder)


def test_revelas_first_halves_are_texts_without_special_tokens(encoder_folder):  # noqa: F811
    objective, seen = make("revela", encoder_folder), []
    encoder = SimpleNamespace(
        query_prompt="q ", document_prompt="", embed=lambda texts: seen.extend(texts) or Table().embed(texts)
    )
    eos = objective.tokenizer.eos_token_id
    ids = [[eos, *objective.tokenizer("the cat sat")["input_ids"]], objective.tokenizer("red dog")["input_ids"]]
    objective.similarity(ids, ["first", "second"], encoder)
    assert seen == ["q the", "q red", "first", "second"]


@pytest.mark.parametrize(("dtype", "near"), [(torch.float64, 1e-9), (torch.bfloat16, 0.05)])
def test_in_batch_attention_takes_the_layers_scale_and_keeps_its_dtype(dtype, near):
    """First pass: causal. Second: the other chunk's values on top, weighted, divided by their mean norm."""
    query, key, value = torch.randn(3, 2, 2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)
    layer, chunks = SimpleNamespace(layer_idx=5), revela.Chunks(torch.ones(2, 3, dtype=torch.bool), normalise=True)
    own, _ = revela.in_batch_attention(layer, query, key, value, None, 0.3, chunks)
    chunks.similarity = torch.tensor([[0, 0.7], [0.2, 0]], dtype=torch.float64 if dtype == torch.float64 else torch.float32)
    both, _ = revela.in_batch_attention(layer, query, key, value, None, 0.3, chunks)
    assert revela.at_least_float32(query).dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert list(chunks.cache) == [5] and own.dtype == both.dtype == dtype and own.shape == (2, 3, 2, 4)
    q, k, v = (x.double() for x in (query, key, value))
    later = torch.ones(3, 3, dtype=torch.bool).triu(1)
    slow = (q @ k.mT * 0.3).masked_fill(later, float("-inf")).softmax(-1) @ v
    torch.testing.assert_close(own.double(), slow.transpose(1, 2), rtol=near, atol=near)
    for i, j, share in ((0, 1, 0.7), (1, 0, 0.2)):
        weights = (q[i] @ k[j].mT * 0.3).softmax(-1)
        slow[i] += share * weights @ v[j] / (weights @ v[j].norm(dim=-1)[..., None] + 1e-6)
    torch.testing.assert_close(both.double(), slow.transpose(1, 2), rtol=near, atol=near)


def test_revela_trains_encoder_and_lm(encoder_folder, config):  # noqa: F811
    settings = make_config(encoder_folder, **{"revela.tau": 0.05, "revela.r": 4, "training.steps": 4})
    result = run(settings, "revela", key="revela")
    assert result.flops > run(settings, "infonce", key="plain").flops, "the LM's operations count"
    moved = {name for name, p in result.step.trained().items() if p.grad is not None and p.grad.abs().sum() > 0}
    assert any(n.startswith("encoder.") for n in moved) and any(n.startswith("objective.lm.") for n in moved)
    similarity = result.step.objective.similarity(
        [[5, 6, 7], [8, 9], [10, 11, 12, 13]], ["the a", "cat dog", "sat on"], result.step.encoder
    )
    assert torch.allclose(similarity.sum(-1), torch.ones(3)) and similarity.diagonal().abs().max() == 0


@pytest.mark.parametrize("lm", ["frozen", "lora"])
def test_revelas_operations_equal_what_the_counter_of_torch_counts(encoder_folder, lm):  # noqa: F811
    """Products with weights exactly, less the gradient of the token embeddings that nobody asks for and, the second time, each
    layer's last product, which no gradient needs; other chunks exactly."""
    from torch.utils.flop_counter import FlopCounterMode

    objective = Revela(*load_lm(encoder_folder, lora=(4, 8) if lm == "lora" else None))
    ids, shape = [[5, 6, 7, 8, 9, 10], [11, 12, 13], [7, 7, 14, 15, 5]], objective.lm.config
    similarity = torch.full((3, 3), 0.5).fill_diagonal_(0).requires_grad_()
    with FlopCounterMode(display=False) as counter:
        objective.modelling_loss(ids, similarity).backward()
    products = reference.counted(counter, ".mm", ".addmm")
    rows, layers, heads = 3 * 6, shape.num_hidden_layers, shape.num_attention_heads
    first = [(n, p) for n, p in objective.lm.named_parameters() if "layers.0." in n and p.ndim > 1]
    unasked = sum(p.numel() for n, p in first if any(x in n for x in ("q_proj", "k_proj", "v_proj")) and "lora_B" not in n)
    last = "down_proj.lora_B" if lm == "lora" else "down_proj"
    unasked += sum(p.numel() for n, p in objective.lm.named_parameters() if last in n)
    attention = layers * 5 * 4 * heads * shape.head_dim * 3 * 21  # forward three times, backward as much as two; 21 pairs a chunk
    other = layers * 3 * 4 * heads * shape.head_dim * rows**2
    assert objective.operations(3, 6) == products + 2 * rows * unasked + attention + other
    if lm == "frozen":  # nor, then, for that of the first layer's queries
        other -= 2 * heads * shape.head_dim * rows**2
    assert reference.counted(counter, ".bmm") == pytest.approx(other, rel=0.02)  # and the rotations


@pytest.mark.parametrize("lm", ["frozen", "lora"])
@pytest.mark.parametrize("normalise", [True, False])
def test_revelas_loss_of_a_batch_equals_its_definition_from_first_halves_to_the_lm(encoder_folder, lm, normalise):  # noqa: F811
    """fp64: first halves as queries, Sim, in-batch attention, mean over sets; gradients to encoder and to the LM's LoRA."""
    loaded = load_lm(encoder_folder, lora=(4, 8) if lm == "lora" else None)
    objective = Revela(*loaded, tau=0.3, passage_tokens=3, value_normalisation=normalise).double()
    model = objective.lm.base_model.model if lm == "lora" else objective.lm
    reference.exact_norms(model)
    generator = torch.Generator().manual_seed(0)
    trained = {n: p for n, p in objective.named_parameters() if p.requires_grad}
    assert bool(trained) == (lm == "lora") and not any("lm_head" in n for n in trained)
    for p in trained.values():
        p.data.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.2)
    sets, encoder = make_sets(2, k=3), Table()
    encoder.query_prompt, encoder.document_prompt = "river ", "red "
    loss, logs = objective.loss(sets, encoder)
    slow, sharpest = [], []
    for s in sets:
        ids = [objective.tokenizer(text)["input_ids"][:3] for text in s.passages]
        halves = [objective.tokenizer.decode(i[: max(1, len(i) // 2)], skip_special_tokens=True) for i in ids]
        assert all(len(half.split()) == max(1, len(i) // 2) for half, i in zip(halves, ids, strict=True))
        rows = []
        for i, half in enumerate(halves):
            query, documents = encoder.vector(f"river {half}"), [encoder.vector(f"red {text}") for text in s.passages]
            weights = [(query @ vector / 0.3).exp() * (j != i) for j, vector in enumerate(documents)]
            rows.append(torch.stack(weights) / sum(weights))
        slow.append(revela_reference(model, ids, torch.stack(rows), normalise))
        sharpest += [max(row.tolist()) for row in rows]
    assert logs == {"top_similarity": pytest.approx(sum(sharpest) / 6)} and objective.flops == 2 * objective.operations(3, 3)
    compare(loss, sum(slow) / len(slow), [encoder.weight, *trained.values()])


# ------------------------------------------------------------------------- all objectives: references and wrong inputs


class Table(torch.nn.Module):
    """An encoder in float64 that looks its unit vectors up, one for every text: nothing but a leaf to differentiate."""

    query_prompt = document_prompt = ""

    def __init__(self, scale=1.0):
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.weight = torch.nn.Parameter(torch.randn(97, 8, generator=generator, dtype=torch.float64) * scale)

    def vector(self, text):
        return torch.nn.functional.normalize(self.weight[sum(i * ord(c) for i, c in enumerate(text, 1)) % 97], dim=-1)

    def embed(self, texts):
        return torch.stack([self.vector(text) for text in texts])


def compare(fast, slow, leaves):
    """Loss and gradients in float64."""
    torch.testing.assert_close(fast.detach(), slow.detach(), rtol=1e-9, atol=1e-11)
    gradients = [torch.autograd.grad(loss, leaves) for loss in (fast, slow)]
    for a, b in zip(*gradients, strict=True):
        assert b.abs().max() > 1e-9, "a gradient is zero: nothing is compared"
        torch.testing.assert_close(a, b, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("in_batch", [False, True])
def test_infonce_equals_its_definition_in_loss_and_gradients(in_batch):
    """− log exp(s_gold / tau) / Σ exp(s / tau), over the set or over the batch without the positive's twins."""
    objective = InfoNCE(negatives="batch" if in_batch else "candidates").double()
    sets, encoder = make_sets(3, questions=2), Table()
    sets.append(dataclasses.replace(sets[0], id="twin", questions=sets[0].questions[:1]))
    loss, _ = objective.loss(sets, encoder)
    tau, per_set = objective.tau.log_tau.exp(), []
    for s in sets:
        losses = []
        for q in s.questions:
            pool = [text for other in (sets if in_batch else [s]) for text in other.passages]
            positive = s.passages[q.gold]
            negatives = [text for text in pool if text != positive]
            exps = [(encoder.vector(q.text) @ encoder.vector(text) / tau).exp() for text in [positive, *negatives]]
            losses.append(-(exps[0] / sum(exps)).log())
        per_set.append(sum(losses) / len(losses))
    compare(loss, sum(per_set) / len(per_set), [encoder.weight, objective.tau.log_tau])


@pytest.mark.parametrize("direction", ["teacher_student", "student_teacher"])
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize(("tau", "tau_lm"), [(0.05, 0.1), (0.7, 0.1), (0.05, 2.0)])
def test_replug_equals_its_definition_in_loss_and_gradients(direction, mask, tau, tau_lm):
    sets, encoder = make_sets(2, questions=2), Table()
    teacher = {q.id: [0.3 * ((5 * i + n) % 4) - 2.0 for i in range(4)] for s in sets for n, q in enumerate(s.questions)}
    objective = RePlug(teacher, tau, direction=direction, mask_target=mask, tau_lm=tau_lm).double()
    loss, _ = objective.loss(sets, encoder)
    slow, log_tau = [], objective.tau.log_tau
    for s in sets:
        for q in s.questions:
            kept = [j for j in range(4) if not (mask and j == q.gold)]
            student = [(encoder.vector(q.text) @ encoder.vector(s.passages[j]) / log_tau.exp()).exp() for j in kept]
            taught = [math.exp(teacher[q.id][j] / tau_lm) for j in kept]
            p, t = [x / sum(student) for x in student], [torch.tensor(x / sum(taught), dtype=torch.float64) for x in taught]
            a, b = (t, p) if direction == "teacher_student" else (p, t)
            slow.append(sum(x * (x.log() - y.log()) for x, y in zip(a, b, strict=True)))
    compare(loss, sum(slow) / len(slow), [encoder.weight, log_tau])


@pytest.mark.parametrize("lora", [False, True])
def test_dream_equals_its_definition_in_loss_and_gradients(lora):
    """From the texts to the loss: similarities, tau, gate, injection and the mean over questions and sets."""
    judge, model = reference.both()
    reference.exact_norms(judge.model)
    reference.exact_norms(model)
    objective = Dream(judge, reference.HEADS, rows="query+label", lora=(2, 4, None) if lora else None).double()
    sets, encoder = [reference.candidate_set(questions=2, seed=s) for s in (0, 1)], Table()
    leaves, theirs = [encoder.weight, objective.tau.log_tau, objective.gamma], []
    if lora:
        generator, theirs = torch.Generator().manual_seed(2), [p for p in judge.model.parameters() if p.requires_grad]
        for p in theirs:
            p.data.copy_(torch.randn(p.shape, generator=generator, dtype=p.dtype) * 0.3)
        model = judge.model  # read by the reference after the judge is done: it switches the attention
    loss, logs = objective.loss(sets, encoder)
    fast = torch.autograd.grad(loss, [*leaves, *theirs])
    slow = []
    for s in sets:
        vectors = encoder.embed(s.passages)
        for i, q in enumerate(s.questions):
            p = (vectors @ encoder.vector(q.text) / objective.tau.log_tau.exp()).softmax(-1)
            layout = judge.prompt.layout(s, i)
            gate = objective.gamma.sigmoid()
            slow.append(reference.target_loss(model, layout, p, gate, reference.HEADS, "query+label"))
    slow = sum(slow) / len(slow)
    torch.testing.assert_close(loss.detach(), slow.detach(), rtol=1e-9, atol=1e-11)
    for a, b in zip(fast, torch.autograd.grad(slow, [*leaves, *theirs]), strict=True):
        assert b.abs().max() > 1e-9
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-11)
    assert logs["gate"] == pytest.approx(objective.gamma.sigmoid().item())


@pytest.mark.parametrize("control", [{"injection.gate": "off"}, {"injection.scores": "uniform"}])
def test_a_control_cannot_train_the_judge(encoder_folder, control):  # noqa: F811
    with pytest.raises(DreamError, match="dream.judge=lora trains the judge, but .* train nothing. Set dream.judge=frozen"):
        make_config(encoder_folder, **{"dream.judge": "lora"}, **control)


def test_a_trained_judge_is_saved_as_an_adapter_that_names_its_base(tmp_path):
    objective = make("dream", lora=(2, 6, None))
    objective.judge.reference = "owner/judge"
    objective.save(tmp_path)
    folder = tmp_path / "judge_adapter"
    assert sorted(p.name for p in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    settings, targets = (
        json.loads((folder / "adapter_config.json").read_text(encoding="utf-8")),
        ["q_proj", "k_proj", "v_proj", "o_proj"],
    )
    assert settings["target_modules"] == sorted(targets) and settings["base_model_name_or_path"] == "owner/judge"
    assert (settings["r"], settings["lora_alpha"], settings["peft_type"]) == (2, 6, "LORA")
    saved, trained = load_file(folder / "adapter_model.safetensors"), dict(objective.adapter.named_parameters())
    assert len(saved) == 2 * 4 * len(targets)
    for name, weight in saved.items():
        assert torch.equal(weight, trained[name.replace(".weight", ".default.weight")])
    frozen = make("dream")
    frozen.save(tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_the_gap_is_measured_every_few_steps_and_changes_no_loss():
    objective, encoder = make("dream", gap_every=3), Table()
    sets, found = [reference.candidate_set(questions=2)], []
    for objective.step in range(4):
        loss, logs = objective.loss(sets, encoder)
        found.append((loss.item(), "gap" in logs))
    assert [measured for _, measured in found] == [True, False, False, True]
    assert len({loss for loss, _ in found}) == 1


def make(name, folder=None, **own):
    """An objective with what it needs (a tiny judge and heads, a teacher, the LM of a folder) and ``own`` arguments, in float64."""
    if name == "dream":
        found = Dream(reference.both()[0], reference.HEADS, **own)
    elif name == "replug":
        found = RePlug({q.id: [-1.0] * 4 for s in make_sets(questions=2) for q in s.questions}, **own)
    elif name == "revela":
        found = Revela(*load_lm(folder, lora=(4, 8)), **own)
    else:
        found = InfoNCE(**own)
    return found.double()


CASES = [(name, {}) for name in OURS] + [("infonce", {"negatives": "batch"})]


@pytest.mark.parametrize(("name", "more"), CASES)
def test_every_objective_refuses_wrong_inputs_in_one_line(encoder_folder, name, more):  # noqa: F811
    objective, good = make(name, encoder_folder, **more), make_sets(2)
    assert torch.isfinite(objective.loss(good, Table())[0])
    alone = dataclasses.replace(good[0], passages=good[0].passages[:1], passage_ids=good[0].passage_ids[:1])
    stray = dataclasses.replace(good[0], questions=(dataclasses.replace(good[0].questions[0], gold=4),))
    two = dataclasses.replace(good[0], passages=good[0].passages[:2], passage_ids=good[0].passage_ids[:2])
    if name != "replug":  # whose teacher knows four candidates
        assert torch.isfinite(objective.loss([two], Table())[0]), "two candidates are enough"
    copied = dataclasses.replace(good[0], passages=(*good[0].passages[:3], f"  {good[0].passages[0]}\n"))
    for sets, line in (
        ([copied], "candidate set s0 has a copy of a target among its negatives"),
        ([], "holds no candidate set"),
        ([good[1], alone], "candidate set s0 has 1 candidates, at least two are needed"),
        ([dataclasses.replace(good[0], questions=())], "candidate set s0 has no question"),
        ([stray], "candidate set s0 has a question whose target is not a candidate"),
    ):
        with pytest.raises(DreamError, match=line):
            objective.loss(sets, Table())
    with pytest.raises(DreamError, match="similarities are not finite"):
        objective.loss(good, Table(scale=math.nan))


def test_replug_refuses_a_teacher_of_another_k_or_with_nan():
    sets = make_sets(1)
    for values, line in (([-1.0] * 3, "the teacher has no scores for question"), ([-1.0, math.nan, 0, 0], "is not finite")):
        objective = RePlug({sets[0].questions[0].id: values})
        with pytest.raises(DreamError, match=line):
            objective.loss(sets, Table())


def test_revela_refuses_an_empty_passage(encoder_folder):  # noqa: F811
    sets = make_sets(1)
    sets = [dataclasses.replace(sets[0], passages=("", *sets[0].passages[1:]))]
    with pytest.raises(DreamError, match="candidate set s0 has an empty passage"):
        make("revela", encoder_folder).loss(sets, Table())
