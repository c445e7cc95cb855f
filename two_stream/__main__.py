"""`python -m two_stream` is the `two-stream` command."""

from two_stream.cli import run

if __name__ == "__main__":
    run()
