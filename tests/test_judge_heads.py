"""Head detection equals its definition; selection, stability, diagnostics and FLOP counts behave as described."""

import dataclasses
import math
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import HEADS, Letters, both, candidate_set, random_model

from dream.errors import DreamError
from dream.judge import Injection, Judge, diagnostics, flops, heads
from dream.judge.attention import Masses
from dream.judge.prompt import EMPTY_QUERY, Limits, Prompt


def knobs(**more):
    from dream.config.sections import Heads

    values = {"strategy": "query_focused", "count": 3, "explicit": [], "probes": 4, "drop_low_tokens": False}
    values |= {"bootstrap": 50, "seed": 0, "layers": None}
    return Heads(**{**values, **more})


def shuffled(candidates, order):
    """The same set with its candidates in another order."""
    return dataclasses.replace(
        candidates,
        passages=tuple(candidates.passages[j] for j in order),
        passage_ids=tuple(candidates.passage_ids[j] for j in order),
        questions=tuple(dataclasses.replace(q, gold=order.index(q.gold)) for q in candidates.questions),
    )


@pytest.mark.parametrize("kind", ["llama", "qwen2", "qwen3"])
def test_detection_equals_the_definition_from_full_attention_matrices(kind):
    judge, model = both(kind)
    candidates = candidate_set((4, 2, 6), questions=2)
    documents = judge.prompt.documents(candidates)
    by_hand = []
    for question in candidates.questions:
        masses = []
        for text in (question.text, EMPTY_QUERY):
            suffix = judge.prompt.suffix(text)
            query = tuple(n + len(documents.ids) for n in suffix.query)
            masses.append(reference.head_masses(model, documents.ids + suffix.ids, query, documents.spans))
        calibrated = masses[0] - masses[1]
        gains = torch.zeros(4, 4, dtype=torch.float64)
        for layer in range(4):
            for head in range(4):
                ranked = sorted(range(3), key=lambda j: -calibrated[layer, head, j])
                gains[layer, head] = 1 / math.log2(ranked.index(question.gold) + 2)
        by_hand.append((calibrated, gains))
    masses, calibration = judge.document_masses(candidates)
    scores = heads.score_documents(masses, calibration, [4, 2, 6])
    assert scores.abs().max() > 1e-3
    found = heads.detect(judge, [candidates])
    for i, (calibrated, gains) in enumerate(by_hand):
        torch.testing.assert_close(scores[i], calibrated.double(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(found.per_probe[i], gains.numpy(), rtol=1e-6)


def test_masses_of_a_full_sequence_without_a_mask_equal_the_definition():
    judge, model = both(layers=2)
    layout = judge.prompt.layout(candidate_set((4, 2, 6), questions=1))
    spans, query = layout.documents.spans, layout.query
    masses = Masses([torch.arange(*query)], torch.cat([torch.arange(*span) for span in spans]))
    with torch.no_grad():
        judge.model(input_ids=torch.tensor([layout.ids]), use_cache=False, dream=masses)
    found = torch.stack([torch.stack([d.sum(-1) for d in layer[0].split([4, 2, 6], -1)], -1) for layer in masses.found])
    expected = reference.head_masses(model, layout.ids, query, spans)
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-6, atol=1e-9)


def test_order_of_candidates_changes_nothing_where_the_judge_ignores_order():
    """One layer, no position encoding: keys are a passage's own, so masses move with it (to rounding, 1e-12)."""
    model = random_model(layers=1)
    model.model.rotary_emb.inv_freq.zero_()
    judge, candidates = Judge(model, Letters()), candidate_set((5, 1, 9, 3), questions=1)

    def scores(c):
        masses, calibration = judge.document_masses(c)
        return heads.score_documents(masses, calibration, [len(p) for p in c.passages])

    order = [2, 0, 3, 1]
    before, after = scores(candidates), scores(shuffled(candidates, order))
    assert before.abs().max() > 1e-3
    torch.testing.assert_close(after, before[..., order], rtol=0, atol=1e-12)
    np.testing.assert_allclose(
        heads.detect(judge, [candidates]).mean, heads.detect(judge, [shuffled(candidates, order)]).mean, rtol=1e-9
    )


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=2, max_size=14), st.integers(0, 13), st.randoms())
@settings(max_examples=60, deadline=None)
def test_ndcg_is_the_mean_over_all_orders_of_ties_and_ignores_candidate_order(values, gold, random):
    gold %= len(values)
    above = sum(v > values[gold] for v in values)
    level = sum(v == values[gold] for v in values)
    gains = [1 / math.log2(place + 2) if place < 10 else 0.0 for place in range(above, above + level)]
    found = heads.ndcg(torch.tensor(values), gold).item()
    assert found == pytest.approx(sum(gains) / level, abs=1e-6)
    order = list(range(len(values)))
    random.shuffle(order)
    assert heads.ndcg(torch.tensor([values[j] for j in order]), order.index(gold)).item() == pytest.approx(found, abs=1e-6)


