"""Export: an integer ONNX file, and the proof that it computes the same.

``tracing/`` runs the integer model once and writes what it computes, ``operators/``
each function, into a ``graph/``; ``exporter`` is the whole. ``session`` runs a file,
``verify`` compares it with the model, ``configs/`` does both from a user's config. What
needs the ``export`` extra is imported by name from the modules here. Imports everything
else.
"""
