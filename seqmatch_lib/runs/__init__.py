"""Runs from presets to records: configuration, the run itself, its record, and later questions to a finished set."""
