"""Record: what a model calls, while its code stays as it is.

``ops`` is the table of torch functions, ``call_tree`` names each call, ``recorder``
makes a ``graph`` of one pass. ``attention`` and ``deform_conv`` show what hides its
inner calls. Imports nothing of the package but ``errors``.
"""
