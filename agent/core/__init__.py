"""Pure: values in, values out. No I/O, clock, thread, randomness or logging."""
