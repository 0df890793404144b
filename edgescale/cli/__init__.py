"""The command line: one file a verb, thin; nothing heavy is imported before a verb runs."""
