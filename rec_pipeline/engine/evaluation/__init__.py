"""Metrics, the one protocol they are measured by, significance, the report and its gate."""
