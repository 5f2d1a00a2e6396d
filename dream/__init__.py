"""DREAM: train dense retrievers with a frozen language model as the judge, and measure what comes out.

The rooms, in the order in which data flows:

``config``      params.yaml → one resolved, typed :class:`~dream.config.Config`
``assets``      packaged and hub models and data, pinned and verified
``data``        training passages and instances, evaluation tasks
``candidates``  the K candidate passages of every instance
``judge``       the frozen LLM: prompt, head detection, injection, diagnostics
``encoder``     the trained dense encoder
``objectives``  one file per training objective
``losses``      the objectives as losses of sentence-transformers, for other people's scripts
``training``    the loop: steps, checkpoints, guards
``evaluation``  systems × tasks → scores per query
``report``      tables, plots and the ``dream-report`` command

This library parses no arguments; ``stages/`` does, one thin script a pipeline stage.
"""

__version__ = "0.1.0"
