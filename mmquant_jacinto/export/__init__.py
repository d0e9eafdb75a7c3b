"""Export: an integer ONNX file, and the proof that it computes the same.

``trace`` runs the integer model once and writes what it computes, ``step_writer`` each
step of the plan in the form an engine fuses, ``operators/`` each function; ``exporter``
is the whole. ``session`` runs a file, ``verify`` compares it with the model,
``configs/`` does both from a user's config. What needs the ``export`` extra is imported
by name from the modules here. Imports everything else.
"""
