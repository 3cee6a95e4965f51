"""A service on this machine for pipelines that are not Python: uploads over HTTP."""
