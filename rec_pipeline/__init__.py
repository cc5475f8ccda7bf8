"""A recommendation engine and the Dagster lineage that keeps it fresh."""
