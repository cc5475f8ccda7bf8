"""How the sources of the hybrid are merged."""
