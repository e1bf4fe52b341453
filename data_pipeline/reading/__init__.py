"""From shards to batches: order, cache, decoding, stream."""
