"""Tracing: one pass of the integer model writes the graph that computes it.

``trace`` sees each call and knows each tensor's name in the graph (``names``,
``views``), ``step_writer`` writes a step of the plan in the form that an engine fuses
(``exact_layers``: layers whose sums the engine would round).
Imports ``graph`` and ``operators``.
"""
