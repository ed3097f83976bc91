"""``make soak``: a cluster under load while things go wrong at random. Not part of the test suite."""
