"""What is asked: data set readers, the selection of rows, prompts, and the plan that numbers heat maps.

Imports nothing on purpose, so that ``heatlens.config`` and ``--help`` stay quick:
``rows`` (the types), ``readers`` (one module per format), ``select``, ``prompts``, ``plan``.
"""
