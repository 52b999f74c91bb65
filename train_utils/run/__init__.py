"""Make runs survive crashes: run folder, lock, checkpoints, resuming, signals, watchdog, log lines."""
