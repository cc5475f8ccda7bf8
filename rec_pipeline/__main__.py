"""``python -m rec_pipeline`` is the same as ``rec-pipeline``."""

from rec_pipeline.cli import main

main()
