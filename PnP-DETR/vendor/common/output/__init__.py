"""What a run leaves behind: log, curves, pictures, JSON."""
