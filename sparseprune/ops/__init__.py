"""The ops: each file holds one op's public function, checks, reference, backends, fake and gradient.

``BitMask`` (``bitmask.py``) is the type they speak: one weight's mask, one bit a weight. An op is read in three
files: ``ops/<op>.py`` (the contract), ``ops/backends.py`` (which implementation runs), then the kernel of that name.
Nothing is re-exported here, where a function would hide the module of its name.
"""
