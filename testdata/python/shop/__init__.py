"""Drivers for tests, in the manner of the reference implementation's."""
