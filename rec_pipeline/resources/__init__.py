"""What touches the world: data sources, artefacts, the text encoder, MLflow and Redis."""
