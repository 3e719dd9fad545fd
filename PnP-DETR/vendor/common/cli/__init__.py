"""The command line: options, checkpoints that bring options along, and the commands themselves."""