def test_a_head_without_preference_scores_chance():
    assert heads.ndcg(torch.zeros(16), 3).item() == pytest.approx(heads.chance(16), abs=1e-6)


def test_the_filter_drops_tokens_far_below_their_documents_mean():
    tokens = torch.tensor([1.0] * 9 + [-20.0, 2.0, 2.0]).reshape(1, 1, 1, 12)
    nothing = torch.zeros(1, 1, 12)
    assert heads.score_documents(tokens, nothing, [10, 2]).flatten().tolist() == [-11.0, 4.0]
    assert heads.score_documents(tokens, nothing, [10, 2], drop_low_tokens=True).flatten().tolist() == [9.0, 4.0]


def test_the_filter_is_one_of_each_document_head_and_question():
    generator = torch.Generator().manual_seed(0)
    masses, calibration = torch.randn(2, 3, 2, 31, generator=generator) ** 3, torch.randn(3, 2, 31, generator=generator)
    found, dropped = heads.score_documents(masses, calibration, [20, 1, 10], drop_low_tokens=True), 0
    for q in range(2):
        for layer in range(3):
            for head in range(2):
                values = (masses[q] - calibration)[layer, head].tolist()
                for j, (start, end) in enumerate(((0, 20), (20, 21), (21, 31))):
                    tokens = values[start:end]
                    low = np.mean(tokens) - 2 * np.std(tokens, ddof=1) if len(tokens) > 1 else -math.inf
                    dropped += sum(t < low for t in tokens)
                    assert found[q, layer, head, j].item() == pytest.approx(sum(t for t in tokens if t >= low), abs=1e-4)
    assert dropped > 5


def test_detection_and_reranking_use_the_filter_where_they_are_told():
    judge, _ = both()
    candidates = candidate_set((40, 30, 50), questions=2)
    masses, calibration = judge.document_masses(candidates)
    for drop in (False, True):
        scores = heads.score_documents(masses, calibration, [40, 30, 50], drop)
        expected = torch.stack([heads.ndcg(s, q.gold) for s, q in zip(scores, candidates.questions, strict=True)])
        np.testing.assert_array_equal(heads.detect(judge, [candidates], drop).per_probe, expected.double().numpy())
        reranked = heads.rerank(judge, candidates, [(1, 2), (3, 0)], drop)
        torch.testing.assert_close(reranked, scores[:, 1, 2] + scores[:, 3, 0], rtol=0, atol=0)
    plain = heads.score_documents(masses, calibration, [40, 30, 50])
    assert not torch.equal(plain, scores), "the filter drops something here"


def test_every_question_of_every_set_is_a_probe():
    judge, _ = both(layers=2)
    sets = [candidate_set((4, 2, 6), questions=n, seed=n) for n in (1, 2, 3)]
    reads, read = [], judge._read
    judge._read = lambda *given: reads.append(given) or read(*given)
    alone = [heads.detect(judge, [s]).per_probe for s in sets]
    together = heads.detect(judge, sets).per_probe
    assert len(reads) == 6, "the documents of a set are read once"
    assert together.shape == (6, 2, 4) and together.dtype == np.float64
    np.testing.assert_array_equal(together, np.concatenate(alone))


