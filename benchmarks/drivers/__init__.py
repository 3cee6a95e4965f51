"""One small script a library: import it, upload something tiny, then what is measured.

They run in the environment of their library, so they import nothing of vodup but where
vodup is the library.
"""
