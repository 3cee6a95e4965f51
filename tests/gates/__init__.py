"""What audits the project: gates for coverage, mutants, locks, versions. Not distributed."""
