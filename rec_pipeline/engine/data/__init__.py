"""Sources, validation, id maps, splits and the batches that models and recommenders exchange."""