def test_without_a_probe_there_is_no_detection():
    with pytest.raises(DreamError, match="no probe to score heads on"):
        heads.detect(both()[0], [])


def test_strategies():
    scores = np.arange(40.0).reshape(8, 5) / 40
    assert heads.select(scores, knobs()) == [(7, 4), (7, 3), (7, 2)]
    assert heads.select(np.zeros((8, 5)), knobs()) == [(0, 0), (0, 1), (0, 2)]  # ties: lower layer, lower head
    random = heads.select(scores, knobs(strategy="random"))
    assert random == heads.select(scores, knobs(strategy="random")) and len(set(random)) == 3
    assert random != heads.select(scores, knobs(strategy="random", seed=1))
    every = [(layer, head) for layer in range(8) for head in range(5)]
    assert heads.select(scores, knobs(strategy="random", count=40)) == every
    best_in_the_middle = np.zeros((8, 5))
    best_in_the_middle[3] = 1
    middle = heads.select(best_in_the_middle, knobs(strategy="random_middle", count=5))
    assert all(2 <= layer < 6 and layer != 3 for layer, _ in middle)
    best_outside = np.zeros((8, 5))
    best_outside[[0, 1, 6, 7]] = 1
    assert heads.select(best_outside, knobs(strategy="random_middle", count=20)) == [h for h in every if 2 <= h[0] < 6]
    middle = heads.select(best_in_the_middle, knobs(strategy="random_middle", count=15))
    assert middle == [h for h in every if h[0] in (2, 4, 5)]
    assert len(heads.select(scores, knobs(strategy="all"))) == 40
    assert sorted(heads.select(scores, knobs(count=40))) == every
    with pytest.raises(DreamError, match="heads.count is 41, but query_focused can choose from 40 heads"):
        heads.select(scores, knobs(count=41))
    assert heads.select(scores, knobs(strategy="explicit", explicit=[[1, 2]])) == [(1, 2)]
    with pytest.raises(DreamError, match="can choose from 9"):
        heads.select(scores, knobs(strategy="random_middle", count=21))


@pytest.mark.parametrize(("strategy", "count"), [("query_focused", 3), ("random", 6), ("random_middle", 3), ("all", 1)])
def test_heads_come_from_a_range_of_layers_with_both_ends(strategy, count):
    scores = np.arange(24.0).reshape(8, 3)  # the best heads lie above the range
    chosen = heads.select(scores, knobs(strategy=strategy, count=count, layers=[2, 3]))
    assert {layer for layer, _ in chosen} <= {2, 3} and len(chosen) == (6 if strategy == "all" else count)
    if strategy == "query_focused":
        assert chosen == [(3, 2), (3, 1), (3, 0)]
    if strategy == "random_middle":
        assert sorted(chosen) == [(2, 0), (2, 1), (2, 2)], "the range's own best are left out"
    with pytest.raises(DreamError, match="heads.count is 7, but random can choose from 6 heads"):
        heads.select(scores, knobs(strategy="random", count=7, layers=[2, 3]))


def test_a_judge_with_too_few_heads_is_refused():
    judge = SimpleNamespace(layers=2, heads=3)
    heads.require_possible(knobs(count=6), judge)
    heads.require_possible(knobs(strategy="explicit", explicit=[[1, 2]]), judge)
    with pytest.raises(DreamError, match=r"heads.count is 7, but query_focused can choose from 6 heads"):
        heads.require_possible(knobs(count=7), judge)
    for missing in ([2, 0], [0, 3]):
        with pytest.raises(DreamError, match=r"does not exist: the judge has layers 0 to 1 with heads 0 to 2"):
            heads.require_possible(knobs(strategy="explicit", explicit=[missing]), judge)


def test_stability_is_one_for_sure_heads_and_low_for_noise():
    sure = np.zeros((12, 4, 5))
    sure[:, 2, :3] = 1
    assert heads.stability(heads.HeadScores(sure), 3, 50, 0) == 1
    noise = np.random.default_rng(0).random((6, 10, 10))
    assert heads.stability(heads.HeadScores(noise), 5, 50, 0) < 0.8


