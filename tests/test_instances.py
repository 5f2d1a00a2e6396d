"""Which candidate sets are trained on and which are kept for probing the judge."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_training import make_sets

from dream import config as configs
from dream.errors import DreamError
from dream.instances import split
from dream.training import used


def config(probes, diagnostic):
    return configs.load(overrides={"recipe": "smoke", "heads.probes": probes, "injection.diagnostic": diagnostic})


@given(probes=st.integers(1, 20), diagnostic=st.integers(1, 20))
def test_no_set_is_both_trained_on_and_a_probe(probes, diagnostic):
    sets = make_sets(21)
    trained, kept = split(sets, config(probes, diagnostic))
    assert [*trained, *kept] == sets and len(kept) == max(probes, diagnostic)
    assert not {s.id for s in trained} & {s.id for s in kept}


def test_probes_that_would_take_every_set_are_one_line():
    with pytest.raises(DreamError, match=r"^4 candidate sets are prepared, .* take 4 from training. Raise data.instances"):
        split(make_sets(4), config(2, 4))


def test_the_papers_probes_are_beside_its_training_sets():
    """1,500 steps of 32 sets and 5,000 probes: all different, in the instances that the recipe prepares."""
    paper = configs.load(overrides={"recipe": "paper"})
    sets = range(paper.data.instances)
    trained, kept = split(sets, paper)
    assert len(kept) == 5000 and len(used(trained, paper)) == len(set(used(trained, paper))) == 48_000
