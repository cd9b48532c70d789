"""The only input and output of the Dagster side: source, store, registry."""