@pytest.mark.parametrize("seed", [3, 4, 5])
def test_stability_is_the_mean_overlap_over_seeded_resamples(seed):
    """Ties go to the lower layer, then the lower head, as in the selection."""
    scores = np.random.default_rng(5).integers(0, 2, (5, 10, 10)).astype(float)

    def best(probes):
        sums = [sum(probe[place] for probe in probes) for place in range(100)]
        return set(sorted(range(100), key=lambda place: -sums[place])[:7])

    flat, generator, overlaps = scores.reshape(5, 100), np.random.default_rng(seed), []
    for _ in range(7):
        overlaps.append(len(best(flat) & best([flat[i] for i in generator.integers(0, 5, 5)])) / 7)
    assert 0 < np.mean(overlaps) < 1
    assert heads.stability(heads.HeadScores(scores), 7, 7, seed) == pytest.approx(np.mean(overlaps), abs=1e-12)


def test_heads_json_holds_what_identifies_a_selection():
    judge, _ = both()
    scores = heads.detect(judge, [candidate_set()])
    content = heads.describe(scores, heads.select(scores.mean, knobs()), knobs(), judge)
    assert np.array(content["scores"]).shape == (4, 4)
    assert content["probes"] == 2 and len(content["selected"]) == 3 and 0 <= content["stability"] <= 1
    assert content["dtype"] == "float64" and (content["judge"], content["weights"]) == (judge.reference, judge.weights)
    noise = heads.HeadScores(np.random.default_rng(0).random((6, 4, 4)))
    content = heads.describe(noise, [(1, 2)], knobs(seed=3, bootstrap=7, strategy="random"), judge)
    assert content["stability"] == round(heads.stability(noise, 3, 7, 3), 4) and content["strategy"] == "random"
    assert content["scores"] == np.round(noise.mean, 6).tolist() and content["selected"] == [[1, 2]]
    assert (content["best"], content["mean"]) == (round(noise.mean.max(), 6), round(noise.mean.mean(), 6))
    everything = heads.describe(noise, [(1, 2)], knobs(count=99), judge)
    assert everything["stability"] == 1, "of all heads, whatever the count"


def test_the_reranker_sums_calibrated_masses_of_the_heads():
    judge, _ = both()
    candidates = candidate_set()
    masses, calibration = judge.document_masses(candidates)
    scores = heads.score_documents(masses, calibration, [5, 1, 9, 3])
    for low, high in ((1, 3), (0, 2), (0, 0)):  # below the last layer the judge is not run to its end
        expected = scores[:, low, 0] + scores[:, high, 2]
        torch.testing.assert_close(heads.rerank(judge, candidates, [(low, 0), (high, 2)]), expected, atol=0, rtol=0)
    above = []
    judge.model.model.layers[2].register_forward_hook(lambda *_: above.append(1))
    heads.rerank(judge, candidates, [(0, 0), (1, 2)])
    assert not above


def test_a_reading_of_the_lowest_layers_gives_their_attention_and_no_loss():
    judge, _ = both()
    candidates, calls = candidate_set(), []
    for number, layer in enumerate(judge.model.model.layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: calls.append(number))
    reading = judge.read(candidates, depth=2)
    masses, _ = judge.document_masses(candidates, reading)
    assert len(reading.layers) == masses.shape[1] == 2 and max(calls) == 1
    with pytest.raises(ValueError, match="ends at layer 2 of 4"):
        judge.target_losses(candidates, reading=reading)


# ---------------------------------------------------------------------------------------------------- diagnostics


