"""`python -m tests.fuzz`: the long run, on every processor, with a table at its end."""

from tests.fuzz.run import main

if __name__ == "__main__":
    main()
