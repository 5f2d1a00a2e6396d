"""A copy of a target is no negative: refused within a set, masked in the other sets of a batch."""

import dataclasses

import pytest
import torch
from test_objectives import CASES, Table, make
from test_training import encoder_folder, make_sets  # noqa: F401

from dream import objectives
from dream.errors import DreamError


def with_passage(candidates, place, text):
    passages = list(candidates.passages)
    passages[place] = text
    return dataclasses.replace(candidates, passages=tuple(passages))


@pytest.mark.parametrize(("name", "more"), CASES)
@pytest.mark.parametrize("copy", ["{}", " {}\n", "white  space"])
def test_every_objective_refuses_a_copy_of_a_target_in_its_set(encoder_folder, name, more, copy):  # noqa: F811
    objective, (first, second) = make(name, encoder_folder, **more), make_sets(2, questions=2)
    gold = first.questions[1].gold
    text = first.passages[gold].replace(" ", "\t ") if copy == "white  space" else copy.format(first.passages[gold])
    other = next(i for i in range(len(first.passages)) if i not in {q.gold for q in first.questions})
    with pytest.raises(DreamError, match=f"{first.id} has a copy of a target among its negatives. Run `dvc repro candidates`"):
        objective.loss([second, with_passage(first, other, text)], Table())
    objectives.check_sets([second, with_passage(first, other, "another text")])


def test_negatives_may_be_equal_to_each_other_and_to_targets_of_other_sets():
    first, second = make_sets(2)
    free = [i for i in range(len(first.passages)) if i != first.questions[0].gold]
    objectives.check_sets([with_passage(first, free[0], first.passages[free[1]]), with_passage(second, 0, first.target)])


@pytest.mark.parametrize("copy", ["{}", "  {} \n"])
def test_in_batch_infonce_is_the_same_with_and_without_a_copy_in_another_set(copy):
    """The copy replaces a negative of another set: as if that negative were not there for this question."""
    objective, encoder = make("infonce", negatives="batch"), Table()
    first, second = make_sets(2)
    place = next(i for i in range(len(second.passages)) if i != second.questions[0].gold)
    copied = with_passage(second, place, copy.format(first.target))
    shorter = dataclasses.replace(
        second,
        passages=tuple(t for i, t in enumerate(second.passages) if i != place),
        passage_ids=tuple(t for i, t in enumerate(second.passage_ids) if i != place),
        questions=tuple(dataclasses.replace(q, gold=q.gold - (q.gold > place)) for q in second.questions),
    )
    tau = objective.tau()
    losses = {
        name: own_loss(objective, [first, other], encoder, tau)
        for name, other in (("copy", copied), ("none", shorter), ("other", second))
    }
    torch.testing.assert_close(losses["copy"], losses["none"], rtol=1e-12, atol=0)
    assert abs(losses["copy"] - losses["other"]) > 1e-6


def own_loss(objective, sets, encoder, tau):
    """The first set's share of the loss: what is left of the mean when the second set's is taken away by hand."""
    whole, _ = objective.loss(sets, encoder)
    pool = [text for s in sets for text in s.passages]
    of_second = []
    for q in sets[1].questions:
        positive = sets[1].passages[q.gold]
        scores = torch.stack(
            [encoder.vector(q.text) @ encoder.vector(t) / tau for t in pool if t == positive or t.split() != positive.split()]
        )
        of_second.append(scores.logsumexp(0) - encoder.vector(q.text) @ encoder.vector(positive) / tau)
    return (2 * whole - sum(of_second) / len(of_second)).detach()
