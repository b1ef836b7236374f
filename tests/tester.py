"""A worker of xdist among the processes of `tests/forking.py`: it reads its first line as one of its own
interpreter does."""

import sys

if __name__ == "__main__":
    exec(eval(sys.stdin.readline()))