def test_the_diagnosis_is_made_of_the_losses_it_names():
    judge, model = both()
    sets = [dataclasses.replace(candidate_set((4, 3), questions=1, seed=s)) for s in range(3)]
    sets = [dataclasses.replace(s, questions=(dataclasses.replace(s.questions[0], gold=1),)) for s in sets]
    found = diagnostics.measure(judge, sets, Injection(HEADS, "query+label"), 0.5)
    used = next(r for r in found["rows"] if r["used"])
    assert used["rows"] == "query+label" and used["instances"] == 3
    gate = torch.tensor(0.5, dtype=torch.float64)
    for row in found["rows"]:
        for name, p in {"uniform": (0.5, 0.5), "gold": (0.0, 1.0), "wrong": (1.0, 0.0)}.items():
            slow = [
                reference.target_loss(model, judge.prompt.layout(s), torch.tensor(p).double(), gate, HEADS, row["rows"])
                for s in sets
            ]
            assert row[name] == pytest.approx(torch.stack(slow).mean().item(), abs=1e-5)
    assert used["none"] == pytest.approx(torch.stack([judge.target_losses(s)[0] for s in sets]).mean().item(), abs=1e-5)
    assert used["gap"] == pytest.approx(used["wrong"] - used["gold"], abs=1e-5)
    assert used["gap_low"] <= used["gap"] <= used["gap_high"]
    assert len(found["positions"]) == 3
    assert np.mean([p["gold"] for p in found["positions"]]) == pytest.approx(used["gold"], abs=1e-5)
    assert "query+label *" in diagnostics.table(found)


def test_the_diagnosis_draws_one_wrong_candidate_a_set_and_resamples_the_gaps_with_its_seed():
    """Written out: which candidate, the interval, the rounding, positions as far as 32 where targets are that long."""
    judge, _ = both(layers=2)
    judge.prompt = Prompt(Letters(), Limits(target=64))
    sets = [candidate_set((40, 12, 35, 33), questions=2, seed=s) for s in range(6)]
    sets = [
        dataclasses.replace(s, questions=(dataclasses.replace(s.questions[0], gold=i % 4), s.questions[1]))
        for i, s in enumerate(sets)
    ]
    injection, gate = Injection(((0, 1), (1, 2)), "all"), 0.123456
    found = diagnostics.measure(judge, sets, injection, gate, seed=4, resamples=50)
    assert found == diagnostics.measure(judge, sets, injection, gate, seed=4, resamples=50)
    told = [
        diagnostics.measure(judge, sets, injection, gate, seed=seed, resamples=n) for seed, n in ((0, 2000), (1, 2000), (0, 2001))
    ]
    assert told.index(diagnostics.measure(judge, sets, injection, gate)) == 0 and told[0] not in told[1:], "the defaults"
    generator, losses = np.random.default_rng(4), {"gold": [], "wrong": []}
    for s in sets:
        gold = s.questions[0].gold
        wrong = int(generator.choice([j for j in range(4) if j != gold]))
        one = dataclasses.replace(s, questions=s.questions[:1])
        for name, j in (("gold", gold), ("wrong", wrong)):
            p = torch.eye(4)[[j]]
            losses[name].append(judge.target_losses(one, p, torch.tensor(gate), injection, per_token=True)[0].double().numpy())
    used = found["rows"][2]
    gaps = np.array([w.mean() - g.mean() for w, g in zip(losses["wrong"], losses["gold"], strict=True)])
    drawn = np.random.default_rng(4).integers(0, 6, (50, 6))
    low, high = np.percentile([gaps[row].mean() for row in drawn], [2.5, 97.5])
    assert (used["gap_low"], used["gap_high"]) == (round(low, 6), round(high, 6)) and used["instances"] == 6
    assert used["gap"] == round(gaps.mean(), 6) and used["gate"] == 0.1235 and used["used"]
    positions = found["positions"]
    assert [p["position"] for p in positions] == list(range(32)) and set(positions[0]) == {
        "position",
        "none",
        "uniform",
        "gold",
        "wrong",
    }
    long_enough = [x[20] for x in losses["wrong"] if len(x) > 20]
    assert 0 < len(long_enough) < 6 and positions[20]["wrong"] == round(np.mean(long_enough), 6)
    lines = diagnostics.table(found).splitlines()
    assert len(lines) == 5 and lines[0].split() == [
        "rows",
        "injected",
        "none",
        "uniform",
        "gold",
        "wrong",
        "gap",
        "95",
        "%",
        "interval",
    ]
    assert lines[3].split()[:2] == ["all", "*"] and lines[3].endswith(f"{used['gap']:>9.4f}   {low:.4f} to {high:.4f}")
    assert lines[4] == "(nats per target token, 6 instances, g = 0.1235; * = used)"


