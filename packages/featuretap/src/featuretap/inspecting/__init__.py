"""Looks at the objects and the code of a model, and runs neither.

:mod:`.looking` and :mod:`.containers` see what an object holds past what its class makes of it.
:mod:`.reading` reads the bytecode of a forward and of all that it calls by name; the other modules put one
question to it each.
"""
