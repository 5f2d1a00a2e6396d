"""Training data and evaluation tasks: both are registries, one file or one entry each.

``sources``    training sources → passages and instances (query, target)
``tasks``      evaluation tasks → corpus, queries, qrels
``prepare``    draws, mixes and decontaminates what the pipeline uses
``questions``  writes questions for sources that have none
``beir``       the one reader of BEIR-format folders and zips, for a user's own data
"""
