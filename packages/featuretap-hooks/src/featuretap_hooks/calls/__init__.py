"""How calls are seen: of modules by hooks and wrapped forwards, of functions by wrapping these."""
