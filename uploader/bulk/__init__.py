"""Many files: manifests in, a ledger out."""
