"""Tables, plots and the ``dream-report`` command: everything a reader sees, made from small git-tracked files.

One way data flows, each room knowing only those before it (tests/test_report_rooms.py):

* :mod:`stats` are the intervals and tests;
* :mod:`results` reads and checks what the stages left under ``reports/results``, here or in a commit;
* :mod:`tables` and :mod:`plots` are registries of functions of the results; a table knows its formats;
* :mod:`build` writes what the report stage writes;
* :mod:`commands` answers one question a module (``compare``, ``explain``, ``verify``, ``knobs``, ``paper``, ``exports``, …);
* :mod:`page` is all of it in one file, :mod:`cli` the command line.

No model is loaded anywhere here but in ``explain``, and nothing under ``work/`` is needed but by TREC run files (``compare`` and
``explain`` show texts from there when they are present). What is asked before a run (``plan``, ``doctor``) is
:mod:`dream.planning`.

To add a table or a plot, write one function with ``@table("name")`` or ``@plot("name")``; nothing else changes.
"""
