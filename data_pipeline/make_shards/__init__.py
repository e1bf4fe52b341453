"""`python -m data_pipeline.make_shards SOURCE INPUT OUTPUT`: labelled images in, shards out."""
