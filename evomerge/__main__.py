"""`python -m evomerge` is the same as `evomerge`."""

from evomerge.cli.main import run

if __name__ == "__main__":
    run()
