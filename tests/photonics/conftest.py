"""Property tests here start torch kernels: the first call is slow, so no test has a deadline of its own."""

from hypothesis import settings

settings.register_profile("kernels", deadline=None)
settings.load_profile("kernels")
