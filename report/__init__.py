"""Report on an evaluation: metrics, errors, labels that are probably wrong, and statistics of the data."""
