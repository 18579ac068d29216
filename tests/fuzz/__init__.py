"""A mutation fuzzer of our own: seeded, with judges that know what may be accepted.

`python -m tests.fuzz` runs it; docs/testing.md says what it shows.
"""
