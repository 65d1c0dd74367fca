"""`python -m bandsearch` is `bandsearch`."""

from bandsearch.cli.app import main

if __name__ == "__main__":
    main()