def test_the_diagnosis_reads_documents_once_and_asks_the_first_question_only(monkeypatch):
    judge, _ = both(layers=2)
    sets = [candidate_set(questions=2, seed=s) for s in range(3)]
    read, asked, losses = [], [], judge.target_losses
    reading = judge.read
    monkeypatch.setattr(judge, "read", lambda s: read.append(s) or reading(s))
    monkeypatch.setattr(
        judge, "target_losses", lambda s, *a, **k: asked.append([q.id for q in s.questions]) or losses(s, *a, **k)
    )
    diagnostics.measure(judge, sets, Injection(((0, 1),)), 0.5, resamples=5)
    assert read == sets and asked == 3 * [["q0"], *3 * [3 * ["q0"]]]


def test_a_gap_that_is_not_above_zero_stops_training_unless_forced():
    row = {"rows": "all", "gap": 0.01, "gap_low": -0.002, "gap_high": 0.022, "instances": 8, "used": True}
    with pytest.raises(DreamError, match=r"-0\.0020 to 0\.0220 over 8 instances.*injection\.force=true"):
        diagnostics.require_signal({"rows": [row]})
    diagnostics.require_signal({"rows": [row]}, force=True)
    with pytest.raises(DreamError, match="does not tell the right candidate"):
        diagnostics.require_signal({"rows": [row | {"used": False, "gap_low": 1.0}, row | {"gap_low": 0.0}]})
    diagnostics.require_signal({"rows": [row | {"gap_low": 0.001}]})


# ---------------------------------------------------------------------------------------------------------- flops


def test_a_heads_width_is_the_configs_or_its_share_of_the_hidden_size():
    shapes = {"hidden_size": 65, "num_attention_heads": 8}
    for width in ({}, {"head_dim": None}, {"head_dim": 0}):
        assert flops.head_width(SimpleNamespace(**shapes, **width)) == 8
    assert flops.head_width(SimpleNamespace(**shapes, head_dim=16)) == 16
    assert flops.attention_flops(SimpleNamespace(**shapes, head_dim=16), 7) == 2 * 2 * 8 * 16 * 7
    wide = SimpleNamespace(**shapes, head_dim=16, num_key_value_heads=2, intermediate_size=5)
    assert flops.weights_per_layer(wide) == 65 * 16 * (8 + 2 + 2 + 8) + 3 * 65 * 5


@pytest.mark.parametrize("lowest", [None, 0, 1, 2])
def test_flops_equal_what_the_counter_of_torch_counts_in_products_with_weights(lowest):
    """Forward, and backward from the lowest selected layer up; there the graph begins behind the queries, keys and values."""
    from torch.utils.flop_counter import FlopCounterMode

    judge, _ = both(layers=3)
    candidates, shapes = candidate_set(), judge.model.config
    weights = sum(p.numel() for layer in judge.model.model.layers for p in layer.parameters() if p.ndim > 1)
    assert flops.weights_per_layer(shapes) * 3 == weights
    reading, suffixes = judge.read(candidates), judge.prompt.suffixes(candidates)
    rows, targets = sum(len(s.ids) - 1 for s in suffixes), sum(s.target[1] - s.target[0] for s in suffixes)
    assert flops.asked(suffixes) == ([len(s.ids) - 1 for s in suffixes], targets)
    counted = flops.fast_step(shapes, reading.length, *flops.asked(suffixes), lowest)
    p, gate = torch.full((2, 4), 0.25, dtype=torch.float64), torch.tensor(0.5, requires_grad=lowest is not None)
    heads = () if lowest is None else ((2, 0), (lowest, 1))
    with FlopCounterMode(display=False) as counter:
        if lowest is None:
            judge.target_losses(candidates, reading=reading)
        else:
            judge.target_losses(candidates, p, gate, Injection(heads), reading=reading).sum().backward()
    dense = reference.counted(counter, ".mm", ".addmm")
    seen = sum(flops.pairs(len(s.ids) - 1, reading.length) for s in suffixes)
    above = 0 if lowest is None else 3 - lowest
    attention = (3 + 2 * above) * flops.attention_flops(shapes, seen)
    into = judge.model.model.layers[lowest or 0].self_attn
    begun = 0 if lowest is None else 2 * rows * sum(x.weight.numel() for x in (into.q_proj, into.k_proj, into.v_proj))
    assert dense == counted.total - counted.documents - attention - begun
    assert counted.suffixes == 2 * weights * rows + 3 * flops.attention_flops(shapes, seen)
    assert counted.documents == 2 * weights * reading.length + 3 * flops.attention_flops(shapes, flops.pairs(reading.length))
    assert (counted.backward == 0) == (lowest is None)


