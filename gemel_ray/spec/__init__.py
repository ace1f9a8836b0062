"""The words: workload, layers, merge configuration, release manifest, profile, actions, errors. Plain values only."""
