"""The tests. A package, so that `tests.support` can be imported; see tests/README.md."""
