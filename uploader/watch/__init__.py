"""A folder that is watched: files in, videos out, each once."""
