"""The demo: everything on loopback, judged by an independent eye."""
