"""What a subcommand of ``dream-report`` answers beside the report itself, one module a question."""
