"""Export: an integer ONNX file, and the proof that it computes the same.

What needs the ``export`` extra is imported by name from the modules here:
:func:`exporter.export_onnx`, :func:`verify.verify`, :class:`session.Session`.
"""
