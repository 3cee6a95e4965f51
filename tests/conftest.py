"""What every test shares."""

import os

from hypothesis import settings

# Alibaba Cloud's credential chain would otherwise ask 100.100.100.200 and wait for an answer.
os.environ["ALIBABA_CLOUD_ECS_METADATA_DISABLED"] = "true"

# An example that takes long tells of a machine with other things to do, not of our code.
settings.register_profile("any-machine", deadline=None)
settings.load_profile("any-machine")

pytest_plugins = ["tests.faults.figures", "tests.postgres"]
