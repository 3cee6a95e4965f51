"""What other uploaders do where vodup promises something: run, not quoted.

    python -m benchmarks.before                     every situation, every library
    python -m benchmarks.before redirect --only oss2
    python -m benchmarks.before --lock              resolve the libraries' versions again

Each library does its ordinary upload with the retries, checksums and checkpoints it has,
against the development server, which misbehaves in one way. What became of the object, the
parts, the credentials and the caller is written to `benchmarks/results/before.md` and
`before.json`.
"""
