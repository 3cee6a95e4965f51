"""Measures vodup beside other uploaders, in one run on one machine.

    python -m benchmarks            minutes: the headline figures
    python -m benchmarks --all      up to two hours: every table
    python -m benchmarks --check    afterwards, say which targets are met and by how much

Every contender runs in a process of its own, whose cost is taken by the process that
waits for it. Contenders alternate, so that a slow minute of the machine hits all of them;
figures are medians. Nothing leaves the machine: the server is a sink on loopback, or in a
network namespace made for the purpose.
"""
