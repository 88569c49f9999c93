"""`python -m bitnetctl`."""

from bitnetctl.cli import main

if __name__ == "__main__":
    main()
