"""The launch, the processes that watch each other, and the request to stop."""
