"""The steps of one upload: `main` has their order, the other modules one concern each."""
