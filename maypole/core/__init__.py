"""Floor 0: artifacts, config, errors, progress, seeds, statistics, judges, theme. Knows no torch and no model."""
