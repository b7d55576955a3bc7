"""Whether training and loading survive: every promise tried out, with figures. See __main__.py."""
