"""Which tasks an entry of ``tasks`` stands for: single names, lists of params and the named lists of mteb tasks here.

Membership changes between mteb releases, so the names are written out. BEIR and RTEB as in mteb 2.26.24.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from dream.data import own

if TYPE_CHECKING:
    from dream.config import Config

BEIR_PAPER = ("ArguAna", "NFCorpus", "FiQA2018", "SciFact", "SCIDOCS", "QuoraRetrieval", "TRECCOVID", "Touche2020",
              "CQADupstackRetrieval")  # fmt: skip
BEIR = ("TRECCOVID", "NFCorpus", "NQ", "HotpotQA", "FiQA2018", "ArguAna", "Touche2020", "CQADupstackRetrieval",
        "QuoraRetrieval", "DBPedia", "SCIDOCS", "FEVER", "ClimateFEVER", "SciFact", "MSMARCO")  # fmt: skip
RTEB_PAPER = ("AILACasedocs", "AILAStatutes", "LegalSummarization", "FinanceBenchRetrieval", "HC3FinanceRetrieval",
              "FinQARetrieval", "AppsRetrieval", "DS1000Retrieval", "HumanEvalRetrieval", "MBPPRetrieval",
              "WikiSQLRetrieval", "FreshStackRetrieval", "ChatDoctorRetrieval", "CUREv1")  # fmt: skip
RTEB = ("AILACasedocs", "AILAStatutes", "LegalSummarization", "LegalQuAD", "FinanceBenchRetrieval",
        "HC3FinanceRetrieval", "FinQARetrieval", "AppsRetrieval", "DS1000Retrieval", "HumanEvalRetrieval",
        "MBPPRetrieval", "WikiSQLRetrieval", "FreshStackRetrieval", "SWEbenchCodeRetrieval", "ChatDoctorRetrieval",
        "CUREv1", "MIRACLRetrievalHardNegatives")  # fmt: skip

HELD_OUT = "heldout"  # the list of the held-out parts of own documents
LISTS: dict[str, tuple[str, ...]] = {"beir-paper": BEIR_PAPER, "beir": BEIR, "rteb-paper": RTEB_PAPER, "rteb": RTEB}


def suite(name: str) -> str:
    """Suite of an mteb task.

    >>> suite("SciFact"), suite("CUREv1"), suite("SomethingElse")
    ('BEIR', 'RTEB', 'mteb')
    """
    return "BEIR" if name in BEIR else "RTEB" if name in RTEB else "mteb"


def of(config: Config) -> list[str]:
    """All evaluation tasks of the config, each once."""
    return resolve(config.tasks, config)


def resolve(entries: Iterable[str], config: Config) -> list[str]:
    """Names and lists → task names, each once, in order. No list holds itself (dream/names.py).

    Labelled own sets join ``general``; the held-out parts of own documents are the list ``heldout``.
    """
    lists: dict[str, list[str]] = {**{name: list(members) for name, members in LISTS.items()}, **config.task_lists}
    if "general" in lists:
        lists["general"] = [*lists["general"], *own.labelled(config)]
    lists[HELD_OUT] = [f"{name}{own.HELD_OUT}" for name in own.documents(config)]

    def flat(names: Iterable[str]) -> Iterator[str]:
        for name in names:
            yield from flat(lists[name]) if name in lists else [name]

    return list(dict.fromkeys(flat(entries)))
