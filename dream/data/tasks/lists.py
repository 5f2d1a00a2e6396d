"""Named lists of mteb tasks. They may stand in ``tasks`` beside single names and the lists of params.

Membership changes between mteb releases, so the names are written out. BEIR and RTEB as in mteb 2.26.24.
"""

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

LISTS = {"beir-paper": BEIR_PAPER, "beir": BEIR, "rteb-paper": RTEB_PAPER, "rteb": RTEB}


def suite(name: str) -> str:
    """Suite of an mteb task.

    >>> suite("SciFact"), suite("CUREv1"), suite("SomethingElse")
    ('BEIR', 'RTEB', 'mteb')
    """
    return "BEIR" if name in BEIR else "RTEB" if name in RTEB else "mteb"
