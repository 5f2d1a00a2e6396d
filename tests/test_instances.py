"""Which candidate sets are trained on and which are kept for probing the judge."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_training import make_sets

from dream import config as configs
from dream.config import stages
from dream.errors import DreamError
from dream.instances import split
from dream.training import used


@given(st.integers(1, 20))
def test_no_set_is_both_trained_on_and_a_probe(probes):
    sets = make_sets(21)
    trained, kept = split(sets, probes)
    assert [*trained, *kept] == sets and len(kept) == probes
    assert not {s.id for s in trained} & {s.id for s in kept}


def test_probes_that_would_take_every_set_are_one_line():
    with pytest.raises(DreamError, match=r"^4 candidate sets are prepared, .* take 4 from training. Raise data.instances"):
        split(make_sets(4), 4)


def test_the_papers_probes_are_beside_its_training_sets():
    """1,500 steps of 32 sets and 5,000 probes: all different, in the instances that the recipe prepares."""
    paper = configs.load(overrides={"recipe": "paper"})
    sets = range(paper.data.instances)
    trained, kept = split(sets, paper.probes)
    taken = used(trained, paper.training.steps, paper.training.batch, paper.training.block)
    assert len(kept) == 5000 and len(taken) == len(set(taken)) == 48_000


@pytest.mark.parametrize(("probes", "diagnostic"), [(3, 9), (9, 3)])
def test_training_leaves_out_the_probes_of_heads_and_of_the_gap(probes, diagnostic):
    found = configs.load(overrides={"heads.probes": probes, "injection.diagnostic": diagnostic})
    assert found.probes == 9 and stages.cut(found, "train-infonce").probes == 9
