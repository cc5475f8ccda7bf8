"""The lineage: one folder a stage, one file an asset, the file's stem its key and the folder its group."""