def test_a_plain_step_reads_one_sequence_and_computes_all_logits():
    shapes = random_model(layers=3).config
    step = flops.plain_step(shapes, 10, lowest=1)
    dense, attention = 2 * flops.weights_per_layer(shapes) * 10, flops.attention_flops(shapes, 55)
    vocabulary = 2 * shapes.hidden_size * shapes.vocab_size * 10
    assert step == flops.Flops(0, 3 * (dense + attention), vocabulary, 2 * (dense + 2 * attention) + vocabulary)


def test_flops_of_the_teacher_equal_what_the_counter_of_torch_counts_in_products_with_weights():
    from torch.utils.flop_counter import FlopCounterMode

    judge, _ = both(layers=3)
    candidates, shapes = candidate_set(lengths=(6, 6, 6)), judge.model.config  # nothing is padded
    documents, suffixes = judge.prompt.documents(candidates), judge.prompt.suffixes(candidates)
    with FlopCounterMode(display=False) as counter:
        judge.passage_log_likelihood(candidates)
    dense = reference.counted(counter, ".mm", ".addmm")
    lengths = [documents.spans[0][0] + end - start for start, end in documents.spans]
    rows = [len(s.ids) - 1 for s in suffixes]
    seen = sum(flops.pairs(n) + sum(flops.pairs(r, n) for r in rows) for n in lengths)
    attention = shapes.num_hidden_layers * flops.attention_flops(shapes, seen)
    last = [p.numel() for n, p in judge.model.model.layers[-1].named_parameters() if "o_proj" in n or "mlp" in n]
    unused = 2 * sum(last) * sum(lengths)  # reading stops at the last layer's keys and values; the count does not
    assert flops.likelihoods(shapes, documents, suffixes) == dense + unused + attention


def test_flops_of_a_trained_judge_equal_what_the_counter_of_torch_counts_in_products_with_weights():
    """Forward and backward; the count leaves out of account what the two ends of the model need not compute."""
    from torch.utils.flop_counter import FlopCounterMode

    judge, _ = both(layers=3)
    adapter = judge.add_lora(4, 8, ["q_proj", "k_proj", "v_proj", "o_proj"])
    candidates, trained = candidate_set(), sum(p.numel() for p in adapter.parameters() if p.requires_grad)
    documents, suffixes = len(judge.prompt.documents(candidates).ids), judge.prompt.suffixes(candidates)
    rows, targets = [len(s.ids) - 1 for s in suffixes], sum(s.target[1] - s.target[0] for s in suffixes)
    shapes = judge.model.config
    counted = flops.fast_step(shapes, documents, rows, targets, lowest=2, adapter=trained)
    frozen = flops.fast_step(shapes, documents, rows, targets, lowest=2)
    assert counted.total > 1.5 * frozen.total
    judge.chunk = None
    with FlopCounterMode(display=False) as counter:
        judge.target_losses(candidates).sum().backward()
    dense = reference.counted(counter, ".mm", ".addmm")

    seen = flops.pairs(documents) + sum(flops.pairs(n, documents) for n in rows)
    attention = 3 * shapes.num_hidden_layers * flops.attention_flops(shapes, seen)

    def size(layer, *parts):
        """Weights of a layer's named parts, of LoRA weights only where the part says so."""
        named = judge.model.model.layers[layer].named_parameters()
        return sum(p.numel() for n, p in named if p.ndim > 1 and any(part in n for part in parts))

    # the last layer of the documents: queries have no use, nothing comes after the keys and values
    last = 2 * documents * (3 * size(2, "o_proj.lora") + 2 * size(2, "o_proj.base", "mlp"))
    last += 2 * documents * (2 * size(2, "q_proj.lora") + size(2, "q_proj.base"))
    # the first layer: nobody asks for the gradient of the token embeddings
    into = [f"{p}_proj.{part}" for p in "qkv" for part in ("base", "lora_A")]
    first = 2 * (documents + sum(rows)) * size(0, *into)
    assert min(last, first) > 0 and dense == counted.total - attention - last - first


