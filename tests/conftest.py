"""One hypothesis profile for all tests: the same examples on every machine, and no time limit."""

from hypothesis import settings

settings.register_profile("minidsv3", derandomize=True, deadline=None)
settings.load_profile("minidsv3")
