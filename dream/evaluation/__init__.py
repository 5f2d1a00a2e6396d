"""What scoring needs: exact search over cached embeddings, metrics per query, the shape of an embedding space.

``cache``      corpus embeddings on disk: keyed by content, written so that an interrupted run goes on
``search``     exact search in bounded memory with a stated tie rule
``metrics``    nDCG@10, recall@100, MRR@10 per query, through trec_eval
``geometry``   alignment, uniformity and a 2-D projection of an embedding space
``wrapper``    our encoder as an mteb model

What can be evaluated is in ``dream/systems``; ``dream/cells.py`` makes a cell of one system and its tasks.
"""
