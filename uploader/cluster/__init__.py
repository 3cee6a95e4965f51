"""The same uploads on many machines: a task queue in PostgreSQL, beside the checkpoints.

Needs the extra `vodup[cluster]`. Nothing heavy is imported with this package.
"""