# ------------------------------------------------------------------------------------------------ the packaged judge


@pytest.fixture(scope="module")
def packaged():
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from dream import assets
    from dream.judge import Limits

    folder = assets.model_path("packaged/smollm2-135m")
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    judge = Judge(model, AutoTokenizer.from_pretrained(folder), Limits(24, 16, 16), "packaged/smollm2-135m")
    return judge, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


PASSAGES = (
    "The Nile flows north through eleven countries and ends in the Mediterranean Sea.",
    "Paris is the capital of France and lies on the Seine.",
    "A cat is a small domesticated animal that is kept as a pet and hunts mice.",
    "Copper is a soft metal that conducts heat and electricity well.",
)


def packaged_sets():
    from dream.instances import CandidateSet, Question

    asked = ("which sea does the nile flow into", "what is the capital of france", "what animals do cats hunt")
    asked = (*asked, "does copper conduct heat")
    order = [[0, 1, 2, 3], [2, 3, 1, 0], [1, 0, 3, 2], [3, 2, 0, 1]]
    sets = []
    for i, o in enumerate(order):
        passages = tuple(PASSAGES[j] for j in o)
        sets.append(CandidateSet(str(i), "t", tuple(map(str, o)), passages, (Question(str(i), asked[i], o.index(i)),)))
    return sets


@pytest.mark.slow
@pytest.mark.parametrize("budget", ["paper", "preserve"])
def test_packaged_judge_equals_the_reference_in_float32(packaged, budget):
    """Loss within 1e-5 and gradients within 1e-3 of the largest one: 30 layers of float32 rounding."""
    judge, model = packaged
    candidates = packaged_sets()[1]
    selected = ((14, 3), (17, 3), (17, 4), (23, 2))
    found = []
    for fast in (True, False):
        scores = torch.tensor([[0.1, 0.5, -0.2, 0.3]], requires_grad=True)
        gamma = torch.tensor(0.2, requires_grad=True)
        p, g = scores.softmax(-1), gamma.sigmoid()
        if fast:
            loss = judge.target_losses(candidates, p, g, Injection(selected, "all", budget))[0]
        else:
            loss = reference.target_loss(model, judge.prompt.layout(candidates), p[0], g, selected, "all", budget)
        found.append((loss, *torch.autograd.grad(loss, (scores, gamma))))
    for a, b in zip(*found, strict=True):
        assert b.abs().max() > 1e-5
        assert (a - b).abs().max() < 1e-3 * b.abs().max()
    assert abs(found[0][0] - found[1][0]) < 1e-5


@pytest.mark.slow
def test_candidate_order_moves_the_packaged_judges_heads_little(packaged):
    """Reversing the candidates changes what a causal model attends to: mean |Δ NDCG| over heads up to .15."""
    judge, _ = packaged
    sets = packaged_sets()
    before = heads.detect(judge, sets).mean
    after = heads.detect(judge, [shuffled(s, [3, 2, 1, 0]) for s in sets]).mean
    assert np.abs(before - after).mean() < 0.15
    assert np.corrcoef(before.ravel(), after.ravel())[0, 1] > 0.5
