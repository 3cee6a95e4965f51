"""What every test shares."""

import os

# Alibaba Cloud's credential chain would otherwise ask 100.100.100.200 and wait for an answer.
os.environ["ALIBABA_CLOUD_ECS_METADATA_DISABLED"] = "true"

pytest_plugins = ["tests.faults.figures", "tests.postgres"]
