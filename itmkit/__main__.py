"""``python -m itmkit`` is the command line."""

from itmkit.cli import main

if __name__ == "__main__":
    main()
