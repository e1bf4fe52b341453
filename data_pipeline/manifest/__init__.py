"""What a folder of shards holds. `python -m data_pipeline.manifest show|verify URL`."""
