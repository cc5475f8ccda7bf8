"""Models fitted on what is known before the test part."""
