"""Property tests have no deadline: other work on the machine is no failure of ours."""

from hypothesis import settings

settings.register_profile("hanmo", deadline=None)
settings.load_profile("hanmo")
