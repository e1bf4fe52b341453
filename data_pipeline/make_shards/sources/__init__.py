"""Where labelled images come from: a file a source."""
