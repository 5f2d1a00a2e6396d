"""Systems × tasks → scores per query that can be trusted.

``systems``    what can be evaluated: BM25, the untrained encoder, trained adapters, published models
``cache``      corpus embeddings on disk: keyed by content, written so that an interrupted run goes on
``search``     exact search in bounded memory with a stated tie rule
``metrics``    nDCG@10, recall@100, MRR@10 per query, through trec_eval
``stats``      intervals, paired tests, correction over a table
``geometry``   alignment, uniformity and a 2-D projection of an embedding space
``cells``      one system on a list of tasks → the files of an evaluation cell
``wrapper``    our encoder as an mteb model
"""
