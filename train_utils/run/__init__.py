"""What survives a crash: run folder, lock, checkpoints, resuming, signals, watchdog, safe files."""
