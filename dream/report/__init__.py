"""Tables, plots and the ``dream-report`` command: everything a reader sees, made from small git-tracked files.

One way data flows: :mod:`cells` reads and checks what the stages left under ``reports/results`` → :class:`cells.Results`;
:mod:`tables` and :mod:`plots` are registries of functions of it; :mod:`render` turns a table into a file or a screen;
:mod:`build` writes all of it. ``compare``, ``paper``, ``runs``, ``doctor``, ``plan``, ``explain`` and ``page`` are one
subcommand each. No model is loaded anywhere here and nothing under ``work/`` is needed (``compare`` and ``explain``
show texts from there when they are present).

To add a table or a plot, write one function with ``@table("name")`` or ``@plot("name")``; nothing else changes.
"""
