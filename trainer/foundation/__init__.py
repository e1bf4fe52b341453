"""What everything else is built on: errors, commands, settings, stores, keys, pixels, pictures."""
